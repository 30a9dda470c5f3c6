"""A smaller copy of a data set's training images, which training reads in their place (`Data.presize`)."""

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dearkd import disk, record
from dearkd.data import datasets, subsets
from dearkd.data.images import Images, eight_bit, named, opened
from dearkd.errors import InputError
from dearkd.plan import files
from dearkd.plan.plan import Plan
from dearkd.plan.stage import Data
from dearkd.schema import to_json

QUALITY = 90
"""Quality of the copy's JPEG files. Chroma has half the resolution, so that they decode a third faster."""
SAVED: dict[str, dict[str, Any]] = {"JPEG": {"quality": QUALITY, "subsampling": "4:2:0"}, "WEBP": {"quality": QUALITY}}
"""Arguments of the encoder of a format."""
SPAN = 1000
"""Number of images between two checks for a failure."""


def presize(plan: Plan, name: str) -> None:
    """Copy the training images of data set `name` with a shorter side of `presize` pixels, and write the record.

    Files whose original has not changed stay, so a killed job resumes where it was. Raises InputError naming the first
    image that cannot be read, or the scale's key where the scale asks for no copy.
    """
    data = plan.scale.data[name]
    if not data.presize:
        raise InputError(f"data.{name}.presize is 0 in scale {plan.scale.name}; set the shorter side in pixels")
    originals, folder = datasets.read(data)["train"], plan.paths.presized_images(name, data.presize)
    known = subsets.sha256s(plan, name, {"train": originals})["train"]
    for image, (original, _) in _listed(folder).items():
        if known.get(image) != original:
            (folder / image).unlink(missing_ok=True)
    with ThreadPoolExecutor(plan.resources("data").threads) as pool:  # PIL works outside Python's lock
        for first in range(0, len(originals), SPAN):
            names = originals.names[first : first + SPAN]
            list(pool.map(lambda n: shrink(originals.root / n, folder / n, data), names))
    copied = _contents(plan, name, originals.names)
    listed = files.table(("image", "original", "copy"), ((n, known[n], copied[n]) for n in originals.names))
    disk.write(_list(folder), listed)
    record.write(
        plan.paths.presized(name),
        {
            "kind": "presized",
            "data": name,
            "spec": to_json(data),
            "quality": QUALITY,
            "images": len(originals),
            "bytes_before": sum((originals.root / n).stat().st_size for n in originals.names),
            "bytes_after": sum((folder / n).stat().st_size for n in originals.names),
            "sha256": hashlib.sha256(listed.encode()).hexdigest(),
            **record.provenance(),
        },
    )


def copy(plan: Plan, name: str, images: Images) -> Images:
    """The training images `images`, read from the copy.

    Raises InputError when the copy is unfinished, missing, changed, or of other images.
    """
    data = plan.scale.data[name]
    folder, path = plan.paths.presized_images(name, data.presize), plan.paths.presized(name)
    again = f"run `python -m dearkd presize {name} --scale {plan.argument}`"
    if not path.is_file() or not folder.is_dir():
        raise InputError(f"{path if folder.is_dir() else folder}: the smaller copy is not finished; {again}")
    made = record.read(path)
    if (made["spec"]["presize"], made["quality"]) != (data.presize, QUALITY):
        raise InputError(f"{path}: describes a copy with other settings; delete it and {again}")
    if not _list(folder).is_file() or hashlib.sha256(_list(folder).read_bytes()).hexdigest() != made["sha256"]:
        raise InputError(f"{_list(folder)}: missing or not what {path} describes; {again}")
    if files.first_process():
        known = subsets.sha256s(plan, name, {"train": images})["train"]
        copied, listed = _contents(plan, name, images.names), _listed(folder)
        if others := [n for n in images.names if listed.get(n) != (known[n], copied.get(n))]:
            raise InputError(
                f"{folder / others[0]}: missing, not a readable image, or no longer the copy of its original, as are "
                f"{len(others)} in all; {again}"
            )
    return Images(images.names, images.labels, root=folder)


def _list(folder: Path) -> Path:
    """The list of a finished copy's files and their originals, beside its folder."""
    return folder.with_name(f"{folder.name}.csv")


def _listed(folder: Path) -> dict[str, tuple[str, str]]:
    """(sha256 of the original, sha256 of the copy) by name; empty where the copy was never finished."""
    if not _list(folder).is_file():
        return {}
    with _list(folder).open(newline="") as file:
        return {row["image"]: (row["original"], row["copy"]) for row in csv.DictReader(file)}


def _contents(plan: Plan, name: str, names: Sequence[str]) -> dict[str, str]:
    side = plan.scale.data[name].presize
    seen = plan.paths.seen(f"{name}-{side}")
    return files.contents(plan.paths.presized_images(name, side), names, seen, plan.resources("data").threads)


def shrink(original: Path, target: Path, data: Data) -> None:
    """Copy one image at its size under a temporary name, then rename it, so that every file is whole.

    The copy has the time of its original. A copy with another time is made again.
    """
    with named(original):
        written = original.stat().st_mtime_ns
        if target.exists() and target.stat().st_mtime_ns == written:
            return
        content = _resized(original, data)
    disk.write(target, content)
    os.utime(target, ns=(written, written))


def _resized(original: Path, data: Data) -> bytes:
    """The file unchanged where its shorter side is small enough, otherwise resized, in the same format."""
    with opened(original) as image:
        image.load()  # so that a damaged image is found here, even if it is copied unchanged
        whole, factor = eight_bit(image, data.channels), data.presize / min(image.size)
        if factor >= 1:
            return original.read_bytes()
        size = (round(whole.width * factor), round(whole.height * factor))
        # MPO is a camera's JPEG with a preview behind it; GIF would keep 256 colours
        name = {"MPO": "JPEG", "GIF": "PNG"}.get(image.format or "", image.format)
        buffer = io.BytesIO()
        # an array has no EXIF, whose orientation would turn the upright pixels
        smaller = Image.fromarray(np.asarray(whole.resize(size, Image.Resampling.BICUBIC)))
        smaller.save(buffer, name, **SAVED.get(name or "", {}))
        return buffer.getvalue()
