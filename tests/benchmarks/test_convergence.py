"""docs/convergence.md: every number of its tables is of the committed lines of the search."""

import csv
import re
import statistics
from pathlib import Path

PAGE = Path("docs/convergence.md")
FOUND = [Path(f"results/converged/search/{name}.csv") for name in ("rate", "epochs")]
MEASURED = re.compile(r"(\d+\.\d)(?: ± (\d+\.\d))? \((\d+)\)")


def tables(text):
    """The tables whose first column is `row` and second `learning rate`: {row, rate: {column: cell}}."""
    for lines in blocks(text, "learning rate"):
        yield [(line[0], float(line[1]), dict(zip(lines[0][2:], line[2:], strict=True))) for line in lines[2:]]


def blocks(text, second):
    """Cells of each table whose first column is `row` and whose second is `second`."""
    for block in text.split("\n\n"):
        lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines() if "|" in line]
        if lines and lines[0][:2] == ["row", second]:
            yield lines


def expected(lines, row, rate, epochs):
    return middle([line for line in lines if (line["row"], float(line["lr"]), line["epochs"]) == (row, rate, epochs)])


def middle(lines):
    values = [float(line["validation_top1"]) for line in lines]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def test_the_page_says_what_the_search_found():
    lines = [line for path in FOUND for line in csv.DictReader(path.read_text().splitlines())]
    shown = list(tables(PAGE.read_text()))
    seen = set()
    for row, rate, cells in (line for table in shown for line in table):
        for column, cell in cells.items():
            if not column.endswith("epochs"):
                continue
            epochs = column.removesuffix(" epochs")
            assert cell == expected(lines, row, rate, epochs), (row, rate, column)
            seen |= {(row, rate, epochs)} if cell else set()
    assert seen == {(line["row"], float(line["lr"]), line["epochs"]) for line in lines}, (
        "a line of the search is not shown"
    )


def found(*names):
    return [line for name in names for line in csv.DictReader(Path(f"results/converged/search/{name}.csv").open())]


def test_the_page_says_what_each_trial_gave():
    trials = [
        dict(zip(table[0], line, strict=True)) for table in blocks(PAGE.read_text(), "trial") for line in table[2:]
    ]
    lines = found("tenth", "peers")
    assert {(cells["row"], cells["trial"]) for cells in trials} == {(line["row"], line["trial"]) for line in lines}
    for cells in trials:
        row, trial = cells["row"], cells["trial"]
        mine = [line for line in lines if (line["row"], line["trial"]) == (row, trial)]
        assert cells["validation top-1"] == middle(mine), (row, trial)
        epochs, rate = int(mine[0]["epochs"]), mine[0]["lr"]
        if "epochs" in cells:  # the change is against half of them, at the same rate
            before = [line for line in found("doubling", "peers") if line["row"] == row and line["lr"] == rate]
            half = [line for line in before if 2 * int(line["epochs"]) == epochs and trial == "twice the epochs"]
            assert cells["epochs"] == str(epochs)
            assert cells["change"] == (difference(half, mine) if half else ""), (row, trial)
            assert half or trial != "twice the epochs"
        elif "change" in cells and doubled(row, "the recipe")[0]["epochs"] == str(epochs):
            assert cells["change"] == difference(doubled(row, "the recipe"), mine), (row, trial)


def doubled(row, trial):
    return [line for line in found("doubling") if (line["row"], line["trial"]) == (row, trial)]


def difference(first, second):
    mean = [statistics.mean(float(line["validation_top1"]) for line in lines) for lines in (first, second)]
    change = round(mean[1] - mean[0], 1) + 0.0
    return "0.0" if not change else f"{'+' if change > 0 else '−'} {abs(change):.1f}"


def test_the_page_says_what_twice_the_epochs_gave():
    """A change of a point or more is printed in bold."""
    (table,) = blocks(PAGE.read_text(), "epochs")
    assert {row.split(",")[0] for row, *_ in table[2:]} == {line["row"].split(",")[0] for line in found("doubling")}
    for row, epochs, once, twice, change, _ in table[2:]:
        row = row.removesuffix(", without augmentation")
        first = doubled(row, "the recipe") or [line for line in found("tenth") if line["epochs"] == epochs]
        first = [line for line in first if line["row"] == row]
        second = [line for line in found("doubling") if line["row"] == row and line["trial"] != "the recipe"]
        assert {int(line["epochs"]) for line in second} == {2 * int(epochs)} and first[0]["epochs"] == epochs, row
        assert (once, twice) == (middle(first), middle(second)), row
        expected = difference(first, second)
        assert change == (
            f"**{expected}**" if abs(float(expected.replace("− ", "-").replace("+ ", ""))) >= 1 else expected
        )
