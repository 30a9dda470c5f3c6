"""The matrix and a scale, read and resolved to a plan. Each mistake in them is one sentence with file and key.

Standard library and yaml, so that the Snakefile and the readers start in a tenth of a second.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dearkd import strict_yaml
from dearkd.errors import InputError, shown, unknown
from dearkd.places import all_shipped, shipped
from dearkd.plan import methods, seeds
from dearkd.plan.matrix import (
    DESCRIPTION,
    MATRIX,
    RULES,
    Across,
    Entry,
    FigureEntry,
    Matrix,
    Numbers,
    TableEntry,
    check_keys,
    description,
)
from dearkd.plan.paper import PAPER, STUDENTS, PaperNumbers
from dearkd.plan.plan import Plan
from dearkd.plan.runs import Runs, run_name, switches_of
from dearkd.plan.scale import Scale
from dearkd.plan.scale_file import load_scale
from dearkd.plan.synthesis import competes
from dearkd.plan.tables import Cell, Figure, Row, Table
from dearkd.schema import Pairs, build, convert, freeze

__all__ = ["MATRIX", "PAPER", "RULES", "Plan", "load", "load_scale", "run_name"]


def load(scale: object, matrix: Path = MATRIX) -> Plan:
    """The plan of a scale: the matrix with each row resolved to its run.

    Raises InputError naming file and key for every mistake in the scale or the matrix.
    """
    file = scale if isinstance(scale, str) else ""
    scale = scale if isinstance(scale, Scale) else load_scale(scale)
    reader = _Reader(scale, shipped(matrix))
    tables = {name: reader.table(name, v) for name, v in reader.wanted(reader.entries.tables).items()}
    tables = {name: table for name, table in tables.items() if reader.trains_any(table)}
    wanted = {n: v for n, v in reader.wanted(reader.entries.figures).items() if reader.draws(n, v, tables)}
    figures = {name: reader.figure(name, v, tables) for name, v in wanted.items()}
    plan = Plan(
        scale=scale,
        runs=reader.found.runs,
        sources=reader.found.sources,
        competitors=reader.found.competitors,
        pretrained=reader.found.pretrained,
        tables=tables,
        figures=figures,
        file=file,
    )
    return dataclasses.replace(plan, runs=seeds.chosen(plan))


class _Over(NamedTuple):
    """Columns of numbers: our values of a key and the paper's for them, then values that only the paper has."""

    key: str
    paper: str
    ours: Mapping[Any, Any]
    quoted: tuple[Any, ...] = ()


_ALONE = _Over("", "", {None: None})


def _across(entry: Across | None, scale: Scale, where: str) -> _Over:
    """The columns of a table, as its `across` and the scale say."""
    if entry is None:
        return _ALONE
    if entry.key == "fraction" and entry.values is None:
        return _Over(entry.key, entry.paper, {f: f for f in scale.fractions})
    if entry.values is None:
        raise InputError(f"{where}: across: missing key 'values'")
    values = entry.values if isinstance(entry.values, dict | list) else [entry.values]
    pairs = list(values.items()) if isinstance(values, dict) else [(v, v) for v in values]
    if not pairs or not all(isinstance(v, str | int | float) for pair in pairs for v in pair):
        raise InputError(
            f"{where}: across: values: expected a list or a mapping from our values to the paper's, got {shown(values)}"
        )
    if entry.key == "target":
        targets = scale.transfer.targets
        quoted = tuple(v for v, _ in pairs if v not in targets)
        return _Over(entry.key, entry.paper, {t: t for t in targets}, quoted)
    return _Over(entry.key, entry.paper, dict(pairs))


