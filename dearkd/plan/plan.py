"""A plan: its runs, the tables and figures that show them, and their files. `experiments.load` makes one."""

import shlex
from collections.abc import Mapping
from functools import cached_property
from typing import Literal, TypeVar

from dearkd.errors import InputError, unknown
from dearkd.fingerprint import fingerprint
from dearkd.places import home
from dearkd.plan.data import REAL
from dearkd.plan.paper import STUDENTS
from dearkd.plan.paths import Paths
from dearkd.plan.scale import Peer, Resources, Scale
from dearkd.plan.stage import LOSSES, Augment, Data, Source, Stage, Teacher, subset_name
from dearkd.plan.tables import Cell, Figure, Kind, Metric, Row, Table
from dearkd.schema import Pairs, spec

__all__ = ["Cell", "Figure", "Kind", "Labels", "Metric", "Paths", "Plan", "Row", "Run", "Table"]
T = TypeVar("T")


@spec
class Run:
    """A row's training. Equal rows are one run, which is trained once, whichever tables show it."""

    name: str
    method: str
    student: str
    fraction: int
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]
    initial: str = ""
    """The run whose weights it starts from; empty: a fresh model."""
    settings: Pairs = ()
    """Settings of its row besides method and student. They are part of its name, not of its fingerprint."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise InputError(
                f"method {self.method}: its stages are called {', '.join(names) or 'nothing'}; give each its own name"
            )
        for stage in self.stages:
            for loss, _ in stage.losses:
                if LOSSES[loss].teacher and stage.teacher is None:
                    raise InputError(
                        f"method {self.method}, stage {stage.name}: the loss {loss} needs a teacher; give it one"
                    )
                if LOSSES[loss].knobs and stage.distillation is None:
                    raise InputError(
                        f"method {self.method}, stage {stage.name}: the loss {loss} needs a Distillation; give it one"
                    )

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
        """Return the fingerprint of the training up to the end of `stage`: of the specs of all stages so far."""
        names = [s.name for s in self.stages]
        return fingerprint(self.stages[: names.index(stage) + 1])


@spec
class Labels:
    """The spec of a teacher's hard labels of every real image of every epoch, without the seed.

    They depend on the teacher and on the settings that decide the pixels, not on the student, its losses or its
    learning rate. So runs with the same pixels share them.
    """

    teacher_name: str
    teacher: Teacher
    data: Data
    data_name: str
    fraction: int
    subset_seed: int
    subset_draw: Literal["once", "seed"] = "once"
    batch: int
    micro_batch: int
    subset_schedule: str
    precision: str
    augment: Augment

    @classmethod
    def of(cls, stage: Stage) -> "Labels":
        """The labels that a stage with a teacher learns from."""
        from_stage = ("teacher_name", "teacher", "data", "data_name", "fraction", "subset_seed", "subset_draw")
        from_recipe = ("batch", "micro_batch", "subset_schedule", "precision", "augment")
        return cls(
            **{name: getattr(stage, name) for name in from_stage},
            **{name: getattr(stage.training, name) for name in from_recipe},
        )

    def subset(self, seed: int) -> str:
        """Name of the list of the labelled images."""
        return subset_name(self.fraction, seed if self.subset_draw == "seed" else None)

    @property
    def name(self) -> str:
        return f"{self.teacher_name}-{fingerprint(self)}"


@spec
class Plan:
    """All that a scale trains and shows, by name."""

    scale: Scale
    runs: dict[str, Run]
    sources: dict[str, Source]
    """Sets of synthetic images that runs train on or tables describe."""
    competitors: dict[str, tuple[str, ...]]
    """Names of the runs that train ADI's student, by source; a run for each round."""
    pretrained: dict[str, Peer]
    """Peers of Table 3 whose published weights we evaluate, by label."""
    tables: dict[str, Table]
    figures: dict[str, Figure]
    file: str = ""
    """What the user calls the scale: a name or a .yaml file; empty: the scale's name finds it."""

    @property
    def argument(self) -> str:
        """The word after --scale that finds this scale again, for the shell."""
        return shlex.quote(self.file or self.scale.name)

    @cached_property
    def paths(self) -> Paths:
        return Paths(self.scale.name, home(self.scale.checkpoints))

    @property
    def lacking(self) -> list[str]:
        """The paper's sizes that its tables show and the scale does not define: only the paper's numbers are shown."""
        named = {row.student for table in self.tables.values() for row in table.rows if row.method != "peer"}
        return sorted(named & set(STUDENTS) - self.scale.students.keys())

    def _named(self, name: str, known: Mapping[str, T], kind: str) -> T:
        """Return what has a name. Raises InputError with the nearest name if nothing has."""
        if name not in known:
            raise InputError(unknown(name, known, kind, f"scale {self.scale.name}"))
        return known[name]

    def run(self, name: str) -> Run:
        """The run of that name. Raises InputError with the nearest name if there is none; so do those below."""
        return self._named(name, self.runs, "run")

    def table(self, name: str) -> Table:
        return self._named(name, self.tables, "table")

    def figure(self, name: str) -> Figure:
        return self._named(name, self.figures, "figure")

    def data(self, name: str) -> Data:
        return self._named(name, self.scale.data, "data set")

    def teacher(self, name: str) -> Teacher:
        return self._named(name, self.scale.teachers, "teacher")

    def source(self, name: str) -> Source:
        return self._named(name, self.sources, "source")

    def images(self, name: str) -> Source | None:
        """The set of images of that name; None for the real ones."""
        return self._named(name, {REAL: None, **self.sources}, "set of images")

    def system(self, label: str) -> Peer:
        """Return the peer of that label whose published weights are evaluated."""
        return self._named(label, self.pretrained, "system")

    def label_set(self, name: str) -> Labels:
        return self._named(name, self.labels, "set of labels")

    def shown(self, name: str) -> Table | Figure:
        """The table or figure of that name."""
        both: dict[str, Table | Figure] = {**self.tables, **self.figures}
        return self._named(name, both, "table or figure")

    def teacher_run(self, name: str) -> Run | None:
        """The run that trains teacher `name`, or None where its weights come from elsewhere."""
        return self.runs.get(f"teacher-{name}")

    def runs_of(self, *names: str) -> list[Run]:
        """The runs shown in the tables and figures named, without repetition."""
        return [self.runs[n] for n in self._cells(names) if n in self.runs]

    def images_of(self, *names: str) -> list[str]:
        """The sets of images shown in the tables and figures named: `real`, or a key of `sources`."""
        return [n for n in self._cells(names) if n == REAL or n in self.sources]

    def pretrained_of(self, *names: str) -> list[str]:
        """Return the labels of pretrained peers that these tables and figures show."""
        return [n for n in self._cells(names) if n in self.pretrained]

    def architectures_of(self, *names: str) -> list[str]:
        """The architectures measured for the tables named."""
        rows = [row for name in names if name in self.tables for row in self.tables[name].rows]
        return list(dict.fromkeys(row.architecture for row in rows if row.architecture))

    def _cells(self, names: tuple[str, ...]) -> list[str]:
        shown = [self.shown(name) for name in names]
        return list(dict.fromkeys(cell.run for each in shown for row in each.rows for cell in row.cells))

    def competitor(self, source: str, shard: int) -> Run | None:
        """The run whose student a shard competes with (ADI), or None for other methods."""
        made = self.sources[source]
        return self.runs[self.competitors[source][made.round(shard)]] if made.student else None

    @cached_property
    def labels(self) -> dict[str, Labels]:
        """Return the sets of cached labels that runs share, by name; none if the scale caches none."""
        stages = (stage for run in self.runs.values() for stage in run.stages)
        return {found.name: found for found in map(self.labels_of, stages) if found}

    def labels_of(self, stage: Stage) -> Labels | None:
        """Return the labels that a stage reads; None if it runs its teacher or needs no hard labels.

        On synthetic images each run runs its teacher: few runs share a set, and their teacher is the smaller one.
        """
        real = stage.teacher is not None and stage.source is None
        losses = [LOSSES[name] for name, _ in stage.losses]
        decided = real and any(loss.decided for loss in losses) and not any(loss.soft for loss in losses)
        return Labels.of(stage) if decided and self.scale.label_epochs else None

    def label_shards(self, stage: Stage) -> range:
        """The shards of its labels that a stage reads."""
        if self.labels_of(stage) is None:
            return range(0)
        return range(stage.first_epoch // self.scale.label_epochs, -(-stage.last_epoch // self.scale.label_epochs))

    def resources(self, kind: str) -> Resources:
        """Return the resources of a kind of job at this scale."""
        return self.scale.resources.get(kind, Resources())
