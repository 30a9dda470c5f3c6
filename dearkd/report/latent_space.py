"""Figure 6 and the grid of images: latent codes and pixels of sets of images."""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_rgb
from PIL import Image
from scipy.ndimage import distance_transform_edt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier

from dearkd.errors import InputError
from dearkd.report import decimals, escaping

COLOURS = ("#332288", "#cc6677", "#117733", "#ddaa33", "#4aa0d5", "#882255", "#44aa99", "#999933", "#aa4499", "#666666")
"""Paul Tol's muted scheme, for colour-blind readers; markers and numbers say the same in grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
FEW = 4
"""Number of classes shown where there are more classes than colours."""
NEIGHBOURS = 15
"""Number of nearest images that decide the class of a place in the plane."""
PIXELS = 260_000
"""Pixels of all tiles of a grid. Noise takes 3 bytes a pixel in a PNG, and a figure should stay below 1 MB."""


def read_codes(path: Path) -> pd.DataFrame:
    """Latent codes of a set of images: image, label, f0, f1, ... Raises InputError when the file has other columns."""
    try:
        frame = pd.read_csv(path, dtype={"image": str})
        if not {"image", "label", "f0"} <= set(frame.columns):
            raise ValueError("no columns image, label, f0, ...")
        if not np.isfinite(frame.drop(columns="image").to_numpy(float)).all():
            raise ValueError("not all numbers are there")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no table of latent codes ({error}); run the job that writes it again") from None
    return frame


def read_sheet(path: Path) -> UInt8[np.ndarray, "height width *channels"]:
    """Pixels of a contact sheet, grey or RGB. Raises InputError when it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error}); run the job that writes it again") from None


# ---------------------------------------------------------------------------------------------- Figure 6


def shown_classes(frames: Mapping[str, pd.DataFrame]) -> list[int]:
    """The classes that every set has, or the first `FEW` of them where there are more classes than colours.

    Raises InputError when there is none.
    """
    common = sorted(set.intersection(*(set(frame["label"].tolist()) for frame in frames.values())))
    if not common:
        raise InputError(f"latent codes of {', '.join(frames)}: no class is in all of these sets; make larger sets")
    return common if len(common) <= len(COLOURS) else common[:FEW]


def easy_positives(
    codes: Float[np.ndarray, "n dim"], labels: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(row, distance) of the nearest *other* image of the same class in latent space; (-1, nan) where there is none."""
    nearest, distance = np.full(len(codes), -1), np.full(len(codes), np.nan)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        if len(mine) > 1:
            apart = np.linalg.norm(codes[mine, None] - codes[None, mine], axis=2)
            np.fill_diagonal(apart, np.inf)
            nearest[mine], distance[mine] = mine[apart.argmin(1)], apart.min(1)
    return nearest, distance


def embed(frames: Mapping[str, pd.DataFrame], classes: Collection[int]) -> dict[str, pd.DataFrame]:
    """Give each image of some classes a place in the plane and its easiest positive.

    One t-SNE of all sets together, from their principal components, gives a place the same meaning in every panel.
    t-SNE keeps neighbours, and easy positives are neighbours. The two best directions of LDA leave ten classes on top
    of each other. Neighbourhoods are wide, a third of all images, so that a set that is tight in latent space is tight
    in the plane too. Distances in the plane mean little, so `distance` is that in latent space. Deterministic.

    Returns frames with columns image, label, x, y, nearest (row of the easiest positive in the frame) and distance.
    """
    frames = {label: frame[frame["label"].isin(classes)].reset_index(drop=True) for label, frame in frames.items()}
    codes = {label: frame.filter(regex=r"^f\d+$").to_numpy(float) for label, frame in frames.items()}
    joint = np.concatenate(list(codes.values()))
    joint = PCA(min(30, *joint.shape), svd_solver="full").fit_transform(joint)
    tsne = TSNE(perplexity=(len(joint) - 1) / 3, init="pca", random_state=0, n_jobs=1)
    places = np.split(tsne.fit_transform(joint), np.cumsum([len(c) for c in codes.values()])[:-1])
    embedded = {}
    for (label, frame), place in zip(frames.items(), places, strict=True):
        nearest, distance = easy_positives(codes[label], frame["label"].to_numpy())
        columns = {"x": place[:, 0], "y": place[:, 1], "nearest": nearest, "distance": distance}
        embedded[label] = frame[["image", "label"]].assign(**columns)
    return embedded


def latent_space(
    axes: Iterable[Axes],
    embedded: Mapping[str, pd.DataFrame],
    classes: Sequence[int],
    names: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Draw Figure 6, one panel a set. A line joins each image to its easiest positive; shading shows where classes are.

    A place belongs to the class of most images near it in all sets, so regions are the same in all panels. A class's
    number is placed where no set has an image. `embedded` and `classes` are those of `embed`; the first axes have the
    handles of a legend. names: of classes, for the legend; a class without a name is a number there.
    """
    everything = pd.concat(embedded.values())
    points = everything[["x", "y"]].to_numpy()
    rim = 0.06 * np.ptp(points, axis=0)
    low, high = points.min(0) - rim, points.max(0) + rim
    x, y = (np.linspace(a, b, 300) for a, b in zip(low, high, strict=True))
    vote = KNeighborsClassifier(min(NEIGHBOURS, len(points))).fit(points, everything["label"])
    region = vote.predict(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)).reshape(len(y), len(x))
    numbers = _free_places(vote, region, (x, y))
    light = ListedColormap([_thinned(colour, 0.16) for colour in COLOURS[: len(classes)]])
    for ax, (label, frame) in zip(axes, embedded.items(), strict=True):
        extent = (low[0], high[0], low[1], high[1])
        shade = np.searchsorted(classes, region)
        ax.imshow(shade, cmap=light, vmin=-0.5, vmax=len(classes) - 0.5, extent=extent, origin="lower", aspect="auto")
        for c in np.unique(region) if np.ptp(region) else ():
            ax.contour(x, y, region == c, levels=[0.5], colors="white", linewidths=1.0)
        places, tied = frame[["x", "y"]].to_numpy(), frame["nearest"].to_numpy() >= 0
        pairs = np.stack([places[tied], places[frame["nearest"].to_numpy()[tied]]], 1)
        ax.add_collection(LineCollection(list(pairs), colors="0.25", linewidths=0.6, zorder=2))
        for c, colour, marker in zip(classes, COLOURS, MARKERS, strict=False):
            mine = places[frame["label"].to_numpy() == c]
            # A star of the same extent has half the area.
            look: dict[str, Any] = {"color": colour, "marker": marker, "s": 28 if marker == "*" else 15}
            ax.scatter(*mine.T, edgecolors="white", linewidths=0.3, zorder=3, label=_called(c, names), **look)
            if c in numbers:
                number: dict[str, Any] = {"fontsize": 14, "weight": "bold", "color": colour}
                ax.text(*numbers[c], str(c), ha="center", va="center", zorder=1.5, **number)
        distance = decimals.plain(frame["distance"].mean(), 2)
        ax.set_title(f"{label}\n{len(frame)} images, mean easy-positive distance {distance}", fontsize=8)
        ax.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set(visible=True, linewidth=0.6, color="0.4")


