"""The readers of each kind of data set."""

import dataclasses
import gzip
import importlib.util
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dearkd.data import cifar, folder
from dearkd.data.images import Images
from dearkd.errors import InputError
from dearkd.keys import numpy_generator
from dearkd.plan.files import root_of
from dearkd.plan.stage import Data

PHOTOS = {
    "skimage/data/chelsea.png": 282,
    "skimage/data/coffee.png": 967,
    "skimage/data/motorcycle_left.png": 665,
    "sklearn/datasets/images/china.jpg": 698,
    "sklearn/datasets/images/flower.jpg": 985,
}
"""Sample photos in the wheels of scikit-image and scikit-learn, and the nearest class of ImageNet-1k: tiger cat,
espresso, moped (there is no motorcycle), palace (no pagoda) and daisy (no dahlia)."""
TASKS = {
    "digit": "which digit it is",
    "upside_down": "which digit it is, turned by 180 degrees",
    "parity": "whether it is odd",
    "textured": "which digit it is, placed anew on noise of up to half the brightness",
    "left_of_two": "which digit is the left one of two; needs 16 pixels",
}
"""Tasks on placed digits: the transfer targets of the digits scale."""


def read(data: Data) -> dict[str, Images]:
    """The `train` and `test` images of a data set, before validation images are taken from them.

    Raises InputError naming what is missing and where it should be.
    """
    data = dataclasses.replace(data, root=root_of(data.root))
    readers = {
        "digits": _placed_digits,
        "photos": _photos,
        "idx": _idx,
        "cifar10": cifar.read,
        "cifar100": cifar.read,
        "flowers102": _flowers,
        "cars": _cars,
        "folder": lambda data: folder.read(data)[0],
    }
    sets = {split: _in_channels(images, data.channels) for split, images in readers[data.kind](data).items()}
    for split, images in sets.items():
        if len(images) == 0:
            raise InputError(
                f"{data.root or data.kind}: has no {split} images; add some, or correct `root` in the scale"
            )
        if images.labels.min() < 0 or images.labels.max() >= data.classes:
            raise InputError(
                f"{data.root or data.kind}: {split} labels run from {images.labels.min()} to "
                f"{images.labels.max()}, but the scale says classes: {data.classes}; correct `classes`"
            )
    return {**sets, "train": noisy(sets["train"], data)}


def _placed_digits(data: Data) -> dict[str, Images]:
    """scikit-learn's 1,797 handwritten digits, each at one seeded offset on a larger black canvas; 1,000 train.

    All tasks have the same split, so no student has seen a digit that it is tested on. The digits are read from the
    file in the wheel, because importing sklearn.datasets takes longer than training an epoch.
    """
    if data.image_size < 8:
        raise InputError(f"data kind digits needs image_size 8 or more, not {data.image_size}")
    path = _site("sklearn", "data kind digits needs scikit-learn: pip install scikit-learn")
    table = np.loadtxt(path / "sklearn/datasets/data/digits.csv.gz", delimiter=",", dtype=np.int64)
    digits, labels = table[:, :64].reshape(-1, 8, 8), table[:, 64]
    order = numpy_generator("placed digits", "split").permutation(len(digits))
    split = {"train": np.sort(order[:1000]), "test": np.sort(order[1000:])}
    if data.task == "left_of_two":
        pixels = _pairs_of(digits, data.image_size, list(split.values()))
    else:
        pixels = _placed(digits, data.image_size, data.task)
    everything = Images(
        [f"digit-{i:04d}" for i in range(len(digits))], labels % 2 if data.task == "parity" else labels, pixels
    )
    return {name: everything.take(indices) for name, indices in split.items()}


def _placed(digits: Int[np.ndarray, "n 8 8"], side: int, task: str) -> UInt8[np.ndarray, "n side side 1"]:
    """Place each digit at one seeded offset; the task `textured` has other offsets and noise."""
    placement = ("placed digits", side) if task != "textured" else ("placed digits", side, task)
    random = numpy_generator(*placement)
    offsets = random.integers(0, side - 8 + 1, size=(len(digits), 2))
    pixels = np.zeros((len(digits), side, side, 1), dtype=np.uint8)
    for canvas, digit, (row, column) in zip(pixels, digits, offsets, strict=True):
        canvas[row : row + 8, column : column + 8, 0] = digit * 255 // 16
    if task == "textured":
        pixels = np.maximum(pixels, random.integers(0, 128, size=pixels.shape, dtype=np.uint8))
    return pixels[:, ::-1, ::-1] if task == "upside_down" else pixels


def _pairs_of(
    digits: Int[np.ndarray, "n 8 8"], side: int, splits: Sequence[np.ndarray]
) -> UInt8[np.ndarray, "n side side 1"]:
    """Put each digit into the left half, and another one of the same split into the right half."""
    half = side // 2
    if half < 8:
        raise InputError(f"task left_of_two needs image_size 16 or more, not {side}")
    random = numpy_generator("placed digits", side, "left_of_two")
    partner = np.empty(len(digits), dtype=np.int64)
    for members in splits:
        partner[members] = random.permutation(members)
    rows = random.integers(0, side - 8 + 1, size=(len(digits), 2))
    columns = random.integers(0, half - 8 + 1, size=(len(digits), 2))
    pixels = np.zeros((len(digits), side, side, 1), dtype=np.uint8)
    for i, canvas in enumerate(pixels):
        for k, digit in enumerate((digits[i], digits[partner[i]])):
            row, column = rows[i, k], columns[i, k] + k * half
            canvas[row : row + 8, column : column + 8, 0] = digit * 255 // 16
    return pixels


