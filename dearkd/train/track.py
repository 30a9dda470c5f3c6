"""Where a run's curve is shown while it trains: TensorBoard, Weights & Biases or trackio, behind one interface."""

import importlib
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from dearkd.schema import InputError, spec, unknown
from dearkd.train.tensorboard import Board, scalars

Kind = Literal["tensorboard", "trackio", "wandb"]


@runtime_checkable
class Tracker(Protocol):
    """Shows the epochs of one stage."""

    def add(self, entry: dict[str, Any]) -> None:
        """An epoch's line of the curve; a list is one value per layer."""

    def close(self) -> None:
        """Everything has been handed over."""


@spec
class Tracked:
    """Where the curve of one run and seed goes."""

    kind: Kind
    place: str
    """TensorBoard's folder, with a folder for each run and seed; else the name of a project."""
    run: str
    seed: int

    def open(self, curve: list[dict[str, Any]], first_epoch: int) -> Tracker:
        """A tracker of a stage. curve: what the stage has behind it; first_epoch: the stage's first, from 1.

        Raises InputError where the package is not installed, and where it refuses.
        """
        if self.kind == "tensorboard":
            return Board(Path(self.place) / self.run / f"seed{self.seed}", curve, first_epoch)
        return Hosted(self)


def tracked(wanted: str, scale: str, run: str, seed: int) -> Tracked:
    """What `--track KIND` or `--track KIND=PLACE` means for a run; without a place a folder or project of the scale."""
    kind, _, place = wanted.partition("=")
    if kind not in get_args(Kind):
        raise InputError(unknown(kind, get_args(Kind), "tracker", "--track"))
    default = f"logs/{scale}/tensorboard" if kind == "tensorboard" else f"dearkd-{scale}"
    return Tracked(kind=kind, place=place or default, run=run, seed=seed)


class Hosted:
    """A run of Weights & Biases, or of trackio, which has the same functions; both stages and all attempts are one run.

    An attempt sends what it trains itself: what it resumes from was sent by the one before. Epochs that are trained
    again have the values and the step that they had.
    """

    def __init__(self, to: Tracked) -> None:
        try:
            self.client = importlib.import_module(to.kind)
            start = self.client.init
        except (ImportError, AttributeError) as error:  # wandb leaves a folder of its name, which can be imported too
            raise InputError(f"--track {to.kind}: {error}; install it with `pip install {to.kind}`") from error
        name = f"{to.run}-seed{to.seed}"
        own = {"id": name} if to.kind == "wandb" else {}
        try:
            start(project=to.place, name=name, resume="allow", **own)
        except Exception as error:  # each library has errors of its own, of accounts and of networks
            raise InputError(f"--track {to.kind}: {' '.join(str(error).split())}") from error

    def add(self, entry: dict[str, Any]) -> None:
        self.client.log(scalars(entry), step=entry["epoch"])

    def close(self) -> None:
        self.client.finish()
