"""An estimate of what training costs: GPU-hours, the longest chain of jobs, disk.

A forward pass over n images takes n / f seconds on a device that does f images/s. Training on them takes three times as
long. Losses, validation and evaluation are not counted. `loading` says how many CPU cores keep a device busy.
"""

import csv
import dataclasses
from collections.abc import Iterable, Mapping

from dearkd import record
from dearkd.errors import InputError
from dearkd.places import shipped
from dearkd.plan.experiments import PAPER
from dearkd.plan.needs import before, needed
from dearkd.plan.plan import Plan, Run
from dearkd.plan.stage import IN_FILES, Source, Stage

TRAIN = 3
"""Cost of a training pass in forward passes; an upper bound for synthesis, in which weights get no gradient."""
EARLY = 0.36
"""Share of a teacher's forward pass that remains when its labels are computed ahead: RegNetY-16GF's stem and first two
stages, 140 of 391 ms."""
LABEL_BYTES = 2
SIDE = 224
"""Image size in pixels of the throughputs. The cost of a smaller phase of synthesis is in proportion to its area."""
STAGE_BYTES = 2 * 16
"""Bytes that a stage keeps for each parameter: two checkpoints of weights, two moments and averaged weights in fp32."""
PNG = 0.7
"""Bytes that a byte of pixels takes in a PNG."""
DEARKD = {f"DearKD-{k}": f"dearkd_{v}_patch16_224" for k, v in {"Ti": "tiny", "S": "small", "B": "base"}.items()}
KNOWN = {"folder": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "flowers102": 2_040, "cars": 8_144}
"""Number of training images by kind of data. A folder with 1000 classes is taken for ImageNet-1k."""
LOADED = {"full": 270, "reduced": 300, "presized": 390}
"""Images/s that one CPU core decodes and augments to 224 pixels: ImageNet's sizes, a copy of 320 pixels, RandAugment.
The best of 30 passes over the files of benchmarks/loading.py on an Intel Xeon."""
SMALL = {"resnet56_cifar": (20_000.0, 861_620)}
"""(forward images/s, parameters) of a teacher of images of 32 pixels. The rate is a guess: a few percent of a run."""
Figures = Mapping[str, int | float]


@dataclasses.dataclass(frozen=True)
class Cost:
    """jobs: number of jobs of training, labels and synthesis. gpu_hours: hours of one device for all jobs.
    longest_hours: hours of the longest chain of jobs that wait for each other. Each job has as many devices as the
    scale gives it; a job with a share of a device is as slow as that share. Labels are left out, because they are made
    side by side. disk_gb: checkpoints, labels and synthetic images, in 1e9 bytes."""

    jobs: int
    gpu_hours: float
    longest_hours: float
    disk_gb: float


@dataclasses.dataclass(frozen=True)
class _Books:
    """A plan and the caller's figures. Seconds are of one device, but for `chain` and `made`.

    fed: where a job's CPU cores load fewer images than its device trains, the cores decide.
    """

    plan: Plan
    throughputs: Figures
    images_of: Figures
    fed: bool = False

    def passes(self, model: str, count: int | float) -> float:
        return count / _figure(self.throughputs, model, "images/s")

    def draws(self, stage: Stage) -> int | float:
        """Images that an epoch shows."""
        return draws(stage, self.images_of)

    def step_seconds(self, stage: Stage) -> float:
        """Seconds of training on one image. With labels computed ahead only the teacher's early stages count."""
        taught = self.passes(stage.teacher.model, 1) if stage.teacher else 0.0
        if self.plan.labels_of(stage) is not None:
            taught *= EARLY if stage.pairs else 0.0
        computed = self.passes(stage.model.name, TRAIN) + taught
        rate = loaded(stage)
        return max(computed, 1 / (rate * self.cores())) if self.fed and rate else computed

    def cores(self) -> float:
        """Return the CPU cores that a training has for each device."""
        asked = self.plan.resources("train")
        return asked.threads / max(asked.gpu, 1)

    def stage_seconds(self, stage: Stage) -> float:
        """Training a stage."""
        return (stage.last_epoch - stage.first_epoch) * self.draws(stage) * self.step_seconds(stage)

    def labels(self, runs: Iterable[Run]) -> tuple[int, float, float]:
        """(jobs, seconds, bytes) of the labels that runs share, for one seed."""
        longest: dict[str, Stage] = {}
        for stage in (s for run in runs for s in run.stages):
            if (of := self.plan.labels_of(stage)) is not None:
                longest[of.name] = max(longest.get(of.name, stage), stage, key=lambda s: s.last_epoch)
        jobs, seconds, room = 0, 0.0, 0.0
        for stage in longest.values():
            shards = len(self.plan.label_shards(stage))
            images = shards * self.plan.scale.label_epochs * self.draws(stage)
            jobs, room = jobs + shards, room + LABEL_BYTES * images
            assert stage.teacher is not None, "labels are a teacher's"
            seconds += self.passes(stage.teacher.model, images)
        return jobs, seconds, room

    def image_seconds(self, source: Source) -> float:
        """Seconds of making an image: the teacher at each phase's image size, ADI's student at the data's."""
        phases = source.recipe.phases
        seconds = self.passes(source.teacher.model, TRAIN * sum(p.iterations * (p.size / SIDE) ** 2 for p in phases))
        if source.student:
            seconds += self.passes(source.student[0].model.name, TRAIN * sum(p.iterations for p in phases))
        if source.recipe.fast:  # each job rehearses first; the generator itself is not counted
            seconds *= 1 + source.recipe.fast.rehearsals / min(source.recipe.shard_batches, source.recipe.batches)
        return seconds

    def chain(self, run: Run) -> float:
        """Return the seconds from the first job to the end of a run, on as many devices as its jobs have."""
        sets = {(s.source, s.shards or s.source.recipe.shards) for s in run.stages if s.source}
        waits = [self.chain(r) for r in before(self.plan, run) if isinstance(r, Run)] + [self.made(*s) for s in sets]
        own = sum(map(self.stage_seconds, run.stages)) / (self.plan.resources("train").gpu or 1)
        return max(waits, default=0.0) + own

    def made(self, source: Source, shards: int) -> float:
        """Return the seconds until the first `shards` shards are made. Shards of a round are made in parallel."""
        first = (self.plan.teacher_run(source.teacher_name), self.plan.competitor(source.name, shards - 1))
        own = source.recipe.made(1) * self.image_seconds(source) / (self.plan.resources("synthesize").gpu or 1)
        return max((self.chain(r) for r in first if r), default=0.0) + own


