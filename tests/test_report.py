"""The page of a scale: whole, self-contained, its links alive, its numbers those of the files beside it."""

import base64
import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import PROJECT, copy_project

from dearkd import matrix, report
from dearkd.__main__ import main
from dearkd.schema import InputError


class Page(HTMLParser):
    """Links, images, anchors and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.anchors, self.text = [], [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[k] for k in ("href",) if k in found]
        self.images += [found[k] for k in ("src",) if k in found]
        self.anchors |= {found["id"]} if "id" in found else set()

    def handle_data(self, data):
        self.text += f" {data} "


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A project with the committed records of the digits scale."""
    folder = copy_project(tmp_path_factory.mktemp("report"))
    for name in ("results", "figures"):
        shutil.copytree(PROJECT / name / "digits", folder / name / "digits")
    return folder


@pytest.fixture
def there(digits, monkeypatch):
    monkeypatch.chdir(digits)
    return digits


def test_the_page_needs_nothing_but_itself_and_its_links_lead_to_files(there, capsys):
    assert main(["report", "--scale", "digits"]) == 0
    assert capsys.readouterr().out == "Report: results/digits/report.html\n"
    page = Page(Path("results/digits/report.html").read_text())
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside == page.anchors
    files = [link for link in page.links if not link.startswith("#")]
    assert len(files) > 400, "a record for every stage and evaluation of every run and seed"
    for link in files:
        assert (Path("results/digits") / link).is_file(), link


def test_it_shows_every_table_figure_and_claim_as_they_lie_there(there):
    whole = matrix.load("digits")
    page = Page(report.write(whole).read_text())
    shown = {base64.b64decode(image.partition(",")[2]) for image in page.images}
    assert shown == {Path(f"figures/digits/{name}.png").read_bytes() for name in (*whole.figures, "claims")}
    text = " ".join(page.text.split())
    for name in (*(f"tables/{table}" for table in whole.tables), "claims"):
        lines = Path(f"results/digits/{name}.md").read_text().splitlines()
        for cell in {c.strip() for line in lines if line.startswith("|") for c in re.split(r"(?<!\\)\|", line)}:
            if "---" not in cell and "`" not in cell:
                assert " ".join(cell.replace("\\|", "|").replace("\\", "").split()) in text, cell


def test_its_costs_are_the_sums_of_the_records(there):
    whole = matrix.load("digits")
    text = " ".join(Page(report.write(whole).read_text()).text.split())
    folder = Path("results/digits/runs")
    planned = [
        folder / run.name / f"seed{seed}/{stage.name}.json"
        for run in whole.runs.values()
        for seed in run.seeds
        for stage in run.stages
    ]
    seconds = {"teachers": 0.0, "students": 0.0}
    count = dict.fromkeys(seconds, 0)
    for path in filter(Path.is_file, planned):
        kind = "teachers" if path.parts[3].startswith("teacher-") else "students"
        seconds[kind] += json.loads(path.read_text())["seconds_all"]
        count[kind] += 1
    for kind in seconds:
        assert f"{kind} {count[kind]} {seconds[kind] / 3600:.2f} 0.00" in text


def test_what_a_scale_says_of_itself_is_text_not_markup(there):
    whole = matrix.load("digits")
    scale = dataclasses.replace(whole.scale, summary="<script>alert(1)</script> & more")
    text = report.write(dataclasses.replace(whole, scale=scale)).read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text


@pytest.mark.parametrize("lost", ["figures/digits/figure4.png", "results/digits/tables/table2.md"])
def test_a_missing_part_is_named_with_the_command_that_makes_it(there, lost):
    path = Path(lost)
    kept = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(InputError, match=rf"{lost}: missing; write it with .*scale=digits -- {path.stem}"):
            report.write(matrix.load("digits"))
    finally:
        path.write_bytes(kept)
