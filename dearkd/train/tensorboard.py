"""A run's curve in TensorBoard while it trains: an option of `train`."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dearkd import disk
from dearkd.schema import InputError


class Board:
    """Event files of one run and seed, both stages on one axis (step: epoch, counted from 1).

    What an earlier attempt wrote after its last checkpoint is taken back: the epochs are trained again.
    """

    def __init__(self, folder: Path, curve: list[dict[str, Any]], first_epoch: int) -> None:
        """curve: what the stage has behind it; first_epoch: the stage's first, from 1.

        Raises InputError where tensorboard is not installed. Every method does where the folder cannot be written.
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
        """An epoch's line of the curve; a list is one value per layer."""
        with self._written():
            for name, value in scalars(entry).items():
                self.writer.add_scalar(name, value, entry["epoch"])
            self.writer.flush()

    def close(self) -> None:
        with self._written():
            self.writer.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk.unwritable(self.folder, error) from None


def scalars(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's line of a curve, by name; a list has one for each layer."""
    found: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, list):
            found |= {f"{name}/layer {layer}": v for layer, v in enumerate(value, 1)}
        elif name != "epoch":
            found[name] = value
    return found


def _hush() -> None:
    """TensorBoard's thread prints the error that its next call raises; once, as a sentence, is enough."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            before(args)

    threading.excepthook = hook
