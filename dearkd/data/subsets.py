"""The subsets of a data set: validation images and class-balanced, nested fractions, listed with their sha256."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dearkd import disk, record
from dearkd.data import datasets, folder
from dearkd.data.images import Images, check
from dearkd.errors import InputError
from dearkd.keys import numpy_generator
from dearkd.plan import files
from dearkd.plan.plan import Plan
from dearkd.plan.stage import Data, subset_name
from dearkd.schema import build, to_json

DECIDES = ("kind", "classes", "validation", "label_noise", "task", "order", "test_share")
"""Fields of `Data` that decide which images and labels there are. For digits `image_size` does so too."""


def choose(
    labels: Int[np.ndarray, " n"],
    data: Data,
    fractions: Sequence[int],
    seed: int,
    draws: Sequence[int] = (),
    classes: Mapping[int, str] | None = None,
) -> dict[str, Int[np.ndarray, " _"]]:
    """Indices of the validation split and of each fraction of the rest, by name. Each subset is class-balanced.

    Each class is shuffled once by (seed, class), or left in order (`order: first`). Its first images are the
    validation split. A fraction takes the first int(n fraction) of the others, so the 10 % are part of the 25 %. Each
    of `draws` shuffles the others once more, for fractions of its own. Names: validation, train-10, train-10-seed0.
    classes: names of the classes, for messages. Raises InputError where a class would have no image in a subset.
    """
    fractions = tuple(dict.fromkeys(fractions))
    per_class, rest = divmod(data.validation, data.classes)
    if rest:
        raise InputError(f"validation: {data.validation} is no multiple of classes: {data.classes}; change it")
    chosen: dict[str, list[np.ndarray]] = {"validation": []}
    left: dict[str, int] = {}
    for label in range(data.classes):
        members = np.flatnonzero(labels == label)
        name = (classes or {}).get(label, str(label))
        if data.order == "shuffled":
            members = numpy_generator(seed, "subset", label).permutation(members)
        if per_class and len(members) <= per_class:
            raise InputError(
                f"class {name} has {len(members)} training images, too few for validation: {data.validation}; lower it"
            )
        chosen["validation"].append(members[:per_class])
        others = members[per_class:]
        left[name] = len(others)
        orders: dict[int | None, np.ndarray] = {None: others}
        orders |= {draw: numpy_generator(seed, "subset", label, draw).permutation(others) for draw in draws}
        for draw, order in orders.items():
            for fraction in fractions if draw is None else (f for f in fractions if f < 100):
                chosen.setdefault(subset_name(fraction, draw), []).append(order[: len(order) * fraction // 100])
    for fraction in fractions:
        if none := [name for name, count in left.items() if count and not count * fraction // 100]:
            fewest = min(left[name] for name in none)
            raise InputError(
                f"fractions: {fraction} % of {fewest} training images is none, so {len(none)} classes would have no "
                f"image ({', '.join(none[:5])}{', ...' * (len(none) > 5)}); take {-(-100 // fewest)} % or more"
            )
    return {name: np.sort(np.concatenate(parts)) for name, parts in chosen.items()}


def write(
    images: Images, chosen: Mapping[str, Int[np.ndarray, " _"]], folder: Path, others: Mapping[str, str] | None = None
) -> None:
    """Write a file for each subset, with the name of an image on each line, and SHA256SUMS for `sha256sum -c`.

    others: texts of other files, by name.
    """
    texts = {f"{name}.txt": "".join(f"{images.names[i]}\n" for i in indices) for name, indices in chosen.items()}
    texts |= others or {}
    for name, text in texts.items():
        disk.write(folder / name, text)
    sums = [f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in texts.items()]
    disk.write(folder / "SHA256SUMS", "".join(sums))


def read(images: Images, folder: Path, name: str, scale: str) -> tuple[Images, str]:
    """(the images of a subset, sha256 of its list). Raises InputError when the list does not fit the data set.

    scale: the word after --scale (`Plan.argument`), for the command that writes the list again.
    """
    path = folder / f"{name}.txt"
    text = files.verified(path, scale)
    position = {n: i for i, n in enumerate(images.names)}
    try:
        return images.take([position[line] for line in text.splitlines()]), hashlib.sha256(text.encode()).hexdigest()
    except KeyError as error:
        raise InputError(
            f"{path}: lists {error.args[0]!r}, which the data set lacks; restore the image, or write the list again"
        ) from None


# ------------------------------------------------------------------------------------------------ the files


def sha256s(plan: Plan, name: str, sets: Mapping[str, Images]) -> dict[str, dict[str, str]]:
    """sha256 of the image files of a data set, by split and name. Each file is opened once on this machine.

    Raises one InputError that lists every file that cannot be used.
    """
    data, places = plan.scale.data[name], folders(plan.scale.data[name], sets)
    paths = {files.below(places[split], n) for split, images in sets.items() for n in images.names}
    look, threads = functools.partial(check, channels=data.channels), plan.resources("data").threads
    found = files.contents(Path(files.root_of(data.root)), sorted(paths), plan.paths.seen(name), threads, look)
    return {split: {n: found.get(files.below(places[split], n), "") for n in i.names} for split, i in sets.items()}


def folders(data: Data, sets: Mapping[str, Images]) -> dict[str, str]:
    """The folder of each split's files, relative to the root of the data set."""
    root = files.root_of(data.root)
    return {split: os.path.relpath(images.root, root) for split, images in sets.items()}


