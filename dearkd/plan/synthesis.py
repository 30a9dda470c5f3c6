"""Synthesis of images from a teacher: the loss terms and how they are minimised."""

import dataclasses
from typing import Annotated, Literal

from dearkd.errors import InputError, unknown
from dearkd.plan.data import REAL
from dearkd.plan.training import Augment, Betas
from dearkd.ranges import Count, Positive, Several, Share, Weight, Whole, Within
from dearkd.schema import spec

MOST_SHARDS = 10_000
"""Largest number of shards of a set of images or labels: a shard's number has four digits, and each shard is a job."""

SYNTHESIS = {
    "deepinversion": ("ce", "tv", "l2", "r_bn"),
    "adi": ("ce", "tv", "l2", "r_bn", "competition"),
    "df_dearkd": ("ce", "tv", "l2", "r_bn", "easy_positive", "triplet"),
    "fast": ("ce", "r_bn", "easy_positive", "triplet"),
}
"""Methods of making images from a teacher: the terms they minimise, weighted as the scale's `synthesis` says."""
PRIORS = {
    "ce": "L_CE: -log p_y, p the teacher's, y the class wanted (Eq. 8)",
    "tv": "R_TV: norm of the differences of neighbouring pixels (Eq. 9)",
    "l2": "R_l2: norm of the image (Eq. 9)",
    "r_bn": "R_BN: sum_l |mean_l(x) - mean_l| + |var_l(x) - var_l| over BatchNorm layers l (Eq. 9)",
    "competition": "1 - JS(teacher, student) (ADI)",
    "easy_positive": "L_ep: -d_ap, the distance to the nearest other image of the class (Eq. 11)",
    "triplet": "L_triplet: max(0, d_ap - d_an + margin) (Eq. 12)",
}
"""What each term is; `priors.py` has its function."""


@spec
class Phase:
    """A part of synthesis at one resolution."""

    size: Annotated[int, Within(1, 8192)]
    """Side in pixels to which the images are average-pooled before the teacher sees them."""
    iterations: Count
    lr: Positive


@spec
class Fast:
    """A generator that a few iterations adapt to each batch. All batches start from the same learned weights.

    Defaults are those of Fast-Datafree (Fang et al., AAAI 2022) for CIFAR. Fast-Datafree keeps learning the start while
    the student trains. Here it is learned first, in rehearsals, and then stays fixed.
    """

    rehearsals: Whole = 220
    """Number of batches that only train the shared start. Each job that makes images begins with them."""
    iterations: Count = 5
    """Number of iterations of a batch, also in a rehearsal."""
    lr: Positive = 3e-3
    lr_code: Positive = 0.01
    width: Count = 64
    """Channels of the generator at full resolution; twice as many below."""
    code: Count = 256
    """Channels of the random code of an image."""
    class_code: Weight = 1.0
    """Standard deviation of a class's code at the start. The code is added at every place to the random one, whose
    standard deviation is 1."""
    upsamplings: Annotated[int, Within(0, 8)] = 2
    """How often the generator doubles the side of its code."""
    images: Whole = 0
    """Number of images. Here and below 0 means the value of the other methods."""
    per_class: Whole = 0
    shard_batches: Whole = 0
    ce: Weight = 0.0
    easy_positive: Weight = 0.0


@spec
class Synthesis:
    """Synthesis from a teacher: the terms of Eq. 8-13 with their weights, and how they are minimised (Sec. 4).

    The method decides which terms are used (`SYNTHESIS`). Defaults are the paper's, or DeepInversion's.
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
    """Scale the code to length 1, so that Eq. 11 is bounded. With raw codes it outweighs all other terms."""
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
    """ADI: number of parts of the set. Each part competes with a student trained on the parts before, and the first
    with a student trained on DeepInversion's images."""
    student: str = "Ti"
    """ADI: size of the competing DearKD student."""
    verifier: str = ""
    """ADI: a key of `teachers` that competes instead of a student, as in NVlabs' code. It has seen real images, so the
    result is not data-free, and tables say so."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Autocast on a GPU; statistics and losses are always fp32."""
    fast: Fast | None = None
    """Knobs of the method `fast` alone; none: its defaults."""

    def __post_init__(self) -> None:
        if not self.phases:
            raise InputError("phases is empty; write at least one phase")
        if self.shards > MOST_SHARDS:
            raise InputError(f"images makes {self.shards:,} shards, more than {MOST_SHARDS:,}; raise shard_batches")
        if self.easy_positive and self.per_class < 2:
            raise InputError(
                "per_class is 1, but easy positives are pairs of one class; raise per_class, or set easy_positive: 0"
            )

    @property
    def batch(self) -> int:
        """Number of images in a batch."""
        return self.batch_classes * self.per_class

    @property
    def batches(self) -> int:
        """Number of batches in the set."""
        return -(-self.images // self.batch)

    @property
    def shards(self) -> int:
        """Number of shards in the set, each made by one job."""
        return -(-self.batches // self.shard_batches)

    def made(self, shards: int = 0) -> int:
        """Images in the first so many shards; 0: in all."""
        return min((shards or self.shards) * self.shard_batches, self.batches) * self.batch


def recipe_of(recipe: Synthesis, method: str, side: int) -> Synthesis:
    """The knobs as a method reads them, for images of so many pixels: `fast` has its own, the others lack them."""
    if method != "fast":
        return dataclasses.replace(recipe, fast=None)
    fast = recipe.fast or Fast()
    own = {
        key: getattr(fast, key)
        for key in ("images", "per_class", "shard_batches", "ce", "easy_positive")
        if getattr(fast, key)
    }
    phases = (Phase(size=side, iterations=fast.iterations, lr=fast.lr),)
    return dataclasses.replace(recipe, phases=phases, warmup=0, fast=fast, **own)


def competes(name: str) -> bool:
    """Whether a method of making images trains a student on the way (ADI)."""
    return "competition" in SYNTHESIS.get(name, ())


def terms(recipe: Synthesis, method: str) -> tuple[tuple[str, float], ...]:
    """(term, weight) of a method of making images; InputError with the nearest when there is none of that name."""
    if method not in SYNTHESIS:
        raise InputError(unknown(method, (REAL, *SYNTHESIS), "value", "images"))
    return tuple((term, getattr(recipe, term)) for term in SYNTHESIS[method])
