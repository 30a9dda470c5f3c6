"""A scale, a file of workflow/scales: on which data, how big and how long to train, teachers and resources."""

import dataclasses
from pathlib import PurePath
from typing import Annotated, Literal

from dearkd.errors import InputError, unknown
from dearkd.places import slug
from dearkd.plan.stage import MOST_SHARDS, Data, Distillation, Fraction, Rpe, Synthesis, Teacher, Timm, Training
from dearkd.ranges import Count, Matches, Name, Seed, Several, Sha256, Title, Weight, Whole, Within
from dearkd.schema import Pairs, spec

JOBS = ("data", "teacher", "labels", "train", "synthesize", "diversity", "evaluate", "throughput")
"""Kinds of jobs that ask for resources."""


@spec
class Student:
    """One of the paper's sizes at this scale."""

    size: Literal["tiny", "small", "base"]
    """Which timm model: deit_{size}_patch16_224 and its relatives."""
    args: Pairs = ()
    """Keyword arguments over that model's own, for example patch_size, embed_dim and depth."""
    deit_heads: Count
    """DeiT has 3, 6 and 12."""
    dearkd_heads: Count
    """The paper has 12, 12 and 16."""
    n_mhca: Whole = 8
    """Blocks with MHCA, from the first; the rest is MHSA."""
    init: Literal["deit", "fan_in"] = "deit"
    """deit: truncated normal, std 0.02. fan_in: std 1/sqrt(fan in), positions 0.5, for widths far below 192."""
    lr_factor: Annotated[float, Within(0, 1000, above=True)] = 1.0
    """Multiplies `training.lr` at this size, for every method: a wider network may need a lower rate."""


@spec
class Diversity:
    """LPIPS between images of a class (Table 6)."""

    net: Literal["alex", "vgg"] = "alex"
    also: tuple[Literal["alex", "vgg"], ...] = ()
    """Further networks whose LPIPS is reported beside that of `net`."""
    trunk: str = ""
    """Empty: the weights that LPIPS was trained with (`trunks`). Else a file with torchvision's weights of `net`, or
    `random` for tests."""
    size: Annotated[int, Within(16, 8192)] = 224
    """Side in pixels to which images are resized."""
    pairs: Whole = 4
    """Disjoint pairs of each class; 0: LPIPS is not measured."""
    blur: Annotated[float, Within(0, 100)] = 1.0
    """Standard deviation, in pixels at `size`, of the blur of the second figure: noise counts as diversity."""
    control_blur: Annotated[float, Within(0, 100)] = 1.0
    """Standard deviation, in an image's own pixels, of the blur of the control `real images, blurred`."""
    control_noise: Weight = 0.1
    """Standard deviation of the noise added to pixels in [0, 1] for the control `real images, noisy`."""

    def __post_init__(self) -> None:
        if self.also and self.trunk not in ("", "random"):
            raise InputError(
                f"trunk is a file, which has the weights of {self.net} alone; leave out `also`, or `trunk`"
            )
        if self.net in self.also:
            raise InputError(f"`also` names {self.net}, which `net` has already; take it out of `also`")


@spec
class Transfer:
    """Fine-tuning on other data (Table 4): no teacher, a new head, the recipe named by `recipe`."""

    targets: Annotated[tuple[str, ...], Several()] = ()
    """Keys of the scale's `data`; the columns of Table 4."""
    recipe: str = "sgd"
    recipes: dict[Name, Training] = dataclasses.field(default_factory=dict)
    """By name. The paper's scale has DeiT's own (`sgd`) and a shorter one (`adamw`)."""
    titles: dict[str, Title] = dataclasses.field(default_factory=dict)
    """What tables print for a target, where that is not its key."""

    def __post_init__(self) -> None:
        if self.targets and self.recipe not in self.recipes:
            raise InputError(unknown(self.recipe, self.recipes, "value", "recipe"))


@spec
class Peer:
    """An architecture that Table 3 compares with: trained by the workflow, or published weights that are evaluated."""

    model: Timm
    """timm name, with the tag if published weights are evaluated."""
    args: Pairs = ()
    stem_stride: Whole = 0
    init: Literal["deit", "fan_in", "timm"] = "timm"
    weights: str = ""
    """Without training: a local file; empty: timm's hub."""
    sha256: Sha256 = ""
    """sha256 of the weights, as for a teacher."""
    training: Training | None = None


@spec
class Throughput:
    """Forward images/s of the architectures of Table 3, with random weights, each at its input size."""

    batch: Count = 128
    warmup: Whole = 10
    repeats: Whole = 30
    """Timed passes; 0: only parameters and multiply-adds."""
    largest: bool = True
    """On a GPU also the largest batch that fits, as DeiT measured."""


@spec
class Resources:
    """The resources of a kind of job."""

    threads: Annotated[int, Within(1, 4096)] = 1
    mem_mb: Count = 2000
    runtime: Count = 60
    """Minutes."""
    gpu: Annotated[float, Within(0, 1024)] = 0.0
    """Number of GPUs, or a share of one below 1. Jobs whose shares sum to at most 1 use a GPU together."""

    def __post_init__(self) -> None:
        if self.gpu > 1 and self.gpu != int(self.gpu):
            raise InputError(f"gpu is {self.gpu:g}; write a whole number of GPUs, or a share of one GPU below 1")


