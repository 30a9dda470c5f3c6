"""Checkpoints that survive a kill. Each is written atomically, its name has its sha256, and the last two are kept.

They are no outputs of Snakemake, which deletes the outputs of a job that fails.
"""

import hashlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as save_safetensors

from dearkd import disk, record
from dearkd.errors import InputError
from dearkd.train.lease import Lease

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")
KEPT = 2
FINISHED = "finished.json"
"""File beside the checkpoints that describes a finished file. With it a lost record is written again in a second."""


class Found(NamedTuple):
    """A checkpoint on disk: its path, and the step and the first 16 digits of the sha256 that its name carries."""

    path: Path
    step: int
    sha256: str


def packed(student: dict[str, torch.Tensor]) -> bytes:
    """Weights in the format safetensors, which evaluation, transfer and other people load."""
    return save_safetensors({k: v.contiguous() for k, v in student.items()})


class Checkpoints:
    """The checkpoints of one stage of one run. A file's name carries its step and the sha256 of its bytes.

    lease: of the job that writes; None where checkpoints are only read.
    """

    def __init__(self, folder: Path, lease: Lease | None = None) -> None:
        self.folder, self.lease = folder, lease

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state under a temporary name, flush it and rename it, then remove all but the last two.

        Raises InputError when the disk refuses or another job has taken the run over. The older checkpoints then stay.
        """
        if self.lease:
            self.lease.check()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = self.folder / f"step-{step:09d}-{hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]}.pt"
        disk.write(path, buffer.getbuffer())
        for old in self._found()[KEPT:]:
            old.path.unlink(missing_ok=True)
        if self.lease:
            self.lease.ledger.saved()
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None. A damaged file is named on stderr and skipped."""
        return next(self.states(), None)

    def states(self) -> Iterator[dict[str, Any]]:
        """The states that are whole, newest first; a damaged file is named on stderr."""
        for found in self._found():
            raw = found.path.read_bytes()
            if hashlib.sha256(raw).hexdigest()[:16] == found.sha256:
                yield torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
            else:
                print(f"{found.path}: the checkpoint is damaged and is skipped", file=sys.stderr, flush=True)

    def discard(self, step: int | None = None) -> None:
        """Remove all checkpoints, or only that of a step."""
        for found in self._found():
            if step is None or found.step == step:
                found.path.unlink(missing_ok=True)

    def keep(self, identity: str, made: Path, values: dict[str, Any]) -> None:
        """Note that the file `made` is whole and what its record is to say, then remove all checkpoints."""
        record.write(self.folder / FINISHED, {"identity": identity, "sha256": disk.sha256(made), "values": values})
        self.discard()

    def kept(self, identity: str, made: Path) -> dict[str, Any] | None:
        """What `keep` noted of the file `made`; None if it is missing, damaged or made with another `identity`."""
        try:
            found = record.read(self.folder / FINISHED)
            whole = found["identity"] == identity and made.is_file() and disk.sha256(made) == found["sha256"]
            return found["values"] if whole else None
        except (InputError, KeyError):
            return None

    def _found(self) -> list[Found]:
        """All checkpoints, newest first."""
        matches = ((path, NAME.fullmatch(path.name)) for path in self.folder.glob("step-*.pt"))
        return sorted((Found(path, int(match[1]), match[2]) for path, match in matches if match), reverse=True)
