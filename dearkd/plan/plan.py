"""A plan: which runs there are, which table or figure shows them, and where each lies. `experiments.load` makes one."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Literal

from dearkd.plan.methods import REAL
from dearkd.plan.scale import Peer, Resources, Scale
from dearkd.plan.stage import LOSSES, Augment, Data, Source, Stage, Teacher, subset_name
from dearkd.schema import InputError, Pairs, fingerprint, home, slug, spec, unknown

Metric = Literal[
    "top1",
    "top5",
    "lpips",
    "lpips_se",
    "lpips_vgg",
    "lpips_alex",
    "lpips_blurred",
    "lpips_blurred_se",
    "easy_positive",
    "teacher_top1",
    "parameters",
    "gmacs",
    "input_size",
    "throughput",
    "ratio",
    "ratio_dense",
]
"""What records measure and tables show."""
Kind = Literal[
    "accuracy_against_data",
    "attention_distance",
    "pipeline",
    "aligner",
    "data_free_pipeline",
    "latent_space",
    "image_grid",
]
"""Functions of `figures.py`."""


@spec
class Run:
    """A row's training: equal rows are one run, trained once, whichever tables show it."""

    name: str
    method: str
    student: str
    fraction: int
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]
    initial: str = ""
    """The run whose weights it starts from; empty: a fresh model."""
    settings: Pairs = ()
    """What its row sets besides method and student; part of its name, not of its fingerprint."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise InputError(f"method {self.method}: its stages are called {', '.join(names)}; each name once")
        for stage in self.stages:
            for loss, _ in stage.losses:
                if LOSSES[loss].teacher and stage.teacher is None:
                    raise InputError(f"method {self.method}, stage {stage.name}: the loss {loss} needs a teacher")
                if LOSSES[loss].knobs and stage.distillation is None:
                    raise InputError(f"method {self.method}, stage {stage.name}: the loss {loss} needs a Distillation")

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
class Labels:
    """A teacher's hard decisions on every real image of every epoch, everything but the seed.

    They depend on the teacher and on what decides the pixels, not on the student, its losses or its learning rate, so
    that runs which see the same pixels share them.
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
        """Those that a stage with a teacher learns from."""
        from_stage = ("teacher_name", "teacher", "data", "data_name", "fraction", "subset_seed", "subset_draw")
        from_recipe = ("batch", "micro_batch", "subset_schedule", "precision", "augment")
        return cls(
            **{name: getattr(stage, name) for name in from_stage},
            **{name: getattr(stage.training, name) for name in from_recipe},
        )

    def subset(self, seed: int) -> str:
        """Name of the list of the images that they are of."""
        return subset_name(self.fraction, seed if self.subset_draw == "seed" else None)

    @property
    def name(self) -> str:
        return f"{self.teacher_name}-{fingerprint(self)}"


@spec
class Cell:
    """One place in a table: the keys that name it, the run that fills it, the paper's number for it."""

    keys: Pairs
    run: str
    """A run, a system whose weights others have trained, or, in a table that reads `diversity`, a set of images;
    empty: nothing of ours, the paper's number is quoted."""
    paper: float | None


@spec
class Row:
    label: str
    method: str
    student: str
    columns: Pairs
    """Values of the table's own columns, for example the switches of Table 1."""
    architecture: str = ""
    """timm name of the true architecture, whose size and throughput stand in the row; empty: none."""
    cells: tuple[Cell, ...]


@spec
class Table:
    name: str
    title: str
    metric: Metric
    columns: tuple[str, ...]
    across: str
    """Key that runs over the columns of numbers, for example fraction; empty: one column."""
    gap_to: str
    """Label of the row that the others fall short of, for the metric `gap`; empty: none."""
    delta_to: str
    """Label of the row from which the others' difference is counted, for the metric `delta`; empty: none."""
    also: tuple[Metric, ...]
    """Further metrics, without a number in the paper."""
    note: str
    """A sentence under the table; {net}, {trunk}, {colour} and {size} are LPIPS's, {images} is the size of a synthetic
    set."""
    reads: Literal["metrics", "diversity"]
    """Which records fill it: evaluations of runs, or diversity of sets of images."""
    rows: tuple[Row, ...]


@spec
class Figure:
    name: str
    title: str
    kind: Kind
    """The function of `figures.py` that draws it."""
    reads: Literal["metrics", "curves", "teachers", "diversity"]
    """Which records it needs."""
    rows: tuple[Row, ...]
    table: str
    """The table whose cells it draws; empty: none."""