@spec
class Scale:
    """A scale: on which data, how big and how long to train, with which teachers and resources."""

    name: Name
    summary: str
    """One line for tables and --help: what data, what hardware."""
    seeds: Annotated[tuple[Seed, ...], Several(1)]
    most_seeds: dict[str, Annotated[int, Within(1, 1_000_000)]] = dataclasses.field(default_factory=dict)
    """By table: the most seeds that it has, the first of `seeds`. A run has the seeds of all tables that show it."""
    fractions: Annotated[tuple[Fraction, ...], Several(1)]
    """Percent of the training images; the columns of Table 2."""
    subset_seed: Seed = 0
    subset_draw: Literal["once", "seed"] = "once"
    """once: all seeds share one draw of each fraction's images. seed: each seed draws its own, so that the spread over
    seeds includes this choice. All seeds have the same validation images."""
    data: dict[Name, Data]
    """Data sets by name. `main` has the place of the paper's ImageNet."""
    students: dict[Name, Student]
    teachers: dict[Name, Teacher]
    training: Training = dataclasses.field(default_factory=Training)
    distillation: Distillation = dataclasses.field(default_factory=Distillation)
    rpe: Rpe = dataclasses.field(default_factory=Rpe)
    synthesis: Synthesis = dataclasses.field(default_factory=Synthesis)
    diversity: Diversity = dataclasses.field(default_factory=Diversity)
    transfer: Transfer = dataclasses.field(default_factory=Transfer)
    long: tuple[Annotated[int, Within(1, 1_000_000)], Whole] = (1000, 800)
    """(epochs, stage1_epochs) of the long schedule of Table 3."""
    peers: dict[str, Peer] = dataclasses.field(default_factory=dict)
    """Architectures of Table 3 that this scale trains or evaluates, by their label. The others are quoted."""
    quoted: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """By table: labels of rows that this scale does not run."""
    extra: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """By table: labels of the matrix's `extra` rows that this scale has; no other scale shows them."""
    throughput: Throughput = dataclasses.field(default_factory=Throughput)
    attention_images: Whole = 512
    """Fixed validation images on which the attention distance is measured each epoch (Figure 4)."""
    resources: dict[str, Resources] = dataclasses.field(default_factory=dict)
    """By kind of job (`JOBS`); absent: defaults."""
    only: tuple[str, ...] = ()
    """Tables and figures that this scale has; empty: all of the matrix."""
    label_epochs: Whole = 0
    """Epochs of a teacher's hard labels that one job computes ahead of the runs that share them, which then run only
    the teacher's early stages. 0: each run asks its teacher. Results are the same; no part of a recipe."""
    loader_workers: Annotated[int, Within(0, 1024)] = 0
    save_seconds: Weight = 300.0
    """Longest time in seconds between two checkpoints, which is the most that a killed job loses."""
    checkpoints: Annotated[str, Matches(r"(?s).*\S.*", "a folder")] = "checkpoints"
    """Folder for checkpoints and weights; `~` is the home folder. Never inside results or figures."""

    def __post_init__(self) -> None:
        if "main" not in self.data:
            raise InputError("data: missing key 'main', the images that all runs but transfers use")
        if self.subset_draw == "seed" and self.data["main"].order == "first":
            raise InputError(
                "subset_draw: seed draws other images a seed, and data.main.order: first draws none; leave one out"
            )
        for kind in self.resources:
            if kind not in JOBS:
                raise InputError(unknown(kind, JOBS, "kind of job", "resources"))
        if self.long[1] > self.long[0]:
            raise InputError(
                f"long is {list(self.long)}; write [epochs, stage1_epochs], stage1_epochs being at most epochs"
            )
        if self.label_epochs and max(self.training.epochs, self.long[0]) > MOST_SHARDS * self.label_epochs:
            raise InputError(f"label_epochs: {self.label_epochs} makes more than {MOST_SHARDS:,} jobs; raise it")
        if PurePath(self.checkpoints).parts[:1] in (("results",), ("figures",)):
            raise InputError(f"checkpoints: {self.checkpoints} is inside a folder that git tracks; name another folder")
        folded: dict[str, str] = {}
        for label in self.peers:
            if (other := folded.setdefault(slug(label.replace("/", "-")), label)) != label:
                raise InputError(f"peers: {label!r} and {other!r} would share one folder; give one another name")
        if self.distillation.teacher not in self.teachers:
            raise InputError(unknown(self.distillation.teacher, self.teachers, "teacher", "distillation.teacher"))
        if self.synthesis.teacher not in self.teachers:
            raise InputError(unknown(self.synthesis.teacher, self.teachers, "teacher", "synthesis.teacher"))
        if self.synthesis.verifier and self.synthesis.verifier not in self.teachers:
            raise InputError(unknown(self.synthesis.verifier, self.teachers, "teacher", "synthesis.verifier"))
        for key in ("targets", "titles"):
            for target in getattr(self.transfer, key):
                if target not in self.data:
                    raise InputError(unknown(target, self.data, "data set", f"transfer.{key}"))
