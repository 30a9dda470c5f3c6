"""Images from a teacher alone: DeepInversion, ADI and DF-DearKD, one loop, the method being its terms.

Batches are independent: each has its own keys for start, classes and augmentation, its own BatchNorm statistics and
its own best iterate. How many of them share a forward pass, or a job, changes nothing but the order of sums.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dearkd.data.loader import affine
from dearkd.keys import numpy_generator, torch_generator
from dearkd.model import priors
from dearkd.model.teachers import Teacher
from dearkd.plan.stage import Phase, Source, Synthesis
from dearkd.schema import InputError


def classes_of(batch: int, recipe: Synthesis, classes: Sequence[int], seed: int) -> list[int]:
    """Class of each image of a batch: `batch_classes` different ones, drawn so that all come up equally often."""
    per_round = max(len(classes) // recipe.batch_classes, 1)
    order = numpy_generator(seed, "synthesis classes", batch // per_round).permutation(len(classes))
    first = batch % per_round * recipe.batch_classes
    chosen = [classes[i] for i in order[first : first + recipe.batch_classes]]
    return [c for c in chosen for _ in range(recipe.per_class)]


class Inversion:
    """A group of batches on their way from noise to images; `state` and `load` are what a checkpoint holds.

    Args:
        source: terms, weights, schedule, pixel range. seed, batches: which batches of which set these are.
        labels: (groups, batch) class of each image.
        teacher: on the device, frozen. student: ADI's competitor, or None.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        batches: Sequence[int],
        labels: Int[Tensor, "groups batch"],
        teacher: Teacher,
        student: nn.Module | None = None,
        device: torch.device = torch.device("cpu"),
    ) -> None:
        require_batchnorm(teacher.net, source.teacher.model)
        self.source, self.recipe, self.seed, self.batches, self.device = source, source.recipe, seed, batches, device
        self.terms = tuple((n, w) for n, w in source.terms if w and (n != "competition" or student is not None))
        self.labels = labels.to(device)
        self.teacher = teacher.to(device)
        self.teacher.net.to(memory_format=torch.channels_last)  # BatchNorm's statistics take a third of the time
        self.student = student.to(device).eval().requires_grad_(False) if student is not None else None
        data = source.data
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (data.mean, data.std))
        self.mean, self.std = mean, std
        self.low, self.high = (0 - mean) / std, (1 - mean) / std
        starts = [self._start(b, (labels.shape[1], data.channels, data.image_size, data.image_size)) for b in batches]
        self.images = torch.stack(starts).to(device).requires_grad_(True)
        self.step = 0
        self.best = self.images.detach().clone()
        self.best_loss = torch.full((len(batches),), math.inf, device=device)
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, list[float]] = {}
        self.optimiser: torch.optim.Adam | None = None

    @property
    def total(self) -> int:
        return sum(phase.iterations for phase in self.recipe.phases)

    def _start(self, batch: int, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=torch_generator(self.seed, "synthesis start", batch))
        if self.recipe.start == "noise":
            return noise
        return (0.1 * noise.abs() - torch.tensor(self.source.data.mean)[:, None, None]) / torch.tensor(
            self.source.data.std
        )[:, None, None]

    def _place(self) -> tuple[Phase, int]:
        """(phase, iteration within it) of the next step."""
        left = self.step
        for phase in self.recipe.phases:
            if left < phase.iterations:
                return phase, left
            left -= phase.iterations
        raise IndexError(self.step)

    def advance(self) -> None:
        """One step of all batches: Adam, whose moments start anew with each phase, and a clamp to valid pixels.

        Raises InputError when a term is not finite.
        """
        phase, within = self._place()
        if within == 0 or self.optimiser is None:
            moments = self.optimiser.state_dict() if self.optimiser is not None and within else None
            self.optimiser = torch.optim.Adam([self.images], betas=self.recipe.betas, eps=1e-8)
            if moments:
                self.optimiser.load_state_dict(moments)
        self.optimiser.param_groups[0]["lr"] = learning_rate(phase, within, self.recipe.warmup)
        terms = self._terms(phase)
        loss = sum(weight * terms[name] for name, weight in self.terms)
        if not torch.isfinite(loss).all():
            name = next((n for n, _ in self.terms if not torch.isfinite(terms[n]).all()), "loss")
            raise InputError(
                f"synthesis of {self.source.name}: {name} is not finite at iteration {self.step}; lower lr"
            )
        if phase is self.recipe.phases[-1] and self.recipe.keep == "best":
            better = loss.detach() < self.best_loss
            self.best[better] = self.images.detach()[better]
            self.best_loss[better] = loss.detach()[better]
        self.optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()
        self.optimiser.step()
        with torch.no_grad():
            self.images.copy_(self.images.clamp(self.low, self.high))
        self.step += 1
        if not self.first or self.step == self.total:
            weighted = {n: [round(v, 5) for v in (w * terms[n]).tolist()] for n, w in self.terms}
            self.first, self.last = self.first or weighted, weighted

    def _terms(self, phase: Phase) -> dict[str, Float[Tensor, " groups"]]:
        """The value of each term, unweighted, for the images as the teacher sees them in this step."""
        groups, batch = self.labels.shape
        recipe, names = self.recipe, dict(self.terms)
        seen = self._augmented()
        if phase.size != seen.shape[-1]:
            seen = F.adaptive_avg_pool2d(seen, phase.size)
        with (
            priors.BatchNormPrior(self.teacher.net, recipe.first_bn) as statistics,
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._half),
        ):
            codes, logits = self.teacher.codes_and_logits(seen)
        codes, logits = codes.float().view(groups, batch, -1), logits.view(groups, batch, -1)
        terms = {"ce": priors.classification(logits, self.labels), "r_bn": statistics.take(groups)}
        inputs = seen.view(groups, batch, *seen.shape[1:])
        if "tv" in names:
            terms["tv"] = priors.total_variation(inputs)
        if "l2" in names:
            terms["l2"] = priors.squared_norm(inputs)
        if "competition" in names:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
                answers = self.student(F.interpolate(seen, self.source.data.image_size, mode="bilinear"))
            terms["competition"] = priors.competition(logits, answers.view(groups, batch, -1))
        if "easy_positive" in names or "triplet" in names:
            latent = codes if recipe.feature == "pooled" else logits.float()
            apart = priors.distances(F.normalize(latent, dim=-1) if recipe.feature_norm else latent)
            terms["easy_positive"] = priors.easy_positive(apart, self.labels)
            terms["triplet"] = priors.triplet(apart, self.labels, recipe.margin)
        return terms

    @property
    def _half(self) -> bool:
        return self.device.type == "cuda" and self.recipe.precision == "bf16"

    def _augmented(self) -> Float[Tensor, "images channels height width"]:
        """Each batch shifted and flipped as one, as DeepInversion does, or each image by its own affine map."""
        batches = []
        for batch, images in zip(self.batches, self.images, strict=True):
            if self.recipe.augment is not None:
                generator = torch_generator(self.seed, "synthesis augment", batch, self.step)
                pixels = affine(images * self.std + self.mean, self.recipe.augment, generator)
                batches.append((pixels - self.mean) / self.std)
                continue
            random = numpy_generator(self.seed, "synthesis jitter", batch, self.step)
            reach = self.recipe.jitter
            down, right = (int(v) for v in random.integers(-reach, reach + 1, 2))
            moved = torch.roll(images, (down, right), (2, 3))
            batches.append(moved.flip(3) if random.random() < self.recipe.flip else moved)
        return torch.cat(batches)

    def result(self) -> UInt8[Tensor, "groups batch channels height width"]:
        """The images as 8-bit pixels."""
        images = self.best if self.recipe.keep == "best" else self.images.detach()
        return ((images * self.std + self.mean).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "images": self.images.detach().clone(),
            "best": self.best,
            "best_loss": self.best_loss,
            "first": self.first,
            "optimiser": self.optimiser.state_dict() if self.optimiser else {},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.step, self.first = state["step"], state["first"]
        with torch.no_grad():
            self.images.copy_(state["images"])
        self.best, self.best_loss = state["best"].to(self.device), state["best_loss"].to(self.device)
        if state["optimiser"]:
            self.optimiser = torch.optim.Adam([self.images], betas=self.recipe.betas, eps=1e-8)
            self.optimiser.load_state_dict(state["optimiser"])


def learning_rate(phase: Phase, iteration: int, warmup: int) -> float:
    """DeepInversion's: linear warm-up to the phase's rate, then a cosine to 0 at its end."""
    if iteration < warmup:
        return phase.lr * (iteration + 1) / warmup
    return phase.lr * 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / max(phase.iterations - warmup, 1)))


