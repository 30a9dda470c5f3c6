"""Files of a folder: which are read, which are left out, and whether they are still those that a record describes.

Contents are hashed once. After that a file counts as unchanged while its size and time stamps stay the same.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import NamedTuple

from dearkd import disk, record
from dearkd.errors import InputError
from dearkd.places import home
from dearkd.plan.plan import Plan

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
LIST = "images.csv"
"""Name of the file beside a data set's subsets that has each image file's split, name, label and sha256."""
SYSTEM = ("@eaDir", "__MACOSX")
"""Folders in which a NAS and macOS keep copies; hidden to their users."""
SPAN = 1000
"""Files that wait for a thread at a time."""
DIGITS = 16
"""Hexadecimal digits kept of a file's sha256: enough to see a change."""


@dataclasses.dataclass
class Found:
    """The files that a walk has found, in the order of their names, which are relative to the folder."""

    images: list[str] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    """Folders directly below, links to folders included."""
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """For each reason, the files or folders that were left out."""

    def leave(self, why: str, name: str) -> None:
        self.left_out.setdefault(why, []).append(name)


def walk(folder: Path) -> Found:
    """Every image file below a folder, following links as torchvision and timm do.

    Left out: what is hidden, of another extension, no regular file, or a link back to a folder above. Raises InputError
    for links that lead nowhere, names that no list can hold, and folders that cannot be read.
    """
    found, dangling = Found(), []

    def visit(place: str, within: str, above: frozenset[str]) -> None:
        above |= {os.path.realpath(place)}
        with os.scandir(place) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            name, kind = within + entry.name, PurePath(entry.name).suffix.lower()
            if entry.name.startswith(".") or entry.name in SYSTEM:
                found.leave("hidden", name)
            elif _leads_nowhere(entry, kind):
                dangling.append(name)
            elif entry.is_dir():
                if os.path.realpath(entry.path) in above:
                    found.leave("a link back to a folder above", name)
                    continue
                if not within:
                    found.folders.append(name)
                visit(entry.path, f"{name}/", above)
            elif kind not in EXTENSIONS:
                found.leave(kind or "no extension", name)
            elif entry.is_file():
                found.images.append(name)
            else:
                found.leave("no regular file", name)

    try:
        visit(os.fspath(folder), "", frozenset())
    except OSError as error:
        raise InputError(f"{printed(error.filename)}: cannot be read ({error.strerror}); set permissions") from None
    if dangling:
        raise InputError(
            f"{folder}: {printed(dangling[0])} is a link to nothing ({len(dangling)} in all); fetch the files that "
            f"the links lead to (git annex get, dvc pull) or delete the links"
        )
    if odd := [name for name in [*found.images, *found.folders] if not _listable(name)]:
        raise InputError(
            f"{folder}: the name {printed(odd[0])} is not UTF-8 or has a line break ({len(odd)} in all); rename it "
            f"(convmv -f latin1 -t utf8 --notest -r .)"
        )
    return found


def _leads_nowhere(entry: os.DirEntry[str], kind: str) -> bool:
    """Whether an entry that may be an image or a folder is a link to nothing, or to itself."""
    return entry.is_symlink() and kind in (*EXTENSIONS, "") and not Path(entry.path).exists()


