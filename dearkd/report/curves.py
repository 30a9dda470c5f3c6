"""Training curves of a run: loss terms, validation accuracy, learning rate, attention distance, from its records.

`train --track` shows the same while a run trains.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dearkd import disk
from dearkd.errors import InputError
from dearkd.plan import commands
from dearkd.plan.plan import Plan, Run
from dearkd.report import figures, records

OTHERS = ("lr", "validation_top1", "attention_distance")
"""Quantities of a curve that are not loss terms."""


def write(plan: Plan, name: str) -> str:
    """Draw figures/<scale>/curves/<run>.pdf and .png, and .csv with the numbers; returns the PNG's path.

    Raises InputError for an unknown run, and for a run of which no seed has been trained to the end.
    """
    run = plan.run(name)
    frame = records.curves(plan, [run])
    if frame.empty:
        raise InputError(
            f"run {name} is not trained at scale {plan.scale.name}; train it with "
            f"`{commands.target(plan, plan.paths.stage(name, 0, run.stages[-1].name))}`"
        )
    with plt.style.context([figures.STYLE, figures.PLAIN]):
        figures.save(plan, f"curves/{name}", draw(frame, run), None)
    disk.write(plan.paths.figures / f"curves/{name}.csv", frame.to_csv(index=False, float_format="%.6g"))
    return f"{plan.paths.figures}/curves/{name}.png"


def draw(frame: pd.DataFrame, run: Run) -> Figure:
    """Draw a panel for each quantity over the epochs. A line is the mean over the seeds; its band is their range."""
    has_distance = (frame["name"] == "attention_distance").any()
    drawn, axes = plt.subplots(2, 2, figsize=(7.2, 5.0), squeeze=False)
    losses, top1, rate, distance = axes.flat
    for name in frame["name"].unique():
        if name not in OTHERS:
            over_seeds(losses, frame[frame["name"] == name], "sum, weighted" if name == "loss" else name)
    losses.legend()
    losses.set_title("loss terms, training")
    over_seeds(top1, frame[frame["name"] == "validation_top1"], "validation")
    top1.set_title("top-1 (%), validation images")
    over_seeds(rate, frame[frame["name"] == "lr"], "lr")
    rate.set_title("learning rate")
    for ax in (losses, top1, rate):
        ax.set_xlabel("epoch")
        ax.set_ylim(bottom=0)
        for stage in run.stages[:-1]:
            ax.axvline(stage.last_epoch, color="0.35", linewidth=0.8)
    if has_distance:
        figures.distance_per_layer(distance, frame[frame["name"] == "attention_distance"], run)
        distance.set_title("attention distance (patches)")
    else:
        distance.remove()
    seeds = frame["seed"].nunique()
    drawn.suptitle(f"{run.name}, {seeds} seed{'s' * (seeds > 1)}")
    return drawn


def over_seeds(ax: Axes, frame: pd.DataFrame, label: str) -> Axes:
    """Draw a line of the means over the seeds, and a band from the least to the greatest."""
    values = frame.groupby("epoch")["value"].agg(["mean", "min", "max"])
    (line,) = ax.plot(values.index, values["mean"], marker="", label=label)
    ax.fill_between(values.index, values["min"], values["max"], color=line.get_color(), alpha=0.2, linewidth=0)
    return ax