@spec
class Plan:
    scale: Scale
    runs: dict[str, Run]
    sources: dict[str, Source]
    """Sets of synthetic images that runs train on or tables describe."""
    competitors: dict[str, tuple[str, ...]]
    """By source: names of the runs that train ADI's student, a run for each round."""
    pretrained: dict[str, Peer]
    """Systems whose weights others have trained and we evaluate, by label."""
    tables: dict[str, Table]
    figures: dict[str, Figure]

    @cached_property
    def paths(self) -> "Paths":
        return Paths(self.scale.name, home(self.scale.checkpoints))

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
        return [self.runs[n] for n in self._cells(names) if n in self.runs]

    def images_of(self, *names: str) -> list[str]:
        """The sets of images shown in the tables and figures named: `real`, or a key of `sources`."""
        return [n for n in self._cells(names) if n == REAL or n in self.sources]

    def pretrained_of(self, *names: str) -> list[str]:
        """The systems of others shown in the tables and figures named."""
        return [n for n in self._cells(names) if n in self.pretrained]

    def architectures_of(self, *names: str) -> list[str]:
        """The architectures measured for the tables named."""
        rows = [row for name in names if name in self.tables for row in self.tables[name].rows]
        return list(dict.fromkeys(row.architecture for row in rows if row.architecture))

    def shown(self, name: str) -> "Table | Figure":
        """The table or figure of that name; InputError with the nearest when this scale has none."""
        both = {**self.tables, **self.figures}
        if name not in both:
            raise InputError(unknown(name, both, "table or figure", f"scale {self.scale.name}"))
        return both[name]

    def _cells(self, names: tuple[str, ...]) -> list[str]:
        shown = [self.shown(name) for name in names]
        return list(dict.fromkeys(cell.run for each in shown for row in each.rows for cell in row.cells))

    def competitor(self, source: str, shard: int) -> Run | None:
        """The run whose student a shard competes with (ADI), or None for other methods."""
        made = self.sources[source]
        return self.runs[self.competitors[source][made.round(shard)]] if made.student else None

    @cached_property
    def labels(self) -> dict[str, Labels]:
        """The sets of cached labels that runs share, by name; none where the scale caches none."""
        stages = (stage for run in self.runs.values() for stage in run.stages)
        return {found.name: found for found in map(self.labels_of, stages) if found}

    def labels_of(self, stage: Stage) -> Labels | None:
        """The labels that a stage reads; None where it asks its teacher or needs no decisions.

        On synthetic images each run asks: few share a set of them, and their teacher is the smaller one.
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

    def seen(self, data: str) -> Path:
        """Sizes and times of the files of a data set when their contents were last read on this machine."""
        return Path(self.checkpoints) / self.scale / "seen" / f"{data}.csv"

    def presized(self, data: str) -> Path:
        """Record of the smaller copy of a data set's training images."""
        return self.results / "presized" / f"{data}.json"

    def presized_images(self, data: str, side: int) -> Path:
        """Folder of that copy, laid out as the original."""
        return Path(self.checkpoints) / self.scale / "presized" / f"{data}-{side}"

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

    def pretrained(self, label: str) -> Path:
        """Record of the evaluation of a system that others have trained."""
        return self.results / "pretrained" / f"{slug(label.replace('/', '-'))}.json"

    @property
    def throughput(self) -> Path:
        """Record of the size and throughput of the architectures of Table 3."""
        return self.results / "architectures.json"

    def teacher_weights(self, name: str) -> Path:
        """The teacher's weights as every job of this scale reads them."""
        return Path(self.checkpoints) / self.scale / "teachers" / f"{name}.safetensors"

    def kept_weights(self, name: str) -> Path:
        """A small teacher's weights beside its record, so that a clone can go on with the very same teacher."""
        return self.teacher(name).with_suffix(".safetensors")

    def labels(self, name: str, seed: int, shard: int) -> Path:
        """Record of a shard of a teacher's labels."""
        return self.results / "labels" / name / f"seed{seed}" / f"{shard:04d}.json"

    def label_file(self, name: str, seed: int, shard: int) -> Path:
        """The labels themselves, uint16 by epoch and position; their checkpoints lie in the folder of the same name."""
        return Path(self.checkpoints) / self.scale / "labels" / name / f"seed{seed}" / f"{shard:04d}.npy"

    def images(self, source: str, seed: int) -> Path:
        """Folder with the records of a set of images: its shards, its diversity, latent codes and a sample."""
        return self.results / "images" / source / f"seed{seed}"

    def shard(self, source: str, seed: int, shard: int) -> Path:
        """Record of a finished shard of synthetic images."""
        return self.images(source, seed) / f"shard-{shard:04d}.json"

    def diversity(self, source: str, seed: int) -> Path:
        return self.images(source, seed) / "diversity.json"

    def archive(self, source: str, seed: int, shard: int) -> Path:
        """The shard's images, a zip file of PNG; its checkpoints lie in the folder of the same name."""
        return Path(self.checkpoints) / self.scale / "images" / source / f"seed{seed}" / f"shard-{shard:04d}.zip"
