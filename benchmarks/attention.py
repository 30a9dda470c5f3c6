"""MHCA against plain attention at the paper's shape: 197 tokens, 12 heads of 16.

The peer is `scaled_dot_product_attention` without a bias, the fastest attention there is for this shape. Both begin
with queries, keys and values and end with the heads' outputs; the projections before and after are the same in both
and left out. A further line has whole layers, timm's `Attention` as the peer.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor

from benchmarks.compare import Result, in_turns, ratio
from dearkd.model.attention import MHCA
from dearkd.plan.stage import Rpe

BATCH, HEADS, DIM, GRID = 8, 12, 16, (14, 14)
TOKENS = GRID[0] * GRID[1] + 1
CASES = (
    ("evaluation", Rpe(), False, 1.15),
    ("training without RPE dropout", Rpe(drop=0.0), True, 1.5),
    ("training with RPE dropout", Rpe(), True, 1.8),
)


def run(options: argparse.Namespace) -> list[Result]:
    torch.manual_seed(0)
    found = []
    for name, rpe, training, target in CASES:
        layer = MHCA(HEADS * DIM, HEADS, GRID, rpe=rpe).train(training)
        plain = Attention(HEADS * DIM, HEADS, qkv_bias=True).train(training)
        found.append(_result(f"MHCA, {name}", _bare(layer, training), _bare(None, training), target, "attention"))
        found.append(
            _result(f"MHCA layer, {name}", _whole(layer, training), _whole(plain, training), target, "timm's Attention")
        )
    return found


def _result(name: str, ours: Callable[[], object], peer: Callable[[], object], target: float, peer_name: str) -> Result:
    mine, theirs = in_turns(ours, peer, rounds=61)
    middle, low, high = ratio(mine, theirs, "time")
    return Result(
        name=name,
        setting=f"{TOKENS} tokens, {HEADS} heads of {DIM}, batch {BATCH}",
        kind="time",
        ratio=middle,
        low=low,
        high=high,
        bound="at most",
        target=target,
        ours=min(mine) * 1e3,
        peer=min(theirs) * 1e3,
        unit="ms",
        peer_name=peer_name,
    )


def _bare(layer: MHCA | None, training: bool) -> Callable[[], object]:
    """Queries, keys and values to outputs; in training also the gradients of all three and of the bias."""
    qkv = torch.randn(3, BATCH, TOKENS, HEADS, DIM).transpose(2, 3)
    grad = torch.randn(BATCH, HEADS, TOKENS, DIM)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v) if layer is None else layer.attend(q, k, v)

    def work() -> None:
        q, k, v = (t.detach().requires_grad_(training) for t in qkv)
        with torch.set_grad_enabled(training):
            out = forward(q, k, v)
        if training:
            out.backward(grad)

    return work


def _whole(layer: torch.nn.Module, training: bool) -> Callable[[], object]:
    tokens = torch.randn(BATCH, TOKENS, HEADS * DIM)

    def work() -> None:
        with torch.set_grad_enabled(training):
            out = layer(tokens.detach().requires_grad_(training))
        if training:
            out.sum().backward()

    return work
