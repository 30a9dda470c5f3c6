"""Files are written whole or not at all, and temporary files of killed writers are removed. Standard library only."""

import contextlib
import functools
import hashlib
import itertools
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from dearkd.errors import InputError

TEMPORARY = re.compile(r"\.dearkd-([0-9a-f]{8})-(\d+)-\d+\.tmp")
OLD_SECONDS = 86400.0
"""Seconds after which a temporary file of another machine counts as a dead writer's."""
_numbers = itertools.count()


Content = str | bytes | memoryview


def write(path: Path, content: Content) -> None:
    """Write a file and its folders: temporary name, flush to disk, rename. Text is UTF-8.

    Raises InputError naming the file when the place cannot be written. An earlier file stays intact.
    """
    write_all({path: content})


def write_all(contents: Mapping[Path, Content]) -> None:
    """Write files that belong together, as `write` does. All are on the disk before the first gets its name."""
    temporaries: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent.absolute(), os.getpid())
            temporaries[path] = path.with_name(f".dearkd-{_machine()}-{os.getpid()}-{next(_numbers)}.tmp")
            with temporaries[path].open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except OSError as error:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> InputError:
    """The sentence for a file or folder that cannot be written."""
    return InputError(
        f"{path}: cannot be written ({error.strerror}); what was there before is intact, make room or set permissions "
        f"and run again"
    )


def sha256_of(content: Content) -> str:
    """sha256 of what `write` would write, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache  # a folder of 10,000 images is looked through once, not for each image
def _sweep(folder: Path, process: int) -> None:
    """Remove temporary files whose writer is dead: gone from this machine, or silent for a day on another."""
    for path in folder.glob(".dearkd-*.tmp"):
        if (match := TEMPORARY.fullmatch(path.name)) is None:
            continue
        with contextlib.suppress(OSError):
            mine = match[1] == _machine()
            if not _runs(int(match[2])) if mine else time.time() - path.stat().st_mtime > OLD_SECONDS:
                path.unlink()


@functools.cache
def _machine() -> str:
    """Eight digits for this machine and this space of process numbers: containers may share a host's name."""
    space = ""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
