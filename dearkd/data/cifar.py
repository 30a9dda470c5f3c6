"""CIFAR-10 and CIFAR-100: the authors' binary version, which `fetch` downloads, or torchvision's folder."""

import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from dearkd import disk
from dearkd.arrays import read_arrays
from dearkd.data.images import Images
from dearkd.errors import InputError
from dearkd.plan.stage import Data

PIXELS = (3, 32, 32)
"""Shape of an image in both layouts: channels, rows, columns."""


class Binary(NamedTuple):
    """The binary version: files of images. An image is its labels and then its pixels, one byte each."""

    folder: str
    files: dict[str, tuple[str, ...]]
    """Files of each split."""
    labels: int
    """Number of bytes before an image's pixels. The last is the class; CIFAR-100 has its coarse class before it."""
    url: str
    sha256: str
    """sha256 of the archive at the URL."""


BINARY = {
    "cifar10": Binary(
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        1,
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "cifar100": Binary(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        2,
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
}


def read(data: Data) -> dict[str, Images]:
    """The `train` and `test` images of CIFAR under `data.root`.

    Torchvision's files are pickles: their MD5 is checked, and they may hold arrays alone. Raises InputError naming the
    file that is missing or damaged, or both folders when neither is there.
    """
    from torchvision import datasets

    root, binary = Path(data.root), BINARY[data.kind]
    theirs = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data.kind]
    if (root / binary.folder).is_dir():
        paths = {split: [root / binary.folder / name for name in names] for split, names in binary.files.items()}
        return {split: _joined(split, [_binary(p, binary.labels) for p in parts]) for split, parts in paths.items()}
    if (root / theirs.base_folder).is_dir():
        lists = {"train": theirs.train_list, "test": theirs.test_list}
        return {
            split: _joined(split, [_pickled(root / theirs.base_folder / name, md5) for name, md5 in files])
            for split, files in lists.items()
        }
    raise InputError(
        f"{root}: {data.kind} is missing, because there is no folder {binary.folder} or {theirs.base_folder}; run "
        f"`python -m dearkd fetch` for this scale on a machine with internet"
    )


def fetch(kind: str, root: str) -> None:
    """Download the binary version into `root` and unpack it. Raises InputError when its sha256 is not `sha256`."""
    from torchvision.datasets.utils import download_url

    binary = BINARY[kind]
    archive = Path(root) / binary.url.rpartition("/")[2]
    if not archive.is_file() or disk.sha256(archive) != binary.sha256:
        archive.unlink(missing_ok=True)
        download_url(binary.url, root, archive.name)
    if disk.sha256(archive) != binary.sha256:
        archive.unlink()
        raise InputError(f"{binary.url}: the sha256 of the download is not {binary.sha256}; try again")
    with tarfile.open(archive) as members:
        for member in members:
            members.extract(member, root, filter="data")
    archive.unlink()


def _joined(split: str, parts: list[tuple[np.ndarray, np.ndarray]]) -> Images:
    labels, pixels = (np.concatenate(values) for values in zip(*parts, strict=True))
    names = [f"{split}-{i:05d}" for i in range(len(labels))]
    return Images(names, labels.astype(np.int64), _last(pixels))


def _last(pixels: UInt8[np.ndarray, "n bytes"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Pixels of both layouts, a plane for each channel, with the channels last."""
    return np.ascontiguousarray(pixels.reshape(-1, *PIXELS).transpose(0, 2, 3, 1))


def _binary(path: Path, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, pixels) of a file of the binary version."""
    if not path.is_file():
        raise InputError(f"{path}: missing; delete its folder and fetch the data set again")
    raw, size = np.fromfile(path, np.uint8), labels + int(np.prod(PIXELS))
    if raw.size == 0 or raw.size % size:
        raise InputError(
            f"{path}: {raw.size:,} bytes are not whole images of {size:,} bytes; delete its folder and fetch it again"
        )
    images = raw.reshape(-1, size)
    return images[:, labels - 1], images[:, labels:]


def _pickled(path: Path, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """(labels, pixels) of a file of torchvision's folder."""
    from torchvision.datasets.utils import check_integrity

    if not check_integrity(str(path), md5):
        raise InputError(f"{path}: missing or damaged (another MD5); delete its folder and fetch the data set again")
    try:
        found = read_arrays(path.read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return np.array(found["fine_labels" if "fine_labels" in found else "labels"]), found["data"]
