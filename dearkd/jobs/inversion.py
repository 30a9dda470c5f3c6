"""Images from a teacher alone: DeepInversion, ADI and DF-DearKD are one loop with different terms.

Batches are independent. Each has its own keys for start, classes and augmentation, its own BatchNorm statistics and its
own best iterate. The number of batches that share a forward pass or a job changes only the order of sums.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dearkd.data.loader import affine
from dearkd.errors import InputError
from dearkd.keys import numpy_generator, torch_generator
from dearkd.model import priors
from dearkd.model.teachers import TeacherNetwork
from dearkd.plan.stage import Phase, Source, Synthesis


def classes_of(batch: int, recipe: Synthesis, classes: Sequence[int], seed: int) -> list[int]:
    """Class of each image of a batch: `batch_classes` different ones, drawn so that all are drawn equally often."""
    per_round = max(len(classes) // recipe.batch_classes, 1)
    order = numpy_generator(seed, "synthesis classes", batch // per_round).permutation(len(classes))
    first = batch % per_round * recipe.batch_classes
    chosen = [classes[i] for i in order[first : first + recipe.batch_classes]]
    return [c for c in chosen for _ in range(recipe.per_class)]


class Inversion:
    """A group of batches that iterations turn from noise into images. A checkpoint has its `state`.

    Args:
        source: terms, weights, schedule, pixel range.
        seed, batches: of the set, and numbers of the batches in it.
        labels: class of each image.
        teacher: frozen. student: ADI's competitor, or None. Both are moved to the device.

    Raises InputError when the teacher has no BatchNorm.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        batches: Sequence[int],
        labels: Int[Tensor, "groups batch"],
        teacher: TeacherNetwork,
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
        starts = [first_iterate(source, seed, batch, labels.shape[1]) for batch in batches]
        self.images = torch.stack(starts).to(device).requires_grad_(True)
        self.step = 0
        self.best = Best(self.images)
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, list[float]] = {}
        self.optimiser: torch.optim.Adam | None = None

    @property
    def total(self) -> int:
        """Number of iterations, of all phases."""
        return sum(phase.iterations for phase in self.recipe.phases)

    def advance(self) -> None:
        """Take one step of all batches: Adam, then a clamp to valid pixels. Each phase starts with new moments.

        Raises InputError when a term is not finite.
        """
        phase, within = place(self.recipe, self.step)
        if within == 0 or self.optimiser is None:
            moments = self.optimiser.state_dict() if self.optimiser is not None and within else None
            self.optimiser = torch.optim.Adam(self._parameters(), betas=self.recipe.betas, eps=1e-8)
            if moments:
                self.optimiser.load_state_dict(moments)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(phase, within, self.recipe.warmup) * group.get("share", 1.0)
        terms = self._terms(phase)
        loss = functools.reduce(torch.add, (weight * terms[name] for name, weight in self.terms))
        if not torch.isfinite(loss).all():
            name = next((n for n, _ in self.terms if not torch.isfinite(terms[n]).all()), "loss")
            raise InputError(
                f"synthesis of {self.source.name}: {name} is not finite at iteration {self.step}; lower lr"
            )
        if phase is self.recipe.phases[-1] and self.recipe.keep == "best":
            self.best.keep(self.images, loss)
        self.optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()
        self.optimiser.step()
        with torch.no_grad():
            self.images.copy_(self.images.clamp(self.low, self.high))
        self.step += 1
        if not self.first or self.step == self.total:
            weighted = {n: [round(v, 5) for v in (w * terms[n]).tolist()] for n, w in self.terms}
            self.first, self.last = self.first or weighted, weighted

    def _parameters(self) -> list[dict[str, Any]]:
        """What Adam moves; `share` of a group: its learning rate, as a multiple of the phase's."""
        return [{"params": [self.images]}]

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
        if "competition" in names and self.student is not None:
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
        """The images of all batches as the teacher sees them in this step."""
        moments, each = (self.mean, self.std), zip(self.batches, self.images, strict=True)
        return torch.cat([augmented(images, self.recipe, moments, (self.seed, b, self.step)) for b, images in each])

    def result(self) -> UInt8[Tensor, "groups batch channels height width"]:
        """The images as 8-bit pixels."""
        images = self.best.images if self.recipe.keep == "best" else self.images.detach()
        return ((images * self.std + self.mean).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def state(self) -> dict[str, Any]:
        """All that `load` needs to resume."""
        return {
            "step": self.step,
            "images": self.images.detach().clone(),
            "best": self.best.images,
            "best_loss": self.best.loss,
            "first": self.first,
            "optimiser": self.optimiser.state_dict() if self.optimiser else {},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Resume from a `state`."""
        self.step, self.first = state["step"], state["first"]
        with torch.no_grad():
            self.images.copy_(state["images"])
        self.best.images, self.best.loss = state["best"].to(self.device), state["best_loss"].to(self.device)
        if state["optimiser"]:
            self.optimiser = torch.optim.Adam(self._parameters(), betas=self.recipe.betas, eps=1e-8)
            self.optimiser.load_state_dict(state["optimiser"])


class Best:
    """The images of each batch of a group at the iteration where the batch's loss was smallest."""

    def __init__(self, images: Float[Tensor, "groups batch channels height width"]) -> None:
        self.images = images.detach().clone()
        self.loss = torch.full((len(images),), math.inf, device=images.device)

    def keep(self, images: Float[Tensor, "groups batch channels height width"], loss: Float[Tensor, " groups"]) -> None:
        """Take over the images of the batches whose loss is smaller than before."""
        better = (loss.detach() < self.loss).view(-1, 1, 1, 1, 1)
        self.images.copy_(torch.where(better, images.detach(), self.images))  # a mask as index would wait for a GPU
        self.loss.copy_(torch.where(better.flatten(), loss.detach(), self.loss))


def first_iterate(source: Source, seed: int, batch: int, images: int) -> Float[Tensor, "images channels height width"]:
    """The images of a batch before the first iteration, as the recipe's `start` says, in normalised pixels."""
    data = source.data
    shape = (images, data.channels, data.image_size, data.image_size)
    noise = torch.randn(shape, generator=torch_generator(seed, "synthesis start", batch))
    if source.recipe.start == "noise":
        return noise
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (0.1 * noise.abs() - mean) / std


def place(recipe: Synthesis, step: int) -> tuple[Phase, int]:
    """(phase of a step, iteration within the phase), both counted from 0."""
    left = step
    for phase in recipe.phases:
        if left < phase.iterations:
            return phase, left
        left -= phase.iterations
    raise IndexError(step)


def augmented(
    images: Float[Tensor, "batch channels height width"],
    recipe: Synthesis,
    moments: tuple[Tensor, Tensor],
    key: tuple[int, int, int],
) -> Float[Tensor, "batch channels height width"]:
    """A batch shifted and flipped as one, as in DeepInversion, or each image moved by its own affine map.

    moments: (mean, std) of the normalised pixels. key: (seed, batch, step), which decide the random numbers.
    """
    seed, batch, step = key
    if recipe.augment is not None:
        (mean, std), generator = moments, torch_generator(seed, "synthesis augment", batch, step)
        return (affine(images * std + mean, recipe.augment, generator) - mean) / std
    random = numpy_generator(seed, "synthesis jitter", batch, step)
    down, right = (int(v) for v in random.integers(-recipe.jitter, recipe.jitter + 1, 2))
    moved = torch.roll(images, (down, right), (2, 3))
    return moved.flip(3) if random.random() < recipe.flip else moved


def learning_rate(phase: Phase, iteration: int, warmup: int) -> float:
    """DeepInversion's: linear warm-up to the phase's rate, then a cosine to 0 at its end."""
    if iteration < warmup:
        return phase.lr * (iteration + 1) / warmup
    return phase.lr * 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / max(phase.iterations - warmup, 1)))


