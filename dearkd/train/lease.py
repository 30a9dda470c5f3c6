"""One job at a time for a run, and what all its attempts have cost. Standard library only.

A lease is a file that names its holder, whose beat renews it. Beside it each attempt keeps a file of its own: what it
began with, when it last saved, and, as its modification time, its last sign of life, so that the cost of an attempt
that died without a word is known as well.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dearkd import disk
from dearkd.schema import InputError

BEAT_SECONDS = 10.0
LEASE_SECONDS = 120.0
"""A lease held on another machine is under suspicion after this long without a beat."""
WATCH_SECONDS = 30.0
"""Then it is watched this long, three beats, before it is taken over: clocks of two machines may differ."""
READ_TRIES, READ_SECONDS = 5, 1.0
"""A network file system may refuse a read once (ESTALE): how often one is repeated, and after how long."""
ASK_SECONDS = 2.0
"""How often a job that waits looks again."""


class Lease:
    """Keeps two jobs off one run, for example when a killed Snakemake is started again and submits a duplicate.

    It is taken over when its holder is dead: a process of this machine and PID namespace that is gone, or, from
    anywhere else, no beat for two minutes and none while it is watched. A holder that was only suspended that long
    finds out at its next save, and stops without one.

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
        self._silent: tuple[str, int] | None = None

    def __enter__(self) -> "Lease":
        """Raises InputError when another job holds the run and `wait` is off."""
        if not self.active:
            return self
        self.me = json.dumps(
            {
                "host": socket.gethostname(),
                "machine": _machine(),
                "pid": os.getpid(),
                "job": os.environ.get("SLURM_JOB_ID", ""),
                "boot": _started(os.getpid()),
            }
        )
        try:
            self._wait_or_refuse()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read or written ({error.strerror}); run again") from None
        numbers = (re.fullmatch(r"attempt-(\d+)", p.stem) for p in self.folder.glob("attempt-*.json"))
        number = 1 + max((int(found[1]) for found in numbers if found), default=0)
        self.attempt = self.folder / f"attempt-{number:04d}.json"
        self._sweep()
        self.began = time.time()
        self.saved()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            if self.active and self._is_mine():
                os.utime(self.attempt)
                self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises InputError when another job has taken the run over, or nobody can tell."""
        try:
            mine = not self.active or self._is_mine()
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read ({error.strerror}), so another job may have taken this run over; "
                f"checkpoints before this one are kept, run again"
            ) from None
        if not mine:
            raise InputError(
                f"{self.folder}: another job has taken this run over, because this one gave no sign of life for "
                f"{LEASE_SECONDS:.0f} seconds; it stops and leaves the other's checkpoints alone"
            )

    def saved(self) -> None:
        """Note that everything up to now is kept."""
        if self.active:
            disk.write(
                self.attempt,
                json.dumps({**json.loads(self.me), "of": self.identity, "began": self.began, "saved": time.time()}),
            )

    def costs(self) -> dict[str, Any]:
        """{"attempts", "seconds_all": of all attempts, "seconds_lost": what they did after their last save}.

        Known to within a beat, ten seconds, for an attempt that died without a word.
        """
        spent, lost, count = 0.0, 0.0, 0
        for path in self.folder.glob("attempt-*.json"):
            state = None
            with contextlib.suppress(OSError):
                state = _state(path)
            values = _parsed(state[0]) if state else {}
            numbers = [values.get(k) for k in ("began", "saved")]
            if values.get("of") != self.identity or not all(isinstance(n, int | float) for n in numbers):
                continue
            seen = time.time() if path == self.attempt else state[1] / 1e9
            count, spent = count + 1, spent + max(seen - values["began"], 0.0)
            lost += 0.0 if path == self.attempt else max(seen - values["saved"], 0.0)
        return {"attempts": count, "seconds_all": round(spent, 2), "seconds_lost": round(lost, 2)}

    def _sweep(self) -> None:
        """Remove what killed attempts on any machine wrote in part: only who holds the lease writes here."""
        for left in self.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)

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
            state = _state(self.path)
            if state is not None and state != self._silent and not _gone(holder := _holder(state[0])):
                return holder
            disk.write(self.path, self.me)
        return None

    def _wait_or_refuse(self) -> None:
        """Take the lease, after its holder where `wait` is on; InputError where it is off and the holder lives."""
        told: set[str] = set()
        while (holder := self._take()) is not None:
            who = f"{self.folder}: in use by {_name(holder)}"
            doing = "waiting for it" if self._alive(holder) else "looking for a sign of life"
            if doing not in told and (self.wait or doing != "waiting for it"):
                print(f"{who}; {doing}", flush=True)
            told.add(doing)
            if doing != "waiting for it" and not self._beats():
                continue
            if not self.wait:
                raise InputError(f"{who}; wait for it or stop it")
            time.sleep(ASK_SECONDS)

    def _beats(self) -> bool:
        """Whether the holder beats while it is watched. If not, `_take` takes the lease if it is still the same."""
        before, end = _state(self.path), time.monotonic() + WATCH_SECONDS
        while before is not None and not _gone(_holder(before[0])) and time.monotonic() < end:
            time.sleep(min(ASK_SECONDS, WATCH_SECONDS))
            if _state(self.path) != before:
                return True
        self._silent = before
        return False

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            # a network file system that hiccups once must not end the beat
            with contextlib.suppress(OSError):
                if self._is_mine():
                    os.utime(self.path)
                    os.utime(self.attempt)

    def _is_mine(self) -> bool:
        state = _state(self.path)
        return state is not None and state[0] == self.me

    def _alive(self, holder: dict[str, Any]) -> bool:
        """For sure where the holder's process can be seen, else as the clocks have it."""
        if holder.get("machine") == _machine():
            return not _gone(holder)
        state = _state(self.path)
        return state is not None and abs(time.time() - state[1] / 1e9) < LEASE_SECONDS


def held(folder: Path) -> bool:
    """Whether a living job has a run's folder; True where its lease cannot be read."""
    lease = Lease(folder)
    try:
        state = _state(lease.path)
        return state is not None and lease._alive(_holder(state[0]))
    except OSError:
        return True


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time looks at a lease and takes it; where a file system has no locks, they may collide."""
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _state(path: Path) -> tuple[str, int] | None:
    """(text, nanoseconds of the last beat) of a lease, None where there is none; OSError when it stays unreadable.

    It is opened, not only asked for its time: a network file system answers that from a cache.
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


def _holder(text: str) -> dict[str, Any]:
    """Who a lease names; {} where it is damaged, so that only its beat tells whether there is somebody."""
    values = _parsed(text)
    return values if {"host", "pid", "job", "boot"} <= values.keys() and isinstance(values["pid"], int) else {}


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return "a job that its damaged lease.json does not name"
    return f"process {holder['pid']} on {holder['host']}" + (f" (job {holder['job']})" if holder["job"] else "")


def _gone(holder: dict[str, Any]) -> bool:
    """Whether a holder's process is known to be gone: it was one of this machine and namespace."""
    if holder.get("machine") != _machine():
        return False
    started = _started(holder["pid"])
    return started is None or (started != holder["boot"] and "running" not in (started, holder["boot"]))


def _machine() -> str:
    """Where a process id means a process: this boot of this machine, and the PID namespace, as of a container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object; {} for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


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
