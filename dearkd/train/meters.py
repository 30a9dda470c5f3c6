"""The sums that a stage keeps while it trains. They are on the device, so that no step waits for them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


class Meters:
    """Sums of a stage's terms over an epoch, and the first step at which a term was not finite.

    `add` starts a few small kernels and does not wait for them. Only `bad` and `sums` wait for the device.

    Args:
        names: of the terms, in the order in which they are reported. device: of the terms.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.total = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        """Step of the terms that are added next, a tensor because a CUDA graph sees no number of the host."""
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.bad_terms = torch.zeros_like(self.total)

    @torch.no_grad()
    def add(self, parts: dict[str, Float[Tensor, ""]], share: int) -> None:
        """Add the terms of one of `share` micro-batches. parts: scalars by name."""
        values = torch.stack([parts[name].detach() for name in self.names]).double()
        self.total += values / share
        first = ~torch.isfinite(values).all() & (self.bad_step < 0)
        self.bad_step.copy_(torch.where(first, self.step, self.bad_step))
        self.bad_terms.copy_(torch.where(first, values, self.bad_terms))

    def bad(self) -> tuple[int, str, float] | None:
        """(step, name, value) of the first term that was not finite, or None. Waits for the device."""
        step = int(self.bad_step)
        if step < 0:
            return None
        terms = zip(self.names, self.bad_terms.tolist(), strict=True)
        return step, *next((name, value) for name, value in terms if not math.isfinite(value))

    def sums(self) -> dict[str, float]:
        """The sum of each term by name, empty before the first `add`. Waits for the device."""
        return dict(zip(self.names, self.total.tolist(), strict=True)) if self.total.any() else {}

    def start(self, step: int, sums: dict[str, float] | None = None) -> None:
        """Start an epoch, or resume one from its `sums`. The next terms are those of `step`."""
        given = [sums.get(name, 0.0) for name in self.names] if sums else [0.0] * len(self.names)
        self.total.copy_(torch.tensor(given, dtype=torch.float64))
        self.step.fill_(step)
