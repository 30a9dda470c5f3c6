"""A diagram as data: boxes, lines and texts in units of its own, and `draw`, which puts them on axes."""

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

Number = float | int
Point = tuple[Number, Number]


@dataclasses.dataclass(frozen=True)
class Box:
    """A rounded box with its lower left corner at (x, y); `at` is a share of a side, from the left or from below."""

    x: Number
    y: Number
    width: Number
    height: Number
    text: str
    fill: str
    size: Number = 7.0
    """Size of the text, in points."""

    def right(self, at: Number = 0.5) -> Point:
        return self.x + self.width, self.y + at * self.height

    def left(self, at: Number = 0.5) -> Point:
        return self.x, self.y + at * self.height

    def top(self, at: Number = 0.5) -> Point:
        return self.x + at * self.width, self.y + self.height

    def bottom(self, at: Number = 0.5) -> Point:
        return self.x + at * self.width, self.y


@dataclasses.dataclass(frozen=True)
class Line:
    """From point to point; `head`: its last stretch is an arrow."""

    points: tuple[Point, ...]
    head: bool = True
    colour: str = "0.2"
    width: Number = 0.9
    style: str = "-"


@dataclasses.dataclass(frozen=True)
class Text:
    x: Number
    y: Number
    text: str
    size: Number = 7.0
    align: tuple[str, str] = ("left", "center")
    """Horizontal and vertical."""
    weight: str = "normal"
    style: str = "normal"


Part = Box | Line | Text


def title(x: Number, y: Number, text: str) -> Text:
    """The name of a part of a figure: (a), (b)."""
    return Text(x, y, text, 9, weight="bold")


def rule(width: Number, y: Number) -> Line:
    """A dotted line across, between two parts of a figure."""
    return Line(((0, y), (width, y)), head=False, colour="0.7", width=0.8, style=":")


def key(right: Number, y: Number, fills: dict[str, str]) -> list[Box]:
    """What each colour means, as a row of boxes that ends at `right`. fills: colours by their meaning."""
    width, gap = 14, 1
    start = right + gap - (width + gap) * len(fills)
    return [Box(start + (width + gap) * i, y, width, 3.2, of, fill, 6.3) for i, (of, fill) in enumerate(fills.items())]


def arrow(*points: Point) -> Line:
    return Line(points)


def chain(boxes: Sequence[Box]) -> list[Line]:
    """Arrows from each box to the next on its right."""
    return [arrow(a.right(), b.left()) for a, b in pairwise(boxes)]


def draw(ax: Axes, width: Number, height: Number, parts: Iterable[Part]) -> Axes:
    """Put the parts of a diagram of this size on axes without ticks, in order."""
    ax.set_xlim(-0.5, width + 0.5)
    ax.set_ylim(-0.5, height + 0.5)
    ax.set_aspect("equal")
    ax.axis("off")
    for part in parts:
        match part:
            case Box():
                _box(ax, part)
            case Line():
                _line(ax, part)
            case Text():
                _text(ax, part)
    return ax


def _box(ax: Axes, box: Box) -> None:
    style = "round,pad=0,rounding_size=0.8"
    look: dict[str, Any] = {"facecolor": box.fill, "edgecolor": "0.25", "linewidth": 0.8}
    ax.add_patch(FancyBboxPatch((box.x, box.y), box.width, box.height, boxstyle=style, **look))
    x, y = box.x + box.width / 2, box.y + box.height / 2
    ax.text(x, y, box.text, ha="center", va="center", fontsize=box.size, linespacing=1.35)


def _line(ax: Axes, line: Line) -> None:
    plain = line.points[:-1] if line.head else line.points
    if len(plain) > 1:
        look: dict[str, Any] = {"color": line.colour, "linewidth": line.width, "linestyle": line.style, "marker": ""}
        ax.plot(*zip(*plain, strict=True), **look)
    if line.head:
        look = {"arrowstyle": "-|>", "linewidth": line.width, "color": line.colour, "linestyle": line.style}
        ax.annotate(
            "", line.points[-1], line.points[-2], arrowprops={**look, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
        )


def _text(ax: Axes, text: Text) -> None:
    horizontal, vertical = text.align
    look: dict[str, Any] = {
        "ha": horizontal,
        "va": vertical,
        "fontsize": text.size,
        "weight": text.weight,
        "style": text.style,
    }
    ax.text(text.x, text.y, text.text, **look)
