"""One job at a time for a run. Standard library only.

A lease is a file that names its holder. The holder touches the file every ten seconds, which is its beat.
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

from dearkd import disk
from dearkd.errors import InputError
from dearkd.train.ledger import Ledger, parsed, read

BEAT_SECONDS = 10.0
LEASE_SECONDS = 120.0
"""A holder on another machine is watched after so many seconds without a beat."""
WATCH_SECONDS = 30.0
"""How long it is watched, three beats, before its lease is taken over. The clocks of two machines may differ."""
ASK_SECONDS = 2.0
"""A job that waits looks again after so many seconds."""


class Lease:
    """Keeps two jobs off one run, for example when a killed Snakemake is started again and submits a duplicate.

    A lease is taken over when its holder is dead. A holder on this machine and in this PID namespace is dead when its
    process is gone. Any other holder is dead when it has had no beat for two minutes and has none while it is watched.
    A holder that was only suspended notices at its next save, and stops without saving.

    Args:
        folder: of the run's checkpoints.
        identity: fingerprint of what is made there; `ledger` counts the attempts that made the same.
        wait: wait for the holder instead of refusing, as jobs of the workflow do.
        active: False for all but the first of the processes that share a batch.
    """

    def __init__(self, folder: Path, identity: str = "", wait: bool = False, active: bool = True) -> None:
        self.folder, self.identity, self.wait, self.active = folder, identity, wait, active
        self.path, self.ledger = folder / "lease.json", Ledger(folder, identity)
        self._stop = threading.Event()
        self._silent: tuple[str, int] | None = None

    def __enter__(self) -> "Lease":
        """Raises InputError when another job holds the run and `wait` is off."""
        if not self.active:
            return self
        me = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "boot": _started(os.getpid()),
        }
        self.me = json.dumps(me)
        try:
            self._wait_or_refuse()
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read or written ({error.strerror}); run the command again"
            ) from None
        self._sweep()
        self.ledger.begin(me)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            if self.active and self._is_mine():
                self.ledger.beat()
                self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises InputError when another job has taken the run over, or the lease cannot be read."""
        try:
            mine = not self.active or self._is_mine()
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read ({error.strerror}), so another job may have taken this run over; "
                f"its earlier checkpoints are kept; run the command again"
            ) from None
        if not mine:
            raise InputError(
                f"{self.folder}: another job has taken this run over, because this one gave no sign of life for "
                f"{LEASE_SECONDS:.0f} seconds; this job stops and changes none of the other's checkpoints"
            )

    def _sweep(self) -> None:
        """Remove files that a killed attempt wrote in part. Only the holder of the lease writes here."""
        for left in self.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def _take(self) -> dict[str, Any] | None:
        """Take the lease. Where its holder is alive, return the holder instead."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "lease.lock").touch()
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror}); make room or set permissions, then run again"
            ) from None
        with _alone(self.folder / "lease.lock"):
            state = read(self.path)
            if state is not None and state != self._silent and not _gone(holder := _holder(state[0])):
                return holder
            disk.write(self.path, self.me)
        return None

    def _wait_or_refuse(self) -> None:
        """Take the lease. Where its holder lives, wait for the holder, or raise InputError if `wait` is off."""
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
        """Whether the holder beats while it is watched. If it does not, `_take` takes the lease that was watched."""
        before, end = read(self.path), time.monotonic() + WATCH_SECONDS
        while before is not None and not _gone(_holder(before[0])) and time.monotonic() < end:
            time.sleep(min(ASK_SECONDS, WATCH_SECONDS))
            if read(self.path) != before:
                return True
        self._silent = before
        return False

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            # the beat must survive a failed access to a network file system
            with contextlib.suppress(OSError):
                if self._is_mine():
                    os.utime(self.path)
                    self.ledger.beat()

    def _is_mine(self) -> bool:
        state = read(self.path)
        return state is not None and state[0] == self.me

    def _alive(self, holder: dict[str, Any]) -> bool:
        """Whether the holder lives: certain where its process can be seen, otherwise judged by the two clocks."""
        if holder.get("machine") == _machine():
            return not _gone(holder)
        state = read(self.path)
        return state is not None and abs(time.time() - state[1] / 1e9) < LEASE_SECONDS


def held(folder: Path) -> bool:
    """Whether a living job holds a run's folder. True where its lease cannot be read."""
    lease = Lease(folder)
    try:
        state = read(lease.path)
        return state is not None and lease._alive(_holder(state[0]))
    except OSError:
        return True


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Within, no other process looks at the lease or takes it, unless the file system has no locks."""
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _holder(text: str) -> dict[str, Any]:
    """The process that a lease names; {} where the lease is damaged. Only its beat then tells whether it is held."""
    values = parsed(text)
    return values if {"host", "pid", "job", "boot"} <= values.keys() and isinstance(values["pid"], int) else {}


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return "a job that its damaged lease.json does not name"
    return f"process {holder['pid']} on {holder['host']}" + (f" (job {holder['job']})" if holder["job"] else "")


def _gone(holder: dict[str, Any]) -> bool:
    """Whether a holder's process is known to be gone, which only its own machine and namespace can tell."""
    if holder.get("machine") != _machine():
        return False
    started = _started(holder["pid"])
    return started is None or (started != holder["boot"] and "running" not in (started, holder["boot"]))


def _machine() -> str:
    """The place where a process id means one process: this boot of this machine, and the PID namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, which tells reused ids apart; None if gone or a zombie."""
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
