"""MHCA: self-attention with a learned quadratic relative position bias (Sec. 3.1, Eq. 2 and 3).

With d = key position - query position in patches, head h adds to the logit of every pair of patches

    b = -alpha (|d|^2 - 2 Delta . d)                                                     (Eq. 2, literal form)

and nothing where the class token is query or key. A head with a large alpha sees the patch at distance Delta from the
query: nine such heads are a 3 x 3 convolution (Cordonnier et al., ICLR 2020). Eq. 1 and 3 print QK for the scaled
QK^T / sqrt(d_h) that the text describes.

The bias has rank 4 with a class token, so it folds into queries and keys as four more dimensions of each head; any
fused attention kernel then computes it without a tokens x tokens tensor. Model layer: pure torch.
"""

import contextlib
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dearkd.schema import InputError
from dearkd.spec import Rpe

FEW = 48
"""Tokens up to which a CPU attends faster without PyTorch's fused kernel: 37 tokens and 9 heads of 8 take a layer 5.7
ms forward and backward instead of 8.4, 17 tokens 2.6 instead of 3.3."""


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
        rpe: knobs, see `spec.Rpe`.
    """

    def __init__(self, heads: int, head_dim: int, grid: tuple[int, int], prefix: int, rpe: Rpe) -> None:
        super().__init__()
        self.rpe, self.prefix, self.head_dim = rpe, prefix, head_dim
        self.created_grid = grid
        self.kept: tuple[Tensor, Tensor] | None = None
        alpha, delta = torch.empty(heads), torch.empty(heads, 2)
        if rpe.param == "free":
            self.v = nn.Parameter(torch.empty(heads, 3))
        else:
            self.alpha = nn.Parameter(alpha)
            if rpe.learn_delta:
                self.delta = nn.Parameter(delta)
            else:
                self.register_buffer("delta", delta)
        self.reset_parameters()
        self.set_grid(grid)

    def reset_parameters(self) -> None:
        """Centres as `rpe.init` says and width `rpe.alpha`; convit heads beyond the grid start global (alpha 0)."""
        heads = (self.v if self.rpe.param == "free" else self.alpha).shape[0]
        delta = head_centres(heads, self.rpe.init)
        alpha = torch.full((heads,), self.rpe.alpha)
        if self.rpe.init == "convit":
            alpha[math.isqrt(heads) ** 2 :] = 0.0
        with torch.no_grad():
            if self.rpe.param == "free":
                self.v.copy_(torch.cat([-alpha[:, None], 2 * alpha[:, None] * delta], 1))
                return
            if self.rpe.positive:  # softplus(x) = alpha; a global head starts at 1e-4, its inverse being -9.2
                alpha = torch.log(torch.expm1(alpha.clamp_min(1e-4)))
            self.alpha.copy_(alpha)
            self.delta.copy_(delta)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Positions for `grid` patches; distances stay in patches, or in those of the first grid (`rpe.coord`)."""
        self.grid = grid
        device = next(self.parameters()).device
        axes = [torch.arange(n, device=device) - (n - 1) / 2 for n in grid]
        # centred on the image: |p|^2 - c0 is then an integer or half of one, exact in bf16 up to a 23 x 23 grid
        self.c0 = sum(0.25 * (1 - n % 2) for n in grid)
        positions = torch.cartesian_prod(*axes).float()
        if self.rpe.coord == "rescaled":
            positions = positions * torch.tensor(
                [a / b for a, b in zip(self.created_grid, grid, strict=True)], device=device
            )
        self.register_buffer("positions", positions, persistent=False)
        shift = positions[None, :] - positions[:, None]
        terms = torch.cat([shift.square().sum(-1)[None], shift.movedim(-1, 0), torch.ones_like(shift[None, ..., 0])])
        # one product with |d|^2, d and 1, each tokens x tokens: 0.3 ms at 197 tokens, where sums of products take 6
        self.register_buffer("terms", F.pad(terms, (self.prefix, 0, self.prefix, 0)), persistent=False)
        self.kept = None

    def coefficients(self) -> tuple[Float[Tensor, " heads"], Float[Tensor, "heads 2"], Float[Tensor, " heads"]]:
        """(a, w, c) of the bias a |d|^2 + w . d + c between patches: Eq. 2 has a = -alpha, w = 2 alpha Delta, c = 0."""
        if self.rpe.param == "free":
            a, w, c = self.v[:, 0], self.v[:, 1:], torch.zeros_like(self.v[:, 0])
        else:
            alpha = F.softplus(self.alpha) if self.rpe.positive else self.alpha
            a, w = -alpha, 2 * alpha[:, None] * self.delta
            c = -alpha * self.delta.square().sum(1) if self.rpe.form == "centred" else torch.zeros_like(alpha)
        scale = self.head_dim**-0.5 if self.rpe.scale == "sqrt_d" else 1.0
        return a * scale, w * scale, c * scale

    def dense(self) -> Float[Tensor, "heads tokens tokens"]:
        """The bias of every query (rows) and key (columns), class token first."""
        return self._from(self._stacked())

    def remembered(self) -> Float[Tensor, "heads tokens tokens"]:
        """`dense()` for evaluation, without gradients: made anew only where alpha, Delta or the grid have changed.

        At 197 tokens it takes a tenth of the time that attention itself does, for every batch anew.
        """
        given = self._stacked()
        if torch.compiler.is_compiling():
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

    def extra_repr(self) -> str:
        return f"grid={self.grid}, prefix={self.prefix}, drop={self.rpe.drop} ({self.rpe.drop_mode})"


