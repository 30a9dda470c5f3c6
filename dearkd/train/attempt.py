"""An attempt at a long job. It locks the job's folder, resumes from the newest checkpoint and stops when asked."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dearkd.stop import Interrupted, stop_requests
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.lease import Lease

CHANGED = {"fingerprint": "the recipe", "made_from": "what it learns or starts from"}
"""The part of an identity in words, for a log."""


class Attempt:
    """One attempt at a resumable job, which is a training, a shard of labels or a shard of images.

    Within the context no other job uses the folder. Call `resume`, then `checkpoint` after each step, then `save` or
    `keep`, and `costs` for the record. From `resume` on, a request to stop waits for the next `checkpoint`.

    Args:
        folder: of the checkpoints. title: names the job in messages.
        recipe: fingerprint of what is made. `costs` counts the attempts at the same recipe.
        save_seconds: longest time between two checkpoints; 0 saves at every step.
        wait: wait for another job that holds the folder, instead of refusing.
        active: False for all but the first of the processes that share a batch. These write nothing.

    Raises InputError when another job holds the folder and `wait` is off.
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
        """Seconds spent on the present state, by this attempt and those before it."""
        return self.before + time.monotonic() - self.started

    def resume(self, identity: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None. Checkpoints of another identity are removed, and the log says so.

        identity: fields that a checkpoint must have; by default the recipe alone.
        """
        self.identity, saved = dict(identity or self.identity), self.checkpoints.load()
        changed = [key for key in self.identity if saved is not None and saved.get(key) != self.identity[key]]
        if changed:
            what = CHANGED.get(changed[0], "what it is made from")
            print(f"{self.title}: {what} has changed since the last checkpoint; starting again", flush=True)
            self.checkpoints.discard()
            saved = None
        self.before = saved["seconds"] if saved else 0.0
        self.started = self.saved = time.monotonic()
        self._stop = self._inside.enter_context(stop_requests())
        return saved

    def checkpoint(self, step: int, total: int, state: Callable[[], dict[str, Any]], asked: bool | None = None) -> None:
        """Save when a checkpoint is due or the job is asked to stop.

        state: returns what to save. asked: whether the job is asked to stop; by default whether this process is.
        Raises Interrupted after saving when the job is asked to stop.
        """
        asked = self.asked if asked is None else asked
        if asked or (step < total and time.monotonic() - self.saved >= self.save_seconds):
            self.save(step, state())
        if asked:
            raise Interrupted(
                f"{self.title}: stopped at step {step} of {total} and saved; the same command resumes from here"
            )

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint. Only the first of the processes that share a batch writes one."""
        if self.active:
            self.checkpoints.save(step, {**self.identity, **state, "seconds": self.seconds})
        self.saved = time.monotonic()

    def made(self, path: Path) -> dict[str, Any] | None:
        """The values that `keep` noted of the file at `path`, if an attempt was killed before the file's record."""
        made = self.checkpoints.kept(self.lease.identity, path)
        if made is not None:
            print(f"{self.title}: it was finished before, and only its record is written now", flush=True)
        return made

    def keep(self, path: Path, values: dict[str, Any]) -> None:
        """Note that the file at `path` is whole and what its record is to say, then remove the checkpoints."""
        self.checkpoints.keep(self.lease.identity, path, values)

    def costs(self) -> dict[str, Any]:
        """`seconds` of the state, and `attempts`, `seconds_all` and `seconds_lost` of all attempts at it."""
        return {"seconds": round(self.seconds, 2), **self.lease.ledger.costs()}
