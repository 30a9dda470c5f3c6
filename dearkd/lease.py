"""One job at a time for a run, and what all its attempts have cost. Standard library only. Run layer.

A lease is a file that names its holder, whose beat renews it. Beside it each attempt keeps a file of its own: what it
began with, when it last saved, and, as its modification time, its last sign of life, so that the cost of an attempt
that died without a word is known as well.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dearkd.record import write_text
from dearkd.schema import InputError

BEAT_SECONDS = 10.0
LEASE_SECONDS = 120.0
"""A lease held on another machine is dead after this long without a beat."""
ASK_SECONDS = 2.0
"""How often a job that waits looks again."""


class Lease:
    """Keeps two jobs off one run, for example when a killed Snakemake is started again and submits a duplicate.

    It is taken over when its holder is dead: a process that is gone on this machine, or no beat for two minutes from
    another. A holder that was only suspended that long finds out at its next save, and stops without one.

    Args:
        folder: of the run's checkpoints.
        identity: fingerprint of what is made there; costs count the attempts that made the same.
        wait: wait for the holder instead of refusing, as jobs of the workflow do.
        active: False for all but the first of the processes that share a batch.
    """

    def __init__(self, folder: Path, identity: str = "", wait: bool = False, active: bool = True) -> None:
        self.folder, self.identity, self.wait, self.active = folder, identity, wait, active
        self.path = folder / "lease.json"
        self._stop = threading.Event()

    def __enter__(self) -> "Lease":
        """Raises InputError when another job holds the run and `wait` is off."""
        if not self.active:
            return self
        self.me = json.dumps(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "job": os.environ.get("SLURM_JOB_ID", ""),
                "boot": _started(os.getpid()),
            }
        )
        told = False
        while (holder := self._take()) is not None:
            who = f"process {holder['pid']} on {holder['host']}" + (f" (job {holder['job']})" if holder["job"] else "")
            if not self.wait:
                raise InputError(f"{self.folder}: in use by {who}; wait for it or stop it")
            if not told:
                print(f"{self.folder}: in use by {who}; waiting for it", flush=True)
            told = True
            time.sleep(ASK_SECONDS)
        number = 1 + max((int(p.stem.split("-")[1]) for p in self.folder.glob("attempt-*.json")), default=0)
        self.attempt = self.folder / f"attempt-{number:04d}.json"
        self.began = time.time()
        self.saved()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self.active and self._is_mine():
            with contextlib.suppress(OSError):
                os.utime(self.attempt)
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises InputError when another job has taken the run over."""
        if self.active and not self._is_mine():
            raise InputError(
                f"{self.folder}: another job has taken this run over, because this one gave no sign of life for "
                f"{LEASE_SECONDS:.0f} seconds; it stops and leaves the other's checkpoints alone"
            )

    def saved(self) -> None:
        """Note that everything up to now is kept."""
        if self.active:
            write_text(
                self.attempt,
                json.dumps({**json.loads(self.me), "of": self.identity, "began": self.began, "saved": time.time()}),
            )

    def costs(self) -> dict[str, Any]:
        """{"attempts", "seconds_all": of all attempts, "seconds_lost": what they did after their last save}.

        Known to within a beat, ten seconds, for an attempt that died without a word.
        """
        spent, lost, count = 0.0, 0.0, 0
        for path in self.folder.glob("attempt-*.json"):
            values = _read(path)
            if values is None or values["of"] != self.identity:
                continue
            seen = time.time() if path == self.attempt else path.stat().st_mtime
            count, spent = count + 1, spent + max(seen - values["began"], 0.0)
            lost += 0.0 if path == self.attempt else max(seen - values["saved"], 0.0)
        return {"attempts": count, "seconds_all": round(spent, 2), "seconds_lost": round(lost, 2)}

    def _take(self) -> dict[str, Any] | None:
        """Take the lease; returns its holder instead when that one is alive."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "lease.lock").touch()
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror}); make room or set permissions and run again"
            ) from None
        with _alone(self.folder / "lease.lock"):
            holder = _read(self.path)
            if holder is not None and self._alive(holder):
                return holder
            write_text(self.path, self.me)
        return None

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            # a network file system that hiccups once must not end the beat
            with contextlib.suppress(OSError):
                if self._is_mine():
                    os.utime(self.path)
                    os.utime(self.attempt)

    def _is_mine(self) -> bool:
        with contextlib.suppress(OSError):
            return self.path.read_text() == self.me
        return False

    def _alive(self, holder: dict[str, Any]) -> bool:
        if holder["host"] == socket.gethostname():
            return _started(holder["pid"]) == holder["boot"] is not None
        try:
            return time.time() - self.path.stat().st_mtime < LEASE_SECONDS
        except FileNotFoundError:
            return False


def held(folder: Path) -> bool:
    """Whether a living job has a run's folder."""
    lease = Lease(folder)
    holder = _read(lease.path)
    return holder is not None and lease._alive(holder)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time looks at a lease and takes it; where a file system has no locks, they may collide."""
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, which tells reused ids apart; None: it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "running"
