"""The verb `init`: writes a study with a Snakefile, a scale, settings of Snakemake and a README."""

import collections
from pathlib import Path
from typing import Any

import jinja2

from dearkd import disk
from dearkd.errors import InputError
from dearkd.places import SHIPPED, all_shipped
from dearkd.plan import files
from dearkd.plan.scale_file import SCALES
from dearkd.ranges import Name
from dearkd.schema import build, spec

TEMPLATES = Path(__file__).with_name("study_files")
COPIED = ("profiles/default/config.yaml", "slurm/config.yaml")
IGNORED = "checkpoints/\nlogs/\n.snakemake/\nresults/*/report.html\n"
FRACTIONS = (10, 25, 50, 100)
LARGEST_BATCH = 64
"""That of the scale `custom`."""
MOST = 500
"""Largest number of validation images, which are otherwise a tenth of the training images."""


@spec
class _Named:
    name: Name


def init(folder: Path, images: Path | None = None) -> Path:
    """Write a study into `folder`, which is new or empty, and return the path of its scale.

    images: a folder of class folders, or of train/ and val/ with class folders. Without it the scale names the folder
    `images` of the study, which the user fills, and marks the lines to edit.
    Raises InputError for a name that no scale can have, a folder that is not empty, and images outside class folders.
    """
    name = build(_Named, {"name": folder.absolute().name}, str(folder)).name
    if name in (path.stem for path in all_shipped(SCALES, "*.yaml")):
        raise InputError(f"{folder}: the package has a scale named {name}; give the folder another name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not empty; name a new folder")
    looked = look(images.absolute()) if images else {}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    content: dict[Path, disk.Content] = {
        folder / target: environment.from_string((TEMPLATES / template).read_text()).render(name=name, **looked)
        for template, target in (("Snakefile", "Snakefile"), ("scale.yaml", f"{name}.yaml"), ("README.md", "README.md"))
    }
    content |= {folder / path: (SHIPPED / path).read_text() for path in COPIED}
    disk.write_all({**content, folder / ".gitignore": IGNORED})
    return folder / f"{name}.yaml"


def look(root: Path) -> dict[str, Any]:
    """The keys of a scale that describe a folder of images, from the names in it.

    batch: images of a step, at most as many as are trained on.
    Raises InputError where there are not two folders with images.
    """
    if not root.is_dir():
        what = (
            "a file, not a folder with a folder of images for each class"
            if root.exists()
            else "no such folder; correct the path"
        )
        raise InputError(f"{root}: {what}")
    split = (root / "train").is_dir() and any(path.is_dir() for path in (root / "train").iterdir())
    place = root / "train" if split else root
    sizes = collections.Counter(n.partition("/")[0] for n in files.walk(place).images if "/" in n)
    if len(sizes) < 2:
        raise InputError(
            f"{place}: has {len(sizes)} folders with images; put the images of each class into a folder of their own"
        )
    trained = min(sizes.values()) * (1.0 if split else 0.8)
    if trained < 2:
        least = min(sizes, key=lambda name: sizes[name])
        raise InputError(f"{place / least}: {sizes[least]} images are too few to train, validate and test; add some")
    validation = max(1, min(int(trained / 10), MOST // len(sizes)))
    fractions = [f for f in FRACTIONS if (trained - validation) * f / 100 >= 2]
    return {
        "root": str(root),
        "split": split,
        "classes": len(sizes),
        "validation": validation * len(sizes),
        "batch": min(LARGEST_BATCH, int(sum(sizes.values()) * (1.0 if split else 0.8)) - len(sizes) * (validation + 1)),
        "fractions": fractions or [100],
    }
