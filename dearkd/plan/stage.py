"""The specs that records store: a `Stage` is one job of training, a `Source` is a set of synthetic images.

Both are frozen and fully resolved. Their parts are in `data`, `model`, `training`, `teacher` and `synthesis`. Defaults
are the paper's, or those of docs/decisions.md where the paper gives none. All parts can be imported from here.
"""

import dataclasses
from typing import Literal, NamedTuple

from dearkd.errors import InputError, unknown
from dearkd.plan.data import IN_FILES, Data, Fraction, subset_name
from dearkd.plan.model import DEARKD_HEADS, DEIT_HEADS, SIZES, Model, Rpe, Timm, fits, geometry
from dearkd.plan.synthesis import MOST_SHARDS, Fast, Phase, Synthesis
from dearkd.plan.teacher import Distillation, Teacher
from dearkd.plan.training import Augment, Betas, Policy, Training
from dearkd.ranges import Name, Seed, Weight, Whole
from dearkd.schema import spec

__all__ = [
    "DEARKD_HEADS",
    "DECISION",
    "DEIT_HEADS",
    "DIVERGENCE",
    "IN_FILES",
    "LABEL",
    "LOSSES",
    "MOST_SHARDS",
    "RESERVED",
    "SIZES",
    "Augment",
    "Betas",
    "Data",
    "Distillation",
    "Fast",
    "Fraction",
    "Loss",
    "Model",
    "Phase",
    "Policy",
    "Rpe",
    "Source",
    "Stage",
    "Synthesis",
    "Teacher",
    "Timm",
    "Training",
    "geometry",
    "subset_name",
]


class Loss(NamedTuple):
    """A term of Eq. 6 or 7; `objective.TERMS` has its function under the same name."""

    what: str
    formula: str
    """The loss of one image; a batch has the mean."""
    teacher: bool = False
    """Whether it needs a teacher in the stage."""
    decided: bool = False
    """Whether its target is the teacher's hard decision (Eq. 5)."""
    knobs: bool = False
    """Whether it reads a `Distillation`."""
    soft: bool = False
    """Whether its target is the teacher's logits, which labels computed ahead do not have."""
    aligner: str = ""
    """Name in `aligner.ALIGNERS` of what maps a block's tokens to the teacher's features; empty: it compares none."""


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


@spec
class Stage:
    """One job of training, for any method: everything but the seed and the hardware."""

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
    """If set, training starts from the weights at the end of these stages, of the same seed, with a new classifier."""
    source: "Source | None" = None
    """If set, the training images are synthetic. Validation and test images stay those of `data`."""
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
            raise InputError(
                f"stage {self.name}: a file beside the stage's record has this name; give the stage another name"
            )
        for loss, _ in self.losses:
            if loss not in LOSSES:
                raise InputError(unknown(loss, LOSSES, "loss", f"stage {self.name}"))
        if not self.losses or not self.first_epoch <= self.last_epoch:
            raise InputError(
                f"stage {self.name}: it needs at least one loss, and a last_epoch that is not below first_epoch"
            )
        if len(both := [loss for loss, _ in self.losses if LOSSES[loss].aligner]) > 1:
            raise InputError(f"stage {self.name}: {both[0]} and {both[1]} each need an aligner; leave one of them out")
        if "bce" in dict(self.losses) and self.training.augment.smoothing:
            raise InputError(
                f"stage {self.name}: the loss bce takes every class with a label above 0 for right; set smoothing: 0"
            )
        shape = geometry(self.model)
        if shape is None:
            return
        fits(shape, f"stage {self.name}: {self.model.name}")
        for block, _ in self.pairs:
            if block > shape["depth"]:
                raise InputError(
                    f"distillation.pairs names block {block}, but the student has blocks 1 to {shape['depth']}"
                )

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(student block, teacher stage) whose features its losses compare; none where they compare none."""
        if self.distillation is None or not any(LOSSES[loss].aligner for loss, _ in self.losses):
            return ()
        return self.distillation.pairs

    def subset(self, seed: int) -> str:
        """Name of the list of its real training images."""
        return subset_name(self.fraction, seed if self.subset_draw == "seed" else None)


@spec
class Source:
    """One set of synthetic images without the seed: loss terms, pixel format and teacher."""

    name: str
    terms: tuple[tuple[str, Weight], ...]
    """(term of `priors.py`, weight)."""
    recipe: Synthesis
    data: Data
    """The data set whose pixel range, size and classes the images have; none of its images are used."""
    teacher_name: str
    teacher: Teacher
    student: tuple[Stage, ...] = ()
    """ADI: how the student that competes in the first round was trained."""
    verifier: Teacher | None = None
    """ADI: the CNN that competes instead of a student."""

    def __post_init__(self) -> None:
        for term, _ in self.terms:
            if not hasattr(self.recipe, term):
                raise InputError(unknown(term, [f.name for f in dataclasses.fields(Synthesis)], "term", self.name))
        for phase in self.recipe.phases:
            if phase.size > self.data.image_size:
                raise InputError(
                    f"synthesis.phases: size {phase.size} is more than image_size {self.data.image_size}; lower it"
                )
        if self.student and not 0 < self.recipe.rounds <= self.recipe.shards:
            raise InputError(
                f"synthesis.rounds: {self.recipe.rounds} is not between 1 and {self.recipe.shards}, the shards"
            )

        for label in self.recipe.classes:
            if not 0 <= label < self.data.classes:
                raise InputError(f"synthesis.classes: {label} is not between 0 and {self.data.classes - 1}")
        classes = len(self.recipe.classes) or self.data.classes
        if self.recipe.batch_classes > classes:
            raise InputError(
                f"synthesis.batch_classes is {self.recipe.batch_classes}, but there are {classes} classes; lower it"
            )

    def round(self, shard: int) -> int:
        """The round (ADI) in which a shard is made, from 0."""
        return shard * self.recipe.rounds // self.recipe.shards if self.student else 0
