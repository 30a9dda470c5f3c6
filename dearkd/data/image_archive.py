"""Synthetic images on disk: a zip file of PNG per shard, lossless, readable by any tool."""

import dataclasses
import functools
import hashlib
import io
import os
import re
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from dearkd import disk
from dearkd.data.images import Images, eight_bit, opened
from dearkd.errors import InputError

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every member, so that equal images make equal files."""
IN_MEMORY = 2**28
"""Size in bytes of pixels up to which a set is decoded once and kept in memory."""
LONGEST = 100
"""Number of characters of a class's name in the name of its folder."""


def write(path: Path, pixels: UInt8[np.ndarray, "n height width channels"], names: Sequence[str]) -> str:
    """Write images as PNG members of a zip file, whole or not at all, and return the file's sha256."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, image in zip(names, pixels, strict=True):
            png = io.BytesIO()
            Image.fromarray(image.squeeze()).save(png, "PNG")
            archive.writestr(zipfile.ZipInfo(name, EPOCH), png.getvalue())
    disk.write(path, buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def folders_of(names: Sequence[str]) -> list[str]:
    """A folder name for each class, without characters that could lead elsewhere, different on any file system.

    Where two names would be equal as folders, they begin with the number of the output.
    """
    plain = [re.sub(r"[^\w .-]+", "_", unicodedata.normalize("NFC", name.strip())) for name in names]
    folders = [name[:LONGEST].strip(". ") or "_" for name in plain]
    if len({unicodedata.normalize("NFC", name.casefold()) for name in folders}) == len(names):
        return folders
    return [f"{i:04d}-{name}" for i, name in enumerate(folders)]


@dataclasses.dataclass(frozen=True)
class ArchivedImages(Images):
    """Images in zip files below `root`, with names such as `shard-0000.zip/member.png`. No member is extracted."""

    def open(self, index: int, channels: int) -> Image.Image:
        """One image. Raises InputError naming archive and member when it cannot be decoded."""
        if self.pixels is not None:
            return super().open(index, channels)
        file, _, member = self.names[index].partition(".zip/")
        path = self.root / f"{file}.zip"
        try:
            with opened(io.BytesIO(_archive(path, os.getpid()).read(member))) as image:
                image.load()
                return eight_bit(image, channels)
        except (KeyError, OSError, zipfile.BadZipFile, SyntaxError, ValueError) as error:
            raise InputError(f"{path}: {member} cannot be read ({error}); make the shard again") from None


@functools.lru_cache(maxsize=64)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """An open archive, one for each process. Workers with one file position would read each other's bytes."""
    return zipfile.ZipFile(path)


def read(paths: Sequence[Path], names: Sequence[str], labels: Int[np.ndarray, " n"], channels: int) -> Images:
    """The images of some shards. Small sets are decoded into memory.

    names: of the images, such as `shard-0000.zip/member.png`. Raises InputError naming an image that cannot be decoded.
    """
    images = ArchivedImages(names, labels, root=paths[0].parent)
    first = images.open(0, channels)
    if len(labels) * first.width * first.height * channels > IN_MEMORY:
        return images
    pixels = np.stack([np.asarray(images.open(i, channels)) for i in range(len(labels))])
    return dataclasses.replace(images, pixels=pixels.reshape(len(labels), first.height, first.width, channels))
