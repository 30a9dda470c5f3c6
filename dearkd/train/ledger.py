"""A file for each attempt at a job, from which the cost of all attempts is known. Standard library only.

The file says what the attempt makes, when it began and when it last saved. Its modification time is the attempt's last
sign of life, so the cost of an attempt that was killed is known too.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dearkd import disk

READ_TRIES, READ_SECONDS = 5, 1.0
"""How often a read is tried, and the seconds between two tries. A network file system may refuse one (ESTALE)."""


class Ledger:
    """The attempts at the job of one folder, and the file of the attempt under way.

    Args:
        folder: of the job's checkpoints.
        identity: fingerprint of what the job makes; `costs` counts the attempts that made the same.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self.path: Path | None = None
        self.own: dict[str, Any] = {}

    def begin(self, who: Mapping[str, Any]) -> None:
        """Start the file of a new attempt. who: the process, as its lease names it."""
        numbers = (re.fullmatch(r"attempt-(\d+)", path.stem) for path in self.folder.glob("attempt-*.json"))
        number = 1 + max((int(found[1]) for found in numbers if found), default=0)
        self.path = self.folder / f"attempt-{number:04d}.json"
        self.own = {**who, "of": self.identity, "began": time.time()}
        self.saved()

    def saved(self) -> None:
        """Note that everything up to now is kept."""
        if self.path is not None:
            disk.write(self.path, json.dumps({**self.own, "saved": time.time()}))

    def beat(self) -> None:
        """Give a sign of life. Raises OSError where the file cannot be touched."""
        if self.path is not None:
            os.utime(self.path)

    def costs(self) -> dict[str, Any]:
        """`attempts`, their `seconds_all`, and `seconds_lost`, which they worked after their last save.

        The seconds of an attempt that was killed are known to within a beat, ten seconds.
        """
        spent, lost, count = 0.0, 0.0, 0
        for path in self.folder.glob("attempt-*.json"):
            seen = None
            with contextlib.suppress(OSError):
                seen = read(path)
            if seen is None:
                continue
            text, beat = seen
            values = parsed(text)
            times = [values.get(key) for key in ("began", "saved")]
            if values.get("of") != self.identity or not all(isinstance(second, int | float) for second in times):
                continue
            last = time.time() if path == self.path else beat / 1e9
            count, spent = count + 1, spent + max(last - values["began"], 0.0)
            lost += 0.0 if path == self.path else max(last - values["saved"], 0.0)
        return {"attempts": count, "seconds_all": round(spent, 2), "seconds_lost": round(lost, 2)}


def read(path: Path) -> tuple[str, int] | None:
    """(text, last beat in nanoseconds since 1970) of a file that a beat touches; None where there is no file.

    The file is opened, because a network file system answers a question for its time from a cache. Raises OSError when
    the file stays unreadable.
    """
    for tries_left in reversed(range(READ_TRIES)):
        try:
            with path.open(errors="replace") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None
        except OSError:
            if not tries_left:
                raise
            time.sleep(READ_SECONDS)
    raise AssertionError("unreachable")


def parsed(text: str) -> dict[str, Any]:
    """A JSON object; {} for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
