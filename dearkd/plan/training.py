"""How one network is trained: augmentation, optimiser, schedule and batch."""

import dataclasses
from typing import Annotated, Literal

from dearkd.errors import InputError
from dearkd.ranges import Count, Matches, Part, Positive, Share, Weight, Whole, Within
from dearkd.schema import spec

Policy = Annotated[
    str,
    Matches(
        r"|rand(-(m\d+|n\d+|p[01]?\.?\d+|mstd\d+(\.\d+)?|mmax\d+|inc[01]|tweights))*"
        r"|augmix(-(m\d+|w\d+|d\d+|b[01]|a\d+(\.\d+)?|mstd\d+(\.\d+)?))*|original|originalr|v0|v0r|3a",
        "a policy of timm such as rand-m9-mstd0.5-inc1, or an empty text",
    ),
]

Betas = tuple[Part, Part]


@spec
class Augment:
    """One image's augmentation, and mixing between images. Defaults: DeiT's recipe (spec of the paper, Sec. 5.1)."""

    kind: Literal["timm", "affine", "none"] = "timm"
    """timm: `timm.data.create_transform`, per image. affine: shift, rotate and zoom of a whole batch in memory."""
    decode: Literal["full", "reduced"] = "full"
    """full: crop and resize in PIL, as timm does. reduced: the same crop of a JPEG file that is decoded no larger than
    the crop needs (timm). Pixels differ by at most 2 of 255; where the file is decoded smaller, by another filter."""
    finish: Literal["loader", "device"] = "loader"
    """Where an image is normalised and erased. loader: on the CPU that decodes it, as timm does. device: on the
    training device, so that a quarter of the bytes are copied; other patches are erased (timm)."""
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
            raise InputError(
                f"crop_scale is {list(self.crop_scale)}; write the smallest share, which is above 0, then the largest"
            )
        if self.finish == "device" and self.kind != "timm":
            raise InputError(f"finish: device needs kind: timm, but kind is {self.kind}; leave finish out")


@spec
class Training:
    """Optimiser, schedule and batch. Defaults: DeiT's recipe at the paper's epochs, switch and batch."""

    epochs: Annotated[int, Within(1, 1_000_000)] = 300
    stage1_epochs: Whole = 250
    """Epoch at which DearKD switches to stage II (250 of 300, 800 of 1000)."""
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
    """Whether SGD has Nesterov's momentum."""
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
    """On a fraction of the data: as many iterations, or as many epochs, as on all of it."""
    validate_every: Count = 1
    """Epochs between two validations (and attention distances) in the curve; the last epoch always has one."""
    ema: Part = 0.0
    """Decay of the averaged weights; 0: none are kept. Reported weights are the raw ones, as DeiT's."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Autocast on a GPU; on a CPU always fp32."""
    compile: Literal["off", "blocks"] = "off"
    """blocks: torch.compile of the student's blocks, or of a CNN as a whole, and of the teacher's stages. Rounding
    differs."""
    augment: Augment = dataclasses.field(default_factory=Augment)

    def __post_init__(self) -> None:
        if self.batch % self.micro_batch:
            raise InputError(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}; change one of them")
        if self.stage1_epochs > self.epochs:
            raise InputError(
                f"stage1_epochs {self.stage1_epochs} is more than epochs {self.epochs}; change one of them"
            )
        if self.warmup_epochs > self.epochs:
            raise InputError(
                f"warmup_epochs {self.warmup_epochs} is more than epochs {self.epochs}, so the rate never "
                f"reaches lr; change one of them"
            )
        if self.augment.mixup + self.augment.cutmix > 0 and self.micro_batch % 2:
            raise InputError(
                f"micro_batch {self.micro_batch} is odd, but mixup and cutmix mix images in pairs; make it even"
            )

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up, scaled by the global batch."""
        return self.lr * (self.batch / 512 if self.lr_scaling == "linear512" else 1.0)
