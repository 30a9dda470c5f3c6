"""The matrix and a scale, read and resolved to a plan; every mistake in them is one sentence with file and key.

Standard library and yaml, so that the Snakefile and the readers start in a tenth of a second.
"""

import csv
import dataclasses
import hashlib
import inspect
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from dearkd import strict_yaml
from dearkd.places import all_shipped, shipped
from dearkd.plan import methods
from dearkd.plan.plan import Cell, Figure, Kind, Metric, Plan, Row, Run, Table
from dearkd.plan.scale import Peer, Scale
from dearkd.plan.scale_file import load_scale
from dearkd.plan.stage import Source
from dearkd.schema import (
    InputError,
    Matches,
    Name,
    Several,
    build,
    convert,
    freeze,
    lookup,
    override,
    shown,
    slug,
    spec,
    unknown,
)

MATRIX = Path("workflow/experiments.yaml")
PAPER = Path("paper")
RULES = ("all", "subset", "presize", "teacher", "labels", "train", "synthesize", "diversity", "evaluate", "pretrained")
RULES += ("throughput", "table", "figure", "curve", "curves", "savings", "claims", "report", "notebook", "notebooks")
"""Of the workflow, whose targets tables and figures are too."""
LONGEST = 180
"""Characters of a run's name: a folder's name has at most 255 bytes."""
Entry = dict[str, object]
"""A row as the file has it: what describes it, its method, the method's switches and dotted keys of the scale."""


@spec
class Numbers:
    """Where a table's paper numbers are."""

    file: Annotated[str, Matches(r"[\w-]+\.csv", "a file of paper/")]
    value: str


@spec
class Across:
    """What runs over a table's columns of numbers, and the paper's column for it."""

    key: str
    paper: str = ""
    values: object = None
    """Our values and the paper's for them, or a list where these are the same; none for the scale's fractions."""


@spec
class TableEntry:
    """A table as the file has it; `plan.Table` says what the keys mean."""

    title: str
    metric: Metric
    also: Annotated[tuple[Metric, ...], Several()] = ()
    note: str = ""
    reads: Literal["metrics", "diversity"] = "metrics"
    paper: Numbers | None = None
    columns: Annotated[tuple[str, ...], Several()] = ()
    across: Across | None = None
    gap_to: str = ""
    delta_to: str = ""
    defaults: Entry = dataclasses.field(default_factory=dict)
    rows: tuple[Entry, ...]


@spec
class FigureEntry:
    """A figure as the file has it; `plan.Figure` says what the keys mean."""

    title: str
    kind: Kind
    reads: Literal["metrics", "curves", "teachers", "diversity"] = "metrics"
    table: str = ""
    rows: tuple[Entry, ...] = ()


@spec
class Matrix:
    tables: dict[Name, TableEntry] = dataclasses.field(default_factory=dict)
    figures: dict[Name, FigureEntry] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.tables, *self.figures):
            if name in RULES:
                raise InputError(f"{name} is a rule of the workflow; call the table or figure otherwise")
            if name in self.tables and name in self.figures:
                raise InputError(f"{name} is a table and a figure; call one of them otherwise")


@spec
class Description:
    """What describes a row and does not change what is trained."""

    label: Annotated[str, Matches(r"\S.{0,199}", "a text of one line")]
    paper: Entry = dataclasses.field(default_factory=dict)
    """Columns of the paper's CSV and what they hold in the one line that has the row's number."""
    architecture: Annotated[str, Matches(r"(\w[\w.-]*)?", "a model of timm by name")] = ""
    extra: bool = False
    """The paper has no such row; only a scale that names it under its own `extra` has it."""


DESCRIPTION = tuple(f.name for f in dataclasses.fields(Description))


