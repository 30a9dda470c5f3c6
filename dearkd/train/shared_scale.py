"""The scale of the teacher's features in a training loop of the user's, which the task cannot see."""

import warnings

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from dearkd.model.objective import FeatureScale, mean_squares

MOST_PASSES = 256
"""Forward passes without an update after which the loop has probably forgotten `update_ema`."""


class SharedScale(FeatureScale):
    """The scale of the teacher's features, which moves once an update over all forward passes of all processes."""

    squares: Tensor
    """Sum over the passes since the last move of the mean squares of the features, one number for each pair."""

    def __init__(self, mode: str, pairs: int) -> None:
        super().__init__(mode, pairs)
        self.passes = 0
        self.register_buffer("squares", torch.zeros(pairs), persistent=False)

    def observe(self, features: tuple[Float[Tensor, "batch _ _ _"], ...]) -> None:
        """Note the features of a pass. The very first pass sets the scale of all processes."""
        if not features:
            return
        squares = mean_squares(features)
        self.squares, self.passes = self.squares + squares, self.passes + 1
        if self.passes == MOST_PASSES:
            warnings.warn(
                f"{MOST_PASSES} forward passes without task.update_ema(updates): call it after each step of the "
                f"optimiser, because it moves the scale of the teacher's features and begins stage II",
                stacklevel=3,
            )
        if not self.known:
            if dist.is_initialized():
                dist.broadcast(squares, 0)
            self.update(squares)

    def move(self) -> None:
        """Move towards the mean over the passes; nothing happens where there was none."""
        if not self.passes:
            return
        squares = self.squares / self.passes
        if dist.is_initialized():
            dist.all_reduce(squares)
            squares /= dist.get_world_size()
        self.update(squares)
        self.passes, self.squares = 0, torch.zeros_like(squares)
