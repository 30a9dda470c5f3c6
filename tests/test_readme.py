"""What the README shows is what was measured."""

import re
from pathlib import Path

import pytest

from dearkd import matrix


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_tables_in_a_page_are_the_committed_ones(page):
    shown = re.findall(r"<!-- (\S+) -->\n(.*?)\n<!-- end -->", Path(page).read_text(), re.DOTALL)
    assert shown
    for path, table in shown:
        assert table.strip() == Path(path).read_text().strip(), path


def test_every_link_of_the_documentation_leads_somewhere():
    for page in [Path("README.md"), *Path("docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page}: {target}"


def test_everything_shown_has_its_caption_for_the_report():
    whole = matrix.load("digits")
    captions = {path.stem for path in Path("workflow/report").glob("*.rst")}
    assert captions == {*whole.tables, *whole.figures, "claims", "shown"}
