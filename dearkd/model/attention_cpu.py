"""Kernels of attention for a CPU, faster than PyTorch's. They give the numbers of `attention` up to the order of sums.

No GPU runs them, so they have no part in the paper's scale. docs/performance.md has timings.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

FEW = 48
"""Number of tokens up to which a CPU attends faster without PyTorch's fused kernel. A layer with 9 heads of 8 takes 5.7
ms instead of 8.4 for 37 tokens, forward and backward, and 2.6 instead of 3.3 for 17."""

SMALL = 2**16
"""Entries of a bias below which the batch is computed at once, because calls cost more than the cache gains."""


class SharedBiasAttention(torch.autograd.Function):
    """softmax(scale q kᵀ + bias) v, where the whole batch shares the bias and its gradient; for training on a CPU.

    PyTorch has no fused kernel for a CPU once the bias learns. 8 images of 197 tokens and 12 heads of 16 take 48 ms
    forward and backward with `scaled_dot_product_attention`, 23 with this function, and 15 without a bias. Both keep
    the probabilities. All other values are computed image by image and stay in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Float[Tensor, "batch heads tokens dim"],
        k: Float[Tensor, "batch heads tokens dim"],
        v: Float[Tensor, "batch heads tokens dim"],
        bias: Float[Tensor, "heads tokens tokens"],
        scale: float,
    ) -> Float[Tensor, "batch heads tokens dim"]:
        ctx.shape, ctx.scale = q.shape, scale
        parts = 1 if bias.numel() < SMALL else len(q)
        q, k, v = (x.reshape(parts, -1, *x.shape[2:]) for x in (q, k, v))
        p, out = q.new_empty(*q.shape[:3], k.shape[2]), v.new_empty(v.shape)
        for i in range(parts):
            logits = _apart(p[i], parts)
            torch.bmm(q[i] * scale, k[i].mT, out=logits)
            logits.unflatten(0, (-1, len(bias))).add_(bias)
            torch.softmax(logits, -1, out=p[i])
            torch.bmm(p[i], v[i], out=out[i])
        ctx.save_for_backward(q, k, v, p)
        return out.view(ctx.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        heads, grad = ctx.shape[1], grad.reshape(v.shape)
        d_q, d_k, d_v = (x.new_empty(x.shape) for x in (q, k, v))
        d_bias, d_logits = p.new_zeros(heads, *p.shape[2:]), torch.empty_like(p[0])
        d_p = _apart(d_logits, len(p))
        for i in range(len(p)):
            torch.bmm(grad[i], v[i].mT, out=d_p)
            torch.ops.aten._softmax_backward_data.out(d_p, p[i], -1, p.dtype, grad_input=d_logits)
            d_bias += d_logits if len(d_logits) == heads else d_logits.unflatten(0, (-1, heads)).sum(0)
            torch.bmm(d_logits, k[i], out=d_q[i]).mul_(ctx.scale)
            torch.bmm(d_logits.mT, q[i], out=d_k[i]).mul_(ctx.scale)
            torch.bmm(p[i].mT, grad[i], out=d_v[i])
        return *(d.view(ctx.shape) for d in (d_q, d_k, d_v)), d_bias, None


def _apart(result: Tensor, parts: int) -> Tensor:
    """The input of a softmax into `result`: `result` itself when it is large, which saves a pass over memory.

    With rows of 17 numbers, reading and writing one tensor takes twice as long, because loads wait for stores.
    """
    return result if parts > 1 else torch.empty_like(result)


def dropped_entries(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Inverted dropout of single numbers, `p` rounded to 1/65536 where there are many on a CPU.

    On a CPU 16 random bits decide on each number. 12 x 197 x 197 numbers and their gradient take 1.5 ms on one thread,
    and 3.4 with `F.dropout`.
    """
    if x.device.type != "cpu" or x.numel() < SMALL or captured():
        return F.dropout(x, p)
    bound = round(p * 2**16)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = draws[: x.numel()].view(x.shape) >= bound - 2**15
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - bound))


def unfuse_few_tokens(student: VisionTransformer) -> None:
    """Turn the fused kernel off in the plain attention of a student with up to `FEW` tokens that trains on a CPU."""
    if student.patch_embed.num_patches + student.num_prefix_tokens <= FEW:
        for block in student.blocks:
            if type(block.attn) is Attention:  # MHCA chooses by itself, see `MHCA.path`
                block.attn.fused_attn = False  # type: ignore[misc]  # timm calls it final for TorchScript only


def captured() -> bool:
    """Whether PyTorch records this call (torch.compile, torch.export, torch.jit.trace); then nothing may be cached."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
