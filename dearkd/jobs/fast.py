"""Synthesis in few iterations: copies of one generator draw the batches; rehearsals have trained the generator.

The iterations are those of `Inversion`, with the same terms, augmentation and schedule. They change a generator and its
codes instead of pixels. All rehearsals of a shard come before its first image and have keys of their own, so each batch
depends only on source and seed, as with the other methods.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dearkd.jobs.inversion import Inversion
from dearkd.keys import torch_generator
from dearkd.model.generator import Generator, first_order
from dearkd.model.teachers import TeacherNetwork
from dearkd.plan.stage import Fast, Source


def rehearsals(source: Source) -> range:
    """The batches that only train the shared start. Their numbers are below 0, so that no image has their keys."""
    return range(-source.recipe.fast.rehearsals if source.recipe.fast else 0, 0)


def begin(
    source: Source,
    seed: int,
    batches: Sequence[int],
    labels: Int[Tensor, "groups batch"],
    teacher: TeacherNetwork,
    student: nn.Module | None,
    start: "Start | None",
    device: torch.device,
) -> Inversion:
    """A group of batches at its first iteration: pixels or, if there is a shared start, copies of it."""
    if start is None:
        return Inversion(source, seed, batches, labels, teacher, student, device)
    return Drawing(source, seed, batches, labels, teacher, start, device)


class Start:
    """The generator from which every batch of a set starts, its optimiser, and the number of finished rehearsals."""

    def __init__(self, source: Source, fast: Fast, seed: int, device: torch.device) -> None:
        data, random, self.fast = source.data, torch_generator(seed, "synthesis generator"), fast
        shape = (data.classes, data.image_size, data.mean, fast.code, fast.width, fast.class_code, fast.upsamplings)
        self.network = Generator(*shape, random).to(device)
        rate = fast.lr * fast.iterations  # as in Fast-Datafree
        self.optimiser = torch.optim.Adam(self.network.parameters(), rate, betas=source.recipe.betas)
        self.rehearsed = 0

    def learn(self, rehearsal: "Drawing") -> None:
        """Take one step of the start with the gradients of a finished rehearsal, which is a group of one batch."""
        for parameter, gradient in zip(self.network.parameters(), first_order(rehearsal.gradients), strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        self.rehearsed += 1

    def state(self) -> dict[str, Any]:
        """All that `load` needs to resume."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rehearsed": self.rehearsed,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Resume from a `state`."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rehearsed = state["rehearsed"]


class Drawing(Inversion):
    """A group of batches. A copy of the start draws each batch from its own codes; Adam changes copy and codes."""

    def __init__(
        self,
        source: Source,
        seed: int,
        batches: Sequence[int],
        labels: Int[Tensor, "groups batch"],
        teacher: TeacherNetwork,
        start: Start,
        device: torch.device = torch.device("cpu"),
    ) -> None:
        super().__init__(source, seed, batches, labels, teacher, None, device)
        shape = (labels.shape[1], *start.network.code_shape)
        codes = [torch.randn(shape, generator=torch_generator(seed, "synthesis code", b)) for b in batches]
        self.codes = torch.stack(codes).to(device).requires_grad_(True)
        self.networks = nn.ModuleList(copy.deepcopy(start.network) for _ in batches)
        self.share = start.fast.lr_code / start.fast.lr
        self.gradients: list[list[Tensor]] = []

    def advance(self) -> None:
        """Take a step of all copies and codes and draw the images again. InputError as in `Inversion.advance`."""
        self.images = self._drawn()
        super().advance()
        if self.batches[0] < 0:
            self.gradients.append([p.grad.clone() for p in self.networks.parameters() if p.grad is not None])
        if self.step == self.total:
            with torch.no_grad():
                self.images = self._drawn()

    def _parameters(self) -> list[dict[str, Any]]:
        return [{"params": list(self.networks.parameters())}, {"params": [self.codes], "share": self.share}]

    def _drawn(self) -> Float[Tensor, "groups batch channels height width"]:
        """The images in normalised pixels."""
        drawn = [net(*each) for net, *each in zip(self.networks, self.codes, self.labels, strict=True)]
        return (torch.stack(drawn) - self.mean) / self.std

    def state(self) -> dict[str, Any]:
        own = {"networks": self.networks.state_dict(), "codes": self.codes.detach().clone()}
        return {**super().state(), **own, "gradients": self.gradients}

    def load(self, state: dict[str, Any]) -> None:
        """Resume from a `state`."""
        super().load(state)
        self.networks.load_state_dict(state["networks"])
        with torch.no_grad():
            self.codes.copy_(state["codes"])
        self.gradients = [[g.to(self.device) for g in step] for step in state["gradients"]]
