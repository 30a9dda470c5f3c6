"""A smaller copy of a data set's training images, which training reads in their place (`Data.presize`). Run layer."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from dearkd import data, record
from dearkd.plan import Plan
from dearkd.schema import InputError, to_json
from dearkd.spec import Data

QUALITY = 90
"""Of the copy's JPEG files; chroma has half the resolution, which makes them a third quicker to decode."""
SPAN = 1000
"""Images between two looks for a failure."""


def presize(plan: Plan, name: str) -> None:
    """Copy the training images of data set `name`, shorter side `presize` pixels, and write what that gave.

    Files that are there already stay, so a killed job goes on where it was. Raises InputError naming the first image
    that cannot be read, or the scale's key where it asks for no copy.
    """
    spec = plan.scale.data[name]
    if not spec.presize:
        raise InputError(f"data.{name}.presize is 0 in scale {plan.scale.name}; set the shorter side in pixels")
    images, folder = data.read(spec)["train"], plan.paths.presized_images(name, spec.presize)
    with ThreadPoolExecutor(plan.resources("data").threads) as pool:  # PIL works outside Python's lock
        for first in range(0, len(images), SPAN):
            names = images.names[first : first + SPAN]
            list(pool.map(lambda n: shrink(images.root / n, folder / n, spec), names))
    record.write(
        plan.paths.presized(name),
        {
            "data": name,
            "spec": to_json(spec),
            "quality": QUALITY,
            "images": len(images),
            "bytes_before": sum((images.root / n).stat().st_size for n in images.names),
            "bytes_after": sum((folder / n).stat().st_size for n in images.names),
            "sha256": data.Images(images.names, images.labels, root=folder).sha256(),
            **record.provenance(),
        },
    )


def copy(plan: Plan, name: str, images: data.Images) -> data.Images:
    """The same training images in the copy; InputError when it was not finished or is gone."""
    spec = plan.scale.data[name]
    folder, path = plan.paths.presized_images(name, spec.presize), plan.paths.presized(name)
    again = f"run `python -m dearkd presize {name} --scale {plan.scale.name}`"
    if not path.is_file() or not folder.is_dir():
        raise InputError(f"{path if folder.is_dir() else folder}: the smaller copy is not finished; {again}")
    made = record.read(path)
    if (made["spec"]["presize"], made["quality"]) != (spec.presize, QUALITY):
        raise InputError(f"{path}: of a copy with other settings; delete it and {again}")
    return data.Images(images.names, images.labels, root=folder)


def shrink(source: Path, target: Path, spec: Data) -> None:
    """Copy one image at its size under a temporary name, then rename: a file that is there is whole."""
    if target.exists():
        return
    with data.named(source):
        content = _resized(source, spec)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{target}: cannot be written ({error.strerror}); make room or set permissions and run again"
        ) from None


def _resized(source: Path, spec: Data) -> bytes:
    """The file as it is where its shorter side is small enough, otherwise resized, in the same format."""
    with Image.open(source) as image:
        image.load()  # so that a damaged one is found here, even if it stays as it is
        scale = spec.presize / min(image.size)
        if scale >= 1:
            return source.read_bytes()
        size = (round(image.width * scale), round(image.height * scale))
        smaller = image.convert(data.MODES[spec.channels]).resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        if image.format in ("JPEG", "MPO"):  # MPO: a camera's JPEG with a preview behind it
            smaller.save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
        else:
            smaller.save(buffer, image.format)
        return buffer.getvalue()
