"""Trackers, which show the curve of a run while it trains: TensorBoard, Weights & Biases and trackio."""

import importlib
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from dearkd.errors import InputError, unknown
from dearkd.schema import spec
from dearkd.train.tensorboard import Board, scalars

Kind = Literal["tensorboard", "trackio", "wandb"]


@runtime_checkable
class Tracker(Protocol):
    """Shows the epochs of one stage."""

    def add(self, entry: dict[str, Any]) -> None:
        """Add an epoch's line of the curve, in which a list has one value for each layer."""

    def close(self) -> None:
        """Send everything and stop."""


@spec
class Tracked:
    """The tracker of one run and seed, and the place where it puts the curve."""

    kind: Kind
    place: str
    """TensorBoard: a folder, which gets a folder for each run and seed. The others: the name of a project."""
    run: str
    seed: int

    def open(self, curve: list[dict[str, Any]], first_epoch: int) -> Tracker:
        """A tracker of a stage, ready for its next epoch.

        curve: lines of the epochs that are done. first_epoch: first epoch of the stage, counted from 1.
        Raises InputError where the package is not installed or refuses.
        """
        if self.kind == "tensorboard":
            return Board(Path(self.place) / self.run / f"seed{self.seed}", curve, first_epoch)
        return Hosted(self)


def tracked(wanted: str, scale: str, run: str, seed: int) -> Tracked:
    """The tracker that `--track KIND` or `--track KIND=PLACE` names. The default place has the name of the scale."""
    name, _, place = wanted.partition("=")
    kinds: tuple[Kind, ...] = get_args(Kind)
    kind = next((kind for kind in kinds if kind == name), None)
    if kind is None:
        raise InputError(unknown(name, kinds, "tracker", "--track"))
    default = f"logs/{scale}/tensorboard" if kind == "tensorboard" else f"dearkd-{scale}"
    return Tracked(kind=kind, place=place or default, run=run, seed=seed)


class Hosted:
    """A run of Weights & Biases or of trackio, whose functions are the same. All stages and attempts are one run.

    An attempt sends only the epochs that it trains, because the attempt before has sent the others. An epoch that is
    trained again has the same values and the same step.
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
            raise InputError(
                f"--track {to.kind}: it refuses ({' '.join(str(error).split())}); log in, or leave --track out"
            ) from error

    def add(self, entry: dict[str, Any]) -> None:
        """Send an epoch's line of the curve."""
        self.client.log(scalars(entry), step=entry["epoch"])

    def close(self) -> None:
        """Wait until everything is sent."""
        self.client.finish()