class _Reader:
    """Resolves the tables and figures of the matrix; `found` collects the runs that their rows name."""

    def __init__(self, scale: Scale, matrix: Path) -> None:
        self.scale, self.matrix = scale, matrix
        self.entries = build(Matrix, strict_yaml.read(matrix), str(matrix))
        self.found = Runs(scale)
        self.paper = PaperNumbers()

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
        for name in self.scale.most_seeds:
            if name not in self.entries.tables:
                raise InputError(unknown(name, self.entries.tables, "table", f"scale {self.scale.name}: most_seeds"))
        for name in self.scale.quoted:
            if name not in papers:
                raise InputError(unknown(name, papers, "table", f"scale {self.scale.name}: quoted"))
        return {n: v for n, v in entries.items() if (n in self.scale.only if self.scale.only else self._has(n, v))}

    def _has(self, name: str, entry: Any) -> bool:
        """Whether a scale that names no tables has this one: not if all its rows are extra and the scale names none."""
        rows = [{**entry.defaults, **row} for row in entry.rows] if isinstance(entry, TableEntry) else []
        return not rows or name in self.scale.extra or not all(row.get("extra") for row in rows)

    # -------------------------------------------------------------------- sizes that the scale does not define

    def trains(self, student: object) -> bool:
        """Whether the scale may train this student: not one of the paper's sizes that it does not define."""
        return not isinstance(student, str) or student in self.scale.students or student not in STUDENTS

    def trains_any(self, table: Table) -> bool:
        """Whether a table is more than quotations: False where all its rows are of sizes that the scale lacks.

        InputError where the scale names such a table.
        """
        if any(cell.run for row in table.rows for cell in row.cells) or all(self.trains(r.student) for r in table.rows):
            return True
        if table.name in self.scale.only:
            raise InputError(
                f"scale {self.scale.name}: `only` names {table.name}, but `students` has none of its students; add one"
            )
        return False

    def draws(self, name: str, entry: FigureEntry, tables: Mapping[str, Table]) -> bool:
        """Whether the scale has what a figure shows. InputError where it names one whose students it lacks."""
        rows = [row for row in entry.rows if self.trains(row.get("student"))]
        if (rows or not entry.rows) and (not entry.table or entry.table in tables or name in self.scale.only):
            return True
        if name in self.scale.only:
            raise InputError(
                f"scale {self.scale.name}: `only` names {name}, but `students` has none of its students; add one"
            )
        return entry.table not in self.entries.tables if entry.table else False

    # ------------------------------------------------------------------------------------------ tables and figures

    def table(self, name: str, entry: TableEntry) -> Table:
        where = f"{self.matrix}: tables.{name}"
        whole = [{**entry.defaults, **row} for row in entry.rows]
        labels = [row.get("label") for row in whole]
        extra = self._named("extra", name, [row for row in whole if row.get("extra")])
        quoted = self._named("quoted", name, whole)
        across, rows = _across(entry.across, self.scale, where), []
        for i, row in enumerate(whole, 1):
            here = f"{where}, row {i}"
            if description(row, here).extra and row["label"] not in extra:
                continue
            if row["label"] in labels[: i - 1]:
                raise InputError(f"{here}: label {row['label']!r} is used by a row above; give each row its own")
            if entry.reads == "diversity":
                rows.append(self._images_row(row, entry.paper, here))
            else:
                rows.append(self._row(row, entry.columns, across, entry.paper, here, row["label"] not in quoted))
        if not rows:
            named = (
                f"scale {self.scale.name}: `only` names {name}, whose rows are all extra; list some under extra.{name}"
            )
            raise InputError(named if whole else f"{where}: rows is empty; write at least one row")
        for key in ("gap_to", "delta_to"):
            if getattr(entry, key) and getattr(entry, key) not in labels:
                raise InputError(unknown(getattr(entry, key), [row.label for row in rows], "row", f"{where}: {key}"))
        for column in entry.columns:
            if all(dict(row.columns).get(column) is None for row in rows):
                raise InputError(f"{where}: columns: no row sets {column!r}; name an argument of its rows' method")
        titles = self._titles(entry.across, rows[0], where)
        same = ("title", "metric", "also", "note", "reads", "columns", "gap_to", "delta_to")
        return Table(
            name=name, across=across.key, titles=titles, rows=tuple(rows), **{key: getattr(entry, key) for key in same}
        )

    def _titles(self, entry: Across | None, row: Row, where: str) -> Pairs:
        """What is printed for each value of `across` that has a title; no two columns are called the same."""
        if entry is None:
            return ()
        own = self.scale.transfer.titles if entry.key == "target" else {}
        values = [str(dict(cell.keys).get(entry.key)) for cell in row.cells]
        printed = {value: own.get(value, entry.titles.get(value, value)) for value in values}
        for value, other in itertools.combinations(values, 2):
            if printed[value] == printed[other]:
                raise InputError(
                    f"{where}: {value} and {other} both have the title {printed[value]!r}; change one of them"
                )
        return freeze({value: title for value, title in printed.items() if title != value})

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
                    f"scale {self.scale.name}: `only` names {name}, which needs {entry.table}; add that too"
                )
            raise InputError(unknown(entry.table, tables, "table", where))
        rows = tables[entry.table].rows if entry.table else ()
        for i, row in enumerate(entry.rows, 1):
            here = f"{where}, row {i}"
            if not self.trains(row.get("student")):
                continue
            if entry.reads != "diversity":
                rows = (*rows, self._row(row, (), _ALONE, None, here))
            elif self.scale.students or not competes(str(row.get("images", ""))):
                rows = (*rows, self._images_row(row, None, here))
        if not rows:
            raise InputError(f"{where}: the figure has neither `rows` nor `table`; write one of them")
        return Figure(name=name, title=entry.title, kind=entry.kind, reads=entry.reads, rows=rows, table=entry.table)

    # ------------------------------------------------------------------------------------------ rows

    def _images_row(self, values: Entry, paper: Numbers | None, where: str) -> Row:
        """A row about a set of images, not a run."""
        check_keys(values, (*DESCRIPTION, "images"), where)
        if "images" not in values:
            raise InputError(f"{where}: missing key 'images'")
        described, images = description(values, where), convert(str, values["images"], f"{where}: images")
        if described.only:
            raise InputError(f"{where}: only: a set of images has one column; leave `only` out")
        self.found.take_images(images, where)
        cell = Cell(keys=(), run=images, paper=self.paper.find(paper, described.paper, where))
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
        """Resolve a row about runs. If `ours` is false, the row has only the paper's numbers."""
        method, described = convert(str, values.get("method", ""), f"{where}: method"), description(values, where)
        if not method:
            check_keys(values, DESCRIPTION, f"{where}, which without a method is only the paper's")
            ours = False
        elif method not in methods.METHODS:
            raise InputError(unknown(method, methods.METHODS, "method", where))
        elif method == methods.peer.__name__:
            values = {"student": described.label, **values}
            ours = ours and values["student"] in self.scale.peers
        elif "student" not in values and across.key != "student":
            raise InputError(f"{where}: missing key 'student'")
        defaults = {name: default for name, (_, default) in switches_of(method).items()} if method else {}
        if described.only and not {*described.only} & {*across.ours}:
            raise InputError(
                unknown(str(described.only[0]), [str(v) for v in across.ours], across.key or "column", f"{where}: only")
            )
        cells = []
        for value, paper_value in [*across.ours.items(), *((v, v) for v in across.quoted)]:
            keys = {across.key: value} if across.key else {}
            whole = {**values, **keys}
            planned = ours and value not in across.quoted and self.trains(whole.get("student"))
            planned = planned and (not described.only or value in described.only)
            run = self.found.fills(whole, where) if planned else ""
            selector = {**described.paper, **({across.paper: paper_value} if across.key else {})}
            number = self.paper.find(paper, selector, where) if described.paper else None
            cells.append(Cell(keys=freeze(keys), run=run, paper=number))
        return Row(
            label=described.label,
            method=method,
            student=str(values.get("student", "")),
            columns=tuple((c, freeze(values.get(c, defaults.get(c)))) for c in columns),
            cells=tuple(cells),
            architecture=described.architecture,
        )
