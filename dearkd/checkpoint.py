"""Checkpoints that survive anything: written whole, verified by their name, kept in twos, one writer at a time.

They lie outside Snakemake's outputs, which it deletes when a job fails. Run layer.
"""

import hashlib
import io
import json
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import torch

from dearkd.schema import InputError

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")
KEPT = 2
BEAT_SECONDS = 20.0
LEASE_SECONDS = 120.0
"""A lease held on another machine is dead after this long without a beat."""


class Checkpoints:
    """The checkpoints of one stage of one run. A file's name carries its step and the sha256 of its bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write, flush, rename; then drop all but the last two. InputError when the disk refuses: the old ones stay."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = self.folder / f"step-{step:09d}-{hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]}.pt"
        write_bytes(path, buffer.getbuffer())
        for old in self._found()[KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None. A damaged file is named on stderr and passed over."""
        for path in self._found():
            raw = path.read_bytes()
            if hashlib.sha256(raw).hexdigest()[:16] == NAME.fullmatch(path.name)[2]:
                return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
            print(f"{path}: damaged, the checkpoint before it is taken", flush=True)
        return None

    def discard(self) -> None:
        """Remove all checkpoints: the recipe has changed."""
        for path in self._found():
            path.unlink(missing_ok=True)

    def _found(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("step-*.pt") if NAME.fullmatch(p.name)), reverse=True)


def write_bytes(path: Path, raw: bytes | memoryview) -> None:
    """Write a file whole or not at all; InputError naming it when the disk is full or the folder read-only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); the last checkpoint is intact, make room or "
            f"set permissions and run again"
        ) from None


class Lease:
    """Keeps two jobs off one run, for example when a killed Snakemake is restarted and submits a duplicate.

    A file names host, process and cluster job of the holder, whose beat renews it. It is taken over when the holder is
    dead: a process that is gone on this machine, or no beat for two minutes from another.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.path, self.active = folder / "lease.json", active
        self._stop = threading.Event()

    def __enter__(self) -> "Lease":
        if not self.active:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "boot": _started(os.getpid()),
        }
        for _ in range(2):
            try:
                with self.path.open("x") as file:
                    json.dump(me, file)
                break
            except FileExistsError:
                holder = self._holder()
                if holder is not None and self._alive(holder):
                    raise InputError(
                        f"{self.path.parent}: in use by process {holder['pid']} on {holder['host']}"
                        + (f" (job {holder['job']})" if holder.get("job") else "")
                        + "; wait for it or stop it"
                    ) from None
                self.path.unlink(missing_ok=True)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self.active:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            if self.path.exists():
                os.utime(self.path)

    def _holder(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.path.read_text())
        except (OSError, json.JSONDecodeError):
            return None

    def _alive(self, holder: dict[str, Any]) -> bool:
        if holder["host"] == socket.gethostname():
            return _started(holder["pid"]) == holder["boot"] is not None
        try:
            return time.time() - self.path.stat().st_mtime < LEASE_SECONDS
        except FileNotFoundError:
            return False


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, which tells reused ids apart; None: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "running"
