"""python -m benchmarks.gpu measures one GPU in images/s and memory and writes a line of JSON for each measurement.

`gpu_work.py` has the measurements, the most important first. When `--seconds` run out, the last ones are missing.
`--only` measures those whose name has a word in it. On a CPU it rehearses at a tiny size.
"""

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_work as work
from benchmarks.gpu_work import ON_GPU, Step
from dearkd import arithmetic
from dearkd.train.replay import GRAPHS

Case = tuple[str, str, str, Callable[[], tuple[Step, int]]]
"""(what, net, way: the names of a measurement; a function that returns a step and how many images it takes)."""
QUERY = {"drop": 0.1, "drop_mode": "query"}
WAYS = {"eager": (False, False), "graph": (False, True), "compiled": (True, False), "compiled, graph": (True, True)}
"""By name: whether blocks are compiled, and whether a step is replayed from a CUDA graph."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.jsonl"))
    parser.add_argument("--seconds", type=float, default=240.0, help="no measurement starts after so many")
    parser.add_argument("--only", default="", help="a word in the names of what is measured")
    given = parser.parse_args()
    os.environ.update({**arithmetic.ON_GPU, GRAPHS: "all"})
    began = time.monotonic()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("a") as file:
        for what, net, way, build in cases():
            names = {"what": what, "net": net, "way": way}
            if given.only not in f"{what}, {net}, {way}":
                continue
            left = given.seconds - (time.monotonic() - began)
            found = measure(build) if left > 0 else {"error": "no time left"}
            line = {"card": card(), "torch": torch.__version__, **names, **found}
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(" ".join(f"{k}={v}" for k, v in {**names, **found}.items()), flush=True)


def cases() -> Iterator[Case]:
    """All measurements, the most telling first."""
    for precision in ("bf16", "fp32"):
        for way in ("eager", "graph"):
            yield (
                f"small student, 49 tokens, {precision}",
                "DearKD",
                way,
                lambda way=way, precision=precision: work.small(way == "graph", precision),
            )
    for way in ("compiled, graph", "graph", "compiled", "eager"):
        yield "stage I, labels ahead", "DearKD-Ti", way, lambda way=way: work.learned("dearkd-Ti", "I", *WAYS[way])
        for net, run in (("DearKD-Ti", "dearkd-Ti"), ("DeiT-Ti", "deit-Ti")):
            yield "stage II", net, way, lambda way=way, run=run: work.learned(run, "II", *WAYS[way])
    for stage in ("stage II", "stage I, labels ahead"):
        yield (
            stage,
            "DearKD-Ti",
            "graph, sums in a fixed order",
            lambda stage=stage: work.in_fixed_order(*work.learned("dearkd-Ti", stage.split(",")[0][6:], False, True)),
        )
    for way in ("graph", "eager"):
        yield (
            "stage II, a batch of eight micro-batches",
            "DearKD-Ti",
            way,
            lambda way=way: work.learned("dearkd-Ti", "II", *WAYS[way], groups=8 if ON_GPU else 2),
        )
    for part in ("teacher", "aligner"):
        for way in work.PARTS[part]:
            yield f"stage I, {part} alone", "RegNetY-16GF", way, lambda part=part, way=way: work.part(part, way)
    for way in ("eager", "graph", "compiled"):
        yield "synthesis", "ResNet-101, 8 x 42", way, lambda way=way: work.inversion(way)
    for way in ("compiled, graph", "eager"):
        yield (
            "stage II",
            "DearKD-Ti, fold (dropout of queries)",
            way,
            lambda way=way: work.learned("dearkd-Ti", "II", *WAYS[way], rpe=QUERY),
        )
    for net in ("none", "dense", "folded", "flex, bias frozen", "flex"):
        yield "attention, forward and backward", net, "alone", lambda net=net: work.attention(net)
    yield "LPIPS", "AlexNet, 224 pixels", "eager", work.lpips_pairs
    for kind in ("loader", "device"):
        yield "micro-batches from pinned memory", f"finish: {kind}", "ahead", lambda kind=kind: work.arrival(kind)
    for size in ("S", "B"):
        for net, run in ((f"DearKD-{size}", f"dearkd-{size}"), (f"DeiT-{size}", f"deit-{size}")):
            yield "stage II", net, "compiled", lambda run=run: work.learned(run, "II", True, False)
    yield (
        "stage I, teacher asked",
        "DearKD-Ti",
        "compiled, graph",
        lambda: work.learned("dearkd-Ti", "I", True, True, False),
    )
    yield "synthesis", "ResNet-101, 8 x 42", "plain loop", work.plain_inversion
    for size in ("S", "B"):
        for net, run in ((f"DearKD-{size}", f"dearkd-{size}"), (f"DeiT-{size}", f"deit-{size}")):
            yield "stage II", net, "eager", lambda run=run: work.learned(run, "II", False, False)


def card() -> str:
    return torch.cuda.get_device_name() if ON_GPU else "cpu"


def measure(build: Callable[[], tuple[Step, int]]) -> dict[str, Any]:
    """images/s (median of five spans), seconds until the first step was done, and memory; or the error, in a line."""
    began = time.monotonic()
    torch.compiler.reset()  # what another network has compiled would make shapes dynamic, and slow
    gc.collect()  # a learner and its graphs hold each other, and gigabytes
    try:
        if ON_GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        step, images = build()
        step()
        wait()
        ready = time.monotonic() - began
        for _ in range(4 if ON_GPU else 0):
            step()
        count = repeats(step)
        spans = sorted(span(step, count) for _ in range(5 if ON_GPU else 1))
        peak = torch.cuda.max_memory_allocated() / 1e6 if ON_GPU else 0.0
        each = spans[len(spans) // 2] / count
        return {
            "images_per_s": round(images / each, 1),
            "ms": round(1000 * each, 3),
            "spread": round((spans[-1] - spans[0]) / spans[len(spans) // 2], 3),
            "peak_mb": round(peak),
            "first_step_s": round(ready, 1),
        }
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


def repeats(step: Step) -> int:
    """Steps that take a fifth of a second or so."""
    return max(1, min(100, round(0.2 / span(step, 1)))) if ON_GPU else 1


def span(step: Step, count: int) -> float:
    wait()
    began = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return time.perf_counter() - began


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
