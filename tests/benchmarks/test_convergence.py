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


def test_the_page_says_what_was_found_on_a_tenth():
    with Path("results/converged/search/tenth.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    (table,) = blocks(PAGE.read_text(), "trial")
    for row, trial, cell in table[2:]:
        assert cell == middle([line for line in lines if (line["row"], line["trial"]) == (row, trial)]), (row, trial)
    assert {(row, trial) for row, trial, _ in table[2:]} == {(line["row"], line["trial"]) for line in lines}


def test_the_page_on_fast_synthesis_says_what_its_search_found():
    with Path("results/converged/search/fast.csv").open(newline="") as file:
        found = {f"{float(line['validation_top1']):.1f}" for line in csv.DictReader(file)}
    page = Path("docs/data-free.md").read_text().partition("## Fast synthesis")[2]
    shown = re.findall(r"^\| [^|]+ \| [\d,]+ \| [^|]+ \| (\d+\.\d) \|$", page, re.MULTILINE)
    assert len(shown) >= 4 and set(shown) <= found