def draws(stage: Stage, images_of: Figures) -> int | float:
    """Images that an epoch of a stage shows. A fraction is right within one image a class."""
    images = _figure(images_of, stage.data_name, "number of images")
    if stage.training.subset_schedule == "epochs":
        return stage.source.recipe.made(stage.shards) if stage.source else images * stage.fraction // 100
    return images


def run_seconds(plan: Plan, run: Run, throughputs: Figures) -> float:
    """Return the seconds of one device that a seed of a run takes, without the jobs that it waits for."""
    return sum(map(_Books(plan, throughputs, images_of(plan)).stage_seconds, run.stages))


def papers(plan: Plan) -> bool:
    """Whether the students of a plan are the paper's, whose throughputs are known."""
    return bool(plan.scale.students) and not any(student.args for student in plan.scale.students.values())


def models(plan: Plan, runs: Iterable[Run], sources: Iterable[str] = ()) -> set[str]:
    """timm names of the students and teachers of runs and sets of images."""
    stages = [stage for run in runs for stage in run.stages]
    of_images = [plan.sources[name] for name in sources] + [stage.source for stage in stages if stage.source]
    learning: list[Stage | Source] = [*stages, *of_images]
    taught = [each.teacher for each in learning if each.teacher]
    return {stage.model.name for stage in stages} | {teacher.model for teacher in taught}


def estimate(
    plan: Plan,
    runs: Iterable[Run],
    throughputs: Figures,
    images_of: Figures,
    parameters: Figures,
    sources: Iterable[str] = (),
    fed: bool = False,
) -> Cost:
    """Return the cost of `runs`, including the teachers, runs, synthetic images and competing students that they need.

    Args:
        throughputs, parameters: forward images/s and number of parameters, by timm name without tag.
        images_of: number of training images of each data set, without its validation images.
        sources: names of further sets of images to make, those of a table that no run learns from.
        fed: limit the speed of training to that at which the scale's CPU cores load images.

    Raises InputError naming an architecture or data set without a figure.
    """
    books = _Books(plan, throughputs, images_of, fed)
    waited = needed(plan, runs, sources)
    jobs, seconds, disk = books.labels(r for r in waited if isinstance(r, Run))
    jobs, seconds, disk = (jobs * len(plan.scale.seeds), seconds * len(plan.scale.seeds), disk * len(plan.scale.seeds))
    longest = 0.0
    for each in waited:
        if isinstance(each, Run):
            seeds, parts, chain = len(each.seeds), len(each.stages), books.chain(each)
            work = sum(map(books.stage_seconds, each.stages))
            room = sum(STAGE_BYTES * _figure(parameters, s.model.name, "number of parameters") for s in each.stages)
        else:
            seeds, parts, count = len(plan.scale.seeds), each.recipe.shards, each.recipe.made()
            work, chain = count * books.image_seconds(each), books.made(each, parts)
            room = count * each.data.image_size**2 * each.data.channels * PNG
        jobs, seconds, disk = jobs + seeds * parts, seconds + seeds * work, disk + seeds * room
        longest = max(longest, chain)
    return Cost(jobs, seconds / 3600, longest / 3600, disk / 1e9)