def require_batchnorm(net: nn.Module, name: str) -> None:
    """Raise InputError when a network has no BatchNorm statistics, on which R_BN depends."""
    if not any(isinstance(m, nn.BatchNorm2d) and m.running_mean is not None for m in net.modules()):
        raise InputError(
            f"teacher {name} has no BatchNorm layers, whose running statistics are all that a CNN stores of its "
            f"training images; take a CNN with BatchNorm, such as a ResNet, RegNet or EfficientNet"
        )


def advice(recipe: Synthesis, terms: Mapping[str, Sequence[float]]) -> str:
    """A sentence when the weighted R_BN is not in DeepInversion's range at the start, 1 to 10; else ''."""
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
        f"the CNN takes only {believed:.0f} % of these images for the class they were made for. Likely causes are "
        f"too few iterations, an R_BN that drowns the classes (`r_bn`), or pixels of another mean and std than the CNN "
        f"was trained on (now {mean} and {std})"
    )


def groups(source: Source, shard: int) -> Iterator[list[int]]:
    """The batches of a shard, in the groups that share a forward pass."""
    recipe = source.recipe
    mine = range(shard * recipe.shard_batches, min((shard + 1) * recipe.shard_batches, recipe.batches))
    for first in range(mine.start, mine.stop, recipe.together):
        yield list(range(first, min(first + recipe.together, mine.stop)))
