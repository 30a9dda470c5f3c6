"""MHCA: self-attention with a learned quadratic relative position bias (Sec. 3.1, Eq. 2 and 3).

With d = key position - query position in patches, head h adds to the logit of every pair of patches

    b = -alpha (|d|^2 - 2 Delta . d)                                                     (Eq. 2, literal form)

and nothing where the class token is query or key. A head with a large alpha sees the patch at distance Delta from the
query: nine such heads are a 3 x 3 convolution (Cordonnier et al., ICLR 2020). Eq. 1 and 3 print QK for the scaled
QK^T / sqrt(d_h) that the text describes.

The bias has rank 4 with a class token, so it folds into queries and keys as four more dimensions of each head; any
fused attention kernel then computes it without a tokens x tokens tensor. `MHCA.path` says which of four computations of
Eq. 3 is taken, and why. `attention_cpu` has the kernels for a CPU.
"""

import contextlib
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.layers.attention import resolve_self_attn_mask
from torch import Tensor, nn

from dearkd.model.attention_cpu import FEW, SharedBiasAttention, captured, dropped_entries
from dearkd.plan.stage import Rpe
from dearkd.schema import InputError


def head_centres(heads: int, init: Literal["convit", "rect", "random", "zero"]) -> Float[Tensor, "heads 2"]:
    """Initial centres Delta (row, column) in patches.

    convit: floor(sqrt(heads)) squared of them form a square grid around 0, as in ConViT; the paper's 12 heads allow
    no 'kernel of size sqrt(12)', so 9 heads get a 3 x 3 grid and 3 stay at 0. rect: the most square a x b grid with
    a b = heads. random: N(0, 1), as Cordonnier et al.'s Gaussian attention. zero: all at 0.
    """
    if init == "zero":
        return torch.zeros(heads, 2)
    if init == "random":
        return torch.randn(heads, 2)
    rows = math.isqrt(heads)
    if init == "rect":
        while heads % rows:
            rows -= 1
    columns = heads // rows if init == "rect" else rows
    grid = torch.cartesian_prod(torch.arange(rows) - (rows - 1) / 2, torch.arange(columns) - (columns - 1) / 2)
    return torch.cat([grid, torch.zeros(heads - len(grid), 2)])


