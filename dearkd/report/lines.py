"""The lines of Figure 1: accuracy against the fraction of training images."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

HOLLOW = {"markerfacecolor": "white", "linewidth": 0.8}


def _line_style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a line by its number: when the colours begin again, the markers have moved on."""
    styles = list(plt.rcParams["axes.prop_cycle"])
    turn, place = divmod(number, len(styles))
    return {**styles[place], "marker": styles[(place + turn) % len(styles)].get("marker", "o")}


def lines_against_data(ax: Axes, frame: pd.DataFrame, value: str, spread: str | None) -> Axes:
    """Draw a line per method over the fraction of images (log scale), with error bars of one standard deviation.

    No line crosses a fraction that was not measured. A row named after another, as "DeiT-Ti, long" after "DeiT-Ti", is
    hollow, in the other's colour, and a little aside.
    """
    styles: dict[str, dict[str, Any]] = {}
    for label, rows in frame.groupby("row", sort=False):
        shown = f" {label}" if str(label).startswith("_") else str(label)  # matplotlib's legends leave such labels out
        known = next((styles[row] for row in styles if str(label).startswith(f"{row}, ")), None)
        style = _line_style(len(styles)) if known is None else {**known, **HOLLOW}
        if known is None:
            styles[str(label)] = style
        aside = 1.0 if known is None else 1.06
        ax.errorbar(aside * rows["fraction"], rows[value], rows[spread] if spread else None, label=shown, **style)
    fractions = sorted(frame["fraction"].unique())
    ax.set_xscale("log")
    ax.set_xticks(fractions, [f"{f} %" for f in fractions])
    ax.minorticks_off()
    ax.set_xlabel("fraction of the real training images")
    ax.set_ylabel("top-1 (%)")
    return ax
