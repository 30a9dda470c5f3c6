"""MHCA: self-attention with a learned quadratic relative position bias (Sec. 3.1, Eq. 2 and 3).

A head of MHCA has a width alpha and a centre Delta (row, column). It adds a bias to the logits of a plain head:

    A = softmax(Q K^T / sqrt(d_h) + drop(b)) V                                                             (Eq. 3)
    b = -alpha (|d|^2 - 2 Delta . d)                                                                       (Eq. 2)

d is the position of the key minus that of the query, in patches. b is 0 where the class token is query or key. Eq. 1
and 3 of the paper print QK; its text describes the scaled product.

A head with a large alpha sees the patch at distance Delta from the query. Nine such heads are a 3 x 3 convolution
(Cordonnier et al., ICLR 2020).

The bias has rank 4. It therefore folds into queries and keys as four more dimensions of each head, and any fused
attention kernel computes it without a tokens x tokens tensor. `MHCA.path` says which of five computations of Eq. 3 is
taken, and why. `position` has the bias, `attention_cpu` the kernels for a CPU.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.layers.attention import resolve_self_attn_mask
from torch import Tensor

from dearkd.errors import InputError
from dearkd.model import attention_flex
from dearkd.model.attention_cpu import FEW, SharedBiasAttention, captured
from dearkd.model.position import QuadraticBias
from dearkd.plan.stage import Rpe

Heads = Float[Tensor, "batch heads tokens head_dim"]
"""Queries, keys or values of each head."""


class MHCA(Attention):
    """Multi-head convolutional attention: timm's `Attention` with `QuadraticBias` added to its logits (Eq. 3).

    Parameter names of the projections are timm's, so weights of a plain ViT block load into it.

    Args:
        dim: token width. num_heads: heads. grid: patches per side. prefix: tokens without position.
        rpe: knobs of the position encoding.
        others: as timm's Attention: qkv_bias, qk_norm, scale_norm, proj_bias, attn_drop, proj_drop, norm_layer, device,
            dtype.
    """

    bias_class: type[QuadraticBias] = QuadraticBias

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        prefix: int = 1,
        rpe: Rpe = Rpe(),
        qkv_bias: bool = True,
        **others: Any,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, **others)
        given = (num_heads, self.head_dim, grid, prefix, rpe, others.get("device"), others.get("dtype"))
        self.rpe = self.bias_class(*given)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attention of the tokens, projections included. A mask is added to the bias, as timm adds it to the logits.

        attn_mask: what timm's `Attention` takes, true where a query may see a key, or numbers to add to the logits.
        is_causal: each token sees itself and those before it. Raises InputError as `path` does.
        """
        batch, tokens, _ = x.shape
        q, k, v = self.project(x)
        if self.fused_attn:
            out = _attend(self, q, k, v, attn_mask, is_causal)
        else:  # `explicit`: each step where hooks, torch.fx and timm's AttentionExtract look for it
            logits = (q * self.scale) @ k.transpose(-2, -1) + _additive(self.rpe, q, attn_mask, is_causal)
            weights = logits.softmax(dim=-1)
            out = self.attn_drop(weights) @ v
        out = self.norm(out.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
        return self.proj_drop(self.proj(out))

    def project(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values. Queries and keys are normalised where `qk_norm` asks for it."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def attend(
        self,
        q: Heads,
        k: Heads,
        v: Heads,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Heads:
        """Eq. 3 for given queries, keys and values, by the path folded, shared or dense. Raises as `path` does."""
        drop = self.attn_drop.p if self.training else 0.0
        path = self.path(q, attn_mask is not None or is_causal)
        if path == "folded":
            return self._attend_folded(q, k, v, drop)
        if path == "flex":
            return attention_flex.attend(q, k, v, self.rpe, self.scale)
        bias = _additive(self.rpe, q, attn_mask, is_causal)
        if path == "shared":
            return SharedBiasAttention.apply(q, k, v, bias, self.scale)
        return F.scaled_dot_product_attention(q, k, v, bias if bias.ndim == 4 else bias[None], drop, scale=self.scale)

    def path(self, q: Heads, masked: bool = False) -> Literal["explicit", "folded", "flex", "shared", "dense"]:
        """Which of five computations of Eq. 3 is taken for the queries `q`. All give the same numbers but for rounding.

        The first one that fits is taken:

        explicit: logits, softmax and dropout one by one, where `timm.layers.set_fused_attn(False)` asks for it.
        flex: FlexAttention, where `rpe.path` asks for it. It has no mask, no dropout of the weights, no bias that is
            dropped by query, key or head, on a CPU no gradient, and on a GPU no head narrower than 16.
        folded: the bias as four more dimensions of queries and keys, by any fused kernel, where `rpe.path` asks for it.
            On a GPU, and where the bias learns, unless `rpe.path` is dense. Masks and dropped single entries do not
            fold. A CPU takes 40 % longer for a fixed bias that is folded, and 5 % longer for one that is dense.
        shared: a kernel of ours, on a CPU whose own kernel is not fused (the bias learns) or slow (the gradient of few
            tokens). It has no mask, no dropout of the weights and no bias for each image.
        dense: the fused kernel, with the bias as its mask.

        Raises InputError where `rpe.path: folded` meets `rpe.drop_mode: element`.
        """
        knobs, cpu = self.rpe.knobs, q.device.type == "cpu"
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.rpe.parameters())
        learns = learns and not torch.jit.is_tracing()  # tracing records with gradients, checks without
        single_entries = self.rpe.drops and knobs.drop_mode == "element"
        if not self.fused_attn:
            return "explicit"
        if knobs.path == "folded" and single_entries:
            raise InputError(
                "rpe.path: folded cannot drop single elements of the bias; set rpe.drop_mode to query, key or head"
            )
        by_image = self.rpe.drops and knobs.per_sample
        dropout = self.training and self.attn_drop.p > 0
        unflexible = masked or dropout or (self.rpe.drops and not single_entries)
        unflexible |= (learns or q.requires_grad or captured()) if cpu else self.head_dim < attention_flex.NARROWEST
        if knobs.path == "flex" and not unflexible:
            return "flex"
        wanted = knobs.path == "folded" or (knobs.path != "dense" and (learns or not cpu))
        if wanted and not masked and not single_entries:
            return "folded"
        slow = learns or (q.requires_grad and q.shape[2] <= FEW)
        return "shared" if slow and cpu and not (masked or by_image or dropout or captured()) else "dense"

    def logits(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens tokens"]:
        """Attention logits without dropout, in fp32, for the attention distance and the notebooks."""
        q, k, _ = self.project(x)
        return q.float() @ k.float().transpose(-2, -1) * self.scale + self.rpe.dense()

    def _attend_folded(
        self,
        q: Heads,
        k: Heads,
        v: Heads,
        drop: float,
    ) -> Heads:
        """Eq. 3 with the bias folded into four more dimensions of q and k, eight below fp32.

        Positions are exact in bf16. Their coefficients are not: with a bf16 copy of the query's dimensions a logit errs
        by up to 1.9 at 14 x 14. They are therefore split in a high and a low part, against the same keys. The low part
        is detached, because the high part carries the whole gradient.
        """
        query, key = self.rpe.folded()
        query = (query * math.sqrt(self.head_dim))[None]  # SDPA scales the product by 1/sqrt(d_h)
        key = key[None, None]
        if self.rpe.drops:
            mask = self.rpe.drop_mask(q.shape[0], query[0])
            if self.rpe.knobs.drop_mode == "key":
                key = key * mask
            else:
                query = query * mask
        if q.dtype in (torch.bfloat16, torch.float16):
            high = query.to(q.dtype)
            low = (query - high.float()).detach().to(q.dtype)
            query, key = torch.cat([high, low], -1), torch.cat([key, key], -1)
        extra = query.shape[-1]
        q = torch.cat([q, query.to(q.dtype).expand(*q.shape[:3], extra)], -1)
        k = torch.cat([k, key.to(k.dtype).expand(*k.shape[:3], extra)], -1)
        # padded to the same width: kernels need equal head dimensions (CPU, 197 tokens: 8.5 against 33 ms)
        out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, extra)), None, drop, scale=self.scale)
        return out[..., : self.head_dim]


@torch.fx.wrap
def _attend(
    layer: MHCA, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """`MHCA.attend` as one node of torch.fx, because torch.fx cannot trace its choice of a path."""
    return layer.attend(q, k, v, attn_mask, is_causal)


@torch.fx.wrap
def _additive(rpe: QuadraticBias, q: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """The sum of the bias after its dropout and any mask, for the logits of the queries `q`; one node of torch.fx."""
    bias = rpe.dropped(q.shape[0]).to(q.dtype)
    mask = resolve_self_attn_mask(q.shape[2], bias, attn_mask, is_causal)
    return bias if mask is None else bias + mask
