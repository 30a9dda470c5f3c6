"""Figure 6 and the grid of images: what synthetic images look like, to an eye and to the teacher.

Read layer: numpy, pandas, scikit-learn and matplotlib; never torch.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

SHADES = ("#0b3954", "#c1666b", "#7fb069", "#e0a458")
MARKERS = ("o", "s", "^", "D")
CLASSES = 4
"""Classes shown: more regions than these cannot be told apart in grey."""


def choose(frames: Mapping[str, pd.DataFrame]) -> list[int]:
    """The first classes that every set has."""
    common = set.intersection(*(set(frame["label"]) for frame in frames.values()))
    return sorted(common)[:CLASSES]


def codes(frame: pd.DataFrame) -> np.ndarray:
    """(images, dim) latent codes: the columns f0, f1, ..."""
    return frame[[c for c in frame.columns if c[0] == "f" and c[1:].isdigit()]].to_numpy(float)


def embed(frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The frames with columns x and y: one t-SNE, started from principal components, of all sets together.

    t-SNE because it keeps neighbours, which is what easy positives are; axes and distances between far points mean
    nothing. Deterministic.
    """
    from sklearn.manifold import TSNE

    everything = np.concatenate([codes(frame) for frame in frames.values()])
    perplexity = min(30.0, (len(everything) - 1) / 3)
    flat = TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(everything)
    parts = np.split(flat, np.cumsum([len(frame) for frame in frames.values()])[:-1])
    return {
        name: frame.assign(x=part[:, 0], y=part[:, 1])
        for (name, frame), part in zip(frames.items(), parts, strict=True)
    }


def easiest_positives(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(row of each image's nearest other image of its class in latent space, their distance)."""
    apart = np.linalg.norm(codes(frame)[:, None] - codes(frame)[None], axis=2)
    labels = frame["label"].to_numpy()
    apart[labels[:, None] != labels[None]] = np.inf
    np.fill_diagonal(apart, np.inf)
    nearest = apart.argmin(1)
    return nearest, apart[np.arange(len(frame)), nearest]


def latent_space(axes: Sequence[Axes], embedded: Mapping[str, pd.DataFrame]) -> None:
    """A panel per set: its images in the plane, a line from each to its easiest positive, regions of the classes.

    A point's region is the class of most of its 15 nearest images, of whatever set.
    """
    from sklearn.neighbors import KNeighborsClassifier

    everything = pd.concat(embedded.values())
    classes = sorted(everything["label"].unique())
    low, high = everything[["x", "y"]].min() - 4, everything[["x", "y"]].max() + 4
    grid_x, grid_y = np.meshgrid(np.linspace(low.x, high.x, 200), np.linspace(low.y, high.y, 200))
    neighbours = KNeighborsClassifier(min(15, len(everything))).fit(
        everything[["x", "y"]].to_numpy(), everything["label"]
    )
    region = neighbours.predict(np.column_stack([grid_x.ravel(), grid_y.ravel()])).reshape(grid_x.shape)
    for ax, (name, frame) in zip(axes, embedded.items(), strict=True):
        nearest, distance = easiest_positives(frame)
        places = frame[["x", "y"]].to_numpy()
        for shade, marker, label in zip(SHADES, MARKERS, classes, strict=False):
            mine = (frame["label"] == label).to_numpy()
            ax.contourf(grid_x, grid_y, region == label, levels=[0.5, 1], colors=[shade], alpha=0.12)
            ax.scatter(*places[mine].T, s=11, color=shade, marker=marker, linewidth=0, label=f"{label}", zorder=3)
        for label in classes[1:]:
            ax.contour(grid_x, grid_y, region == label, levels=[0.5], colors="0.55", linewidths=0.6)
        ax.add_collection(
            LineCollection(np.stack([places, places[nearest]], 1), colors="0.35", linewidths=0.5, zorder=2)
        )
        ax.set_title(f"{name}\neasiest positive: {distance.mean():.2f}")
        ax.set(xlim=(low.x, high.x), ylim=(low.y, high.y), xticks=[], yticks=[])
        ax.grid(False)
        for side in ("top", "right", "bottom", "left"):
            ax.spines[side].set_visible(True)


def image_grid(axes: Sequence[Axes], sheets: Mapping[str, np.ndarray], classes: int, columns: int) -> None:
    """A panel per set from its sample sheet: uint8, `classes` rows of `columns` square tiles without gaps."""
    for ax, (name, sheet) in zip(axes, sheets.items(), strict=True):
        side = sheet.shape[0] // classes
        gap = max(side // 12, 1)
        canvas = np.full((classes * (side + gap) - gap, columns * (side + gap) - gap, *sheet.shape[2:]), 255, np.uint8)
        for row, column in itertools.product(range(classes), range(columns)):
            tile = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
            canvas[
                row * (side + gap) : row * (side + gap) + side, column * (side + gap) : column * (side + gap) + side
            ] = tile
        ax.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if side < 64 else "antialiased")
        ax.set_title(name)
        ax.set(xticks=[], yticks=[side / 2 + row * (side + gap) for row in range(classes)], yticklabels=range(classes))
        ax.tick_params(length=0)
        ax.grid(False)
        for side_name in ax.spines:
            ax.spines[side_name].set_visible(False)
