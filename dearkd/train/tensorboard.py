"""A run's curve in TensorBoard while it trains: an option of `train`."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dearkd import disk
from dearkd.errors import InputError


class Board:
    """Event files of one run and seed. Both stages are on one axis, the epoch, counted from 1.

    Epochs that an earlier attempt wrote after its last checkpoint are removed, because they are trained again.
    """

    def __init__(self, folder: Path, curve: list[dict[str, Any]], first_epoch: int) -> None:
        """curve: lines of the epochs that are done. first_epoch: first epoch of the stage, counted from 1.

        Raises InputError where tensorboard is not installed. Every method raises it where the folder cannot be written.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(f"--tensorboard: {error}; install it with `pip install tensorboard`") from error
        self.folder = folder
        _hush()
        with self._written():
            self.writer = SummaryWriter(str(folder), purge_step=first_epoch)
        for entry in curve:
            self.add(entry)

    def add(self, entry: dict[str, Any]) -> None:
        """Add an epoch's line of the curve, in which a list has one value for each layer."""
        with self._written():
            for name, value in scalars(entry).items():
                self.writer.add_scalar(name, value, entry["epoch"])
            self.writer.flush()

    def close(self) -> None:
        """Write everything and close the files."""
        with self._written():
            self.writer.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk.unwritable(self.folder, error) from None


def scalars(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's line of a curve, by name. A list has one number for each layer."""
    found: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, list):
            found |= {f"{name}/layer {layer}": v for layer, v in enumerate(value, 1)}
        elif name != "epoch":
            found[name] = value
    return found


def _hush() -> None:
    """Keep TensorBoard's thread from printing an error, because its next call raises the same error."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            before(args)

    threading.excepthook = hook