def require_batchnorm(net: nn.Module, name: str) -> None:
    """InputError when a network has no BatchNorm statistics: R_BN is what makes images of a trained network."""
    if not any(isinstance(m, nn.BatchNorm2d) and m.running_mean is not None for m in net.modules()):
        raise InputError(
            f"teacher {name} has no BatchNorm layers, whose running statistics are all that it remembers of its "
            f"training images; take a CNN with BatchNorm, such as a ResNet, RegNet or EfficientNet"
        )


def advice(recipe: Synthesis, terms: dict[str, Sequence[float]]) -> str:
    """A sentence when R_BN lies outside DeepInversion's rule, a weighted loss of 1 to 10 at the start; else ''."""
    value = float(np.mean(terms["r_bn"]))
    if 1 <= value <= 10:
        return ""
    return (
        f"R_BN starts at {value:.3g}, outside 1 to 10; for this teacher try another weight in the recipe, "
        f"`r_bn: {recipe.r_bn * math.sqrt(10) / max(value, 1e-12):.2g}` (in a scale under `synthesis`)"
    )


def doubt(source: Source, believed: float) -> str:
    """A sentence when the teacher takes less than half of its images (`believed`, percent) for their class; else ''."""
    if believed >= 50:
        return ""
    mean, std = ([round(v, 4) for v in values] for values in (source.data.mean, source.data.std))
    return (
        f"the CNN takes only {believed:.0f} % of these images for the class they were made for; likely causes: too few "
        f"iterations, an R_BN that drowns the classes (`r_bn`), or pixels of another mean and std than the CNN was "
        f"trained on (now {mean} and {std})"
    )


def expected_seconds(
    source: Source, seed: int, labels: Int[Tensor, "groups batch"], teacher: Teacher, device: torch.device
) -> float:
    """How long a group of batches takes: one iteration of each phase, timed, after one that is not."""
    phases = source.recipe.phases
    once = tuple(dataclasses.replace(phase, iterations=1) for phase in (phases[0], *phases))
    trial = dataclasses.replace(source, recipe=dataclasses.replace(source.recipe, phases=once))
    inversion = Inversion(trial, seed, range(len(labels)), labels, teacher, None, device)
    inversion.advance()
    seconds = 0.0
    for phase in phases:
        started = time.monotonic()
        inversion.advance()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds += phase.iterations * (time.monotonic() - started)
    return seconds


def groups(source: Source, shard: int) -> Iterator[list[int]]:
    """The batches of a shard, in the groups that share a forward pass."""
    recipe = source.recipe
    mine = range(shard * recipe.shard_batches, min((shard + 1) * recipe.shard_batches, recipe.batches))
    for first in range(mine.start, mine.stop, recipe.together):
        yield list(range(first, min(first + recipe.together, mine.stop)))