def _photos(data: Data) -> dict[str, Images]:
    """`PHOTOS`, real images for a CNN trained on ImageNet. Train and test are the same; nothing trains on them."""
    sites = {
        package: _site(package, f"data kind photos needs {name}: pip install .[lite0]")
        for package, name in (("skimage", "scikit-image"), ("sklearn", "scikit-learn"))
    }
    root = Path(os.path.commonpath(sites.values()))
    names = [(sites[name.split("/")[0]] / name).relative_to(root).as_posix() for name in PHOTOS]
    images = Images(names, np.array(list(PHOTOS.values()), dtype=np.int64), root=root)
    return {"train": images, "test": images}


def _site(package: str, missing: str) -> Path:
    """The folder of an installed package. Raises InputError with the sentence `missing` when there is none."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise InputError(missing)
    return Path(found.origin).parent.parent


def _idx(data: Data) -> dict[str, Images]:
    """MNIST's file format, plain or gzipped, as Fashion-MNIST is distributed."""
    sets = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = _read_idx(Path(data.root), f"{prefix}-images-idx3-ubyte")[..., None]
        labels = _read_idx(Path(data.root), f"{prefix}-labels-idx1-ubyte").astype(np.int64)
        if len(pixels) != len(labels):
            raise InputError(f"{data.root}: has {len(pixels)} {split} images but {len(labels)} labels; fetch it again")
        if pixels.shape[1:3] != (data.image_size, data.image_size):
            raise InputError(
                f"{data.root}: images are {pixels.shape[1]} x {pixels.shape[2]} pixels, "
                f"but the scale says image_size: {data.image_size}; correct `image_size`"
            )
        sets[split] = Images([f"{split}-{i:05d}" for i in range(len(labels))], labels, pixels)
    return sets


def _read_idx(root: Path, name: str) -> np.ndarray:
    path = next((p for p in (root / name, root / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise InputError(f"{root / name}(.gz): missing; fetch the data set or correct `root` in the scale")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        shape = np.frombuffer(raw, ">i4", raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (EOFError, OSError, ValueError, IndexError, zlib.error) as error:
        raise InputError(f"{path}: not a whole IDX file ({error}); fetch it again") from None


def _flowers(data: Data) -> dict[str, Images]:
    """Flowers-102 through torchvision. Its train and val together are the training images: the paper's 2,040."""
    from torchvision.datasets import Flowers102

    found = {split: _fetched(data, Flowers102, split=split) for split in ("train", "val", "test")}
    root = Path(data.root) / "flowers-102"
    sets = {"train": [found["train"], found["val"]], "test": [found["test"]]}
    return {
        split: _files(root, [f for part in parts for f in part._image_files], [y for p in parts for y in p._labels])
        for split, parts in sets.items()
    }


def _cars(data: Data) -> dict[str, Images]:
    """Stanford Cars in torchvision's layout. Its host is gone, so the user brings the files."""
    from torchvision.datasets import StanfordCars

    found = {split: _fetched(data, StanfordCars, split=split) for split in ("train", "test")}
    root = Path(data.root) / "stanford_cars"
    return {
        split: _files(root, [f for f, _ in part._samples], [label for _, label in part._samples])
        for split, part in found.items()
    }


def _fetched(data: Data, cls: Any, **which: Any) -> Any:
    """A data set of torchvision. Raises InputError saying how to fetch it when its files are missing."""
    try:
        return cls(data.root, download=False, **which)
    except (RuntimeError, OSError):
        by_hand = "download it by hand (docs/paper-scale.md)"  # the host of Cars is gone
        way = (
            by_hand if data.kind == "cars" else "on a machine with internet run `python -m dearkd fetch` for this scale"
        )
        raise InputError(f"{data.root}: {data.kind} is missing or damaged; {way}") from None


def _files(root: Path, files: Sequence[str | Path], labels: Sequence[int]) -> Images:
    names = [Path(f).relative_to(root).as_posix() for f in files]
    return Images(names, np.array(labels, dtype=np.int64), root=root)


def noisy(train: Images, data: Data) -> Images:
    """The training images, of which a share `label_noise` has another label, the same images each time."""
    if not data.label_noise:
        return train
    random = numpy_generator("label noise", data.label_noise)
    flipped = random.random(len(train)) < data.label_noise
    other = (train.labels + random.integers(1, data.classes, len(train))) % data.classes
    return dataclasses.replace(train, labels=np.where(flipped, other, train.labels))


def _in_channels(images: Images, channels: int) -> Images:
    """The images with `channels` channels, where they are in memory."""
    if images.pixels is None or images.pixels.shape[-1] == channels:
        return images
    pixels = np.stack([np.asarray(images.open(i, channels)) for i in range(len(images))])
    return dataclasses.replace(images, pixels=pixels.reshape(*images.pixels.shape[:3], channels))
