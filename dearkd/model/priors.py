"""The terms that synthetic images minimise, Eq. 8 to 13 and DeepInversion's: tensors in, one number per batch out.

Every function takes `groups` batches at once and treats each by itself, so that many batches share one forward pass of
the teacher. Statistics and distances are fp32 for any precision of the network.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def classification(
    logits: Float[Tensor, "groups batch classes"], labels: Int[Tensor, "groups batch"]
) -> Float[Tensor, " groups"]:
    """Cross-entropy of the teacher's logits with the classes wanted, the first term of Eq. 8."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)


def total_variation(
    images: Float[Tensor, "groups batch channels height width"],
) -> Float[Tensor, " groups"]:
    """DeepInversion's R_TV: the norms, over the whole batch, of differences in four directions, added.

    The term grows with the square root of the batch, and the weight 1e-4 takes this into account.
    """
    right = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    down_right = images[..., 1:, 1:] - images[..., :-1, :-1]
    down_left = images[..., 1:, :-1] - images[..., :-1, 1:]
    return sum(torch.linalg.vector_norm(d.float().flatten(1), dim=1) for d in (right, down, down_right, down_left))


def squared_norm(images: Float[Tensor, "groups batch channels height width"]) -> Float[Tensor, " groups"]:
    """DeepInversion's R_l2: the l2 norm of an image in normalised pixels, mean over the batch."""
    return torch.linalg.vector_norm(images.float().flatten(2), dim=2).mean(1)


def statistics_distance(
    x: Float[Tensor, "images channels height width"],
    mean: Float[Tensor, " channels"],
    variance: Float[Tensor, " channels"],
    groups: int,
) -> Float[Tensor, " groups"]:
    """|mu(x) - mu|_2 + |var(x) - var|_2 of one BatchNorm layer's input: a summand of R_BN (Eq. 9).

    The variance of the batch is the biased one. `images` has all images of the first group, then those of the next.
    """
    mu, var = _Moments.apply(x.float(), groups)
    return torch.linalg.vector_norm(mu - mean, dim=1) + torch.linalg.vector_norm(var - variance, dim=1)


class _Moments(torch.autograd.Function):
    """(mean, biased variance) of each group and channel, by the kernels of BatchNorm.

    370 images of 16 x 12 x 12 take 4.5 ms on one thread with `torch.var_mean`, 0.9 with BatchNorm's own statistics and
    0.3 with channels last. The gradient is one affine map of the input; autograd would make four passes.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "images channels height width"], groups: int) -> tuple[Tensor, Tensor]:
        moments = [torch.batch_norm_update_stats(part, None, None, 0.0) for part in x.chunk(groups)]
        mean, variance = (torch.stack(m) for m in zip(*moments, strict=True))
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_variance: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        count = x.numel() // mean.numel()
        scales, shifts, one = 2 / count * d_variance, d_mean / count, torch.ones_like(mean[0])
        groups = zip(x.chunk(len(mean)), mean, scales, shifts, strict=True)
        # F.batch_norm, before torch 2.14, refuses an epsilon of 0
        parts = [torch.batch_norm(part, s, b, m, one, False, 0.0, 0.0, False) for part, m, s, b in groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts), None


def _running(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(mean, variance) that a layer has kept of its training."""
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean, layer.running_var


class BatchNormPrior:
    """R_BN over all BatchNorm layers of a network, collected during its forward pass.

    Args:
        net: any CNN; its BatchNorm layers keep their own running statistics untouched.
        first: factor of the first layer (DeepInversion: 10).

    Use as a context; `take(groups)` after a forward pass returns R_BN of each group.
    """

    def __init__(self, net: nn.Module, first: float = 1.0) -> None:
        self.layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
        self.first = first
        self.seen: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def __enter__(self) -> "BatchNormPrior":
        self.handles = [m.register_forward_pre_hook(self._keep) for m in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        self.seen.append((layer, inputs[0]))  # in the order of execution, which is not that of modules()

    def take(self, groups: int) -> Float[Tensor, " groups"]:
        """R_BN of the forward pass since the last call."""
        terms = [statistics_distance(x, *_running(layer), groups) for layer, x in self.seen]
        self.seen = []
        return self.first * terms[0] + sum(terms[1:])


def competition(
    teacher: Float[Tensor, "groups batch classes"],
    student: Float[Tensor, "groups batch classes"],
    temperature: float = 3.0,
) -> Float[Tensor, " groups"]:
    """ADI's R_compete, 1 - JS: small where student and teacher disagree.

    JS = (KL(P|M) + KL(Q|M)) / 2 of the softened outputs. Probabilities are clamped to [0.01, 0.99] and JS to [0, 1], as
    in NVlabs' code. That code swaps the arguments of KL; the paper does not.
    """
    p, q = ((logits.float() / temperature).softmax(-1).clamp(0.01, 0.99) for logits in (teacher, student))
    m = ((p + q) / 2).clamp(0.01, 0.99)
    js = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    return 1.0 - js.mean(1).clamp(0.0, 1.0)


def distances(codes: Float[Tensor, "groups batch dim"]) -> Float[Tensor, "groups batch batch"]:
    """Euclidean distances between the latent codes of a batch, in fp32 and without the cancellation of |a|^2 - 2ab."""
    codes = codes.float()
    return torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist")


def easy_positive(
    apart: Float[Tensor, "groups batch batch"], labels: Int[Tensor, "groups batch"]
) -> Float[Tensor, " groups"]:
    """L_ep of Eq. 11: minus the distance to the nearest *other* image of the same class, mean over the batch."""
    same = labels[:, :, None] == labels[:, None, :]
    others = same & ~torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    return -apart.masked_fill(~others, torch.inf).amin(2).mean(1)


def triplet(
    apart: Float[Tensor, "groups batch batch"], labels: Int[Tensor, "groups batch"], margin: float = 0.3
) -> Float[Tensor, " groups"]:
    """L_triplet of Eq. 12: max(0, hardest positive - hardest negative + margin), mean over the batch.

    The hardest positive is the farthest image of the same class. The hardest negative is the *nearest* image of another
    class: the paper's text says the most similar image of a different label, though its formula repeats the positive's.
    """
    same = labels[:, :, None] == labels[:, None, :]
    positive = apart.masked_fill(~same, -torch.inf).amax(2)
    negative = apart.masked_fill(same, torch.inf).amin(2)
    return (positive - negative + margin).clamp(min=0).mean(1)
