"""A scale from its file, and from those that it extends."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dearkd import strict_yaml
from dearkd.errors import InputError, shown, unknown
from dearkd.places import SHIPPED, all_shipped
from dearkd.plan.scale import Scale
from dearkd.schema import build

SCALES = Path("workflow/scales")


def load_scale(name: object, changes: Mapping[str, Any] | None = None, where: str = "") -> Scale:
    """Read `workflow/scales/<name>.yaml`, or the file `name` when it ends in .yaml.

    A scale may start from another (`extends: digits`); mappings are merged key by key, all else is replaced. `changes`
    are merged over the file in the same way; errors then name `where` instead of the file. A scale's `name` is its own:
    it names the folders of what it makes.
    Raises InputError naming file and key for every mistake.
    """
    path = _path(name, "scale")
    scale = build(Scale, _merge(_merged(path, ()), changes or {}), where or path.as_posix())
    other = _namesake(scale.name, path)
    if other is not None:
        raise InputError(
            f"{where or path}: name: {scale.name} is the name of {other} too, and each would overwrite the other's "
            f"results and checkpoints; give one of them another name"
        )
    return scale


def written(name: object) -> dict[tuple[str, ...], str]:
    """Return the name of the file that sets each value of a scale, by the value's keys."""
    path = _path(name, "scale")
    values = strict_yaml.read(path)
    below = written(values.pop("extends")) if "extends" in values else {}
    return below | dict.fromkeys(_places(values), path.stem)


def _places(values: Mapping[Any, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*above, str(key))
        if isinstance(value, dict):
            yield from _places(value, (*above, str(key)))


def _path(name: Any, where: str) -> Path:
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: expected the name of a scale or a .yaml file, got {shown(name)}")
    own = Path(name.removesuffix(".yaml") + ".yaml")  # records and errors call the user's file by its scale's name
    path = own if name.endswith(".yaml") else SCALES / own
    found = next((p for p in (path, SHIPPED / path, own) if _is(p.is_file)), None)
    if found is None and (name.endswith((".yaml", ".yml")) or "/" in name or _is(Path(name).is_dir)):
        raise InputError(("" if where == "scale" else f"{where}: ") + _no_file(name, Path(name)))
    if found is None:
        known = [p.stem for p in all_shipped(SCALES, "*.yaml")]
        raise InputError(unknown(name, known, "scale", SCALES.as_posix() if where == "scale" else where))
    return found


def _no_file(name: str, path: Path) -> str:
    """Why no scale is at `path`, and what is there instead."""
    folder = path if _is(path.is_dir) else path.parent
    if _is(path.is_file):
        return f"{name}: the file of a scale ends in .yaml; rename it"
    if not _is(folder.is_dir):
        return f"{name}: no such file, because there is no folder {folder}"
    there = [p.as_posix() for p in sorted(folder.glob("*.yaml"))]
    what = f"{name} is a folder, not a scale" if path.is_dir() else f"{name}: no such file in {folder.absolute()}"
    if not there:
        return f"{what}; no .yaml file is there; `dearkd init` writes a scale for a folder of images"
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"scales that are there: {', '.join(there[:12])}"
    return f"{what}; {hint}"


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a name longer than any file's
        return False


def _merged(path: Path, below: tuple[Path, ...]) -> dict[Any, Any]:
    if path in below:
        raise InputError(
            f"{path}: extends itself through {' -> '.join(p.as_posix() for p in below)}; change one `extends`"
        )
    values = strict_yaml.read(path)
    if "extends" not in values:
        return values
    base = _path(values.pop("extends"), f"{path}: extends")
    merged = _merge(_merged(base, (*below, path)), values)
    if not below and "name" not in values:
        raise InputError(
            f"{path}: missing key 'name'; write a name of its own, else its results would overwrite those of {base}"
        )
    return merged


def _merge(base: Any, top: Any) -> Any:
    if isinstance(base, dict) and isinstance(top, dict):
        return base | {k: _merge(base[k], v) if k in base else v for k, v in top.items()}
    return top


def _namesake(name: str, path: Path) -> Path | None:
    """Another scale of this name: of the project's own, beside the file, or in the working folder."""
    line = re.compile(rf"""^["']?name["']?\s*:\s*["']?{re.escape(name)}["']?\s*(#.*)?$""", re.MULTILINE)
    beside = [p for folder in dict.fromkeys((path.parent, Path())) for p in sorted(folder.glob("*.yaml"))]
    for other in dict.fromkeys([*all_shipped(SCALES, "*.yaml"), *beside]):
        if other.is_file() and not other.samefile(path) and line.search(other.read_text("utf-8", "replace")):
            return other
    return None
