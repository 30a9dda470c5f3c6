"""The matrix and a scale, read and resolved to a plan; every mistake in them is one sentence with file and key.

Plan layer: standard library and yaml, so that the Snakefile and the readers start in a tenth of a second.
"""

import csv
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from dearkd import recipes
from dearkd.plan import Cell, Figure, Plan, Row, Run, Table, competitor_name
from dearkd.scale import Peer, Scale
from dearkd.schema import InputError, build, freeze, lookup, override, unknown
from dearkd.spec import Source

MATRIX = Path("workflow/experiments.yaml")
SCALES = Path("workflow/scales")
PAPER = Path("paper")
DESCRIPTION = ("label", "paper", "architecture", "extra")
"""Keys of a row that describe it and do not change what is trained."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where it is built in: every job reads the matrix, which takes it 20 ms and Python's own parser 200."""


def load_scale(name: str, changes: Mapping[str, Any] | None = None) -> Scale:
    """Read `workflow/scales/<name>.yaml`, or the file `name` when it ends in .yaml.

    A scale may start from another (`extends: digits`); mappings are merged key by key, all else is replaced. `changes`
    are merged over the file in the same way.
    Raises InputError naming file and key for whatever does not fit.
    """
    return build(Scale, _merge(_merged(name, ()), changes or {}), _scale_path(name).as_posix())


def _scale_path(name: str) -> Path:
    own = Path(name.removesuffix(".yaml") + ".yaml")  # records and errors call a file of one's own by its scale's name
    path = own if name.endswith(".yaml") else SCALES / own
    if not path.is_file() and own.is_file():
        return own
    if not path.is_file():
        known = [p.stem for p in SCALES.glob("*.yaml")]
        raise InputError(unknown(name, known, "scale", SCALES.as_posix()))
    return path


