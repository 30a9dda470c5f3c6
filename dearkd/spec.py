"""What is trained, on what and how, as frozen dataclasses.

Plan layer: standard library only. A `Scale` is one file of `workflow/scales/`; a `Stage` is one job of training,
fully resolved, and is what a record stores and compares. Defaults are the paper's, or where it is silent those of
docs/decisions.md.
"""

import dataclasses
from typing import Literal

from dearkd.schema import InputError, Pairs, spec, unknown


@spec
class Data:
    """A data set, its split and its pixels. All three input channels share what is given once."""

    kind: Literal["digits", "idx", "cifar10", "cifar100", "folder"]
    root: str = ""
    """Folder with the files; empty for data that a dependency ships (`digits`)."""
    classes: int
    image_size: int
    """Side of the square image in pixels, as the student sees it."""
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    validation: int = 0
    """Images carved out of train, equally per class; every choice is made on them. 0: none is carved out."""
    crop: float = 0.875
    """Centre crop at evaluation, as a share of the resized side (DeiT: 224/256)."""
    label_noise: float = 0.0
    """Share of the training labels replaced by another class; validation and test stay clean."""
    order: Literal["shuffled", "first"] = "shuffled"
    """How a fraction picks images per class: seeded and nested, or the first files as ConViT does."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise InputError(f"{name} has {len(values)} values but channels is {self.channels}")


@spec
class Augment:
    """One image's augmentation, and mixing between images. Defaults: DeiT's recipe (spec of the paper, Sec. 5.1)."""

    kind: Literal["timm", "affine", "none"] = "timm"
    """timm: `timm.data.create_transform`, per image. affine: shift, rotate and zoom of a whole batch in memory."""
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    flip: float = 0.5
    auto: str = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25
    shift: float = 0.0
    """Largest shift in pixels (affine)."""
    rotate: float = 0.0
    """Largest rotation in degrees (affine)."""
    zoom: float = 0.0
    """Largest relative change of size (affine)."""
    mixup: float = 0.8
    cutmix: float = 1.0
    mix: float = 1.0
    """Probability that a micro-batch is mixed at all."""
    switch: float = 0.5
    """Probability of cutmix where both are on."""
    smoothing: float = 0.1
    repeats: int = 3
    """Repeated augmentation: copies of an image within one epoch; an epoch still draws as many images."""


@spec
class Training:
    """Optimiser, schedule and batch. Defaults: DeiT's recipe at the paper's epochs, switch and batch."""

    epochs: int = 300
    stage1_epochs: int = 250
    """Epoch at which DearKD goes over to stage II (250 of 300, 800 of 1000)."""
    batch: int = 2048
    micro_batch: int = 256
    """Unit of randomness and of work: one forward pass. Results do not depend on how many processes share
    the batch's micro-batches, only on this number."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = 5e-4
    lr_scaling: Literal["linear512", "none"] = "linear512"
    """linear512: lr x batch / 512, as DeiT does; 5e-4 at 2048 gives 2e-3."""
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.999)
    momentum: float = 0.9
    clip: float = 0.0
    """Largest gradient norm; 0: not clipped."""
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    stage2_lr: Literal["continue", "restart"] = "continue"
    """continue: one cosine over both stages. restart: a second warm-up and cosine from `stage2_peak` x lr."""
    stage2_peak: float = 1.0
    drop_path: float = 0.1
    subset_schedule: Literal["iterations", "epochs"] = "iterations"
    """On a fraction of the data: as many iterations as on all of it, or as many epochs."""
    validate_every: int = 1
    """Epochs between two validations (and attention distances) in the curve; the last epoch always has one."""
    ema: float = 0.0
    """Decay of the averaged weights; 0: none are kept. Reported weights are the raw ones, as DeiT's."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Autocast on a GPU; on a CPU always fp32."""
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
    alpha: float = 1.0
    form: Literal["literal", "centred"] = "literal"
    """literal: -a(|d|^2 - 2D.d), Eq. 2. centred: -a|d - D|^2; the two differ only against the class token."""
    scale: Literal["none", "sqrt_d"] = "none"
    param: Literal["alpha_delta", "free"] = "alpha_delta"
    positive: bool = False
    """Keep alpha above 0 by softplus."""
    learn_delta: bool = True
    drop: float = 0.1
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

    def __post_init__(self) -> None:
        if self.per_sample and self.drop_mode == "element":
            raise InputError(
                "rpe.per_sample needs drop_mode query, key or head: element would store "
                "batch x heads x tokens^2 numbers"
            )


