"""The matrix as `workflow/experiments.yaml` has it: tables and figures with their rows, not yet resolved."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from dearkd.errors import InputError, unknown
from dearkd.plan.tables import Kind, Metric
from dearkd.ranges import Matches, Name, Several, Title
from dearkd.schema import build, spec

MATRIX = Path("workflow/experiments.yaml")
RULES: tuple[str, ...] = ("all", "subset", "presize", "teacher", "labels", "train", "synthesize", "diversity")
RULES += ("evaluate", "pretrained", "throughput", "table", "figure", "curve", "curves", "savings", "claims", "report")
RULES += ("notebook", "notebooks", "unknown_target")
"""Rules of the workflow. Tables and figures are targets too, so none may have such a name."""
Entry = dict[str, object]
"""A row as the file has it: what describes it, its method, the method's switches and dotted keys of the scale."""


@spec
class Numbers:
    """The CSV file and column of a table's paper numbers."""

    file: Annotated[str, Matches(r"[\w-]+\.csv", "the name of a CSV file of paper/")]
    value: str


@spec
class Across:
    """The key whose values are a table's columns of numbers, and the paper's column for it."""

    key: str
    paper: str = ""
    values: object = None
    """Our values and the paper's for them, or a list where these are the same; none for the scale's fractions."""
    titles: dict[str, Title] = dataclasses.field(default_factory=dict)
    """What is printed for a value, where that is not the value; a target's title in the scale comes first."""


@spec
class TableEntry:
    """A table as the file has it; `tables.Table` says what the keys mean."""

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
    """A figure as the file has it; `tables.Figure` says what the keys mean."""

    title: str
    kind: Kind
    reads: Literal["metrics", "curves", "teachers", "diversity"] = "metrics"
    table: str = ""
    rows: tuple[Entry, ...] = ()


@spec
class Matrix:
    """The tables and figures of a matrix file, by name. A name that is taken raises InputError."""

    tables: dict[Name, TableEntry] = dataclasses.field(default_factory=dict)
    figures: dict[Name, FigureEntry] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.tables, *self.figures):
            if name in RULES:
                raise InputError(f"{name} is the name of a rule of the workflow; give the table or figure another name")
            if name in self.tables and name in self.figures:
                raise InputError(f"{name} names both a table and a figure; give one of them another name")


@spec
class Description:
    """What describes a row and does not change what is trained."""

    label: Annotated[str, Matches(r"\S.{0,199}", "a text of one line, at most 200 characters")]
    paper: Entry = dataclasses.field(default_factory=dict)
    """Columns of the paper's CSV and what they hold in the one line that has the row's number."""
    architecture: Annotated[str, Matches(r"(\w[\w.-]*)?", "a model of timm by name")] = ""
    extra: bool = False
    """The paper has no such row; only a scale that names it under its own `extra` has it."""
    only: Annotated[tuple[int | str, ...], Several()] = ()
    """The values of the table's `across` for which the row is trained; none: all. Scales share the matrix, so a
    value that a scale lacks is skipped."""


DESCRIPTION = tuple(f.name for f in dataclasses.fields(Description))


def description(values: Entry, where: str) -> Description:
    """Return what describes a row. Raises InputError with file and row if its form is wrong."""
    return build(Description, {k: v for k, v in values.items() if k in DESCRIPTION}, where)


def check_keys(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise InputError with the nearest of `known` for the first key that is none of them."""
    for key in values:
        if key not in known:
            raise InputError(unknown(key, known, "key", where))