def _figure(figures: Figures, name: str, what: str) -> int | float:
    name = name.partition(".")[0]
    if name not in figures:
        raise InputError(f"cost: the {what} of {name} is unknown; known: {', '.join(sorted(figures)) or 'none'}")
    return figures[name]


def loaded(stage: Stage) -> int:
    """Images/s that one CPU core loads for a stage; 0 where it reads no image files."""
    augment = stage.training.augment
    if stage.source or augment.kind != "timm" or stage.data.kind not in IN_FILES:
        return 0
    return LOADED["presized" if stage.data.presize and augment.decode == "reduced" else augment.decode]


def loading(plan: Plan, runs: Iterable[Run], throughputs: Figures) -> str:
    """Return a line on the run that needs most images/s: its GPU's images/s, and the CPU cores that load them.

    It says whether the scale has that many cores. The line is empty if no run reads image files.
    """
    books, found = _Books(plan, throughputs, {}), []
    for run in runs:
        for stage in run.stages:
            if rate := loaded(stage):
                passes = books.step_seconds(stage)
                found.append((1 / passes / rate, 1 / passes, rate, stage.model.name))
    if not found:
        return ""
    cores, wanted, rate, model = max(found)
    has = books.cores()
    decides = f"the GPU decides, with {has:g}" if cores <= has else f"LOADING DECIDES: a GPU has {has:g}"
    return f"{model} takes {wanted:,.0f} images/s on a GPU: {cores:.1f} CPU cores at {rate} images/s each; {decides}"


def describe(cost: Cost, gpus: int, origin: str, loading: str = "", fed: Cost | None = None) -> str:
    """The estimate as aligned lines. `origin` says where the throughputs come from, `loading` is the line on loading.

    fed: the cost if the scale's CPU cores limit training.
    """
    fed = fed or cost
    hours = max(fed.gpu_hours / gpus, fed.longest_hours)
    slower = f", {fed.gpu_hours:,.1f} with the CPU cores of the scale" if fed.gpu_hours > cost.gpu_hours else ""
    lines = (
        ("jobs", f"{cost.jobs:,}"),
        ("GPU-hours", f"{cost.gpu_hours:,.1f}{slower}"),
        (f"on {gpus} GPU{'s' * (gpus > 1)}", f"{hours:,.1f} hours, {hours / 24:,.1f} days"),
        ("disk", f"{cost.disk_gb:,.1f} GB"),
        ("loading", loading),
        ("throughputs", origin),
    )
    return "\n".join(f"{name:<15}{value}" for name, value in lines if value)


def images_of(plan: Plan) -> dict[str, int]:
    """Training images of the data sets that the scale has listed already, or whose size is known."""
    found = {}
    for name, data in plan.scale.data.items():
        path = plan.paths.subsets(name) / "data.json"
        if path.is_file():
            found[name] = record.read(path)["images"]["train-100"]
        elif data.kind in KNOWN and (data.kind != "folder" or data.classes == 1000):
            found[name] = KNOWN[data.kind] - data.validation
    return found


def paper_throughputs() -> dict[str, float]:
    """Forward images/s by timm name without tag, from the paper's Table 3; `SMALL` beside them."""
    rates = {name: float(row["throughput_img_s_v100"]) for name, row in _table3().items()}
    return rates | {name: rate for name, (rate, _) in SMALL.items()}


def paper_kinds() -> dict[str, str]:
    """`cnn` or `transformer` by timm name without tag, of the same architectures."""
    return {name: "cnn" if row["group"] == "cnn" else "transformer" for name, row in _table3().items()}


def paper_parameters() -> dict[str, int]:
    """Exact numbers of parameters by timm name without tag, of the architectures of Table 3 and of `SMALL`."""
    exact = {name: int(row["params_exact"]) for name, row in _table3().items()}
    return exact | {name: parameters for name, (_, parameters) in SMALL.items()}


def _table3() -> dict[str, dict[str, str]]:
    """The lines of Table 3 whose architecture timm has or we have, by name without tag."""
    with shipped(PAPER / "table3.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["timm_model"].removeprefix("arch ").split()[0].partition(".")[0] for row in rows]
    names = [DEARKD[r["method"].removesuffix("-1000")] if n == "ours" else n for n, r in zip(names, rows, strict=True)]
    return {n: row for n, row in zip(names, rows, strict=True) if n != "not"}
