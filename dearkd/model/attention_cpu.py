"""What a CPU computes faster than PyTorch's own kernels: the same numbers as `attention`, in another order.

At the paper's scale, on a GPU, none of this runs. Timings: docs/performance.md.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

FEW = 48
"""Tokens up to which a CPU attends faster without PyTorch's fused kernel: 37 tokens and 9 heads of 8 take a layer 5.7
ms forward and backward instead of 8.4, 17 tokens 2.6 instead of 3.3."""

SMALL = 2**16
"""Entries of a bias below which calls cost more than the cache gains, so that the batch is taken at once."""


class SharedBiasAttention(torch.autograd.Function):
    """softmax(scale q kᵀ + bias) v, where the whole batch shares the bias and its gradient; for training on a CPU.

    There PyTorch has no fused kernel once the bias learns: 8 images of 197 tokens and 12 heads of 16 take
    `scaled_dot_product_attention` 48 ms forward and backward, this 23, and attention without a bias 15. Both keep the
    probabilities; everything else is made image by image and stays in the cache.
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
    """Where a softmax reads what it turns into `result`: there, when it is large, which saves a pass over memory.

    With rows of 17 numbers reading and writing in one place takes twice as long: loads wait for the stores before them.
    """
    return result if parts > 1 else torch.empty_like(result)


def dropped_entries(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Inverted dropout of single numbers, `p` rounded to 1/65536 where there are many on a CPU.

    There 16 random bits decide on each: 12 x 197 x 197 of them and their gradient take 1.5 ms on one thread,
    `F.dropout` 3.4.
    """
    if x.device.type != "cpu" or x.numel() < SMALL or captured():
        return F.dropout(x, p)
    bound = round(p * 2**16)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = draws[: x.numel()].view(x.shape) >= bound - 2**15
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - bound))


def unfuse_few_tokens(student: VisionTransformer) -> None:
    """Let the plain attention of a student of up to `FEW` tokens, trained on a CPU, do without the fused kernel."""
    if student.patch_embed.num_patches + student.num_prefix_tokens <= FEW:
        for block in student.blocks:
            if type(block.attn) is Attention:  # MHCA has its own way, see `MHCA.path`
                block.attn.fused_attn = False


def captured() -> bool:
    """Whether PyTorch is recording this call (torch.compile, torch.export, torch.jit.trace): nothing may be kept."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
