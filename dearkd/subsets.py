"""Class-balanced nested subsets of a data set, listed in files with their sha256. Run layer."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from dearkd.data import Images
from dearkd.keys import numpy_generator
from dearkd.record import write_text
from dearkd.schema import InputError
from dearkd.spec import Data, subset_name


def choose(
    labels: Int[np.ndarray, " n"], data: Data, fractions: Sequence[int], seed: int, draws: Sequence[int] = ()
) -> dict[str, np.ndarray]:
    """Indices of the validation split and of each fraction of the rest: class-balanced, and 10 % within 25 % and so on.

    Each class is shuffled once by (seed, class), or left in order (`order: first`); its first images are the
    validation split's, and a fraction takes the first int(n fraction) of the others. Each of `draws` shuffles those
    others once more, for fractions of its own. Keys: validation, train-10, ..., train-10-seed0, ...
    """
    fractions = tuple(dict.fromkeys(fractions))
    per_class, rest = divmod(data.validation, data.classes)
    if rest:
        raise InputError(f"validation: {data.validation} is no multiple of classes: {data.classes}")
    chosen: dict[str, list[np.ndarray]] = {"validation": []}
    for label in range(data.classes):
        members = np.flatnonzero(labels == label)
        if data.order == "shuffled":
            members = numpy_generator(seed, "subset", label).permutation(members)
        if per_class and len(members) <= per_class:
            raise InputError(
                f"class {label} has {len(members)} training images, too few for validation: {data.validation}"
            )
        chosen["validation"].append(members[:per_class])
        others = members[per_class:]
        orders = {None: others, **{d: numpy_generator(seed, "subset", label, d).permutation(others) for d in draws}}
        for draw, order in orders.items():
            for fraction in fractions if draw is None else (f for f in fractions if f < 100):
                chosen.setdefault(subset_name(fraction, draw), []).append(order[: len(order) * fraction // 100])
    return {name: np.sort(np.concatenate(parts)) for name, parts in chosen.items()}


def write(images: Images, chosen: dict[str, np.ndarray], folder: Path) -> None:
    """One file a subset, a sample's name per line, and SHA256SUMS as `sha256sum -c` reads it."""
    sums = []
    for name, indices in chosen.items():
        text = "".join(f"{images.names[i]}\n" for i in indices)
        write_text(folder / f"{name}.txt", text)
        sums.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}.txt\n")
    write_text(folder / "SHA256SUMS", "".join(sums))


def read(images: Images, folder: Path, name: str) -> tuple[Images, str]:
    """The images listed in a subset file and the file's sha256; InputError when it and the data do not agree."""
    path, scale = folder / f"{name}.txt", folder.parent.parent.name
    if not path.is_file():
        raise InputError(f"{path}: missing; write it with `python -m dearkd subset {folder.name} --scale {scale}`")
    text = path.read_text()
    digest = hashlib.sha256(text.encode()).hexdigest()
    if f"{digest}  {path.name}" not in (folder / "SHA256SUMS").read_text().splitlines():
        raise InputError(f"{path}: differs from its sha256 in SHA256SUMS; delete the folder and write the subsets anew")
    position = {n: i for i, n in enumerate(images.names)}
    try:
        return images.take([position[line] for line in text.splitlines()]), digest
    except KeyError as error:
        raise InputError(f"{path}: lists {error.args[0]!r}, which the data set does not have") from None
