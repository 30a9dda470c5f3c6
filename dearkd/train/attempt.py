"""An attempt at a long job: alone at it, on from the newest checkpoint, able to stop, and what it has cost."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dearkd.stop import Interrupted, stop_requests
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.lease import Lease

CHANGED = {"fingerprint": "the recipe", "made_from": "what it learns or starts from"}
"""What a part of an identity stands for, in the words of a log."""


class Attempt:
    """One attempt at a resumable job, which is a training, a shard of labels or a shard of images.

    Within it the job's folder is its own. The order is `resume`, then `checkpoint` after each step, then `save` or
    `keep`, and `costs` for the record. From `resume` on, a request to stop waits for the next `checkpoint`.

    Args:
        folder: of the checkpoints. title: the job in its messages.
        recipe: fingerprint of what is made; costs count the attempts at the same, and a file that is kept is of it.
        save_seconds: longest time between two checkpoints; 0 saves at every step.
        wait: wait for another job that has the folder instead of refusing.
        active: False for all but the first of the processes that share a batch: they write nothing.

    Raises InputError when another job has the folder, and `wait` is off.
    """

    def __init__(
        self, folder: Path, title: str, recipe: str, save_seconds: float, wait: bool = False, active: bool = True
    ) -> None:
        self.title, self.active, self.save_seconds = title, active, save_seconds
        self.lease = Lease(folder, recipe, wait, active)
        self.checkpoints = Checkpoints(folder, self.lease)
        self.identity = {"identity": recipe}
        self.before = 0.0
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> "Attempt":
        self._inside.enter_context(self.lease)
        return self

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)

    @property
    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return bool(self._stop)

    @property
    def seconds(self) -> float:
        """Spent on the present state, by the attempts before this one too."""
        return self.before + time.monotonic() - self.started

    def resume(self, identity: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None. Those of another identity are removed, which the log says.

        identity: fields that a checkpoint must have; by default the recipe alone.
        """
        self.identity, saved = dict(identity or self.identity), self.checkpoints.load()
        changed = [key for key in self.identity if saved is not None and saved.get(key) != self.identity[key]]
        if changed:
            what = CHANGED.get(changed[0], "what it is made from")
            print(f"{self.title}: {what} has changed since the last checkpoint; starting anew", flush=True)
            self.checkpoints.discard()
            saved = None
        self.before = saved["seconds"] if saved else 0.0
        self.started = self.saved = time.monotonic()
        self._stop = self._inside.enter_context(stop_requests())
        return saved

    def checkpoint(self, step: int, total: int, state: Callable[[], dict[str, Any]], asked: bool | None = None) -> None:
        """Save when it is due or this job is asked to stop; then leave.

        state: what to save, asked for only then. asked: by default whether this process has been.
        Raises Interrupted when asked to stop, everything being saved.
        """
        asked = self.asked if asked is None else asked
        if asked or (step < total and time.monotonic() - self.saved >= self.save_seconds):
            self.save(step, state())
        if asked:
            raise Interrupted(
                f"{self.title}: stopped at step {step} of {total} and saved; the same command goes on from here"
            )

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; the processes that are not the first hold the same and write none."""
        if self.active:
            self.checkpoints.save(step, {**self.identity, **state, "seconds": self.seconds})
        self.saved = time.monotonic()

    def made(self, path: Path) -> dict[str, Any] | None:
        """What the record of the file at `path` says, where an attempt made it and was killed before its record."""
        made = self.checkpoints.kept(self.lease.identity, path)
        if made is not None:
            print(f"{self.title}: made already, only its record is written", flush=True)
        return made

    def keep(self, path: Path, values: dict[str, Any]) -> None:
        """Note that the file at `path` is whole and what its record is to say; the checkpoints are then removed."""
        self.checkpoints.keep(self.lease.identity, path, values)

    def costs(self) -> dict[str, Any]:
        """`seconds` of the state; attempts, seconds_all and seconds_lost of all attempts at it."""
        return {"seconds": round(self.seconds, 2), **self.lease.costs()}