class QuadraticBias(nn.Module):
    """The learned part of MHCA: alpha (width) and Delta (centre) of each head, their bias and its fold.

    Args:
        heads: number of heads.
        head_dim: width of a head, for `rpe.scale: sqrt_d`.
        grid: patches per column and row of the image.
        prefix: tokens without a position (the class token), which come first and get bias 0.
        knobs: see `stage.Rpe`.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        grid: tuple[int, int],
        prefix: int,
        knobs: Rpe,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.knobs, self.prefix, self.head_dim = knobs, prefix, head_dim
        self.grid = self.created_grid = grid
        self.kept: tuple[Tensor, Tensor] | None = None
        alpha, delta, v = (torch.empty(heads, *n, device=device, dtype=dtype) for n in ((), (2,), (3,)))
        if knobs.param == "free":
            self.v = nn.Parameter(v)
        else:
            self.alpha = nn.Parameter(alpha)
            if knobs.learn_delta:
                self.delta = nn.Parameter(delta)
            else:
                self.register_buffer("delta", delta)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set centres by `rpe.init` and the width to `rpe.alpha`; convit heads beyond the grid start global (alpha 0).

        Positions are computed again too, because `to_empty` leaves a model of the meta device without them.
        """
        self.set_grid(self.grid)
        heads = (self.v if self.knobs.param == "free" else self.alpha).shape[0]
        delta = head_centres(heads, self.knobs.init)
        alpha = torch.full((heads,), self.knobs.alpha)
        if self.knobs.init == "convit":
            alpha[math.isqrt(heads) ** 2 :] = 0.0
        with torch.no_grad():
            if self.knobs.param == "free":
                self.v.copy_(torch.cat([-alpha[:, None], 2 * alpha[:, None] * delta], 1))
                return
            if self.knobs.positive:  # softplus(x) = alpha; a global head starts at 1e-4, its inverse being -9.2
                alpha = torch.log(torch.expm1(alpha.clamp_min(1e-4)))
            self.alpha.copy_(alpha)
            self.delta.copy_(delta)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Set positions for `grid` patches. Distances are in patches, or in patches of the first grid (`rpe.coord`)."""
        self.grid = grid
        own = next(self.parameters())
        axes = [torch.arange(n, device=own.device) - (n - 1) / 2 for n in grid]
        # centred on the image: |p|^2 - c0 is then an integer or half of one, exact in bf16 up to a 23 x 23 grid
        self.c0 = sum(0.25 * (1 - n % 2) for n in grid)
        positions = torch.cartesian_prod(*axes).float()
        if self.knobs.coord == "rescaled":
            positions = positions * torch.tensor(
                [a / b for a, b in zip(self.created_grid, grid, strict=True)], device=own.device
            )
        self.register_buffer("positions", positions.to(own.dtype), persistent=False)
        shift = positions[None, :] - positions[:, None]
        terms = torch.cat([shift.square().sum(-1)[None], shift.movedim(-1, 0), torch.ones_like(shift[None, ..., 0])])
        # one product with |d|^2, d and 1, each tokens x tokens: 0.3 ms at 197 tokens, where sums of products take 6
        self.register_buffer("terms", F.pad(terms, (self.prefix, 0, self.prefix, 0)).to(own.dtype), persistent=False)
        self.kept = None

    def coefficients(self) -> tuple[Float[Tensor, " heads"], Float[Tensor, "heads 2"], Float[Tensor, " heads"]]:
        """(a, w, c) of the bias a |d|^2 + w . d + c between patches: Eq. 2 has a = -alpha, w = 2 alpha Delta, c = 0."""
        if self.knobs.param == "free":
            a, w, c = self.v[:, 0], self.v[:, 1:], torch.zeros_like(self.v[:, 0])
        else:
            alpha = F.softplus(self.alpha) if self.knobs.positive else self.alpha
            a, w = -alpha, 2 * alpha[:, None] * self.delta
            c = -alpha * self.delta.square().sum(1) if self.knobs.form == "centred" else torch.zeros_like(alpha)
        scale = self.head_dim**-0.5 if self.knobs.scale == "sqrt_d" else 1.0
        return a * scale, w * scale, c * scale

    def dense(self) -> Float[Tensor, "heads tokens tokens"]:
        """The bias of every query (rows) and key (columns), class token first."""
        return self._from(self._stacked())

    def remembered(self) -> Float[Tensor, "heads tokens tokens"]:
        """`dense()` for evaluation, without gradients. It is computed only after alpha, Delta or the grid have changed.

        At 197 tokens `dense()` for every batch would take a tenth of the time of attention itself.
        """
        given = self._stacked()
        if captured():
            return self._from(given)
        known = self.kept
        if known is None or known[0].dtype != given.dtype or not torch.equal(known[0], given):
            self.kept = known = (given, self._from(given))
        return known[1]

    def _stacked(self) -> Float[Tensor, "heads 4"]:
        """Coefficients of |d|^2, d and 1."""
        a, w, c = self.coefficients()
        return torch.cat([a[:, None], w, c[:, None]], 1)

    def _from(self, coefficients: Float[Tensor, "heads 4"]) -> Float[Tensor, "heads tokens tokens"]:
        kind = self.terms.device.type  # autocast would round the coefficients to bf16, and knows no meta device
        with torch.autocast(kind, enabled=False) if kind != "meta" else contextlib.nullcontext():
            bias = coefficients @ self.terms.flatten(1)
        return bias.unflatten(1, self.terms.shape[1:])

    def folded(self) -> tuple[Float[Tensor, "heads tokens 4"], Float[Tensor, "tokens 4"]]:
        """Query and key dimensions whose product is `dense()`: bias[h, i, j] = query[h, i] . key[j].

        a |p_j - p_i|^2 + w . (p_j - p_i) + c
            = (w - 2 a p_i) . p_j + a (|p_j|^2 - c0) + (a (|p_i|^2 + c0) - w . p_i + c)
        """
        a, w, c = self.coefficients()
        p, norm = self.positions, self.positions.square().sum(1)
        query = torch.cat(
            [
                w[:, None] - 2 * a[:, None, None] * p,
                a[:, None, None].expand(-1, len(p), 1),
                (a[:, None] * (norm + self.c0) - (w[:, None] * p).sum(-1) + c[:, None])[..., None],
            ],
            dim=-1,
        )
        key = torch.cat([p, (norm - self.c0)[:, None], torch.ones_like(norm)[:, None]], dim=-1)
        return F.pad(query, (0, 0, self.prefix, 0)), F.pad(key, (0, 0, self.prefix, 0))

    def dropped(self, samples: int) -> Float[Tensor, "*samples heads tokens tokens"]:
        """The dense bias after the dropout that follows the adaptive RPE (Sec. 3.1).

        A dropped entry becomes 0, so the logit of that pair does not depend on position. This avoids 'the local optimum
        where the attention highly focuses on the local information'. The batch has one mask unless `per_sample`.
        """
        knobs = self.knobs
        if not self.training and not torch.is_grad_enabled() and self.terms.device.type == "cpu":
            return self.remembered()
        bias = self.dense()
        if not self.drops:
            return bias
        if knobs.drop_mode == "element":
            return dropped_entries(bias, knobs.drop)
        kept = self.drop_mask(samples, bias)
        kept = kept.transpose(-2, -1) if knobs.drop_mode == "key" else kept
        return bias * (kept if knobs.per_sample else kept[0])

    @property
    def drops(self) -> bool:
        """Whether the bias is dropped now."""
        return self.training and self.knobs.drop > 0 and self.knobs.drop_mode != "none"

    def drop_mask(self, samples: int, like: Tensor) -> Float[Tensor, "samples #heads #tokens 1"]:
        """Inverted-dropout factors of queries, keys or heads; one for all samples unless `per_sample`."""
        knobs, (heads, tokens) = self.knobs, like.shape[:2]
        shape = {"query": (heads, tokens), "key": (1, tokens), "head": (heads, 1)}[knobs.drop_mode]
        return F.dropout(torch.ones(samples if knobs.per_sample else 1, *shape, 1, device=like.device), knobs.drop)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, prefix={self.prefix}, drop={self.knobs.drop} ({self.knobs.drop_mode})"


class MHCA(Attention):
    """Multi-head convolutional attention: timm's `Attention` with `QuadraticBias` added to its logits (Eq. 3).

    Parameter names of the projections are timm's, so weights of a plain ViT block load into it.

    Args:
        dim: token width. num_heads: heads. grid: patches per side. prefix: tokens without position.
        rpe: knobs of the position encoding.
        others: as timm's Attention: qkv_bias, qk_norm, scale_norm, proj_bias, attn_drop, proj_drop, norm_layer, device,
            dtype.
    """

    bias_class = QuadraticBias

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
        """Attention of the tokens. A mask is added to the bias, as timm adds it to the logits."""
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

    def project(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, tokens, dim of a head)."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def attend(
        self,
        q: Float[Tensor, "batch heads tokens dim"],
        k: Float[Tensor, "batch heads tokens dim"],
        v: Float[Tensor, "batch heads tokens dim"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """softmax(QKᵀ/√d_h + drop(b)) V, between the projections (Eq. 3), by a fused kernel."""
        drop = self.attn_drop.p if self.training else 0.0
        path = self.path(q, attn_mask is not None or is_causal)
        if path == "folded":
            return self._attend_folded(q, k, v, drop)
        bias = _additive(self.rpe, q, attn_mask, is_causal)
        if path == "shared":
            return SharedBiasAttention.apply(q, k, v, bias, self.scale)
        return F.scaled_dot_product_attention(q, k, v, bias if bias.ndim == 4 else bias[None], drop, scale=self.scale)

    def path(self, q: Tensor, masked: bool = False) -> Literal["explicit", "folded", "shared", "dense"]:
        """Which of four computations of Eq. 3 attends to the queries `q`; all give the same numbers but for rounding.

        explicit: logits, softmax and dropout one by one, where `timm.layers.set_fused_attn(False)` asks for it.
        folded: the bias as four more dimensions of queries and keys, for any fused kernel and without a tokens x tokens
            tensor; wherever `rpe.path` asks for it, and on a GPU or where the bias learns, unless single entries of it
            are dropped: those do not fold. With a fixed bias the fold costs a CPU 40 %, a dense bias 5.
        shared: by hand, a CPU having no fused kernel once a bias learns, and a slow one for the gradient of few tokens.
        dense: the fused kernel with the bias as its mask, for all else.
        Raises InputError where `rpe.path: folded` meets `rpe.drop_mode: element`.
        """
        knobs, cpu = self.rpe.knobs, q.device.type == "cpu"
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.rpe.parameters())
        learns = learns and not torch.jit.is_tracing()  # which records with gradients and checks without
        single_entries = self.rpe.drops and knobs.drop_mode == "element"
        if not self.fused_attn:
            return "explicit"
        if knobs.path == "folded" and single_entries:
            raise InputError(
                "rpe.path: folded cannot drop single elements of the bias; take drop_mode query, key or head"
            )
        wanted = knobs.path == "folded" or (knobs.path == "auto" and (learns or not cpu))
        if wanted and not masked and not single_entries:
            return "folded"
        by_image = self.rpe.drops and knobs.per_sample
        dropout = self.training and self.attn_drop.p > 0
        slow = learns or (q.requires_grad and q.shape[2] <= FEW)
        return "shared" if slow and cpu and not (masked or by_image or dropout or captured()) else "dense"

    def logits(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens tokens"]:
        """Attention logits without dropout, in fp32, for the attention distance and the notebooks."""
        q, k, _ = self.project(x)
        return q.float() @ k.float().transpose(-2, -1) * self.scale + self.rpe.dense()

    def _attend_folded(self, q: Tensor, k: Tensor, v: Tensor, drop: float) -> Float[Tensor, "batch heads tokens dim"]:
        """Attention with the bias folded into four more dimensions of q and k, eight below fp32.

        Positions are exact in bf16, their coefficients are not: a single bf16 copy of the query part errs by up to 1.9
        in a logit at 14 x 14. So it is split in two, high and low, against the same keys; the low part is detached
        because the high part carries the whole gradient.
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
