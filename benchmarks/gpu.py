"""python -m benchmarks.gpu: what one GPU does, in images/s and memory, one line of JSON a measurement as it is made.

Training at 224 pixels in bf16: students launched kernel by kernel (eager), compiled block by block, and replayed from a
CUDA graph; MHCA with its dense bias, folded, and by FlexAttention; stage I with RegNetY-16GF and labels computed ahead;
synthesis with ResNet-101; LPIPS. Weights and images are random, which costs as much as real ones. Measurements stand in
the order of their worth: where `--seconds` run out, the last ones are missing. On a CPU it rehearses at a tiny size.
"""

import argparse
import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dearkd.jobs import diversity
from dearkd.jobs.inversion import Inversion
from dearkd.model import networks
from dearkd.model.attention import MHCA
from dearkd.model.losses import class_loss
from dearkd.model.objective import FeatureScale, mean_squares, objective
from dearkd.model.teachers import FeatureShape, Seen, Teacher
from dearkd.model.trainee import Trainee
from dearkd.plan import stage
from dearkd.plan.scale import Diversity
from dearkd.plan.stage import Data, Distillation, Model, Phase, Rpe, Source, Synthesis, Training
from dearkd.plan.synthesis import terms
from dearkd.train import optimise
from dearkd.train.meters import Meters

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SIDE, BATCH, CLASSES = (224, 256, 1000) if ON_GPU else (64, 4, 10)
BACKEND = "inductor" if ON_GPU else "eager"
HALF = torch.bfloat16 if ON_GPU else torch.float32
Step = Callable[[], object]
Case = tuple[dict[str, Any], Callable[[], tuple[Step, int]]]
"""(what names a measurement, a function that returns a step and how many images it takes)."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.jsonl"))
    parser.add_argument("--seconds", type=float, default=240.0, help="no measurement starts after so many")
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    began = time.monotonic()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("a") as file:
        for names, build in cases():
            left = given.seconds - (time.monotonic() - began)
            found = measure(build) if left > 0 else {"error": "no time left"}
            line = {"card": card(), "torch": torch.__version__, **names, **found}
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(" ".join(f"{k}={v}" for k, v in {**names, **found}.items()), flush=True)


def card() -> str:
    return torch.cuda.get_device_name() if ON_GPU else "cpu"


def measure(build: Callable[[], tuple[Step, int]]) -> dict[str, Any]:
    """images/s (median of five spans), seconds until the first step was done, and memory; or the error, in a line."""
    began = time.monotonic()
    torch.compiler.reset()  # what another network has compiled would make shapes dynamic, and slow
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


def half() -> contextlib.AbstractContextManager:
    return torch.autocast(DEVICE.type, HALF, enabled=ON_GPU)


# ------------------------------------------------------------------------------------------------ what is measured


def cases() -> Iterator[Case]:
    """All measurements, the most telling first."""
    drop = {"drop": 0.1}
    fold = {"drop": 0.1, "drop_mode": "query"}
    yield {"what": "stage II", "net": "DearKD-Ti", "way": "compiled"}, lambda: student("tiny", drop, "compiled")
    yield {"what": "stage II", "net": "DeiT-Ti", "way": "compiled"}, lambda: student("deit_tiny", None, "compiled")
    yield {"what": "stage II", "net": "DearKD-Ti", "way": "eager"}, lambda: student("tiny", drop, "eager")
    yield {"what": "stage II", "net": "DeiT-Ti", "way": "eager"}, lambda: student("deit_tiny", None, "eager")
    for way in ("eager", "compiled"):
        yield (
            {"what": "stage II", "net": "DearKD-Ti, fold (dropout of queries)", "way": way},
            lambda way=way: student("tiny", fold, way),
        )
    for precision in ("fp32", "bf16"):
        for way in ("eager", "graph"):
            yield (
                {"what": f"small student, 49 tokens, {precision}", "net": "DearKD", "way": way},
                lambda way=way, precision=precision: small(way, precision),
            )
    yield {"what": "stage I, labels ahead", "net": "DearKD-Ti", "way": "eager"}, lambda: stage_one("eager", True)
    yield {"what": "stage I, labels ahead", "net": "DearKD-Ti", "way": "compiled"}, lambda: stage_one("compiled", True)
    yield (
        {"what": "stage I, teacher asked", "net": "DearKD-Ti", "way": "compiled"},
        lambda: stage_one("compiled", False),
    )
    yield {"what": "synthesis", "net": "ResNet-101, 8 x 42", "way": "plain loop"}, lambda: plain_inversion()
    yield {"what": "synthesis", "net": "ResNet-101, 8 x 42", "way": "eager"}, lambda: inversion("eager")
    yield {"what": "synthesis", "net": "ResNet-101, 8 x 42", "way": "compiled"}, lambda: inversion("compiled")
    yield {"what": "attention, forward and backward", "net": "dense", "way": "eager"}, lambda: attention("dense")
    yield {"what": "attention, forward and backward", "net": "folded", "way": "eager"}, lambda: attention("folded")
    yield {"what": "attention, forward and backward", "net": "none", "way": "eager"}, lambda: attention("none")
    yield {"what": "attention, forward and backward", "net": "flex", "way": "compiled"}, lambda: attention("flex")
    for size in ("small", "base"):
        yield (
            {"what": "stage II", "net": f"DeiT-{size}", "way": "compiled"},
            lambda size=size: student(f"deit_{size}", None, "compiled"),
        )
        yield (
            {"what": "stage II", "net": f"DearKD-{size}", "way": "compiled"},
            lambda size=size: student(size, drop, "compiled"),
        )
    yield {"what": "LPIPS", "net": "AlexNet, 224 pixels", "way": "eager"}, lpips_pairs
    for size in ("small", "base"):
        yield (
            {"what": "stage II", "net": f"DeiT-{size}", "way": "eager"},
            lambda size=size: student(f"deit_{size}", None, "eager"),
        )


def build(name: str, rpe: dict[str, Any] | None, **more: Any) -> nn.Module:
    """A student in training mode on the device; `rpe`: knobs of a DearKD, None for a DeiT."""
    args = {"img_size": SIDE, "num_classes": CLASSES, **more} | ({"rpe": tuple(rpe.items())} if rpe is not None else {})
    full = f"{name if rpe is None else 'dearkd_' + name}_patch16_224"
    return networks.create(Model(name=full, args=tuple(sorted(args.items()))), seed=0).to(DEVICE).train()


def compile_blocks(net: nn.Module) -> None:
    for block in net.blocks:
        block.compile(backend=BACKEND, dynamic=False)


def batch(count: int = BATCH) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 3, SIDE, SIDE, device=DEVICE)
    return images, torch.rand(count, CLASSES, device=DEVICE).softmax(1)


def student(name: str, rpe: dict[str, Any] | None, way: str) -> tuple[Step, int]:
    """A step on labels alone: forward, backward, fused AdamW."""
    net = build(name, rpe)
    if way == "compiled":
        compile_blocks(net)
    images, targets = batch()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        with half():
            loss = class_loss(net(images), targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step, len(images)


def stage_one(way: str, ahead: bool) -> tuple[Step, int]:
    """The loop's step of stage I; `ahead`: the teacher's decisions are known, so only its early stages run."""
    losses, knobs = {"ce": 0.5, "logit": 0.5, "hidden": 1.0}, Distillation()
    net = timm.create_model("regnety_160" if ON_GPU else "regnety_002", num_classes=CLASSES).to(DEVICE)
    teacher = Teacher(net.to(memory_format=torch.channels_last), (2,)).fold()
    images, targets = batch()
    features = [FeatureShape(f.shape[1], tuple(f.shape[2:]), True) for f in teacher.features(images[:2])]
    trainee = Trainee(build("tiny", {"drop": 0.1}), tuple(losses), knobs, tuple(features)).to(DEVICE).train()
    if way == "compiled":
        compile_blocks(trainee.student)
        for part in (net.stem, net.s1, net.s2) if ahead else (net,):
            part.compile(backend=BACKEND, dynamic=False)
    optimiser, scale = optimise.optimiser(trainee, Training()), FeatureScale("rms", 1).to(DEVICE)
    decisions = torch.zeros(len(images), dtype=torch.long, device=DEVICE)
    meters = Meters(("loss", *losses), DEVICE)

    def step() -> None:
        with half():
            channels_last = images.contiguous(memory_format=torch.channels_last)
            seen = Seen(decisions, teacher.features(channels_last)) if ahead else teacher(channels_last)
            scale.update(mean_squares(seen.features))
            parts = objective(losses, trainee(images), targets, seen, scale)
        parts["loss"].backward()
        meters.add(parts, 1)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step, len(images)


def small(way: str, precision: str) -> tuple[Step, int]:
    """A student of 28 x 28 pixels, as the scale `fashion` trains, its kernels launched singly or as a graph."""
    from dearkd.train.replay import Replayed

    args = {"img_size": 28, "in_chans": 1, "num_classes": 10, "patch_size": 4, "embed_dim": 72, "depth": 6}
    args |= {"num_heads": 9, "n_mhca": 4, "rpe": (("drop", 0.1),)}
    net = networks.create(Model(name="dearkd_tiny_patch16_224", args=tuple(sorted(args.items()))), 0).to(DEVICE).train()
    images = torch.randn(BATCH, 1, 28, 28, device=DEVICE)
    targets = torch.rand(BATCH, 10, device=DEVICE).softmax(1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True, capturable=ON_GPU)

    def work(images: Tensor, targets: Tensor) -> None:
        with torch.autocast(DEVICE.type, HALF, enabled=ON_GPU and precision == "bf16"):
            loss = class_loss(net(images), targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    if way == "graph" and ON_GPU:
        replayed = Replayed(work)
        return lambda: replayed(0, images, targets), BATCH
    return lambda: work(images, targets), BATCH


def _inverted() -> nn.Module:
    net = timm.create_model("resnet101" if ON_GPU else "resnet18", num_classes=CLASSES).to(DEVICE).train()
    with torch.no_grad(), half():
        for _ in range(3):
            net(torch.randn(16, 3, SIDE, SIDE, device=DEVICE))
    return net.eval()


def inversion(way: str) -> tuple[Step, int]:
    """`inversion.Inversion.advance`, eight batches of 42 in one forward pass."""
    together = 8 if ON_GPU else 2
    recipe = Synthesis(
        images=42 * together, phases=(Phase(size=SIDE, iterations=100_000, lr=0.1),), together=together, jitter=30
    )
    net = _inverted()
    source = Source(
        name="deepinversion",
        terms=terms(recipe, "deepinversion"),
        recipe=recipe,
        data=Data(kind="folder", classes=CLASSES, image_size=SIDE),
        teacher_name="main",
        teacher=stage.Teacher(model="resnet101", top1=0.0),
    )
    labels = torch.arange(6).repeat_interleave(7).expand(together, -1)
    run = Inversion(source, 0, range(together), labels, Teacher(net), None, DEVICE)
    if way == "compiled":
        net.compile(backend=BACKEND, dynamic=False)
    return run.advance, 42 * together


def plain_inversion() -> tuple[Step, int]:
    """DeepInversion's loop written plainly: one batch of 42 after the other, a hook on each BatchNorm."""
    net, found = _inverted(), []

    def hook(module: nn.Module, given: tuple[Tensor], _: Tensor) -> None:
        x = given[0].float()
        found.append(
            torch.norm(module.running_var - x.var([0, 2, 3], unbiased=False))
            + torch.norm(module.running_mean - x.mean([0, 2, 3]))
        )

    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(hook)
    together = 8 if ON_GPU else 2
    sets = [torch.randn(42, 3, SIDE, SIDE, device=DEVICE, requires_grad=True) for _ in range(together)]
    optimisers = [torch.optim.Adam([s], lr=0.1) for s in sets]
    labels = torch.arange(6, device=DEVICE).repeat_interleave(7)

    def step() -> None:
        for images, optimiser in zip(sets, optimisers, strict=True):
            found.clear()
            optimiser.zero_grad()
            with half():
                logits = net(torch.roll(images, (3, -2), (2, 3)))
            tv = (images[..., 1:] - images[..., :-1]).norm() + (images[..., 1:, :] - images[..., :-1, :]).norm()
            loss = nn.functional.cross_entropy(logits.float(), labels) + 1e-4 * tv + 0.05 * sum(found)
            loss.backward()
            optimiser.step()

    return step, 42 * together