class MHCA(Attention):
    """Multi-head convolutional attention: timm's `Attention` with `QuadraticBias` added to its logits (Eq. 3).

    Parameter names of the projections are timm's, so weights of a plain ViT block load into it.

    Args:
        dim: token width. num_heads: heads. grid: patches per side. prefix: tokens without position.
        rpe: knobs. attn_drop, proj_drop, qkv_bias: as in timm.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        prefix: int = 1,
        rpe: Rpe = Rpe(),
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.rpe = QuadraticBias(num_heads, self.head_dim, grid, prefix, rpe)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend. A mask has no meaning beside the bias; one is refused with ValueError."""
        if attn_mask is not None or is_causal:
            raise ValueError("MHCA takes no attention mask")
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = self.attend(q, k, v)
        out = out.transpose(1, 2).reshape(batch, tokens, self.attn_dim)
        return self.proj_drop(self.proj(out))

    def attend(
        self,
        q: Float[Tensor, "batch heads tokens dim"],
        k: Float[Tensor, "batch heads tokens dim"],
        v: Float[Tensor, "batch heads tokens dim"],
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """softmax(QKᵀ/√d_h + drop(b)) V, between the projections (Eq. 3)."""
        drop = self.attn_drop.p if self.training else 0.0
        if not self._is_dense():
            return self._attend_folded(q, k, v, drop)
        bias = self._dropped_bias().to(q.dtype)
        differentiated = bias.requires_grad or (q.requires_grad and q.shape[2] <= FEW)
        if differentiated and drop == 0 and q.device.type == "cpu":
            return SharedBiasAttention.apply(q, k, v, bias, self.scale)
        return F.scaled_dot_product_attention(q, k, v, bias[None], drop, scale=self.scale)

    def logits(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens tokens"]:
        """Attention logits without dropout, in fp32: what the attention distance and the notebooks look at."""
        batch, tokens, _ = x.shape
        q, k, _ = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return q.float() @ k.float().transpose(-2, -1) * self.scale + self.rpe.dense()

    def _is_dense(self) -> bool:
        knobs = self.rpe.rpe
        elementwise = self.training and knobs.drop > 0 and knobs.drop_mode == "element"
        if knobs.path == "folded" and elementwise:
            raise InputError(
                "rpe.path: folded cannot drop single elements of the bias; take drop_mode query, key or head"
            )
        # on a CPU a bias that does not learn costs a fused kernel 5 %, the fold 40: four dimensions more of every head
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.rpe.parameters())
        fixed = knobs.path == "auto" and not learns and self.qkv.weight.device.type == "cpu"
        return knobs.path == "dense" or elementwise or fixed

    def _dropped_bias(self) -> Float[Tensor, "heads tokens tokens"]:
        """The dense bias after the dropout that follows the adaptive RPE (Sec. 3.1), one mask for the batch.

        A dropped entry becomes 0: that pair is no longer told apart by position, the way out of 'the local optimum
        where the attention highly focuses on the local information'.
        """
        knobs = self.rpe.rpe
        if not self.training and not torch.is_grad_enabled() and self.qkv.weight.device.type == "cpu":
            return self.rpe.remembered()
        bias = self.rpe.dense()
        if not self.training or knobs.drop == 0 or knobs.drop_mode == "none":
            return bias
        if knobs.drop_mode == "element":
            return dropped_entries(bias, knobs.drop)
        kept = self._mask(1, bias)[0]
        return bias * (kept.transpose(-2, -1) if knobs.drop_mode == "key" else kept)

    def _mask(self, samples: int, like: Tensor) -> Float[Tensor, "samples #heads #tokens 1"]:
        """Inverted-dropout factors of queries, keys or heads."""
        knobs, (heads, tokens) = self.rpe.rpe, like.shape[:2]
        shape = {"query": (heads, tokens), "key": (1, tokens), "head": (heads, 1)}[knobs.drop_mode]
        return F.dropout(torch.ones(samples, *shape, 1, device=like.device), knobs.drop)

    def _attend_folded(self, q: Tensor, k: Tensor, v: Tensor, drop: float) -> Float[Tensor, "batch heads tokens dim"]:
        """Attention with the bias folded into four more dimensions of q and k, eight below fp32.

        Positions are exact in bf16, their coefficients are not: a single bf16 copy of the query part errs by up to 1.9
        in a logit at 14 x 14. So it is split in two, high and low, against the same keys; the low part is detached
        because the high part carries the whole gradient.
        """
        query, key = self.rpe.folded()
        query = (query * math.sqrt(self.head_dim))[None]  # SDPA scales the product by 1/sqrt(d_h)
        key = key[None, None]
        knobs = self.rpe.rpe
        if self.training and knobs.drop > 0 and knobs.drop_mode in ("query", "key", "head"):
            mask = self._mask(q.shape[0] if knobs.per_sample else 1, query[0])
            if knobs.drop_mode == "key":
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


def unfuse_few_tokens(student: VisionTransformer) -> None:
    """Let the plain attention of a student of up to `FEW` tokens, trained on a CPU, do without the fused kernel."""
    if student.patch_embed.num_patches + student.num_prefix_tokens <= FEW:
        for block in student.blocks:
            block.attn.fused_attn = False


def dropped_entries(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Inverted dropout of single numbers, `p` rounded to 1/65536 where there are many on a CPU.

    There 16 random bits decide on each: 12 x 197 x 197 of them and their gradient take 1.5 ms on one thread,
    `F.dropout` 3.4.
    """
    if x.device.type != "cpu" or x.numel() < SharedBiasAttention.SMALL:
        return F.dropout(x, p)
    bound = round(p * 2**16)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = draws[: x.numel()].view(x.shape) >= bound - 2**15
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - bound))


class SharedBiasAttention(torch.autograd.Function):
    """softmax(scale q kᵀ + bias) v, where the whole batch shares the bias and its gradient; for training on a CPU.

    There PyTorch has no fused kernel once the bias learns: 8 images of 197 tokens and 12 heads of 16 take
    `scaled_dot_product_attention` 48 ms forward and backward, this 23, and attention without a bias 15. Both keep the
    probabilities; everything else is made image by image and stays in the cache.
    """

    SMALL = 2**16
    """Entries of a bias below which calls cost more than the cache gains, so that the batch is taken at once."""

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
        parts = 1 if bias.numel() < SharedBiasAttention.SMALL else len(q)
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
