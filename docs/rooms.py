"""The drawing of docs/architecture.md from the imports of dearkd/: `python docs/rooms.py` writes architecture.svg."""

import ast
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

WIDTH, GAP, LINE, CHARACTER = 960, 26, 16, 6.3
"""Pixels: of the drawing, between boxes, of a line of text and of a character."""
MODULES = sorted(Path("dearkd").rglob("*.py"))
DRAWING = Path("docs/architecture.svg")
Rooms = dict[str, set[str]]
"""Each room with the rooms that it imports."""


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, in its functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inner = node.module.split(".")[0] == "dearkd" and not Path(f"{node.module.replace('.', '/')}.py").is_file()
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if inner else [node.module]


def ground_modules() -> list[str]:
    """Modules of dearkd/ itself that import only each other."""
    found = {p.stem: inner_imports(p) for p in MODULES if len(p.parts) == 2 and p.stem != "__init__"}
    while above := {name for name, needs in found.items() if needs - found.keys()}:
        found = {name: needs for name, needs in found.items() if name not in above}
    return sorted(found)


def inner_imports(path: Path) -> set[str]:
    """Folders and modules of dearkd/ that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("dearkd.")}


def rooms() -> tuple[Rooms, Rooms]:
    """(folders of dearkd/ and `ground`, single modules that open them), each with the rooms that it imports.

    A single module that another one imports is a part of that one.
    """
    found: Rooms = {"ground": set()}
    ground = ground_modules()
    for path in MODULES:
        name = path.relative_to("dearkd").with_suffix("").parts[0]
        if name not in ("__init__", *ground):
            needs = {"ground" if n in ground else n for n in inner_imports(path)} - {name}
            found.setdefault(name, set()).update(needs)
    folders = {name: needs for name, needs in found.items() if name == "ground" or Path("dearkd", name).is_dir()}
    doors = {name: needs for name, needs in found.items() if name not in folders}
    parts = set().union(*doors.values()) - folders.keys()
    closed = doors | {name: set() for name in folders}
    return folders, {name: reached(name, closed) - parts for name in doors if name not in parts}


def reached(name: str, graph: Rooms) -> set[str]:
    """Rooms that a room imports, itself or through others."""
    return graph[name].union(*(reached(needed, graph) for needed in graph[name]))


def arrows(graph: Rooms) -> list[tuple[str, str]]:
    """Imports that do not follow from others: from a room to a room."""
    return [
        (name, needed)
        for name, needs in sorted(graph.items())
        for needed in sorted(needs)
        if not any(needed in reached(other, graph) for other in needs)
    ]


def draw() -> str:
    """The drawing as SVG: the modules that open the package, and below them each room above those that it imports."""
    graph, doors = rooms()
    height_of = {name: _height(name, graph) for name in graph}
    levels = [sorted(n for n in graph if height_of[n] == h) for h in range(max(height_of.values()), -1, -1)]
    columns = max(levels, key=len)
    step = (WIDTH - GAP) / len(columns)
    places, parts, y = {}, [], GAP
    for level in [sorted(doors), *levels]:
        boxes = []
        for i, name in enumerate(level):
            spanned = [i] if name in doors else _columns(name, columns, graph)
            x, width = GAP + spanned[0] * step, (spanned[-1] - spanned[0] + 1) * step - GAP
            lines = _lines(name, int((width - 20) / CHARACTER), doors.get(name))
            boxes.append((name, x, width, lines))
        tall = max(len(lines) for *_, lines in boxes) * LINE + 14
        for name, x, width, lines in boxes:
            places[name] = (x, y, width, tall)
            parts.append(_box(x, y, width, tall, lines, "#f6ecd4" if name in doors else "#dbe7f0"))
        y += tall + 2 * GAP
    parts += [_arrow(places[name], places[needed]) for name, needed in arrows(graph)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP}" font-family="sans-serif">\n'
    tip = '<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
    tip += '<path d="M0,0 L9,4 L0,8 z" fill="#444"/></marker></defs>\n'
    return f'{head}{tip}<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"


def _height(name: str, graph: Rooms) -> int:
    return max((_height(needed, graph) + 1 for needed in graph[name]), default=0)


def _columns(name: str, columns: list[str], graph: Rooms) -> list[int]:
    """Columns of the widest row that a room imports or that import it."""
    related = {name} | reached(name, graph) | {other for other in graph if name in reached(other, graph)}
    return [i for i, other in enumerate(columns) if other in related]


def _lines(name: str, width: int, opens: set[str] | None) -> list[tuple[str, str]]:
    """(text, style) of a box: name, what it is in its own words, and what it imports or has."""
    title, below = f"dearkd/{name}/", ""
    if name == "ground":
        title, said = "dearkd/*.py", "Records, keys, schemas and files, which every room may use."
        below = ", ".join(ground_modules())
    elif opens is None:
        said = _docstring(Path("dearkd", name, "__init__.py"))
    else:
        title = "python -m dearkd" if name == "__main__" else f"dearkd/{name}.py"
        said, below = _docstring(Path(f"dearkd/{name}.py")).replace("`", ""), f"imports {', '.join(sorted(opens))}"
    return [
        (title, 'font-size="13" font-weight="bold"'),
        *((line, 'font-size="11.5"') for line in textwrap.wrap(said, width, break_long_words=False)),
        *((line, 'font-size="11" fill="#555"') for line in textwrap.wrap(below, width, break_on_hyphens=False)),
    ]


def _docstring(path: Path) -> str:
    return " ".join(ast.get_docstring(ast.parse(path.read_text())).split("\n\n")[0].split())


def _box(x: float, y: float, width: float, height: float, lines: list[tuple[str, str]], fill: str) -> str:
    texts = [
        f'<text x="{x + 10:.0f}" y="{y + 20 + i * LINE:.0f}" {style}>{escape(text)}</text>'
        for i, (text, style) in enumerate(lines)
    ]
    frame = f'width="{width:.0f}" height="{height:.0f}" rx="6" fill="{fill}" stroke="#666"/>'
    return f'<rect x="{x:.0f}" y="{y:.0f}" {frame}\n' + "\n".join(texts)


def _arrow(start: tuple[float, ...], end: tuple[float, ...]) -> str:
    """From the lower edge of one box to the upper edge of another, where they overlap."""
    x = (max(start[0], end[0]) + min(start[0] + start[2], end[0] + end[2])) / 2
    line = f'x1="{x:.0f}" y1="{start[1] + start[3]:.0f}" x2="{x:.0f}" y2="{end[1]:.0f}"'
    return f'<line {line} stroke="#444" stroke-width="1.4" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    DRAWING.write_text(draw())