def load(scale: object, matrix: Path = MATRIX) -> Plan:
    """Resolve the matrix at a scale."""
    scale = scale if isinstance(scale, Scale) else load_scale(scale)
    reader = _Reader(scale, shipped(matrix))
    tables = {name: reader.table(name, v) for name, v in reader.wanted(reader.entries.tables).items()}
    figures = {name: reader.figure(name, v, tables) for name, v in reader.wanted(reader.entries.figures).items()}
    return Plan(
        scale=scale,
        runs=reader.runs,
        sources=reader.sources,
        competitors=reader.competitors,
        pretrained=reader.pretrained,
        tables=tables,
        figures=figures,
    )


class _Over(NamedTuple):
    """Columns of numbers: our values of a key and the paper's for them, then values that only the paper has."""

    key: str
    paper: str
    ours: Mapping[Any, Any]
    quoted: tuple[Any, ...] = ()


_ALONE = _Over("", "", {None: None})


class _Reader:
    """Reads the matrix and collects the runs that its rows name."""

    def __init__(self, scale: Scale, matrix: Path) -> None:
        self.scale, self.matrix = scale, matrix
        self.entries = build(Matrix, strict_yaml.read(matrix), str(matrix))
        self.runs: dict[str, Run] = {}
        self.names: dict[methods.Stages, str] = {}
        self.sources: dict[str, Source] = {}
        self.competitors: dict[str, tuple[str, ...]] = {}
        self.pretrained: dict[str, Peer] = {}
        self.paper: dict[str, list[dict[str, str]]] = {}
        for name, teacher in scale.teachers.items():
            if teacher.training is not None:
                run = Run(
                    name=f"teacher-{name}",
                    method="teacher",
                    student=teacher.model,
                    fraction=100,
                    stages=methods.teacher(scale, name),
                    seeds=(0,),
                )
                self.runs[run.name] = run

    def wanted(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """The matrix's tables or figures, or those of them that the scale asks for."""
        known = [*self.entries.tables, *self.entries.figures]
        for name in self.scale.only:
            if name not in known:
                raise InputError(unknown(name, known, "table or figure", f"scale {self.scale.name}: only"))
        for name in self.scale.extra:
            if name not in self.entries.tables:
                raise InputError(unknown(name, self.entries.tables, "table", f"scale {self.scale.name}: extra"))
        papers = [*known, *(path.stem for path in all_shipped(PAPER, "table*.csv"))]
        for name in self.scale.quoted:
            if name not in papers:
                raise InputError(unknown(name, papers, "table", f"scale {self.scale.name}: quoted"))
        return {n: v for n, v in entries.items() if (n in self.scale.only if self.scale.only else self._has(n, v))}

    def _has(self, name: str, entry: Any) -> bool:
        """Whether a scale that names no tables has this one: not where all its rows are extra and it names none."""
        rows = [{**entry.defaults, **row} for row in entry.rows] if isinstance(entry, TableEntry) else []
        return not rows or name in self.scale.extra or not all(row.get("extra") for row in rows)

    # ------------------------------------------------------------------------------------------ tables and figures

    def table(self, name: str, entry: TableEntry) -> Table:
        where = f"{self.matrix}: tables.{name}"
        whole = [{**entry.defaults, **row} for row in entry.rows]
        labels = [row.get("label") for row in whole]
        extra = self._named("extra", name, [row for row in whole if row.get("extra")])
        quoted = self._named("quoted", name, whole)
        across, rows = self._across(entry.across, where), []
        for i, row in enumerate(whole, 1):
            here = f"{where}, row {i}"
            if _description(row, here).extra and row["label"] not in extra:
                continue
            if row["label"] in labels[: i - 1]:
                raise InputError(f"{here}: label {row['label']!r} is that of a row above; each row has its own")
            if entry.reads == "diversity":
                rows.append(self._images_row(row, entry.paper, here))
            else:
                rows.append(self._row(row, entry.columns, across, entry.paper, here, row["label"] not in quoted))
        if not rows:
            named = (
                f"scale {self.scale.name}: only names {name}, all of whose rows are extra; name some in extra.{name}"
            )
            raise InputError(named if whole else f"{where}: rows: at least one")
        for key in ("gap_to", "delta_to"):
            if getattr(entry, key) and getattr(entry, key) not in labels:
                raise InputError(unknown(getattr(entry, key), [row.label for row in rows], "row", f"{where}: {key}"))
        for column in entry.columns:
            if all(dict(row.columns).get(column) is None for row in rows):
                raise InputError(f"{where}: columns: no row has {column!r}; name a switch of its rows")
        same = ("title", "metric", "also", "note", "reads", "columns", "gap_to", "delta_to")
        return Table(name=name, across=across.key, rows=tuple(rows), **{key: getattr(entry, key) for key in same})

    def _named(self, key: Literal["extra", "quoted"], table: str, rows: list[Entry]) -> tuple[str, ...]:
        """The rows of a table that the scale names under a key of its own; they must be some of `rows`."""
        named, labels = getattr(self.scale, key).get(table, ()), [str(row.get("label")) for row in rows]
        for label in named:
            if label not in labels:
                raise InputError(unknown(label, labels, "row", f"scale {self.scale.name}: {key}.{table}"))
        return named

    def figure(self, name: str, entry: FigureEntry, tables: Mapping[str, Table]) -> Figure:
        where = f"{self.matrix}: figures.{name}"
        if entry.table and entry.table not in tables:
            if entry.table in self.entries.tables:
                raise InputError(
                    f"scale {self.scale.name}: only names {name}, which needs {entry.table}; name that too"
                )
            raise InputError(unknown(entry.table, tables, "table", where))
        rows = tables[entry.table].rows if entry.table else ()
        for i, row in enumerate(entry.rows, 1):
            here = f"{where}, row {i}"
            if entry.reads != "diversity":
                rows = (*rows, self._row(row, (), _ALONE, None, here))
            elif self.scale.students or not methods.competes(str(row.get("images", ""))):
                rows = (*rows, self._images_row(row, None, here))
        if not rows:
            raise InputError(f"{where}: it needs rows, or a table")
        return Figure(name=name, title=entry.title, kind=entry.kind, reads=entry.reads, rows=rows, table=entry.table)

    def _across(self, entry: Across | None, where: str) -> _Over:
        if entry is None:
            return _ALONE
        if entry.key == "fraction" and entry.values is None:
            return _Over(entry.key, entry.paper, {f: f for f in self.scale.fractions})
        if entry.values is None:
            raise InputError(f"{where}: across: missing key 'values'")
        values = entry.values if isinstance(entry.values, dict | list) else [entry.values]
        pairs = list(values.items()) if isinstance(values, dict) else [(v, v) for v in values]
        if not pairs or not all(isinstance(v, str | int | float) for pair in pairs for v in pair):
            raise InputError(f"{where}: across: values: expected our values and the paper's, got {shown(values)}")
        if entry.key == "target":
            targets = self.scale.transfer.targets
            quoted = tuple(v for v, _ in pairs if v not in targets)
            return _Over(entry.key, entry.paper, {t: t for t in targets}, quoted)
        return _Over(entry.key, entry.paper, dict(pairs))

    # ------------------------------------------------------------------------------------------ rows

    def _images_row(self, values: Entry, paper: Numbers | None, where: str) -> Row:
        """A row about a set of images, not a run."""
        _known(values, (*DESCRIPTION, "images"), where)
        if "images" not in values:
            raise InputError(f"{where}: missing key 'images'")
        described, images = _description(values, where), convert(str, values["images"], f"{where}: images")
        self._source(images, where)
        cell = Cell(keys=(), run=images, paper=self._paper_number(paper, described.paper, where))
        return Row(label=described.label, method=images, student="", columns=(), cells=(cell,))

    def _row(
        self,
        values: Entry,
        columns: tuple[str, ...],
        across: _Over,
        paper: Numbers | None,
        where: str,
        ours: bool = True,
    ) -> Row:
        """A row about runs; `ours`: false leaves it to the paper's numbers."""
        method, described = convert(str, values.get("method", ""), f"{where}: method"), _description(values, where)
        if not method:
            _known(values, DESCRIPTION, f"{where}, which without a method is only the paper's")
            ours = False
        elif method not in methods.METHODS:
            raise InputError(unknown(method, methods.METHODS, "method", where))
        elif method == methods.peer.__name__:
            values = {"student": described.label, **values}
            ours = ours and values["student"] in self.scale.peers
        elif "student" not in values and across.key != "student":
            raise InputError(f"{where}: missing key 'student'")
        defaults = {name: default for name, (_, default) in _switches(method).items()} if method else {}
        cells = []
        for value, paper_value in [*across.ours.items(), *((v, v) for v in across.quoted)]:
            keys = {across.key: value} if across.key else {}
            run = self._name({**values, **keys}, where) if ours and value not in across.quoted else ""
            selector = {**described.paper, **({across.paper: paper_value} if across.key else {})}
            number = self._paper_number(paper, selector, where) if described.paper else None
            cells.append(Cell(keys=freeze(keys), run=run, paper=number))
        return Row(
            label=described.label,
            method=method,
            student=str(values.get("student", "")),
            columns=tuple((c, freeze(values.get(c, defaults.get(c)))) for c in columns),
            cells=tuple(cells),
            architecture=described.architecture,
        )

    def _name(self, values: Entry, where: str) -> str:
        """What fills a cell: the name of a run, or the label of a system that others have trained."""
        if values["method"] == methods.peer.__name__:
            system = self.scale.peers[values["student"]]
            if system.training is None:
                self.pretrained[values["student"]] = system
                return values["student"]
        return self._run(values, where).name

    # ------------------------------------------------------------------------------------------ runs

    def _run(self, values: Entry, where: str) -> Run:
        """The run of a row's settings; where another row has the same stages, that row's run."""
        method, student = values["method"], convert(str, values.get("student"), f"{where}: student")
        settings = {k: v for k, v in values.items() if k not in (*DESCRIPTION, "method", "student")}
        switches = _switches(method)
        _known(
            {k: v for k, v in settings.items() if "." not in k}, (*DESCRIPTION, "method", "student", *switches), where
        )
        resolve = _Recipe(self.scale, method, student, where)
        settings = {k: convert(switches[k][0], v, f"{where}: {k}") if k in switches else v for k, v in settings.items()}
        self._source(settings.get("images", methods.REAL), where)
        stages = resolve(settings)
        # A setting that changes nothing here is no part of the name: equal rows are one run.
        deviating = dict(sorted(settings.items()))
        for key in list(deviating):
            others = {k: v for k, v in deviating.items() if k != key}
            if resolve.same(others, stages):
                deviating = others
        before = ""
        if stages[0].initial:
            pretraining = settings.get("pretraining", switches["pretraining"][1])
            handed = {k: v for k, v in settings.items() if "." in k or k == "long"}
            before = self._run({"method": pretraining, "student": student, **handed}, where).name
        run = Run(
            name=run_name(method, student, {k: resolve.value(deviating, k) for k in deviating}),
            method=method,
            student=student,
            fraction=settings.get("fraction", 100),
            stages=stages,
            seeds=self.scale.seeds,
            initial=before,
            settings=freeze(deviating),
        )
        return self._take(run, where)

    def _take(self, run: Run, where: str) -> Run:
        """Keep a run: one for equal stages, whatever their settings were called, and never two of one name."""
        name = self.names.setdefault(run.stages, run.name)
        if name in self.runs and self.runs[name].stages != run.stages:
            raise InputError(f"{where}: another row's run is called {name} already, and it has other stages")
        return self.runs.setdefault(name, dataclasses.replace(run, name=name))

    def _source(self, name: str, where: str) -> None:
        """Take up a set of synthetic images and the runs of the students that compete for it."""
        if name == methods.REAL or name in self.sources:
            return
        try:
            source = methods.source(self.scale, name)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        self.sources[name] = source
        found = []
        for round in range(source.recipe.rounds) if source.student else ():
            self._source("deepinversion", where)
            # The first round's student is that of a row of Table 5.
            first = run_name("dearkd", source.recipe.student, {"images": "deepinversion"})
            run = Run(
                name=f"{name}-student-round{round}" if round else first,
                method="dearkd",
                student=source.recipe.student,
                fraction=100,
                stages=methods.competitor(self.scale, name, round),
                seeds=self.scale.seeds,
            )
            found.append(self._take(run, where).name)
        self.competitors[name] = tuple(found)

    def _paper_number(self, paper: Numbers | None, selector: Mapping[str, Any], where: str) -> float | None:
        """The paper's value in its CSV for the one line that matches; None where the paper leaves the cell blank."""
        if paper is None or not selector:
            return None
        if paper.file not in self.paper:
            path, known = shipped(PAPER / paper.file), [p.name for p in all_shipped(PAPER, "*.csv")]
            if paper.file not in known:
                raise InputError(unknown(paper.file, known, "file", f"{where}: paper"))
            with path.open(newline="", encoding="utf-8") as file:
                self.paper[paper.file] = list(csv.DictReader(file))
        lines = self.paper[paper.file]
        for key in (*selector, paper.value):
            if key not in lines[0]:
                raise InputError(unknown(key, lines[0], "column", f"{where}: {paper.file}"))
        found = [line for line in lines if all(line[k] == str(v) for k, v in selector.items())]
        if len(found) > 1:
            raise InputError(f"{where}: {len(found)} lines of {PAPER / paper.file} match {dict(selector)}")
        text = found[0][paper.value] if found else ""
        try:
            return float(text) if text else None
        except ValueError:
            raise InputError(f"{where}: {paper.file} has {text!r} in {paper.value}, which is no number") from None


class _Recipe:
    """A method of a student at a scale, as a function of a row's settings."""

    def __init__(self, scale: Scale, method: str, student: str, where: str) -> None:
        self.scale, self.method, self.student, self.where = scale, methods.METHODS[method], student, where

    def __call__(self, settings: Mapping[str, Any]) -> methods.Stages:
        """Its stages; InputError with file and row when the settings contradict themselves."""
        scale = self._scale(settings)
        try:
            return self.method(scale, self.student, **{k: v for k, v in settings.items() if "." not in k})
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from None

    def same(self, settings: Mapping[str, Any], stages: methods.Stages) -> bool:
        """Whether these settings give these stages; settings that contradict themselves give none."""
        try:
            return self(settings) == stages
        except InputError:
            return False

    def value(self, settings: Mapping[str, Any], key: str) -> Any:
        """What a setting comes to, however it was written: 1e-3 and 0.001 are one value."""
        return lookup(self._scale(settings), key) if "." in key else settings[key]

    def _scale(self, settings: Mapping[str, Any]) -> Scale:
        dotted = {k: v for k, v in settings.items() if "." in k}
        return override(self.scale, dotted, self.where) if dotted else self.scale


def _description(values: Entry, where: str) -> Description:
    return build(Description, {k: v for k, v in values.items() if k in DESCRIPTION}, where)


def _known(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            raise InputError(unknown(key, known, "key", where))


def run_name(method: str, student: str, deviating: Mapping[str, Any]) -> str:
    """A run's name and folder: what differs from the method's defaults, in sorted order, and nothing else.

    Two names are equal only where method, student and values are.
    """
    parts = [method, slug(student.replace("/", "-"))]
    name = "-".join([*parts, *(f"{key}~{slug(_text(value))}" for key, value in sorted(deviating.items()))])
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, default=dataclasses.asdict, sort_keys=True)


def _switches(method: str) -> dict[str, tuple[Any, Any]]:
    """A recipe's own keyword arguments: (type, default)."""
    recipe = methods.METHODS[method]
    hints = typing.get_type_hints(recipe)
    parameters = inspect.signature(recipe).parameters.values()
    return {p.name: (hints[p.name], p.default) for p in parameters if p.default is not inspect.Parameter.empty}
