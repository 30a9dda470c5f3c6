"""The documentation as a site: it builds, its links lead somewhere, what it names exists, and its examples work."""

import ast
import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, copy_project

from dearkd.plan import experiments, methods
from dearkd.plan.experiments import load_scale

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; `strict` makes a dead link or anchor within it an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mkdocs")), "build", "--strict", "--site-dir", str(folder)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Sources(HTMLParser):
    """What a page loads or links to, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.links, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.loaded += [found["src"]] if found.get("src") else []
        self.loaded += [found["href"]] if tag == "link" and found.get("rel") in ("stylesheet", "icon") else []
        self.links += [found["href"]] if tag == "a" and found.get("href") else []
        self.anchors |= {found["id"]} if "id" in found else set()


def test_every_link_leads_to_a_file_of_the_site_and_its_anchor(site):
    pages = {path: Sources(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > 60
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            target, _, anchor = link.partition("#")
            if target.startswith(("http", "mailto:", "data:")) or path.name == "404.html":
                continue
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{path.relative_to(site)}: {link}"
            if anchor and file in pages and not anchor.startswith("__"):
                assert anchor in pages[file].anchors, f"{path.relative_to(site)}: {link}"


def test_it_loads_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        for source in Sources(path.read_text()).loaded:
            assert not source.startswith(("http", "//")), f"{path.relative_to(site)}: {source}"


def test_every_module_has_a_page_with_its_functions(site):
    for path in Path("dearkd").rglob("*.py"):
        if path.stem == "__init__":
            continue
        module = ".".join(path.with_suffix("").parts[1:])
        page = (site / f"reference/{module}/index.html").read_text()
        for name in defined(path):
            assert f'id="dearkd.{module}.{name}"' in page, f"{path}: {name}"


def defined(path):
    """Public functions and classes of a module that have a docstring, without importing it."""
    found = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [n.name for n in found if not n.name.startswith("_") and ast.get_docstring(n)]


def test_figures_on_the_site_are_the_committed_ones(site):
    shown = [p for p in site.rglob("*.png") if p.parts[len(site.parts)] == "files"]
    assert {p.name for p in shown} >= {"figure1.png", "claims.png", "images.png", "ratios.png"}
    for path in shown:
        assert path.read_bytes() == (PROJECT / path.relative_to(site / "files")).read_bytes()


def test_the_citation_names_the_paper_and_the_artifact():
    citation = yaml.safe_load(Path("CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("DearKD: Data-Efficient") and paper["year"] == 2022 and len(paper["authors"]) == 6


# ---------------------------------------------------------------------------------------------- CONTRIBUTING.md


def example(title):
    """The block of code with this title in CONTRIBUTING.md."""
    return re.search(rf'```\w+ title="{re.escape(title)}"\n(.*?)```', Path("CONTRIBUTING.md").read_text(), re.DOTALL)[1]


def test_the_example_of_a_row_adds_one_run(tmp_path):
    (row,) = yaml.safe_load(example("workflow/experiments.yaml, tables.table1.rows"))
    values = yaml.safe_load(experiments.MATRIX.read_text())
    before = experiments.load("digits")
    values["tables"]["table1"]["rows"].append(row)
    (tmp_path / "experiments.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    after = experiments.load("digits", tmp_path / "experiments.yaml")
    (added,) = after.runs.keys() - before.runs.keys()
    assert dict(after.runs[added].stages[0].model.args)["rpe"] == (("drop", 0.0),)
    assert after.tables["table1"].rows[-1].label == "no RPE dropout"


def test_the_example_of_a_method_is_a_method():
    names = {**vars(methods), "METHODS": dict(methods.METHODS)}
    exec("from __future__ import annotations\n" + example("dearkd/plan/methods.py"), names)
    first, second = names["METHODS"]["decision_throughout"](load_scale("digits"), "Ti")
    assert dict(first.losses) == {"ce": 0.5, "logit": 0.5, "hidden": 4.0}
    assert dict(second.losses) == {"ce": 0.5, "logit": 0.5} and second.teacher is not None
    assert (first.last_epoch, second.first_epoch) == (33, 33)


def test_the_example_of_a_scale_is_one(tmp_path, monkeypatch):
    written = example("workflow/scales/digits-16.yaml")
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("workflow/scales/digits-16.yaml").write_text(written)
    plan = experiments.load("digits-16")
    assert plan.tables.keys() == {"table2"} and plan.figures.keys() == {"figure1"}
    args = dict(plan.runs["dearkd-Ti"].stages[0].model.args)
    assert (args["img_size"], args["patch_size"], args["depth"]) == (16, 4, 3)
    assert dataclasses.asdict(plan.scale)["seeds"] == (0, 1, 2)