def _free_places(
    vote: KNeighborsClassifier, region: Int[np.ndarray, "high wide"], axes: tuple[np.ndarray, np.ndarray]
) -> dict[int, tuple[float, float]]:
    """By class: the point of its region that is furthest from every image and from the region's border."""
    x, y = axes
    nearest, _ = vote.kneighbors(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2), 1)
    from_images = nearest.reshape(region.shape) / (x[1] - x[0])
    places = {}
    for c in np.unique(region):
        from_border = distance_transform_edt(np.pad(region == c, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(np.minimum(from_images, from_border).argmax(), region.shape)
        places[int(c)] = (float(x[column]), float(y[row]))
    return places


def _thinned(colour: str, share: float) -> tuple[float, ...]:
    """A colour mixed with white."""
    return tuple(1 - share * (1 - channel) for channel in to_rgb(colour))


# ---------------------------------------------------------------------------------------------- images


def image_grid(axes: Iterable[Axes], sheets: Mapping[str, np.ndarray], side: int, names: Sequence[object]) -> None:
    """Draw a panel per set of images: one class a row, named at the left, with thin white gaps between the tiles.

    Args:
        sheets: contact sheets in uint8, grey or RGB: a row of square tiles per class, no gaps.
        side: side of a tile in pixels. Tiles are shrunk where all of them have more than `PIXELS` pixels.
        names: names of the classes, row by row, the same in all sheets.
    """
    for label, sheet in sheets.items():
        height, width = sheet.shape[:2]
        if height != side * len(names) or width % side:
            raise InputError(
                f"sample of {label}: {width} x {height} pixels are not {len(names)} rows of tiles of side {side}; "
                f"run the job that writes it again"
            )
    small, gap = tiling(sheets, side)
    for ax, (label, sheet) in zip(axes, sheets.items(), strict=True):
        ax.imshow(_spaced(sheet, side, small, gap), interpolation="nearest")
        ax.set_title(label, fontsize=9)
        middles = [(small - 1) / 2 + row * (small + gap) for row in range(len(names))]
        ax.set_yticks(middles, [_short(name) for name in names], fontsize=7)
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.label_outer()
        ax.grid(False)
        ax.spines[:].set_visible(False)


def _called(label: int, names: Mapping[int, str]) -> str:
    """The number of a class, as the plane shows it, and its name if that differs."""
    name = names.get(label, str(label))
    return str(label) if name == str(label) else f"{label} {_short(name)}"


def _short(name: object) -> str:
    """A name beside a row of images: 20 letters at most."""
    text = escaping.line(name)
    return text if len(text) <= 20 else f"{text[:19]}…"


def tiling(sheets: Mapping[str, np.ndarray], side: int) -> tuple[int, int]:
    """Side of a drawn tile and the gap between two, in pixels. Sheets and side are those of `image_grid`."""
    tiles = sum(sheet.shape[0] * sheet.shape[1] // side**2 for sheet in sheets.values())
    small = min(side, int((PIXELS / tiles) ** 0.5))
    return small, -(-small // 24)


def _spaced(
    sheet: UInt8[np.ndarray, "height width *channels"], side: int, small: int, gap: int
) -> UInt8[np.ndarray, "high wide 3"]:
    """The sheet's tiles at their new side, with `gap` white pixels between them."""
    rows, columns = sheet.shape[0] // side, sheet.shape[1] // side
    pitch = small + gap
    spaced = np.full((rows * pitch - gap, columns * pitch - gap, 3), 255, dtype=np.uint8)
    whole = Image.fromarray(sheet).convert("RGB")
    for row, column in itertools.product(range(rows), range(columns)):
        tile = whole.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
        if small < side:
            tile = tile.resize((small, small), Image.Resampling.BOX)
        spaced[row * pitch : row * pitch + small, column * pitch : column * pitch + small] = np.asarray(tile)
    return spaced
