"""MHCA by PyTorch's FlexAttention, whose kernel computes the bias of Eq. 2 pair by pair from four numbers of a head.

It reads no bias of tokens x tokens and needs no wider heads. A bias that learns gets its gradient by an atomic addition
for each pair, head and image. So it is meant for evaluation and for a frozen bias. See `MHCA.path`.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from dearkd.model.position import QuadraticBias

NARROWEST = 16
"""Smallest width of a head that its kernels for a GPU take."""
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From a logit and the indices of image, head, query and key to the logit with its bias."""


def attend(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    rpe: QuadraticBias,
    scale: float,
) -> Float[Tensor, "batch heads tokens dim"]:
    """softmax(scale QKᵀ + drop(b)) V. A CPU has no gradient of it."""
    fused = q.device.type != "cpu" and not torch.compiler.is_compiling()  # a compiled block compiles it with the rest
    return (_compiled() if fused else flex_attention)(q, k, v, score_mod=score_mod(rpe), scale=scale)


def score_mod(rpe: QuadraticBias) -> ScoreMod:
    """The bias after the dropout of its entries, in closed form."""
    a, w, c = rpe.coefficients()
    by_row, by_column = w.T.contiguous()  # two tensors: FlexAttention has no gradient of one that is indexed twice
    place = F.pad(rpe.positions, (0, 0, rpe.prefix, 0))
    patch = F.pad(torch.ones_like(rpe.positions[:, 0]), (rpe.prefix, 0))
    kept = F.dropout(torch.ones_like(rpe.terms[0]).repeat(len(a), 1, 1), rpe.knobs.drop) if rpe.drops else None

    def biased(score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        down, right = (place[key, i] - place[query, i] for i in (0, 1))
        bias = a[head] * (down * down + right * right) + by_row[head] * down + by_column[head] * right + c[head]
        bias = bias * patch[query] * patch[key]
        return score + (bias if kept is None else bias * kept[head, query, key])

    return biased


@functools.cache
def _compiled() -> Any:
    """FlexAttention, which is fused only where it is compiled. On a CPU it is for tests."""
    return torch.compile(flex_attention, dynamic=False)
