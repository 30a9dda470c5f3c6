"""One HTML page of a scale: tables, figures, claims, cost and every record, readable without server or internet.

It shows the Markdown tables and PNG figures of results/ and figures/ as they are. Beside them it reads only records.
What is not written yet is named, with the command that writes it.
"""

import base64
import math
import os
import re
import statistics
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from dearkd import disk, record
from dearkd.places import shipped
from dearkd.plan import commands, verify
from dearkd.plan.plan import Plan, Run
from dearkd.report import decimals, unfinished

PAGE = Path(__file__).with_name("page.html")
CAPTIONS = Path("workflow/report")
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


class Shown(NamedTuple):
    """A table, a figure or the page of the claims as the report shows it."""

    name: str
    title: str
    caption: Markup
    body: Markup
    files: tuple[tuple[str, str], ...]
    """(suffix, link from the page) of each file to download."""


class Claims(NamedTuple):
    """The claims as the page shows them: one line for each measured claim, the others in a folded part."""

    counts: str
    measured: tuple[tuple[str, str, str, str], ...]
    """(id, the paper's statement, verdict, our margin) of each claim."""
    scales: Markup
    """The verdicts of all scales side by side; empty where no other scale has been judged."""
    figure: Markup
    shown: Shown


class Spent(NamedTuple):
    """The hours that jobs of one kind took. `lost`: hours since the last checkpoint of interrupted jobs."""

    kind: str
    jobs: int
    hours: float
    gpu_hours: float
    interrupted: int
    lost: float


class Trained(NamedTuple):
    """A run with links to its records."""

    name: str
    top1: str
    """mean ± standard deviation over the seeds, on test images; empty: never evaluated."""
    minutes: float
    seeds: tuple[tuple[int, tuple[tuple[str, str], ...]], ...]
    """(seed, (name, link from the page) of each of its records)."""


def write(plan: Plan) -> Path:
    """Write results/<scale>/report.html of what is there; returns its path. InputError where nothing is."""
    unfinished.refuse_nothing(plan, "report", *plan.tables, *plan.figures)
    page = plan.paths.results / "report.html"
    records = _records(plan)
    jobs: dict[str, list[dict[str, Any]]] = {"teachers": [], "students": [], "synthetic images": [], "labels": []}
    for values in records:
        of = record.kind(values)
        if of == "stage":
            jobs["teachers" if values["run"].startswith("teacher-") else "students"].append(values)
        elif of in ("images", "labels"):
            jobs["synthetic images" if of == "images" else of].append(values)
    runs = [_trained(plan, run) for run in plan.runs.values() if not run.name.startswith("teacher-")]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"decimals": decimals.plain, "called": _called}
    text = environment.from_string(PAGE.read_text()).render(
        scale=plan.scale,
        argument=plan.argument,
        absent=Markup(MARKDOWN.renderInline(absent(plan))),
        tables=[_table(plan, name, table.title) for name, table in plan.tables.items()],
        figures=[_figure(plan, name, figure.title) for name, figure in plan.figures.items()],
        claims=_claims(plan),
        savings=_savings(plan),
        teachers=_teachers(plan),
        spent=[spent for kind, of in jobs.items() if (spent := _spent(kind, of)).jobs],
        runs=runs,
        commits=_counted(r["git"]["sha"] or "no commit" for r in records),
        dirty=sum(bool(r["git"]["dirty"]) for r in records),
        versions=_counted(f"{k} {v}" for r in records for k, v in r["versions"].items() if v),
        hardware=_counted(f"{r['hardware']['device']}, {r['hardware']['cpu']}" for r in records),
        written=sorted(r["written"] for r in records),
    )
    disk.write(page, text)
    return page