def _listable(name: str) -> bool:
    """Whether a name fits on one line of a UTF-8 file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name.splitlines() == [name]


def printed(name: str) -> str:
    """Return a name for a message, with characters that a terminal cannot show escaped."""
    return name if name.isprintable() else ascii(name)


def left_out(found: Mapping[str, list[str]]) -> str:
    """Return what walks have left out as text: how many files, why, and the first of each kind; empty if none."""
    return ", ".join(f"{len(names)} {why} ({printed(names[0])})" for why, names in found.items())


def composed(name: str) -> str:
    """A name with its accents as one character each (NFC): a Mac writes them as two."""
    return unicodedata.normalize("NFC", name)


def root_of(root: str) -> str:
    """`root` with ~ and $VARIABLES filled in; InputError naming a variable that is not set.

    A folder of that very name counts first, whatever signs its name has.
    """
    if "$" in root and Path(home(root)).is_dir():
        return home(root)
    expanded = os.path.expandvars(root)
    if "$" in expanded:
        raise InputError(
            f"root: {root}: the environment variable is not set; set it to the folder of the data, or write the folder "
            f"in the scale"
        )
    return home(expanded)


# ------------------------------------------------------------------------------------------------ contents


def contents(
    root: Path, names: Iterable[str], seen: Path, threads: int, look: Callable[[Path, bytes], None] | None = None
) -> dict[str, str]:
    """The first digits of the sha256 of each file below `root`, by name; one that is gone is left out.

    seen: a file of this machine in which sizes and times are remembered, so that only what differs is read again.
    look: is given each file that is read. Its InputErrors come as one, a line for each, after all have been read.
    """
    before, now, unread, broken = _remembered(seen), {}, [], []
    for name in names:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stamp = _stamp(root / name)
            if before.get(name, ())[:3] == stamp:
                now[name] = before[name]
            else:
                unread.append((name, stamp))

    def one(given: tuple[str, tuple[str, ...]]) -> None:
        name, stamp = given
        try:
            raw = (root / name).read_bytes()
            if look is not None:
                look(root / name, raw)
            now[name] = (*stamp, hashlib.sha256(raw).hexdigest()[:DIGITS])
        except InputError as error:
            broken.append(str(error))
        except OSError as error:
            broken.append(f"{root / name}: cannot be read ({error.strerror}); set permissions")

    with ThreadPoolExecutor(threads) as pool:  # reading, hashing and decoding work outside Python's lock
        for first in range(0, len(unread), SPAN):
            list(pool.map(one, unread[first : first + SPAN]))
    if unread:
        with contextlib.suppress(InputError):  # it only saves time
            rows = ((n, *known) for n, known in {**before, **now}.items())
            disk.write(seen, table(("name", "bytes", "written", "moved", "sha256"), rows))
    if broken:
        noun = "image" if len(broken) == 1 else "images"
        raise InputError(f"{root}: {len(broken)} {noun} cannot be used:\n" + "\n".join(sorted(broken)))
    return {name: known[3] for name, known in now.items()}


def _stamp(path: Path) -> tuple[str, str, str]:
    """Return size, modification time and change time. No program can set the change time back."""
    status = path.stat()
    return str(status.st_size), str(status.st_mtime_ns), str(status.st_ctime_ns)


def _remembered(seen: Path) -> dict[str, tuple[str, ...]]:
    try:
        with seen.open(newline="", encoding="utf-8") as file:
            return {row[0]: tuple(row[1:]) for row in csv.reader(file) if len(row) == 5}
    except (OSError, ValueError, csv.Error):
        return {}


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """CSV with a header, names that hold commas and quotes included."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------ what is recorded


def verified(path: Path, scale: str) -> str:
    """Text of a list beside SHA256SUMS; InputError when it is missing or not what is written there.

    scale: the word after --scale (`Plan.argument`), for the command that writes the list again.
    """
    again = f"`python -m dearkd subset {path.parent.name} --scale {scale}`"
    if not path.is_file():
        raise InputError(f"{path}: missing; write it with {again}")
    raw = path.read_bytes()
    if f"{hashlib.sha256(raw).hexdigest()}  {path.name}" not in sums(path.parent):
        raise InputError(f"{path}: differs from its sha256 in SHA256SUMS; delete the folder, then run {again}")
    return raw.decode()


def sums(folder: Path) -> list[str]:
    """The lines of a folder's SHA256SUMS."""
    try:
        return (folder / "SHA256SUMS").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


class Listed(NamedTuple):
    """A line of images.csv: an image file of a data set when its subsets were written."""

    split: str
    image: str
    """Relative to the folder of its split."""
    label: int
    sha256: str


def listed(folder: Path, scale: str) -> list[Listed]:
    """The image files of a data set, from `images.csv` beside its subsets. scale: as in `verified`."""
    rows = csv.reader(io.StringIO(verified(folder / LIST, scale), newline=""))
    return [Listed(row[0], row[1], int(row[2]), row[3]) for row in itertools.islice(rows, 1, None)]


def changes(plan: Plan, name: str) -> str:
    """A phrase on the files of data set `name` that were added, removed or changed since its subsets were written.

    It is empty if nothing changed or no file is listed. Only files whose size or time stamps differ are read.
    """
    spec, folder = plan.scale.data[name], plan.paths.subsets(name)
    described = record.read(folder / "data.json") if (folder / "data.json").is_file() else {}
    if "folders" not in described:
        return ""
    root, folders = Path(root_of(spec.root)), described["folders"]
    before = {below(folders[row.split], row.image): row.sha256 for row in listed(folder, plan.argument)}
    now = contents(root, before, plan.paths.seen(name), plan.resources("data").threads)
    there = {below(place, n) for place in set(folders.values()) for n in walk(root / place).images if "/" in n}
    kinds = {
        "added": sorted(there - before.keys()) if spec.kind == "folder" else [],
        "removed": [n for n in before if n not in now],
        "changed": [n for n in now if now[n] != before[n]],
    }
    return ", ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)


def below(folder: str, name: str) -> str:
    """A path relative to a data set's root, of a name relative to the folder of its split."""
    return posixpath.normpath(posixpath.join(folder, name))


def first_process() -> bool:
    """Whether this process, of those that share a batch, is the one that looks at files."""
    return os.environ.get("RANK", "0") == "0"


def here(plan: Plan, name: str) -> bool:
    """Whether the files of data set `name` are on this machine: records are read elsewhere too."""
    try:
        return Path(root_of(plan.scale.data[name].root)).is_dir()
    except InputError:
        return False


def _some(names: list[str]) -> str:
    return ", ".join([*map(printed, names[:3]), *(["..."] if len(names) > 3 else [])])
