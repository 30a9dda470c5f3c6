"""Labelled images, and the one function that turns an image file into pixels of eight bits."""

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps, UnidentifiedImageError

from dearkd.errors import InputError

MODES = {1: "L", 3: "RGB"}
"""PIL's mode for a number of channels."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""Formats that are decoded, whatever the file's name. No other decoder runs: PIL's for EPS starts Ghostscript."""
ORIENTATION = 0x0112
"""EXIF's tag of the orientation; its value 1 is upright."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn any failure to read an image file inside the context into an InputError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: image is missing; restore it or write the subsets again") from None
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a readable image (it is none of {', '.join(FORMATS)}); replace it") from None
    except Exception as error:  # decoders raise almost anything on damaged files
        raise InputError(f"{path}: not a readable image ({error}); replace it") from None


def opened(file: Path | io.BytesIO) -> Image.Image:
    """Open an image file without decoding it. Raises what PIL raises: UnidentifiedImageError for other formats."""
    return Image.open(file, formats=FORMATS)


def orientation(image: Image.Image) -> int:
    """EXIF's orientation from 1 to 8; 1, which is upright, where it is missing or cannot be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data, which viewers ignore
        return 1
    return found if found in range(1, 9) else 1


def eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """The image upright, on white where it is transparent, with 1 or 3 channels of eight bits.

    Grey of 16 bits is scaled from 0..65535 to 0..255. Raises ValueError for pixels of more bits or of floats.
    """
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose white is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _from_sixteen(np.asarray(image).astype(np.int64))
    if image.has_transparency_data:
        below = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(below, image.convert("RGBA"))
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _from_sixteen(pixels: Int[np.ndarray, "height width"]) -> Image.Image:
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"its pixels run from {pixels.min()} to {pixels.max()}; save it with 8 or 16 bits")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def check(path: Path, raw: bytes, channels: int) -> None:
    """Raise InputError naming an image file that training could not read. JPEG is decoded small."""
    with named(path), opened(io.BytesIO(raw)) as image:
        image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
        eight_bit(image, channels)


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images, in memory or on disk.

    names: unique name of each sample: a path relative to `root`, or its index.
    labels: (n,) class of each sample. pixels: (n, height, width, channels) uint8, or None where `root` holds the files.
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
        """One image as `eight_bit` makes it. Raises InputError naming a file that is missing or unreadable."""
        if self.pixels is not None:
            return eight_bit(Image.fromarray(self.pixels[index].squeeze()), channels)
        path = self.root / self.names[index]
        with named(path), opened(path) as image:
            image.load()
            return eight_bit(image, channels)

    def sha256(self) -> str:
        """sha256 of pixels and labels; for files of names, sizes and labels, because `subsets` lists their contents."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, dtype=np.int64).tobytes())
        if self.pixels is not None:
            digest.update(self.pixels.tobytes())
        else:
            for name in self.names:
                digest.update(f"{name}\0{(self.root / name).stat().st_size}\n".encode())
        return digest.hexdigest()
