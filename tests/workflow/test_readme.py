"""What the README shows is what was measured. tests/report/test_prose.py compares its sentences."""

import re
import tomllib
from pathlib import Path

import pytest

from dearkd import strict_yaml
from dearkd.plan import experiments
from dearkd.plan.matrix import Matrix
from dearkd.schema import build


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_tables_in_a_page_are_the_committed_ones(page):
    shown = re.findall(r"<!-- ([^\s,]+)(, ours)? -->\n(.*?)\n<!-- end -->", Path(page).read_text(), re.DOTALL)
    assert shown
    for path, ours, table in shown:
        committed = Path(path).read_text().strip()
        assert table.strip() == (own_numbers(committed) if ours else committed), path


def own_numbers(table):
    """A table of data efficiency without the paper's columns, the gaps, the caption and rows that wait for numbers."""
    cells = [[c.strip() for c in line[1:-1].split("|")] for line in table.splitlines() if line.startswith("|")]
    ours = [i for i, name in enumerate(cells[0]) if name.endswith(" ours")]
    lines = [[row[0], *(row[i].removesuffix(" ours") for i in ours)] for row in cells if not row[0].startswith("gap")]
    lines = [line for line in lines if any(line[1:])]
    lines[0][0] = "training images"
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_every_link_of_the_documentation_leads_somewhere():
    for page in [Path("README.md"), *Path("docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page}: {target}"


def test_everything_shown_has_its_caption_for_the_report():
    """Those of every scale, and so the tables that only some scales have."""
    matrix = build(Matrix, strict_yaml.read(experiments.MATRIX), str(experiments.MATRIX))
    captions = {path.stem for path in Path("workflow/report").glob("*.rst")}
    assert captions == {*matrix.tables, *matrix.figures, "claims", "shown"}


def test_the_badges_say_what_the_package_says():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    python = f"{project['requires-python'].removeprefix('>=')} or later"
    shown = re.findall(r"!\[([^]]+)\]\((docs/badges/[^)]+)\)", Path("README.md").read_text())
    assert {f"licence: {project['license']}", f"python: {python}"} < {said for said, _ in shown}
    for said, path in shown:
        left, right = said.split(": ")
        assert re.findall(r"<text[^>]*>([^<]+)<", Path(path).read_text()) == [left, right], path