def absent(plan: Plan) -> str:
    """What the page lacks, in one line, and the command that makes it; empty where it lacks nothing."""
    parts = {name: plan.paths.results / "tables" / f"{name}.md" for name in plan.tables}
    parts |= {name: plan.paths.figures / f"{name}.png" for name in plan.figures}
    unwritten = [name for name, path in parts.items() if not path.is_file()]
    unwritten += ["claims"] * (bool(plan.tables) and not all(path.is_file() for path in _of_claims(plan)))
    partial = [name for name in parts if name not in unwritten and unfinished.lacks(plan, name)]
    said = [f"{what} {', '.join(names)}." for what, names in (("Missing:", unwritten), ("Partial:", partial)) if names]
    return f"{' '.join(said)} `{commands.target(plan, 'report')}` makes the rest." if said else ""


def _records(plan: Plan) -> list[dict[str, Any]]:
    """Every record of the plan's runs, images and labels that is there; InputError where one is stale or damaged."""
    found = []
    for run in plan.runs.values():
        for seed in run.seeds:
            there = [s.name for s in run.stages if plan.paths.stage(run.name, seed, s.name).is_file()]
            if plan.paths.metrics(run.name, seed).is_file():
                trained, tested = verify.evaluation(plan, run, seed)
                found += [*trained, tested]
            elif there:
                found += verify.stages(plan, run, seed, there[-1])
    for source in plan.sources.values():
        shards = [(source.name, seed, i) for seed in plan.scale.seeds for i in range(source.recipe.shards)]
        found += [verify.shard(plan, *shard)[0] for shard in shards if plan.paths.shard(*shard).is_file()]
    labels = [
        (own.name, seed, shard)
        for run in plan.runs.values()
        for seed in run.seeds
        for stage in run.stages
        if (own := plan.labels_of(stage)) is not None
        for shard in plan.label_shards(stage)
    ]
    return found + [
        verify.labels(plan, *shard) for shard in dict.fromkeys(labels) if plan.paths.labels(*shard).is_file()
    ]


# ---------------------------------------------------------------------------------------------- parts of the page


def _table(plan: Plan, name: str, title: str) -> Shown:
    path = plan.paths.results / "tables" / f"{name}.md"
    if not path.is_file():
        return Shown(name, title, _caption(name), _unwritten(plan, "table", name), ())
    files = tuple((s, urllib.parse.quote(f"tables/{name}.{s}")) for s in ("csv", "md", "tex"))
    return Shown(name, title, _caption(name), _html(path.read_text()), files)


def _figure(plan: Plan, name: str, title: str) -> Shown:
    path = plan.paths.figures / f"{name}.png"
    if not path.is_file():
        return Shown(name, title, _caption(name), _unwritten(plan, "figure", name), ())
    return Shown(name, title, _caption(name), _image(path, title), _downloads(plan, name))


def _unwritten(plan: Plan, verb: str, name: str) -> Markup:
    """In the place of a table or figure: the command that writes it from the results so far, or that makes results."""
    write = f"python -m dearkd {verb} {name} --scale {plan.argument}"
    way = write if unfinished.begun(plan, name) else commands.target(plan, name)
    return Markup("<p>This {} is not written yet. <code>{}</code> writes it.</p>").format(verb, way)


def _of_claims(plan: Plan) -> tuple[Path, Path, Path]:
    """The files of the claims that the page shows."""
    return plan.paths.results / "claims.md", plan.paths.results / "claims.csv", plan.paths.figures / "claims.png"


def _claims(plan: Plan) -> Claims | None:
    """The claims, from the files beside the page; None where the scale shows no table, or a file is not written yet."""
    text, numbers, figure = files = _of_claims(plan)
    if not plan.tables or not all(path.is_file() for path in files):
        return None
    import pandas as pd

    from dearkd.report.claims import scales, verdicts
    from dearkd.report.records import entries

    page = text.read_text().partition("\n")[2]
    judged = pd.read_csv(numbers, keep_default_na=False, na_values={"margin": "", "low": "", "high": ""})
    measured = tuple(
        (c.id, c.statement, c.verdict, verdicts.ours(c)) for c in entries(judged) if not math.isnan(c.margin)
    )
    beside = list(dict.fromkeys([plan.scale.name, *scales.measured()]))
    return Claims(
        f"Of {len(judged)} claims {verdicts.counted(judged['verdict'].value_counts())}.",
        measured,
        _html(scales.table(beside)) if len(beside) > 1 else Markup(""),
        _image(figure, "margins of the claims"),
        Shown(
            "claims",
            "What holds",
            _caption("claims"),
            _html(page.replace("\n## ", "\n### ")),
            (("csv", "claims.csv"), ("md", "claims.md")),
        ),
    )


