"""Images/s and core out of a folder of JPEG files: ours against ImageFolder with timm's training transform."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.datasets import ImageFolder

from benchmarks import compare
from benchmarks.compare import Result
from dearkd.data.augment import posterizes_to_black
from dearkd.data.datasets import PHOTOS, Images
from dearkd.data.loader import training_loader
from dearkd.data.order import Schedule
from dearkd.data.presize import shrink
from dearkd.plan.stage import Augment, Data

USUAL = 4 * [(500, 375)] + 2 * [(500, 333)] + [(375, 500), (640, 480), (400, 300), (333, 500), (500, 400), (480, 360)]
"""Sizes of ImageNet's images, 500 x 375 pixels above all; their mean area is that of 500 x 375 within 3 %."""
LARGE = [(1600, 1200), (1200, 1600), (1280, 960)]
JPEG = {"quality": 96, "subsampling": "4:4:4"}
"""Settings of most files of ImageNet (terryalanunlimited.com/compression-in-the-imagenet-dataset): 110 KB each."""
DATA = Data(kind="folder", classes=2, image_size=224)
PRESIZE = 320


def run(options: argparse.Namespace) -> list[Result]:
    """Four ways to the same micro-batches."""
    with tempfile.TemporaryDirectory() as folder:
        usual, large = _photographs(Path(folder) / "usual", USUAL, 72), _photographs(Path(folder) / "large", LARGE, 12)
        peer = _peer(usual.root)
        memory = [compare.peak_mb(work) for work in (_ours(usual, "reduced"), peer)]
        size = sum((usual.root / n).stat().st_size for n in usual.names) / len(usual) / 1e3
        smaller = Images(usual.names, usual.labels, root=Path(folder) / "smaller")
        spec = Data(kind="folder", classes=2, image_size=224, presize=PRESIZE)
        for name in usual.names:
            shrink(usual.root / name, smaller.root / name, spec)
        files = f"JPEG files of 500 x 375 pixels on average, {size:.0f} KB"
        photos = "photographs of 1600 x 1200 pixels"
        return [
            _line("loading, reduced", files, _ours(usual, "reduced"), peer, 1.5, len(usual), *memory),
            _line(f"loading, copy of {PRESIZE} pixels", files, _ours(smaller, "reduced"), peer, 1.5, len(usual)),
            _line("loading, timm's pixels", files, _ours(usual, "full"), peer, 1.0, len(usual)),
            _line("loading, large files", photos, _ours(large, "reduced"), _peer(large.root), 1.5, len(large)),
        ]


def _line(
    name: str,
    setting: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    target: float,
    images: int,
    ours_mb: float = 0.0,
    peer_mb: float = 0.0,
) -> Result:
    mine, others = compare.in_turns(ours, peer)
    return Result(
        name,
        setting,
        "speed",
        *compare.ratio(mine, others, "speed"),
        "at least",
        target,
        images / float(np.median(mine)),
        images / float(np.median(others)),
        "images/s and core",
        "ImageFolder, timm's transform, DataLoader",
        ours_mb,
        peer_mb,
    )


def _photographs(root: Path, sizes: list[tuple[int, int]], count: int) -> Images:
    """Random parts of scikit-learn's two photographs (640 x 427) at the sizes given, in ImageNet's layout."""
    import sklearn

    site, random = Path(sklearn.__file__).parent.parent, np.random.default_rng(0)
    photos = [Image.open(site / name) for name in PHOTOS if name.startswith("sklearn")]
    names = []
    for i in range(count):
        photo, (width, height) = photos[i % 2], sizes[i % len(sizes)]
        whole = min(photo.width / width, photo.height / height) * random.uniform(0.6, 1.0)
        left, top = random.uniform(0, photo.width - whole * width), random.uniform(0, photo.height - whole * height)
        box = (left, top, left + whole * width, top + whole * height)
        names.append(f"n{i % 2:08d}/n{i % 2:08d}_{i}.JPEG")
        (root / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        photo.resize((width, height), Image.Resampling.LANCZOS, box=box).save(root / names[-1], **JPEG)
    return Images(names, np.arange(count) % 2, root=root)


def _ours(images: Images, decode: str) -> Callable[[], None]:
    """Each call loads the images once, in another epoch."""
    count = len(images)
    schedule = Schedule(size=count, draws=count, batch=count, micro_batch=count, repeats=1, seed=0)
    epochs = iter(range(10**6))

    def work() -> None:
        epoch = next(epochs)
        for _ in training_loader(images, DATA, Augment(decode=decode), schedule, epoch, epoch + 1, 0):
            pass

    return work


def _peer(root: Path) -> Callable[[], None]:
    """DeiT's arguments; its posterising is made to keep 0 bits as ours is, or it would fail on PIL 13."""
    transform = create_transform(
        224,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    transform.transforms = [posterizes_to_black(t) for t in transform.transforms]
    files = ImageFolder(root, transform)
    loader = torch.utils.data.DataLoader(files, batch_size=len(files), shuffle=True, num_workers=0)

    def work() -> None:
        for _ in loader:
            pass

    return work
