"""The page of a scale: whole, self-contained, its links alive, its numbers those of the files beside it."""

import base64
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT, copy_project
from hostile import HOSTILE, Read, typeset

from dearkd.__main__ import main
from dearkd.plan import experiments
from dearkd.report import escaping, figures, savings, tables
from dearkd.report import page as report
from dearkd.report.claims import judge, verdicts

pytestmark = pytest.mark.slow


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
        assert (Path("results/digits") / unquote(link)).is_file(), link


def test_it_shows_every_table_figure_and_claim_as_they_lie_there(there):
    whole = experiments.load("digits")
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
    whole = experiments.load("digits")
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


def named(value, name):
    """The plan's tables or figures with other words wherever a person chose them; rows stay apart."""
    if isinstance(value, dict):
        return {key: named(one, name) for key, one in value.items()}
    labels = {row.label: f"{row.label} {name}" for row in value.rows}
    rows = tuple(
        dataclasses.replace(
            row, label=labels[row.label], columns=tuple((key, name if v == "" else v) for key, v in row.columns)
        )
        for row in value.rows
    )
    changes = {k: labels[v] for k in ("gap_to", "delta_to") if (v := getattr(value, k, ""))}
    return dataclasses.replace(value, rows=rows, title=f"{value.title} {name}", **changes)


def test_it_reads_the_records_of_a_scale_from_before_attempts_were_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_project(tmp_path))
    for name in ("results", "figures"):
        shutil.copytree(PROJECT / name / "lite0-cpu", Path(name, "lite0-cpu"))
    shards = [json.loads(p.read_text()) for p in sorted(Path("results/lite0-cpu").glob("images/*/seed0/shard-*.json"))]
    assert shards and not any("seconds_all" in values for values in shards)
    text = " ".join(Page(report.write(experiments.load("lite0-cpu")).read_text()).text.split())
    hours = sum(values["seconds"] for values in shards) / 3600
    interrupted = sum(values["attempts"] > 1 for values in shards)
    assert f"synthetic images {len(shards)} {hours:.2f} 0.00 {interrupted} 0.000" in text


def test_words_of_others_are_text_wherever_they_go(there):
    """Titles, labels, summary, claims: in Markdown and LaTeX, letter by letter; all that is hostile in one name."""
    name = " ".join(HOSTILE)
    whole = experiments.load("digits")
    whole = dataclasses.replace(
        whole, tables=named(whole.tables, name), scale=dataclasses.replace(whole.scale, summary=f"summary {name}")
    )
    said = escaping.line(name)
    for table in ("table1", "table2", "table6"):
        shown = tables.arrange(whole.tables[table], tables.tidy(whole.tables[table], tables.values_of(whole, table)))
        html = Read(report.MARKDOWN.render(tables.to_markdown(whole, whole.tables[table], shown, False)))
        assert set(html.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "p", "em", "code"}
        text = " ".join(html.text.split())
        assert f"{whole.tables[table].rows[0].label.partition(' ' + name)[0]} {said}" in text
        assert f"summary {said}" in text and text.count(said) >= 2 + len(whole.tables[table].rows)
        latex = tables.to_latex(whole.tables[table], shown)
        rows = latex.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
        labels = [typeset(row.split(" & ")[0]) for row in rows]
        assert f"{whole.tables[table].rows[0].label.partition(' ' + name)[0]} {said}" in labels
        assert latex.splitlines()[1].startswith("\\begin{tabular}")
    lines = savings.describe(whole, tables.values_of(whole, "table2"))
    html = Read("".join(report.MARKDOWN.render(f"- {line}") for line in lines))
    assert set(html.tags) <= {"ul", "li"} and html.text.count(said) >= 4
    judged = judge.frame(experiments.load("noisy-digits")).assign(statement=name, source=name)
    html = Read(report.MARKDOWN.render(verdicts.to_markdown(whole, judged)))
    assert "script" not in html.tags and "img" not in html.tags and "a" not in html.tags
    assert " ".join(html.text.split()).count(said) >= 2 * len(judged)


def test_the_whole_page_runs_nothing_that_a_file_says(there, monkeypatch):
    """Every text file that the page is made of says something hostile, the run of a record too."""
    bad = "<script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:alert(3))"
    whole = experiments.load("digits")
    scale = dataclasses.replace(whole.scale, summary=bad)
    kept = {p: p.read_text() for p in Path("results/digits").rglob("*.md")}
    csv = Path("results/digits/claims.csv")
    kept[csv] = csv.read_text()
    metrics = Path("results/digits/runs/dearkd-Ti/seed0/I.json")
    kept[metrics] = metrics.read_text()
    try:
        for path in kept:
            if path.suffix == ".md":
                path.write_text(f"{bad}\n\n| {bad} |\n| --- |\n| {bad} |\n\n{bad}\n")
        csv.write_text(kept[csv].replace("MHCA alone improves", bad.replace(",", "")))
        values = json.loads(kept[metrics])
        values["hardware"]["cpu"] = values["git"]["sha"] = values["versions"]["torch"] = bad
        metrics.write_text(json.dumps(values))
        monkeypatch.setattr(report.record, "read", lambda path: json.loads(Path(path).read_text()))
        changed = dataclasses.replace(
            whole, tables=named(whole.tables, bad), figures=named(whole.figures, bad), scale=scale
        )
        html = Read(report.write(changed).read_text())
    finally:
        for path, text in kept.items():
            path.write_text(text)
    assert "script" not in html.tags and html.tags.count("img") == len(whole.figures) + 1
    assert html.text.count("<script>alert(1)</script>") > 30
    assert all(not link.startswith("javascript") for link in Page(Path("results/digits/report.html").read_text()).links)


