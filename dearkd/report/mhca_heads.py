"""Drawings of MHCA's heads: the centres and widths that they have learned, and the attention of one query.

The notebooks draw with it.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle

GLOBAL = 0.02
"""Attention strength below which a head is drawn without a circle: its width would exceed 5 patches."""


def widths(alpha: Float[np.ndarray, " heads"]) -> Float[np.ndarray, " heads"]:
    """Standard deviation in patches of exp(-alpha |d - Delta|^2), 1/sqrt(2 alpha); infinite for global heads."""
    return np.where(alpha > GLOBAL, 1 / np.sqrt(2 * np.maximum(alpha, GLOBAL)), np.inf)


def centres(ax: Axes, alpha: Float[np.ndarray, " heads"], delta: Float[np.ndarray, "heads 2"], reach: float) -> Axes:
    """Draw each head's centre Delta (row, column) as a dot and its width as a circle. The query is the cross.

    Heads without a place (alpha near 0, or repelling) are counted in the title.
    """
    placed = alpha > GLOBAL
    ax.plot(0, 0, marker="+", color="0.3", markersize=8)
    for width, (row, column) in zip(widths(alpha)[placed], delta[placed], strict=True):
        ax.add_patch(Circle((column, row), width, fill=False, edgecolor="C0", linewidth=0.6, alpha=0.6))
        ax.plot(column, row, marker="o", color="C0", markersize=4)
    ax.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal")
    ax.set_title(f"{placed.sum()} local, {(~placed).sum()} global", fontsize=8)
    return ax


def attention_of_a_query(
    axes: Iterable[Axes],
    image: UInt8[np.ndarray, "height width *channels"],
    attention: Float[np.ndarray, "layers patches patches"],
    query: tuple[int, int],
) -> None:
    """Draw the image with the query's patch framed, then what that patch attends to in each layer (mean over heads)."""
    axes = list(axes)
    side = round(attention.shape[-1] ** 0.5)
    step = image.shape[0] / side
    axes[0].imshow(image.squeeze(), cmap="gray")
    corner = (query[1] * step - 0.5, query[0] * step - 0.5)
    axes[0].add_patch(_frame(corner, step))
    for layer, (ax, maps) in enumerate(zip(axes[1:], attention, strict=True), 1):
        ax.imshow(maps[query[0] * side + query[1]].reshape(side, side), cmap="viridis", vmin=0)
        ax.add_patch(_frame((query[1] - 0.5, query[0] - 0.5), 1.0))
        ax.set_title(f"layer {layer}", fontsize=8)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)


def _frame(corner: tuple[float, float], side: float) -> Rectangle:
    return Rectangle(corner, side, side, fill=False, edgecolor="C1", linewidth=1.5)
