"""How time and memory grow; `growth.csv` is for the plot.

A pass forward and backward of one attention layer against tokens, heads and batch, and the order of an epoch against
images: each point is the median of a few, and the memory of a process that does one.
"""

import argparse
import csv
import statistics
from collections.abc import Callable

import torch
from timm.layers import Attention
from torch import nn

from benchmarks.compare import Result, peak_mb, seconds
from dearkd.data.order import epoch_order
from dearkd.model.attention import MHCA
from dearkd.plan.stage import Rpe

HEAD_DIM = 16
BASE = {"tokens": 14 * 14, "heads": 12, "batch": 8}
POINTS = {"tokens": (7 * 7, 10 * 10, 14 * 14, 20 * 20, 28 * 28), "heads": (3, 6, 12, 24), "batch": (2, 4, 8, 16, 32)}
METHODS = {"plain attention": None, "MHCA, folded": Rpe(drop=0.0, path="folded"), "MHCA, dropout": Rpe()}
IMAGES = (10_000, 100_000, 1_281_167)
PASSES = 3


def run(options: argparse.Namespace) -> list[Result]:
    works = {
        (method, along, value): _layer_work(method, {**BASE, along: value})
        for along, values in POINTS.items()
        for value in values
        for method in METHODS
    }
    for count in IMAGES:
        works["order of an epoch", "images", count] = lambda count=count: epoch_order(count, count, 3, seed=0, epoch=0)
    # memory first: what this process has freed, its forks would use again, and seem to need less
    idle = peak_mb(lambda: None)
    memory = {point: max(peak_mb(work) - idle, 0.1) for point, work in works.items()}
    points = [
        {**dict(zip(("method", "along", "value"), point, strict=True)), "ms": _ms(work), "mb": round(memory[point], 1)}
        for point, work in works.items()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "growth.csv").open("w") as file:
        writer = csv.DictWriter(file, points[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(points)
    return []


def _layer_work(method: str, shape: dict[str, int]) -> Callable[[], None]:
    layer, tokens = _layer(method, shape)
    return lambda: layer(tokens).sum().backward()


def _ms(work: Callable[[], object]) -> float:
    work()
    return round(statistics.median(seconds(work) for _ in range(PASSES)) * 1e3, 2)


def _layer(method: str, shape: dict[str, int]) -> tuple[nn.Module, torch.Tensor]:
    side, rpe = round(shape["tokens"] ** 0.5), METHODS[method]
    dim = HEAD_DIM * shape["heads"]
    if rpe is None:
        layer = Attention(dim, shape["heads"], qkv_bias=True)
    else:
        layer = MHCA(dim, shape["heads"], (side, side), rpe=rpe)
    return layer.train(), torch.randn(shape["batch"], shape["tokens"] + 1, dim, requires_grad=True)
