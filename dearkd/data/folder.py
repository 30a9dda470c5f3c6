"""Folders of images: a folder for each class, with or without a split into train and test."""

from pathlib import Path

import numpy as np

from dearkd.data.images import Images
from dearkd.errors import InputError
from dearkd.keys import numpy_generator
from dearkd.plan import files
from dearkd.plan.files import EXTENSIONS, Found, composed
from dearkd.plan.stage import Data

HELD_OUT = ("test", "val", "valid", "validation")
"""Names of a folder of test images. The first one that has class folders is read; ImageNet's test/ has none."""


def read(data: Data) -> tuple[dict[str, Images], dict[str, list[str]]]:
    """(the `train` and `test` images below root, the files that were left out by reason).

    The images are root/train/<class>/*.jpg and root/val/<class>/*.jpg, or root/<class>/*.jpg with `test_share`. Raises
    InputError for any other folder, and for classes that are empty, too many, too few or spelt in two ways.
    """
    root = Path(data.root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; set `root` of the data in the scale")
    return _shared(root, data) if data.test_share else _split(root, data)


def class_names(images: Images) -> dict[int, str]:
    """The folder of each label."""
    return {int(label): name.partition("/")[0] for label, name in zip(images.labels, images.names, strict=True)}


def _split(root: Path, data: Data) -> tuple[dict[str, Images], dict[str, list[str]]]:
    """The images of train/ and of one of `HELD_OUT`."""
    if not (root / "train").is_dir():
        raise InputError(
            f"{root}: has no train/; put the images into train/<class>/ and val/<class>/, or, with <class>/ alone, set "
            f"test_share in the scale (0.2 holds out a fifth of each class as test images)"
        )
    train = files.walk(root / "train")
    if train.images and not train.folders:
        raise InputError(
            f"{root / 'train'}: has images but no class folders; if train is a class beside others, set test_share in "
            f"the scale (0.2 holds out a fifth of each class as test images)"
        )
    classes = _classes(train, root / "train")
    _count(classes, root / "train", data)
    found = {name: files.walk(root / name) for name in HELD_OUT if (root / name).is_dir()}
    name = next((n for n in found if found[n].folders), None)
    if name is None:
        raise InputError(
            f"{root}: has train/, but none of {', '.join(HELD_OUT)} has class folders; put the test images into "
            f"{HELD_OUT[1]}/<class>/"
        )
    tested = _classes(found[name], root / name)
    if tested.keys() != classes.keys():
        only = {"train": sorted(classes.keys() - tested.keys()), name: sorted(tested.keys() - classes.keys())}
        lone = [f"only {split}/ has {', '.join(names[:5])}" for split, names in only.items() if names]
        raise InputError(f"{root}: train/ and {name}/ differ in classes: {'; '.join(lone)}; rename or add folders")
    sets = {
        "train": _labelled(root / "train", train, classes),
        "test": _labelled(root / name, found[name], tested),
    }
    beside = sorted(p.name for p in root.iterdir() if p.name not in ("train", name))
    places = {"train": train, name: found[name]}
    out = {f"beside train/ and {name}/": beside} if beside else {}
    for place, walked in places.items():
        for why, names in walked.left_out.items():
            out.setdefault(why, []).extend(f"{place}/{n}" for n in names)
    return sets, out


def _shared(root: Path, data: Data) -> tuple[dict[str, Images], dict[str, list[str]]]:
    """The images of class folders. A seeded share of each class is `test`; train and test have at least one image."""
    found = files.walk(root)
    inside = [name for name in found.images if name.startswith("train/")]
    if inside and all(name.count("/") > 1 for name in inside):
        raise InputError(
            f"{root}: train/ has folders, so it is split already; take test_share out of the scale, or, if train is a "
            f"class, move its images directly into train/"
        )
    classes = _classes(found, root)
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    _count(classes, root, data)
    images = _labelled(root, found, classes)
    for label, name in enumerate(classes):
        members = numpy_generator("test", name).permutation(np.flatnonzero(images.labels == label))
        held_out = max(1, round(len(members) * data.test_share))
        if held_out >= len(members):
            raise InputError(
                f"{root / name}: {len(members)} images are too few to hold out a share as test images; add images"
            )
        parts["test"].append(members[:held_out])
        parts["train"].append(members[held_out:])
    sets = {split: images.take(np.sort(np.concatenate(chosen))) for split, chosen in parts.items()}
    return sets, found.left_out


def _classes(found: Found, place: Path) -> dict[str, str]:
    """The class folders by name, with accents composed, in the order of these names."""
    classes: dict[str, str] = {}
    for folder in sorted(found.folders, key=composed):
        if composed(folder) in classes:
            raise InputError(f"{place}: two folders are called {folder}, their accents written in two ways; merge them")
        classes[composed(folder)] = folder
    return classes


def _count(classes: dict[str, str], place: Path, data: Data) -> None:
    if len(classes) != data.classes:
        some = ", ".join([*list(classes)[:5], *(["..."] if len(classes) > 5 else [])])
        raise InputError(
            f"{place}: {len(classes)} class folders, but the scale says classes: {data.classes}"
            + (f"; there are {some}" if classes else "")
        )


def _labelled(place: Path, found: Found, classes: dict[str, str]) -> Images:
    """The images of each class in order. Files beside the class folders are left out. No class is empty."""
    members: dict[str, list[str]] = {folder: [] for folder in classes.values()}
    for name in found.images:
        folder, _, inside = name.partition("/")
        if inside:
            members[folder].append(name)
        else:
            found.leave("beside the class folders", name)
    for folder, names in members.items():
        if not names:
            of_class = {w: [n for n in out if n.startswith(f"{folder}/")] for w, out in found.left_out.items()}
            left_out = files.left_out({why: names for why, names in of_class.items() if names})
            raise InputError(
                f"{place / folder}: has no images of this class ({', '.join(EXTENSIONS)})"
                + (f"; left out: {left_out}" if left_out else "")
                + "; add images, or remove the folder"
            )
    labels = np.repeat(np.arange(len(classes)), [len(members[folder]) for folder in classes.values()])
    ordered = [name for folder in classes.values() for name in members[folder]]
    return Images(ordered, labels.astype(np.int64), root=place)