@spec
class Distillation:
    """Stage I (Sec. 3.1): the three losses of Eq. 6 and what they compare."""

    teacher: str = "main"
    """Name under the scale's `teachers`."""
    alpha: float = 0.5
    """Weight of the class token's loss; the logit loss gets 1 - alpha (Eq. 6)."""
    beta: float = 1.0
    """Weight of the hidden loss."""
    pairs: tuple[tuple[int, int], ...] = ((4, 2),)
    """(student block, counted from 1; teacher stage, the stem being 0)."""
    hidden_norm: Literal["rms", "none", "ln"] = "rms"
    """Scale of the teacher's features: divided by their running RMS, raw, or normalised over channels."""
    hidden_ln: bool = False
    """Apply the student's final LayerNorm to its block output first."""
    pooled_head: Literal["separate", "shared"] = "separate"
    pool_before_norm: bool = False
    freeze_rpe: bool = False
    """Keep alpha and delta fixed in stage II; 'unchanged' in Sec. 3.2 is read as: still there, still learning."""


SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12},
    "small": {"embed_dim": 384, "depth": 12},
    "base": {"embed_dim": 768, "depth": 12},
}
"""The paper's Ti, S and B (Sec. 5.1); a scale may override width and depth."""
DEARKD_HEADS = {"tiny": 12, "small": 12, "base": 16}


@spec
class Student:
    """One of the paper's sizes at this scale."""

    size: Literal["tiny", "small", "base"]
    """Which timm model: deit_{size}_patch16_224 and its relatives."""
    args: Pairs = ()
    """Keyword arguments over that model's own, for example patch_size, embed_dim and depth."""
    deit_heads: int
    """DeiT has 3, 6 and 12."""
    dearkd_heads: int
    """The paper has 12, 12 and 16."""
    n_mhca: int = 8
    """Blocks with MHCA, from the first; the rest is MHSA."""
    init: Literal["deit", "fan_in"] = "deit"
    """deit: truncated normal, std 0.02. fan_in: std 1/sqrt(fan in), positions 0.5, for widths far below 192."""


@spec
class Teacher:
    """A CNN, from timm by its full tag or trained by the workflow first, and the accuracy it must show."""

    model: str
    args: Pairs = ()
    top1: float
    """Expected top-1 in percent; training with a teacher further than `tolerance` from it is refused."""
    tolerance: float = 0.3
    gate: Literal["validation", "test"] = "validation"
    weights: str = ""
    """A local safetensors or state-dict file; empty: timm's hub, or the training below."""
    training: Training | None = None
    """Set: the workflow trains it, on all training images, with seed 0."""


@spec
class Resources:
    """What a kind of job asks the machine for."""

    threads: int = 1
    mem_mb: int = 2000
    runtime: int = 60
    """Minutes."""
    gpu: int = 0


@spec
class Scale:
    """On what, how big, how long, with which teacher and resources: one file of workflow/scales."""

    name: str
    summary: str
    """One line for tables and --help: what data, what hardware."""
    seeds: tuple[int, ...]
    fractions: tuple[int, ...]
    """Percent of the training images; the columns of Table 2."""
    subset_seed: int = 0
    data: dict[str, Data]
    """`main` is what the paper's ImageNet stands for."""
    students: dict[str, Student]
    teachers: dict[str, Teacher]
    training: Training = dataclasses.field(default_factory=Training)
    distillation: Distillation = dataclasses.field(default_factory=Distillation)
    rpe: Rpe = dataclasses.field(default_factory=Rpe)
    attention_images: int = 512
    """Fixed validation images on which the attention distance is measured each epoch (Figure 4)."""
    resources: dict[str, Resources] = dataclasses.field(default_factory=dict)
    """By kind of job (data, teacher, train, evaluate); a kind that is absent gets the defaults."""
    loader_workers: int = 0
    checkpoints: str = "checkpoints"
    """Folder for checkpoints and weights; never inside results."""

    def __post_init__(self) -> None:
        if self.distillation.teacher not in self.teachers:
            raise InputError(unknown(self.distillation.teacher, self.teachers, "teacher", "distillation.teacher"))


@spec
class Model:
    """A timm model by name, its keyword arguments and how a fresh one is initialised."""

    name: str
    args: Pairs = ()
    init: Literal["deit", "fan_in", "timm"] = "deit"
    """deit: as DeiT's code. fan_in: for narrow students, see `Student.init`. timm: as timm does (CNNs)."""


@spec
class Stage:
    """One job of training, whatever the method: everything but the seed and the hardware."""

    name: str
    model: Model
    data: Data
    data_name: str = "main"
    fraction: int = 100
    subset_seed: int = 0
    losses: tuple[tuple[str, float], ...]
    """(term of `objective.TERMS`, weight)."""
    teacher_name: str = ""
    """Key under the scale's `teachers`; empty: no teacher in this stage."""
    teacher: Teacher | None = None
    distillation: Distillation | None = None
    training: Training
    first_epoch: int
    last_epoch: int
    """Epochs first_epoch to last_epoch - 1, counted over the whole run."""
    freeze_rpe: bool = False
    attention_images: int = 0
    """0: no attention distance (a CNN)."""