@pytest.mark.parametrize("name", ["$a_b$ and $\\frac$ %s {0} ~", "__\\undefined $x"])
def test_figures_draw_names_as_they_are(there, name):
    """A `$` starts no formula, which may be a wrong one; no label is left out."""
    whole = experiments.load("digits")
    frame = tables.tidy(whole.tables["table2"], tables.values_of(whole, "table2"))
    frame["row"] = name + " " + frame["row"]
    judged = judge.frame(experiments.load("noisy-digits")).assign(statement=name)
    with plt.style.context([figures.STYLE, figures.PLAIN]):
        drawn, ax = plt.subplots()
        legend = figures.lines_against_data(ax, frame[frame["metric"] == "top1"], "mean", "sd").legend()
        assert [text.get_text().strip() for text in legend.get_texts()] == [*dict.fromkeys(frame["row"])]
        for figure in (drawn, verdicts.draw(judged, "mine")):
            figure.savefig(buffer := io.BytesIO())
            plt.close(figure)
            assert buffer.getvalue().startswith(b"\x89PNG")


def test_no_two_lines_of_figure_1_look_alike():
    """Seven rows and five styles; a row that varies another keeps its colour."""
    names = ["a", "b", "c", "a, long", "d", "e", "f"]
    frame = pd.DataFrame({"row": names, "fraction": 10, "mean": range(7), "sd": 1.0})
    with plt.style.context(figures.STYLE):
        drawn, ax = plt.subplots()
        lines = [bars[0] for bars in figures.lines_against_data(ax, frame, "mean", "sd").containers]
        plt.close(drawn)
    looks = [(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in lines]
    assert len(set(looks)) == 7 and looks[0][:2] == looks[3][:2]


def test_no_line_crosses_a_fraction_without_a_number():
    frame = pd.DataFrame({"row": "a", "fraction": [10, 25, 100], "mean": [1.0, np.nan, 3.0], "sd": 1.0})
    drawn, ax = plt.subplots()
    (line,) = (bars[0] for bars in figures.lines_against_data(ax, frame, "mean", "sd").containers)
    plt.close(drawn)
    drawn_at = np.asarray(line.get_ydata(), dtype=float)
    assert np.isnan(drawn_at).tolist() == [False, True, False], "matplotlib breaks a line there"


def test_the_page_opens_with_the_tables_and_what_holds(there):
    whole = experiments.load("digits")
    other = shutil.copytree(PROJECT / "results/noisy-digits", "results/noisy-digits", ignore=lambda *_: ["runs"])
    text = report.write(whole).read_text()
    shutil.rmtree(other)
    assert "<th>noisy-digits</th>" in text, "the claims of other scales stand beside"
    places = [text.index(f'id="{name}"') for name in ("table1", "table6", "claims", "savings", "figure1", "cost")]
    assert places == sorted(places)
    page = Page(text)
    assert "`" not in page.text.replace("```", ""), "what is code in a caption is code on the page"
    assert "Of 38 claims 12 hold, 2 fail" in " ".join(page.text.split())
    lines = re.findall(r"<li><b.*?</li>", text)
    measured = judge.frame(whole)["verdict"].ne("not measured").sum()
    assert len(lines) == measured and "C01" in lines[0] and "holds" in lines[0]


@pytest.mark.parametrize(
    "lost", ["figures/digits/figure4.png", "results/digits/tables/table2.md", "results/digits/claims.csv"]
)
def test_a_missing_part_is_named_with_the_command_that_makes_it(there, lost, capsys):
    """The rest of the page is there. What has results is written from them in seconds, without a job."""
    path = Path(lost)
    kept = path.read_bytes()
    path.unlink()
    try:
        assert main(["report", "--scale", "digits"]) == 0
    finally:
        path.write_bytes(kept)
    said = f"Missing: {path.stem}. `snakemake -c2 --config scale=digits -- report` makes the rest."
    assert capsys.readouterr().out == f"Report: results/digits/report.html\n{said}\n"
    text = Path("results/digits/report.html").read_text()
    html = said.replace("`snakemake", "<code>snakemake").replace("report` ", "report</code> ")
    assert f'<p class="absent">{html}' in text
    if path.stem != "claims":
        verb = "figure" if path.suffix == ".png" else "table"
        way = f"<code>python -m dearkd {verb} {path.stem} --scale digits</code> writes it."
        assert f"This {verb} is not written yet. {way}" in text
    assert ('id="claims"' in text) == (path.stem != "claims") and 'id="table1"' in text and 'id="runs"' in text
