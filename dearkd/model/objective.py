"""The objective of a stage: the weighted sum of its losses, with each loss by name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dearkd.model.losses import (
    binary_loss,
    class_loss,
    guidance_loss,
    hidden_loss,
    logit_loss,
    orthogonal_loss,
    soft_loss,
)
from dearkd.model.teachers import Seen
from dearkd.model.trainee import Outputs
from dearkd.plan.stage import Distillation

T = TypeVar("T")


class Given(NamedTuple):
    """The arguments of a loss term."""

    outputs: Outputs
    targets: Float[Tensor, "batch classes"]
    seen: Seen | None
    scale: "FeatureScale | None"
    knobs: Distillation | None

    def pairs(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Float[Tensor, " pairs"]:
        """A loss between each aligned block and the teacher's feature map that it is paired with."""
        both = zip(self.outputs.hidden, needed(self.scale).normalise(needed(self.seen).features), strict=True)
        return torch.stack([loss(aligned, feature) for aligned, feature in both])

    def hard(self) -> Float[Tensor, ""]:
        """The loss of the logits that a teacher teaches by its decision."""
        return logit_loss(needed(self.outputs.taught), needed(self.seen).decisions)

    def soft(self) -> Float[Tensor, ""]:
        """The loss of the logits that a teacher teaches by its distribution, at the temperature of the knobs."""
        return soft_loss(needed(self.outputs.taught), needed(needed(self.seen).logits), needed(self.knobs).temperature)


def needed(value: T | None) -> T:
    """Return a value that exists if a stage has a loss that needs it (`stage.LOSSES`)."""
    assert value is not None
    return value


TERMS: dict[str, Callable[[Given], Tensor]] = {
    "ce": lambda given: class_loss(given.outputs.logits, given.targets),
    "bce": lambda given: binary_loss(given.outputs.logits, given.targets),
    "logit": Given.hard,
    "token": Given.hard,
    "token_label": lambda given: class_loss(needed(given.outputs.taught), given.targets),
    "hidden": lambda given: given.pairs(hidden_loss).mean(),
    "soft_logit": Given.soft,
    "soft_token": Given.soft,
    "guidance": lambda given: given.pairs(guidance_loss).sum(),
    "orthogonal": lambda given: given.pairs(orthogonal_loss).mean(),
}
"""The function of each of `stage.LOSSES`."""


def objective(
    losses: Mapping[str, float],
    outputs: Outputs,
    targets: Float[Tensor, "batch classes"],
    seen: Seen | None,
    scale: "FeatureScale | None" = None,
    knobs: Distillation | None = None,
) -> dict[str, Tensor]:
    """The weighted sum of a stage's losses (Eq. 6 or 7) as "loss", and beside it each loss by its name, unweighted.

    losses: weight by name, see `stage.LOSSES`; at least one.
    outputs: of the trainee for the batch.
    targets: mixed and smoothed labels.
    seen: outputs of the teacher for the same pixels; None where no loss needs a teacher.
    scale: of the teacher's features, where a loss compares them.
    knobs: where a loss has a temperature.
    """
    given = Given(outputs, targets, seen, scale, knobs)
    parts = {name: TERMS[name](given) for name in losses}
    weighted = [weight * parts[name] for name, weight in losses.items()]
    return {"loss": functools.reduce(torch.add, weighted), **parts}


class FeatureScale(nn.Module):
    """Scale of the teacher's features, so that beta means the same for every teacher.

    rms: divide by a running root mean square (decay 0.99, kept in the checkpoint): predicting 0 then costs 1. For one
    pair this only re-parametrises beta. ln: normalise over channels at each position. none: raw.
    """

    mean_square: Tensor

    def __init__(self, mode: str, pairs: int) -> None:
        super().__init__()
        self.mode = mode
        self.known = False
        """Whether there is a mean square yet. Reading the buffer instead would wait for the device in every step."""
        self.register_buffer("mean_square", torch.zeros(pairs))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as torch does. A scale that has seen features continues from theirs."""
        self.known = bool(state_dict["mean_square"].any())
        return super().load_state_dict(state_dict, strict, assign)

    def normalise(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Features in fp32 at the scale of the mode; rms uses the value before this step's update."""
        features = tuple(f.float() for f in features)
        if self.mode == "ln":
            return tuple(F.layer_norm(f.movedim(1, -1), f.shape[1:2]).movedim(-1, 1) for f in features)
        if self.mode == "rms":
            return tuple(f / m.sqrt() for f, m in zip(features, self.mean_square, strict=True))
        return features

    @torch.no_grad()
    def update(self, squares: Float[Tensor, " pairs"]) -> None:
        """Set the first mean squares; afterwards move by 1 % towards those of a whole batch."""
        if self.known:
            self.mean_square.lerp_(squares, 0.01)
        else:
            self.mean_square.copy_(squares)
            self.known = True


def mean_squares(features: tuple[Tensor, ...]) -> Float[Tensor, " pairs"]:
    """Mean square of each feature map, in fp32."""
    return torch.stack([f.float().square().mean() for f in features])