def survey(data: Data, found: Mapping[str, Mapping[str, str]]) -> str:
    """A line on the files of a data set: how many there are, are left out by reason, and are copies of others."""
    root = files.root_of(data.root)
    line = f"{root}: " + " and ".join(f"{len(names):,} {split} images" for split, names in found.items())
    if data.kind == "folder" and (out := folder.read(dataclasses.replace(data, root=root))[1]):
        line += f"; left out: {files.left_out(out)}"
    first: dict[str, str] = {}
    named = [(f"{split} {name}", digest) for split, names in found.items() for name, digest in names.items()]
    if copies := [f"{name} = {first[digest]}" for name, digest in named if first.setdefault(digest, name) != name]:
        line += f"; {len(copies)} are copies of others, which may be in train and in test ({copies[0]})"
    return line


def list_files(plan: Plan, name: str, sets: Mapping[str, Images]) -> tuple[str, dict[str, Any]]:
    """(images.csv of a data set of files, the fields of its record that describe them)."""
    data, found = plan.scale.data[name], sha256s(plan, name, sets)
    rows = [
        files.Listed(split, image, int(label), found[split][image])
        for split, images in sets.items()
        for image, label in zip(images.names, images.labels, strict=True)
    ]
    tables = {split: files.table(files.Listed._fields, (r for r in rows if r.split == split)) for split in sets}
    sums = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in tables.items()}
    described = {"sha256": sums, "folders": folders(data, sets), "survey": survey(data, found)}
    return files.table(files.Listed._fields, rows), described


def splits(plan: Plan, name: str) -> dict[str, Images]:
    """`train`, `validation` and `test` images of a data set, as they were when its subsets were written.

    Where there is no validation split (ImageNet), `validation` has the test images. Only the labels of `train` have
    noise. Raises InputError naming the files that were added, removed or changed since.
    """
    data, lists = plan.scale.data[name], plan.paths.subsets(name)
    described, again = _described(plan, name), _again(plan, name)
    clean = dataclasses.replace(data, label_noise=0.0)
    if "folders" in described:
        root = Path(files.root_of(data.root))
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; set `root` of the data in the scale")
        if files.first_process() and (changed := files.changes(plan, name)):
            raise InputError(f"{root}: {changed} since {lists / 'data.json'} was written; undo that, or {again}")
        sets = _listed(root, described["folders"], files.listed(lists, plan.argument))
    else:
        sets = datasets.read(clean)
        for split, images in {**sets, "train": datasets.noisy(sets["train"], data)}.items():
            if images.sha256() != described["sha256"][split]:
                raise InputError(
                    f"{lists / 'data.json'}: the {split} images of {data.root or data.kind} are not the images "
                    f"that it describes; restore them, or {again}"
                )
    if any(line.endswith("  test.txt") for line in files.sums(lists)):
        sets["test"] = read(sets["test"], lists, "test", plan.argument)[0]
    elif data.test_share:
        raise InputError(f"{lists}: does not list the test images, which test_share draws; {again}")
    held_out = read(sets["train"], lists, "validation", plan.argument)[0] if data.validation else sets["test"]
    return {"train": datasets.noisy(sets["train"], data), "validation": held_out, "test": sets["test"]}


def _again(plan: Plan, name: str) -> str:
    return f"write the subsets again and train again: `python -m dearkd subset {name} --scale {plan.argument}`"


def _described(plan: Plan, name: str) -> dict[str, Any]:
    """The record of a data set. Raises InputError when it is missing or describes other data than the scale."""
    path, data = plan.paths.subsets(name) / "data.json", plan.scale.data[name]
    if not path.is_file():
        raise InputError(f"{path}: missing; write it with `python -m dearkd subset {name} --scale {plan.argument}`")
    described = record.read(path)
    decides = [*DECIDES, *(["image_size"] if data.kind == "digits" else [])]
    specs = [to_json(build(Data, described["spec"], str(path))), to_json(data)]
    recorded, planned = ({key: values[key] for key in decides} for values in specs)
    if changed := record.differences(recorded, planned):
        raise InputError(f"{path}: describes other data ({'; '.join(changed)}); {_again(plan, name)}")
    return described


def _listed(root: Path, places: dict[str, str], rows: list[files.Listed]) -> dict[str, Images]:
    sets = {}
    for split, place in places.items():
        mine = [row for row in rows if row.split == split]
        labels = np.array([row.label for row in mine], dtype=np.int64)
        sets[split] = Images([row.image for row in mine], labels, root=root / place)
    return sets
