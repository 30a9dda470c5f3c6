"""Images: where each kind of data set comes from. Run layer."""

import dataclasses
import gzip
import hashlib
import importlib.util
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

from dearkd.keys import numpy_generator
from dearkd.schema import InputError
from dearkd.spec import Data

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
"""What may be asked of placed digits: the transfer targets of the laptop's scale."""
EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm")
MODES = {1: "L", 3: "RGB"}
"""PIL's name for images of so many channels."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Whatever is wrong with an image file that is read inside, as an InputError naming it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: image is missing; restore it or write the subsets anew") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error}); replace it") from None


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images, in memory or on disk.

    names: one a sample, unique: a path relative to `root`, or its index.
    labels: (n,) class of each. pixels: (n, height, width, channels) uint8, or None where `root` holds the files.
    """

    names: Sequence[str]
    labels: Int[np.ndarray, " n"]
    pixels: np.ndarray | None = None
    root: Path = Path()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Images":
        """The samples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        names, pixels = [self.names[i] for i in chosen], None if self.pixels is None else self.pixels[chosen]
        return dataclasses.replace(self, names=names, labels=self.labels[chosen], pixels=pixels)

    def open(self, index: int, channels: int) -> Image.Image:
        """One image; InputError naming the file when it is missing or cannot be decoded."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index].squeeze())
        path, mode = self.root / self.names[index], MODES[channels]
        with named(path), Image.open(path) as image:
            image.load()
            return image if image.mode == mode else image.convert(mode)

    def sha256(self) -> str:
        """Of pixels and labels; for files of their names, sizes and labels, since 150 GB are not read for it."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, dtype=np.int64).tobytes())
        if self.pixels is not None:
            digest.update(self.pixels.tobytes())
        else:
            for name in self.names:
                digest.update(f"{name}\0{(self.root / name).stat().st_size}\n".encode())
        return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- data sets


def read(data: Data) -> dict[str, Images]:
    """The `train` and `test` images of a data set, before anything is carved out.

    Raises InputError naming what is missing and where it was looked for.
    """
    data = dataclasses.replace(data, root=root_of(data.root))
    readers = {
        "digits": _placed_digits,
        "photos": _photos,
        "idx": _idx,
        "cifar10": _cifar,
        "cifar100": _cifar,
        "flowers102": _flowers,
        "cars": _cars,
        "folder": _folder,
    }
    sets = readers[data.kind](data)
    for split, images in sets.items():
        if len(images) == 0:
            raise InputError(f"{data.root or data.kind}: no {split} images")
        if images.labels.min() < 0 or images.labels.max() >= data.classes:
            raise InputError(
                f"{data.root or data.kind}: {split} labels run from {images.labels.min()} to "
                f"{images.labels.max()}, but the scale says classes: {data.classes}"
            )
    if data.label_noise:
        sets["train"] = dataclasses.replace(sets["train"], labels=_noisy(sets["train"].labels, data))
    return sets


def root_of(root: str) -> str:
    """`root` with $VARIABLES from the environment; InputError naming one that is not set."""
    expanded = os.path.expandvars(root)
    if "$" in expanded:
        raise InputError(
            f"root: {root}: set this environment variable to the folder of the data, or write the folder in the scale"
        )
    return expanded


def _placed_digits(data: Data) -> dict[str, Images]:
    """scikit-learn's 1,797 handwritten digits, each at one seeded offset on a larger black canvas; 1,000 train.

    A task has the same digits in train and in test as every other: none that a student is tested on has it ever seen.
    Read from the file in the wheel: importing sklearn.datasets takes longer than training an epoch.
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
    """Each digit at one seeded offset; textured ones at another, on noise."""
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
    """Each digit in the left half, and in the right half another one of the same split."""
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
    """`PHOTOS`, real images for a CNN trained on ImageNet. Train and test are the same: nothing trains on them."""
    sites = {
        package: _site(package, f"data kind photos needs {name}: pip install .[lite0]")
        for package, name in (("skimage", "scikit-image"), ("sklearn", "scikit-learn"))
    }
    root = Path(os.path.commonpath(sites.values()))
    names = [(sites[name.split("/")[0]] / name).relative_to(root).as_posix() for name in PHOTOS]
    images = Images(names, np.array(list(PHOTOS.values()), dtype=np.int64), root=root)
    return {"train": images, "test": images}


def _site(package: str, missing: str) -> Path:
    """The folder that an installed package lies in; InputError with the sentence `missing` when there is none."""
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
            raise InputError(f"{data.root}: {len(pixels)} {split} images but {len(labels)} labels")
        if pixels.shape[1:3] != (data.image_size, data.image_size):
            raise InputError(
                f"{data.root}: images are {pixels.shape[1]} x {pixels.shape[2]} pixels, "
                f"but the scale says image_size: {data.image_size}"
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


def _cifar(data: Data) -> dict[str, Images]:
    """CIFAR-10 or CIFAR-100 through torchvision, which checks the files' MD5 before it reads them."""
    from torchvision import datasets

    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data.kind]
    sets = {}
    for split in ("train", "test"):
        found = _fetched(data, cls, train=split == "train")
        sets[split] = Images(
            [f"{split}-{i:05d}" for i in range(len(found.targets))], np.array(found.targets), found.data
        )
    return sets