def _merged(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    path = _scale_path(name)
    if path.as_posix() in seen:
        raise InputError(f"{path}: extends itself through {' -> '.join(seen)}")
    values = read_yaml(path)
    base = values.pop("extends", None)
    return _merge(_merged(base, (*seen, path.as_posix())), values) if base else values


def _merge(base: Any, top: Any) -> Any:
    if isinstance(base, dict) and isinstance(top, dict):
        return base | {k: _merge(base[k], v) if k in base else v for k, v in top.items()}
    return top


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError naming the file, and the line, when it is missing or none."""
    try:
        values = yaml.load(path.read_text(), Loader=LOADER)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of keys")
    return values


def load(scale: str | Scale, matrix: Path = MATRIX) -> Plan:
    """Resolve the matrix at a scale."""
    scale = load_scale(scale) if isinstance(scale, str) else scale
    reader = _Reader(scale, matrix)
    for name in reader.values:
        if name not in ("tables", "figures"):
            raise InputError(unknown(name, ("tables", "figures"), "key", str(matrix)))
    tables = {name: reader.table(name, v) for name, v in reader.wanted("tables").items()}
    figures = {name: reader.figure(name, v, tables) for name, v in reader.wanted("figures").items()}
    return Plan(
        scale=scale,
        runs=reader.runs,
        sources=reader.sources,
        pretrained=reader.pretrained,
        tables=tables,
        figures=figures,
    )


class _Across(NamedTuple):
    key: str
    paper: str
    ours: Mapping[Any, Any]
    """Our values and the paper's for them."""
    quoted: tuple[Any, ...] = ()
    """Values that only the paper has."""


_ALONE = _Across("", "", {None: None})


class _Reader:
    """Reads the matrix and collects the runs that its rows name."""

    def __init__(self, scale: Scale, matrix: Path) -> None:
        self.scale, self.matrix = scale, matrix
        self.values = read_yaml(matrix)
        self.runs: dict[str, Run] = {}
        self.sources: dict[str, Source] = {}
        self.pretrained: dict[str, Peer] = {}
        for name, teacher in scale.teachers.items():
            if teacher.training is not None:
                run = Run(
                    name=f"teacher-{name}",
                    method="teacher",
                    student=teacher.model,
                    fraction=100,
                    stages=recipes.teacher(scale, name),
                    seeds=(0,),
                )
                self.runs[run.name] = run

    def wanted(self, kind: str) -> dict[str, Any]:
        """The matrix's tables or figures, or those of them that the scale asks for."""
        values = self.values.get(kind, {})
        known = [*self.values.get("tables", {}), *self.values.get("figures", {})]
        for name in self.scale.only:
            if name not in known:
                raise InputError(unknown(name, known, "table or figure", f"scale {self.scale.name}: only"))
        tables = self.values.get("tables", {})
        for name in self.scale.extra:
            if name not in tables:
                raise InputError(unknown(name, tables, "table", f"scale {self.scale.name}: extra"))
        papers = [*known, *(path.stem for path in PAPER.glob("table*.csv"))]
        for name in self.scale.quoted:
            if name not in papers:
                raise InputError(unknown(name, papers, "table", f"scale {self.scale.name}: quoted"))
        return {n: v for n, v in values.items() if not self.scale.only or n in self.scale.only}

    def table(self, name: str, values: Mapping[str, Any]) -> Table:
        where = f"{self.matrix}: tables.{name}"
        keys = ("title", "metric", "also", "note", "reads", "paper", "columns", "across", "gap_to", "delta_to")
        self._check(values, (*keys, "defaults", "rows"), where)
        _require(values, ("title", "metric", "rows"), where)
        columns = tuple(values.get("columns", ()))
        paper = values.get("paper", {})
        reads = self._reads(values, ("metrics", "diversity"), where)
        rows = []
        extra = self._named("extra", name, [row for row in values["rows"] if row.get("extra")])
        quoted = self._named("quoted", name, values["rows"])
        for i, row in enumerate(values["rows"], 1):
            if row.get("extra") and row.get("label") not in extra:
                continue
            row, here = {**values.get("defaults", {}), **row}, f"{where}, row {i}"
            if reads == "diversity":
                rows.append(self._images_row(row, paper, here))
            else:
                ours = row.get("label") not in quoted
                rows.append(self._row(row, columns, self._across(values, where), paper, here, ours))
        for key in ("gap_to", "delta_to"):
            if values.get(key) and values[key] not in [row.label for row in rows]:
                raise InputError(unknown(values[key], [row.label for row in rows], "row", f"{where}: {key}"))
        return Table(
            name=name,
            title=values["title"],
            metric=values["metric"],
            also=tuple(values.get("also", ())),
            note=values.get("note", ""),
            reads=reads,
            columns=columns,
            across=values.get("across", {}).get("key", ""),
            gap_to=values.get("gap_to", ""),
            delta_to=values.get("delta_to", ""),
            rows=tuple(rows),
        )

    def _named(self, key: Literal["extra", "quoted"], table: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """The rows of a table that the scale names under a key of its own; they must be some of `rows`."""
        named, labels = getattr(self.scale, key).get(table, ()), [row.get("label") for row in rows]
        for label in named:
            if label not in labels:
                raise InputError(unknown(label, labels, "row", f"scale {self.scale.name}: {key}.{table}"))
        return named

    def _across(self, values: Mapping[str, Any], where: str) -> "_Across":
        """What runs over a table's columns of numbers: {key, paper: its column in the CSV, values: ours to paper's}."""
        across = values.get("across")
        if across is None:
            return _ALONE
        self._check(across, ("key", "paper", "values"), f"{where}: across")
        _require(
            across,
            ("key", "paper") if across.get("key") == "fraction" else ("key", "paper", "values"),
            f"{where}: across",
        )
        key, paper = across["key"], across["paper"]
        if key == "fraction":
            return _Across(key, paper, {f: f for f in self.scale.fractions})
        if key == "target":
            targets = self.scale.transfer.targets
            quoted = tuple(v for v in across["values"] if v not in targets)
            return _Across(key, paper, {t: t for t in targets}, quoted)
        return _Across(key, paper, across["values"])

    @staticmethod
    def _reads(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> Any:
        reads = values.get("reads", "metrics")
        if reads not in known:
            raise InputError(unknown(str(reads), known, "value", f"{where}: reads"))
        return reads

    def _images_row(self, values: Mapping[str, Any], paper: Mapping[str, str], where: str) -> Row:
        """A row about a set of images, not a run."""
        _require(values, ("label", "images"), where)
        self._check(values, (*DESCRIPTION, "images"), where)
        number = _paper_number(paper, values["paper"], where) if values.get("paper") else None
        self._source(values["images"])
        cell = Cell(keys=(), run=values["images"], paper=number)
        return Row(label=values["label"], method=values["images"], student="", columns=(), cells=(cell,))

    def _source(self, name: str) -> None:
        """Take up a set of synthetic images and the runs of the students that compete for it."""
        if name == recipes.REAL or name in self.sources:
            return
        source = recipes.source(self.scale, name)
        self.sources[name] = source
        for round in range(source.recipe.rounds) if source.student else ():
            self._source("deepinversion")
            run = Run(
                name=competitor_name(source, round),
                method="dearkd",
                student=source.recipe.student,
                fraction=100,
                stages=recipes.competitor(self.scale, name, round),
                seeds=self.scale.seeds,
            )
            self.runs.setdefault(run.name, run)

    def figure(self, name: str, values: Mapping[str, Any], tables: Mapping[str, Table]) -> Figure:
        where = f"{self.matrix}: figures.{name}"
        self._check(values, ("title", "kind", "reads", "table", "rows"), where)
        _require(values, ("title", "kind"), where)
        table = values.get("table", "")
        if table and table not in tables:
            if table in self.values["tables"]:
                raise InputError(f"scale {self.scale.name}: only names {name}, which needs {table}; name that too")
            raise InputError(unknown(table, tables, "table", where))
        reads = self._reads(values, ("metrics", "curves", "teachers", "diversity"), where)
        rows = tables[table].rows if table else ()
        for i, row in enumerate(values.get("rows", ()), 1):
            here = f"{where}, row {i}"
            if reads != "diversity":
                rows = (*rows, self._row(row, (), _ALONE, {}, here))
            elif self.scale.students or not recipes.competes(row.get("images", "")):
                rows = (*rows, self._images_row(row, {}, here))
        return Figure(name=name, title=values["title"], kind=values["kind"], reads=reads, rows=rows, table=table)

    def _row(
        self,
        values: Mapping[str, Any],
        columns: tuple[str, ...],
        across: "_Across",
        paper: Mapping[str, str],
        where: str,
        ours: bool = True,
    ) -> Row:
        """A row about runs; `ours`: false leaves it to the paper's numbers."""
        method = values.get("method", "")
        _require(values, ("label",), where)
        if not method:
            self._check(values, DESCRIPTION, f"{where}, which without a method is only the paper's")
            ours = False
        elif method not in recipes.METHODS:
            raise InputError(unknown(str(method), recipes.METHODS, "method", where))
        elif method == recipes.peer.__name__:
            values = {"student": values["label"], **values}
            ours = ours and values["student"] in self.scale.peers
        elif "student" not in values and across.key != "student":
            raise InputError(f"{where}: missing key 'student'")
        defaults = _switches(method) if method else {}
        cells = []
        for value, paper_value in [*across.ours.items(), *((v, v) for v in across.quoted)]:
            keys = {across.key: value} if across.key else {}
            run = self._name({**values, **keys}, where) if ours and value not in across.quoted else ""
            selector = {**values.get("paper", {}), **({across.paper: paper_value} if across.key else {})}
            number = _paper_number(paper, selector, where) if values.get("paper") else None
            cells.append(Cell(keys=freeze(keys), run=run, paper=number))
        return Row(
            label=values["label"],
            method=method,
            student=values.get("student", ""),
            columns=tuple((c, freeze(values.get(c, defaults.get(c)))) for c in columns),
            cells=tuple(cells),
            architecture=values.get("architecture", ""),
        )

    def _name(self, values: Mapping[str, Any], where: str) -> str:
        """What fills a cell: the name of a run, or the label of a system that others have trained."""
        if values["method"] == recipes.peer.__name__:
            system = self.scale.peers[values["student"]]
            if system.training is None:
                self.pretrained[values["student"]] = system
                return values["student"]
        return self._run(values, where).name

    def _run(self, values: Mapping[str, Any], where: str) -> Run:
        defaults = _switches(values["method"])
        settings = {k: v for k, v in values.items() if k not in (*DESCRIPTION, "method", "student")}
        dotted = {k: v for k, v in settings.items() if "." in k}
        switches = {k: v for k, v in settings.items() if "." not in k}
        for key in switches:
            if key not in defaults:
                raise InputError(unknown(key, (*DESCRIPTION, "method", "student", *defaults), "key", where))
        scale = override(self.scale, dotted, where)
        self._source(switches.get("images", recipes.REAL))

        recipe = recipes.METHODS[values["method"]]
        try:
            stages = recipe(scale, values["student"], **switches)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        deviating = {k: v for k, v in dotted.items() if lookup(scale, k) != lookup(self.scale, k)}
        for key, value in switches.items():
            others = {k: v for k, v in switches.items() if k != key}
            # A switch that changes nothing at this scale is no part of the name: equal rows are one run.
            if value != defaults[key] and not _same(recipe, scale, values["student"], others, stages):
                deviating[key] = value
        before = ""
        if stages[0].initial:
            pretraining = switches.get("pretraining", defaults["pretraining"])
            longer = {"long": switches["long"]} if "long" in switches else {}
            before = self._run({"method": pretraining, "student": values["student"], **longer, **dotted}, where).name
        run = Run(
            name=run_name(values["method"], values["student"], deviating),
            method=values["method"],
            student=values["student"],
            fraction=switches.get("fraction", 100),
            stages=stages,
            seeds=self.scale.seeds,
            initial=before,
        )
        return self.runs.setdefault(run.name, run)

    @staticmethod
    def _check(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
        for key in values:
            if key not in known:
                raise InputError(unknown(str(key), known, "key", where))


def _require(values: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        if key not in values:
            raise InputError(f"{where}: missing key {key!r}")


def _same(recipe: Any, scale: Scale, student: str, switches: Mapping[str, Any], stages: recipes.Stages) -> bool:
    """Whether the recipe makes the same stages with these switches; switches that contradict each other make none."""
    try:
        return recipe(scale, student, **switches) == stages
    except InputError:
        return False


def run_name(method: str, student: str, deviating: Mapping[str, Any]) -> str:
    """A run's name and folder: what differs from the method's defaults, in sorted order, and nothing else."""
    parts = [method, student.replace("/", "-")]
    for key, value in sorted(deviating.items()):
        text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else json.dumps(value).strip('"')
        parts.append(f"{key}~{re.sub(r'[^A-Za-z0-9.]+', '_', text)}")
    return "-".join(parts)


def _switches(method: str) -> dict[str, Any]:
    """A recipe's own keyword arguments and their defaults."""
    parameters = inspect.signature(recipes.METHODS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _paper_number(paper: Mapping[str, str], selector: Mapping[str, Any], where: str) -> float | None:
    """The paper's value in its CSV for the one line that matches; None where the paper leaves the cell blank."""
    with (PAPER / paper["file"]).open(newline="") as file:
        lines = list(csv.DictReader(file))
    for key in selector:
        if key not in lines[0]:
            raise InputError(unknown(key, lines[0], "column", f"{where}: {paper['file']}"))
    found = [line for line in lines if all(line[k] == str(v) for k, v in selector.items())]
    if len(found) > 1:
        raise InputError(f"{where}: {len(found)} lines of {PAPER / paper['file']} match {dict(selector)}")
    return float(found[0][paper["value"]]) if found and found[0][paper["value"]] else None
