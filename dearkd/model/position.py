"""The position encoding of MHCA: a learned quadratic bias (Sec. 3.1, Eq. 2), its dropout and its fold."""

import contextlib
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dearkd.model.attention_cpu import captured, dropped_entries
from dearkd.plan.stage import Rpe


def head_centres(heads: int, init: Literal["convit", "rect", "random", "zero"]) -> Float[Tensor, "heads 2"]:
    """Initial centres Delta (row, column) in patches.

    convit: a square grid around 0 of as many heads as form one, the others at 0, as in ConViT. The paper's 12 heads
        allow no 'kernel of size sqrt(12)': 9 heads get a 3 x 3 grid and 3 are at 0.
    rect: the most square grid of all heads.
    random: N(0, 1), as the Gaussian attention of Cordonnier et al. (ICLR 2020).
    zero: all at 0.
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


def fold(
    a: Float[Tensor, " heads"],
    w: Float[Tensor, "heads 2"],
    c: Float[Tensor, " heads"],
    p: Float[Tensor, "patches 2"],
    c0: float,
) -> tuple[Float[Tensor, "heads patches 4"], Float[Tensor, "patches 4"]]:
    """Query and key dimensions whose product is the bias between patches at the positions `p`, by its rank of 4.

    a |p_j - p_i|^2 + w . (p_j - p_i) + c
        = (w - 2 a p_i) . p_j + a (|p_j|^2 - c0) + (a (|p_i|^2 + c0) - w . p_i + c)

    c0 cancels out; it keeps |p_j|^2 - c0 exact in bf16.
    """
    norm = p.square().sum(1)
    query = torch.cat(
        [
            w[:, None] - 2 * a[:, None, None] * p,
            a[:, None, None].expand(-1, len(p), 1),
            (a[:, None] * (norm + c0) - (w[:, None] * p).sum(-1) + c[:, None])[..., None],
        ],
        dim=-1,
    )
    key = torch.cat([p, (norm - c0)[:, None], torch.ones_like(norm)[:, None]], dim=-1)
    return query, key


def _product(
    coefficients: Float[Tensor, "heads 4"], terms: Float[Tensor, "4 tokens tokens"]
) -> Float[Tensor, "heads tokens tokens"]:
    kind = terms.device.type  # autocast would round the coefficients to bf16, and knows no meta device
    with torch.autocast(kind, enabled=False) if kind != "meta" else contextlib.nullcontext():
        bias = coefficients @ terms.flatten(1)
    return bias.unflatten(1, terms.shape[1:])


def _terms(positions: Float[Tensor, "patches 2"]) -> Float[Tensor, "4 patches patches"]:
    """|d|^2, d and 1 of every two patches.

    One product with them takes 0.3 ms at 197 tokens, where sums of products take 6.
    """
    shift = positions[None, :] - positions[:, None]
    return torch.cat([shift.square().sum(-1)[None], shift.movedim(-1, 0), torch.ones_like(shift[None, ..., 0])])


class QuadraticBias(nn.Module):
    """The bias of Eq. 2 for every head and pair of tokens, from the learned alpha (width) and Delta (centre) of a head.

    Args:
        heads: number of heads.
        head_dim: width of a head, for `rpe.scale: sqrt_d`.
        grid: patches per column and row of the image.
        prefix: number of tokens without a position (the class token). They come first, and their bias is 0.
        knobs: see `stage.Rpe`. device, dtype: of the parameters.
    """

    alpha: Tensor
    delta: Tensor
    v: Tensor
    """-alpha and 2 alpha Delta as three free numbers, for `rpe.param: free`, which has no alpha and Delta."""
    positions: Tensor
    """The positions of the patches, centred on the image: (patches, 2)."""
    terms: Tensor
    """|d|^2, d and 1 of every two tokens: (4, tokens, tokens)."""

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
            unit = [a / b for a, b in zip(self.created_grid, grid, strict=True)]
            positions = positions * torch.tensor(unit, device=own.device)
        self.register_buffer("positions", positions.to(own.dtype), persistent=False)
        terms = F.pad(_terms(positions), (self.prefix, 0, self.prefix, 0)).to(own.dtype)
        self.register_buffer("terms", terms, persistent=False)
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
        return _product(self._stacked(), self.terms)

    def remembered(self) -> Float[Tensor, "heads tokens tokens"]:
        """`dense()` for evaluation, without gradients. It is computed only after alpha, Delta or the grid have changed.

        At 197 tokens `dense()` for every batch would take a tenth of the time of attention itself.
        """
        given = self._stacked()
        if captured():
            return _product(given, self.terms)
        known = self.kept
        if known is None or known[0].dtype != given.dtype or not torch.equal(known[0], given):
            self.kept = known = (given, _product(given, self.terms))
        return known[1]

    def _stacked(self) -> Float[Tensor, "heads 4"]:
        """Coefficients of |d|^2, d and 1."""
        a, w, c = self.coefficients()
        return torch.cat([a[:, None], w, c[:, None]], 1)

    def folded(self) -> tuple[Float[Tensor, "heads tokens 4"], Float[Tensor, "tokens 4"]]:
        """Query and key dimensions whose product is `dense()`: bias[h, i, j] = query[h, i] . key[j]."""
        query, key = fold(*self.coefficients(), self.positions, self.c0)
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
