"""Checkpoints that survive anything: written whole, verified by their name, kept in twos.

They lie outside Snakemake's outputs, which it deletes when a job fails.
"""

import hashlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from dearkd import disk, record
from dearkd.schema import InputError
from dearkd.train.lease import Lease

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")
KEPT = 2
FINISHED = "finished.json"
"""Beside the checkpoints: what is known of a file that is whole, so that a lost record is written anew in a second."""


def packed(student: dict[str, torch.Tensor]) -> bytes:
    """Weights as safetensors: what evaluation, transfer and other people load."""
    return save_safetensors({k: v.contiguous() for k, v in student.items()})


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
        disk.write(path, buffer.getbuffer())
        for old in self._found()[KEPT:]:
            old.unlink(missing_ok=True)
        if self.lease:
            self.lease.saved()
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None. A damaged file is named on stderr and passed over."""
        return next(self.states(), None)

    def states(self) -> Iterator[dict[str, Any]]:
        """The states that are whole, newest first; a damaged file is named on stderr."""
        for path in self._found():
            raw = path.read_bytes()
            if hashlib.sha256(raw).hexdigest()[:16] == NAME.fullmatch(path.name)[2]:
                yield torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
            else:
                print(f"{path}: damaged, passed over", file=sys.stderr, flush=True)

    def discard(self, step: int | None = None) -> None:
        """Remove all checkpoints because the recipe has changed, or the one of a step that turned out to be bad."""
        for path in self._found():
            if step is None or int(NAME.fullmatch(path.name)[1]) == step:
                path.unlink(missing_ok=True)

    def keep(self, identity: str, made: Path, values: dict[str, Any]) -> None:
        """Note that the file `made` is whole, and what its record is to say; only then remove all checkpoints."""
        record.write(self.folder / FINISHED, {"identity": identity, "sha256": disk.sha256(made), "values": values})
        self.discard()

    def kept(self, identity: str, made: Path) -> dict[str, Any] | None:
        """What was noted of the file `made`; None where it is missing, damaged or made with another `identity`."""
        try:
            found = record.read(self.folder / FINISHED)
            whole = found["identity"] == identity and made.is_file() and disk.sha256(made) == found["sha256"]
            return found["values"] if whole else None
        except (InputError, KeyError):
            return None

    def _found(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("step-*.pt") if NAME.fullmatch(p.name)), reverse=True)