def attention(way: str) -> tuple[Step, int]:
    """Attention alone: 12 heads of 16, 197 tokens in bf16, with a learned quadratic bias by `way`."""
    count, heads, tokens, dim = BATCH, 12, 197, 16
    layer = MHCA(heads * dim, heads, (14, 14), rpe=Rpe(path="dense" if way == "dense" else "folded", drop=0.0))
    layer = layer.to(DEVICE).train()
    q, k, v = (torch.randn(count, heads, tokens, dim, device=DEVICE, dtype=HALF, requires_grad=True) for _ in range(3))
    up = torch.randn_like(q)
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = layer.attend
    if way == "none":
        attend = torch.nn.functional.scaled_dot_product_attention
    if way == "flex":
        from torch.nn.attention.flex_attention import flex_attention

        place = torch.zeros(tokens, 2, device=DEVICE)
        place[1:] = layer.rpe.positions
        patch = torch.ones(tokens, device=DEVICE)
        patch[0] = 0
        alpha, delta = layer.rpe.alpha, layer.rpe.delta

        def biased(score: Tensor, _: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            y, x = place[j, 0] - place[i, 0], place[j, 1] - place[i, 1]
            apart = y * y + x * x - 2 * (delta[head, 0] * y + delta[head, 1] * x)
            return score - alpha[head] * apart * patch[i] * patch[j]

        compiled = torch.compile(flex_attention, backend=BACKEND, dynamic=False)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return compiled(q, k, v, score_mod=biased)

    def step() -> None:
        with half():
            out = attend(q, k, v)
        out.backward(up)
        for x in (q, k, v):
            x.grad = None
        layer.zero_grad(set_to_none=True)

    return step, count


def lpips_pairs() -> tuple[Step, int]:
    """LPIPS in fp32, with a random trunk, which costs as much as a trained one."""
    count = 64 if ON_GPU else 2
    lpips = diversity.Lpips(Diversity(trunk="random", size=SIDE)).to(DEVICE)
    first, second = (torch.rand(count, 3, SIDE, SIDE, device=DEVICE) for _ in range(2))
    return lambda: lpips(first, second), count


if __name__ == "__main__":
    main()
