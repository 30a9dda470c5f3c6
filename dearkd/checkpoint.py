"""Checkpoints that survive anything: written whole, verified by their name, kept in twos.

They lie outside Snakemake's outputs, which it deletes when a job fails. Run layer.
"""

import hashlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from dearkd.lease import Lease
from dearkd.schema import InputError

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")
KEPT = 2


class Checkpoints:
    """The checkpoints of one stage of one run. A file's name carries its step and the sha256 of its bytes.

    lease: of who writes; None where they are only read.
    """

    def __init__(self, folder: Path, lease: Lease | None = None) -> None:
        self.folder, self.lease = folder, lease

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write, flush, rename; then drop all but the last two.

        Raises InputError when the disk refuses, or another job has taken the run over: the old ones stay.
        """
        if self.lease:
            self.lease.check()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = self.folder / f"step-{step:09d}-{hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]}.pt"
        write_bytes(path, buffer.getbuffer())
        for old in self._found()[KEPT:]:
            old.unlink(missing_ok=True)
        if self.lease:
            self.lease.saved()
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None. A damaged file is named on stderr and passed over."""
        for path in self._found():
            raw = path.read_bytes()
            if hashlib.sha256(raw).hexdigest()[:16] == NAME.fullmatch(path.name)[2]:
                return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
            print(f"{path}: damaged, the checkpoint before it is taken", file=sys.stderr, flush=True)
        return None

    def discard(self, step: int | None = None) -> None:
        """Remove all checkpoints because the recipe has changed, or the one of a step that turned out to be bad."""
        for path in self._found():
            if step is None or int(NAME.fullmatch(path.name)[1]) == step:
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
            f"{path}: cannot be written ({error.strerror}); what was there before is intact, make room or "
            f"set permissions and run again"
        ) from None