def _flowers(data: Data) -> dict[str, Images]:
    """Flowers-102 through torchvision; its train and val together train, as the paper's 2,040 images."""
    from torchvision.datasets import Flowers102

    found = {split: _fetched(data, Flowers102, split=split) for split in ("train", "val", "test")}
    root = Path(data.root) / "flowers-102"
    sets = {"train": [found["train"], found["val"]], "test": [found["test"]]}
    return {
        split: _files(root, [f for part in parts for f in part._image_files], [y for p in parts for y in p._labels])
        for split, parts in sets.items()
    }


def _cars(data: Data) -> dict[str, Images]:
    """Stanford Cars in torchvision's layout; its host is gone, so the files come from a copy of the user's."""
    from torchvision.datasets import StanfordCars

    found = {split: _fetched(data, StanfordCars, split=split) for split in ("train", "test")}
    root = Path(data.root) / "stanford_cars"
    return {
        split: _files(root, [f for f, _ in part._samples], [label for _, label in part._samples])
        for split, part in found.items()
    }


def _fetched(data: Data, cls: Any, **which: Any) -> Any:
    """A data set of torchvision's whose files are there; InputError saying how to fetch it when they are not."""
    try:
        return cls(data.root, download=False, **which)
    except (RuntimeError, OSError):
        by_hand = "bring it by hand (docs/paper-scale.md)"  # the host of Cars is gone
        way = (
            by_hand if data.kind == "cars" else "on a machine with internet run `python -m dearkd fetch` for this scale"
        )
        raise InputError(f"{data.root}: {data.kind} is missing or damaged; {way}") from None


def _files(root: Path, files: Sequence[str | Path], labels: Sequence[int]) -> Images:
    names = [Path(f).relative_to(root).as_posix() for f in files]
    return Images(names, np.array(labels, dtype=np.int64), root=root)


def _folder(data: Data) -> dict[str, Images]:
    """root/train/<class>/*.jpg and root/val (or test)/<class>/*.jpg, ImageNet's usual layout; or root/<class>/*.jpg."""
    root = Path(data.root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; set `root` of the data in the scale")
    if data.test_share:
        return _split(root, data)
    if not (root / "train").is_dir():
        raise InputError(
            f"{root}: has no train/; put the images into train/<class>/ and val/<class>/, or, with <class>/ alone, set "
            f"test_share in the scale (0.2 holds out a fifth of each class as test images)"
        )
    held_out = next((root / n for n in ("val", "test") if (root / n).is_dir()), root / "val")
    classes = sorted(p.name for p in (root / "train").glob("*") if p.is_dir())
    if len(classes) != data.classes:
        raise InputError(f"{root / 'train'}: {len(classes)} class folders, but the scale says classes: {data.classes}")
    return {split: _class_folders(folder, classes) for split, folder in (("train", root / "train"), ("test", held_out))}


def _split(root: Path, data: Data) -> dict[str, Images]:
    """root/<class>/*.jpg, a seeded share of each class held out as `test`; at least one image on either side."""
    if (root / "train").is_dir():
        raise InputError(f"{root}: has train/, so it is split already; take test_share out of the scale")
    classes = sorted(p.name for p in root.glob("*") if p.is_dir())
    if len(classes) != data.classes:
        raise InputError(f"{root}: {len(classes)} class folders, but the scale says classes: {data.classes}")
    images, parts = _class_folders(root, classes), {"train": [], "test": []}
    for label, name in enumerate(classes):
        members = numpy_generator("test", name).permutation(np.flatnonzero(images.labels == label))
        held_out = max(1, round(len(members) * data.test_share))
        if held_out >= len(members):
            raise InputError(f"{root / name}: {len(members)} images are too few to hold out a share as test images")
        parts["test"].append(members[:held_out])
        parts["train"].append(members[held_out:])
    return {split: images.take(np.sort(np.concatenate(chosen))) for split, chosen in parts.items()}


def _class_folders(folder: Path, classes: list[str]) -> Images:
    names, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in EXTENSIONS)
        if not files:
            raise InputError(f"{folder / name}: no images of this class ({', '.join(EXTENSIONS)})")
        names += [p.relative_to(folder).as_posix() for p in files]
        labels += [label] * len(files)
    return Images(names, np.array(labels, dtype=np.int64), root=folder)


def _noisy(labels: Int[np.ndarray, " n"], data: Data) -> Int[np.ndarray, " n"]:
    random = numpy_generator("label noise", data.label_noise)
    flipped = random.random(len(labels)) < data.label_noise
    other = (labels + random.integers(1, data.classes, len(labels))) % data.classes
    return np.where(flipped, other, labels)