def _savings(plan: Plan) -> Markup:
    path = plan.paths.results / "savings.md"
    return _html(path.read_text()) if path.is_file() else Markup("")


def _teachers(plan: Plan) -> list[str]:
    """Each teacher with the accuracy that its gate measured."""
    found = []
    for name, teacher in plan.scale.teachers.items():
        path = plan.paths.teacher(name)
        if path.is_file():
            values = verify.teacher(plan, name)
            top1 = decimals.plain(values["top1"], 1)
            said = f"{name} ({teacher.model}) {top1} % of {values['images']} {values['gate']} images"
            found.append(said + (f" (warning: {values['warning']})" if values.get("warning") else ""))
    return found


def _trained(plan: Plan, run: Run) -> Trained:
    seeds, top1, minutes = [], [], 0.0
    for seed in run.seeds:
        stages = {s.name: plan.paths.stage(run.name, seed, s.name) for s in run.stages}
        there = {n: p for n, p in {**stages, "test": plan.paths.metrics(run.name, seed)}.items() if p.is_file()}
        if not there:
            continue
        seeds.append((seed, tuple((name, _link(plan, path)) for name, path in there.items())))
        minutes += sum(record.seconds(record.read(path)) for name, path in there.items() if name != "test") / 60
        if "test" in there:
            top1.append(record.read(there["test"])["metrics"]["top1"])
    spread = f" ± {decimals.plain(statistics.stdev(top1), 1)}" if len(top1) > 1 else ""
    return Trained(
        run.name, f"{decimals.plain(statistics.mean(top1), 1)}{spread}" if top1 else "", minutes, tuple(seeds)
    )


def _spent(kind: str, records: list[dict[str, Any]]) -> Spent:
    return Spent(
        kind,
        len(records),
        sum(map(record.seconds, records)) / 3600,
        sum(r["gpu_seconds"] for r in records) / 3600,
        sum(r["attempts"] > 1 for r in records),
        sum(r.get("seconds_lost", 0.0) for r in records) / 3600,
    )


def _counted(values: Iterable[str]) -> list[str]:
    """Each distinct value once, the most frequent first."""
    found = list(values)
    return sorted(set(found), key=lambda value: (-found.count(value), value))


def _html(markdown: str) -> Markup:
    """Tables become scrollable on a narrow screen."""
    html = MARKDOWN.render(markdown)
    html = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return Markup(html)


def _called(name: str) -> str:
    """`Table 1` of table1; another name with a capital letter."""
    return re.sub(r"^(Table|Figure)(\d)", r"\1 \2", name.capitalize())


def _image(path: Path, alternative: str) -> Markup:
    data = base64.b64encode(path.read_bytes()).decode()
    return Markup('<div class="wide"><img alt="{}" src="data:image/png;base64,{}"></div>').format(alternative, data)


def _caption(name: str) -> Markup:
    """The caption of the workflow's own report, as HTML; words in backticks become code."""
    path = shipped(CAPTIONS / f"{name}.rst")
    text = " ".join(path.read_text().split()) if path.is_file() else ""
    text = re.sub(r"^(Table|Figure) \d: ", "", text)
    return Markup(MARKDOWN.renderInline(text[:1].upper() + text[1:]))


def _downloads(plan: Plan, name: str) -> tuple[tuple[str, str], ...]:
    files = [plan.paths.figures / f"{name}.{suffix}" for suffix in ("pdf", "png", "csv")]
    return tuple((file.suffix[1:], _link(plan, file)) for file in files if file.is_file())


def _link(plan: Plan, path: Path) -> str:
    """The link from the page in results/<scale> to a file of the project."""
    return urllib.parse.quote(Path(os.path.relpath(path, plan.paths.results)).as_posix())
