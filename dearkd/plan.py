"""A plan: which runs there are, which table or figure shows them, and where each lies. `matrix.load` makes one.

Plan layer: standard library only.
"""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Literal

from dearkd.schema import InputError, Pairs, fingerprint, spec, unknown
from dearkd.spec import Resources, Scale, Stage


@spec
class Run:
    """A row's training: equal rows are one run, trained once, whichever tables show it."""

    name: str
    method: str
    student: str
    fraction: int
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers that its stages need."""
        return tuple(sorted({s.teacher_name for s in self.stages if s.teacher_name}))

    def stage(self, name: str) -> Stage:
        """The stage of that name; InputError when the run has none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise InputError(unknown(name, [s.name for s in self.stages], "stage", f"run {self.name}"))

    def fingerprint(self, stage: str) -> str:
        """Identity of what has been trained when `stage` ends: its spec and those of the stages before it."""
        names = [s.name for s in self.stages]
        return fingerprint(self.stages[: names.index(stage) + 1])


@spec
class Cell:
    """One place in a table: the keys that name it, the run that fills it, the paper's number for it."""

    keys: Pairs
    run: str
    paper: float | None


@spec
class Row:
    label: str
    method: str
    student: str
    columns: Pairs
    """Values of the table's own columns, for example the switches of Table 1."""
    cells: tuple[Cell, ...]


@spec
class Table:
    name: str
    title: str
    metric: str
    columns: tuple[str, ...]
    across: str
    """Key that runs over the columns of numbers, for example fraction; empty: one column."""
    gap_to: str
    """Label of the row that the others are compared with; empty: none."""
    rows: tuple[Row, ...]


@spec
class Figure:
    name: str
    title: str
    kind: str
    """The function of `figures.py` that draws it."""
    reads: Literal["metrics", "curves", "teachers"]
    """Which records it needs."""
    rows: tuple[Row, ...]
    table: str
    """The table whose cells it draws; empty: none."""


@spec
class Plan:
    scale: Scale
    runs: dict[str, Run]
    tables: dict[str, Table]
    figures: dict[str, Figure]

    @cached_property
    def paths(self) -> "Paths":
        return Paths(self.scale.name, self.scale.checkpoints)

    def run(self, name: str) -> Run:
        """The run of that name; InputError with the nearest when there is none."""
        if name not in self.runs:
            raise InputError(unknown(name, self.runs, "run", f"scale {self.scale.name}"))
        return self.runs[name]

    def teacher_run(self, name: str) -> Run | None:
        """The run that trains teacher `name`, or None where its weights come from elsewhere."""
        return self.runs.get(f"teacher-{name}")

    def runs_of(self, *names: str) -> list[Run]:
        """The runs shown in the tables and figures named, without repetition."""
        rows = [
            row for name in names for row in (self.tables[name] if name in self.tables else self.figures[name]).rows
        ]
        return [self.runs[n] for n in dict.fromkeys(cell.run for row in rows for cell in row.cells)]

    def resources(self, kind: str) -> Resources:
        """What a kind of job asks for at this scale."""
        return self.scale.resources.get(kind, Resources())


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where everything of a scale lies, relative to the project's folder."""

    scale: str
    checkpoints: str = "checkpoints"

    @property
    def results(self) -> Path:
        return Path("results") / self.scale

    @property
    def figures(self) -> Path:
        return Path("figures") / self.scale

    def subsets(self, data: str) -> Path:
        """Folder with the list of each fraction and of the validation split."""
        return self.results / "subsets" / data

    def teacher(self, name: str) -> Path:
        """Record of a teacher that has passed its accuracy gate."""
        return self.results / "teachers" / f"{name}.json"

    def seed(self, run: str, seed: int) -> Path:
        return self.results / "runs" / run / f"seed{seed}"

    def stage(self, run: str, seed: int, stage: str) -> Path:
        """Record of a finished stage."""
        return self.seed(run, seed) / f"{stage}.json"

    def metrics(self, run: str, seed: int) -> Path:
        """Record of a run's evaluation on the test images; its predictions lie beside it."""
        return self.seed(run, seed) / "metrics.json"

    def state(self, run: str, seed: int, stage: str) -> Path:
        """Folder of a stage's checkpoints and exported weights."""
        return Path(self.checkpoints) / self.scale / run / f"seed{seed}" / stage

    def teacher_weights(self, name: str) -> Path:
        """The teacher's weights as every job of this scale reads them."""
        return Path(self.checkpoints) / self.scale / "teachers" / f"{name}.safetensors"
