"""What `benchmarks.gpu` measures: training at 224 pixels in bf16, its parts, synthesis, attention, LPIPS, copies.

Each function returns a step and how many images it takes. Steps of training are those of the loop, mixing included
(`train.loop.Learner`). Weights and images are random, which takes as long as real ones.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from dearkd.data.arrival import Finish, arriving
from dearkd.data.images import Images
from dearkd.data.order import Decisions, MicroBatch
from dearkd.jobs.inversion import Inversion
from dearkd.model import networks
from dearkd.model.aligner import Aligner
from dearkd.model.attention import MHCA
from dearkd.model.losses import class_loss, hidden_loss
from dearkd.model.resize import bilinear
from dearkd.model.teachers import FeatureShape, TeacherNetwork
from dearkd.plan import experiments, stage
from dearkd.plan.scale import Diversity
from dearkd.plan.stage import Augment, Data, Model, Phase, Rpe, Source, Synthesis
from dearkd.plan.synthesis import terms
from dearkd.train.compiled import compile_parts
from dearkd.train.inputs import Inputs
from dearkd.train.loop import Learner
from dearkd.train.processes import Processes
from dearkd.train.replay import Replayed

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SIDE, BATCH, CLASSES = (224, 256, 1000) if ON_GPU else (64, 4, 10)
BACKEND = "inductor" if ON_GPU else "eager"
HALF = torch.bfloat16 if ON_GPU else torch.float32
FIRST = MicroBatch(0, 0, 0, tuple(range(BATCH)), tuple(range(BATCH)))
LONG = 100_000
"""Steps of an epoch, so that the learning rate stays and a CUDA graph is captured once."""
PARTS = {
    "teacher": ("eager", "searched", "channels first", "compiled", "dense", "compiled, dense"),
    "aligner": ("eager", "interpolated", "compiled", "compiled, channels last"),
}
"""What stage I adds to a step, and the ways to measure it. dense: zeros between the groups of convolutions.
searched: cuDNN tries its algorithms, which a training does not ask for, because the fastest one differs from run to
run. interpolated: enlarged by PyTorch's interpolation and not by a product. channels last: enlarged tokens stay so."""
Step = Callable[[], object]


def half() -> contextlib.AbstractContextManager:
    return torch.autocast(DEVICE.type, HALF, enabled=ON_GPU)


def learned(
    run_name: str,
    stage_name: str,
    compiled: bool,
    graph: bool,
    ahead: bool = True,
    rpe: dict[str, Any] | None = None,
    groups: int = 1,
) -> tuple[Step, int]:
    """A step of a run of `imagenet`, `groups` micro-batches long; `ahead`: with the teacher's decisions known."""
    for root in ("IMAGENET", "TRANSFER"):
        os.environ.setdefault(root, "/")
    run = experiments.load("imagenet").runs[run_name]
    spec = run.stages[-1] if stage_name == "II" else run.stage(stage_name)
    args = {**dict(spec.model.args), "img_size": SIDE, "num_classes": CLASSES}
    args |= {"rpe": tuple(rpe.items())} if rpe else {}
    spec = dataclasses.replace(
        spec,
        model=dataclasses.replace(spec.model, args=tuple(sorted(args.items()))),
        data=dataclasses.replace(spec.data, classes=CLASSES, image_size=SIDE),
        training=dataclasses.replace(spec.training, batch=groups * BATCH, micro_batch=BATCH),
    )
    images = torch.randn(BATCH, 3, SIDE, SIDE, device=DEVICE)
    labels = torch.arange(BATCH, device=DEVICE) % CLASSES
    teacher = regnet() if spec.teacher else None
    inputs = Inputs(
        train=Images([str(i) for i in range(BATCH)], labels.cpu().numpy()),
        validation=Images([], np.zeros(0, np.int64)),
        draws=LONG * groups * BATCH,
        fingerprint="",
        teacher=teacher,
        features=_shapes(teacher, images) if teacher else (),
        decisions=Decisions({0: np.zeros((1, BATCH), np.uint16)}, 1) if ahead else None,
    )
    learner = Learner(spec, 0, inputs, Processes(DEVICE))
    if compiled:
        compile_parts(learner.state.trainee, learner.teacher, BACKEND)
    if not graph:
        learner.replayed = None
    return lambda: learner.step(groups * [(FIRST, images, labels)]), groups * BATCH


def in_fixed_order(step: Step, images: int) -> tuple[Step, int]:
    """A step as DEARKD_ARITHMETIC=deterministic takes it; `measure` ends it."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    return step, images


def regnet() -> TeacherNetwork:
    """RegNetY-16GF with random weights, as stage I asks it: folded, channels last, up to its second stage."""
    net = timm.create_model("regnety_160" if ON_GPU else "regnety_002", num_classes=CLASSES)
    return TeacherNetwork(net.to(DEVICE).to(memory_format=torch.channels_last), (2,)).fold()


def _shapes(teacher: TeacherNetwork, images: Tensor) -> tuple[FeatureShape, ...]:
    return tuple(FeatureShape(f.shape[1], tuple(f.shape[2:]), True) for f in teacher.features(images[:2]))


def part(name: str, way: str) -> tuple[Step, int]:
    """The teacher's early stages alone, or the aligner and its loss, forward and backward."""
    teacher, images = regnet(), torch.randn(BATCH, 3, SIDE, SIDE, device=DEVICE)
    if name == "aligner":
        return _aligned(way, _shapes(teacher, images)[0])
    torch.backends.cudnn.benchmark = way == "searched"
    if way == "channels first":
        teacher.to(memory_format=torch.contiguous_format)
    if "dense" in way:
        for block in [m for m in teacher.net.modules() if isinstance(getattr(m, "conv", None), nn.Conv2d)]:
            block.conv = _ungrouped(block.conv)
    if "compiled" in way:
        for child in teacher.net.children():
            child.compile(backend=BACKEND, dynamic=False)

    def step() -> None:
        with half():
            teacher.features(images)

    return step, BATCH


def _ungrouped(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution in one group, its weights 0 between the groups."""
    if conv.groups == 1:
        return conv
    whole = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    whole.weight.data.zero_()
    rows, columns = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    for i in range(conv.groups):
        own = slice(rows * i, rows * (i + 1))
        whole.weight.data[own, columns * i : columns * (i + 1)] = conv.weight.data[own].cpu()
    whole.bias.data.copy_(torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.data.cpu())
    return whole.requires_grad_(False).to(DEVICE, memory_format=torch.channels_last)


def _aligned(way: str, feature: FeatureShape) -> tuple[Step, int]:
    grid = (SIDE // 16, SIDE // 16)
    aligner = Aligner(192, grid, feature.channels, feature.size, True).to(DEVICE)
    if way == "interpolated":
        aligner._resize = lambda image: bilinear(image, aligner.size)
    if "channels last" in way:
        aligner._resize = lambda image: _tokens_enlarged(image, aligner.size)
    if "compiled" in way:
        aligner.compile(backend=BACKEND, dynamic=False)
    tokens = torch.randn(BATCH, grid[0] * grid[1], 192, device=DEVICE, requires_grad=True)
    seen = torch.rand(BATCH, feature.channels, *feature.size, device=DEVICE, dtype=HALF)

    def step() -> None:
        with half():
            loss = hidden_loss(aligner(tokens), seen.float() / 0.58)
        loss.backward()
        tokens.grad = None
        aligner.zero_grad(set_to_none=True)

    return step, BATCH


def _tokens_enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize.by_product` from the left, whose result is channels last, as the tokens are."""
    grid = maps.shape[2:]
    alone = torch.eye(grid.numel(), device=maps.device).unflatten(1, grid)[None]
    matrix = bilinear(alone, size)[0].flatten(1).T.to(maps.dtype)
    tokens = maps.flatten(2).transpose(1, 2)
    return torch.bmm(matrix.expand(len(maps), -1, -1), tokens).transpose(1, 2).unflatten(2, size)


def small(graph: bool, precision: str) -> tuple[Step, int]:
    """A student of 28 x 28 pixels, as the scale `fashion` trains, its kernels launched singly or as a graph."""
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

    return replayed(work, images, targets) if graph else lambda: work(images, targets), BATCH


def replayed(work: Callable[..., None], *tensors: Tensor) -> Step:
    """`work` as a CUDA graph, or as it is where there is none."""
    graph = Replayed(work)
    return lambda: graph(0, *tensors) if ON_GPU else work(*tensors)


def _inverted() -> nn.Module:
    net = timm.create_model("resnet101" if ON_GPU else "resnet18", num_classes=CLASSES).to(DEVICE).train()
    with torch.no_grad(), half():
        for _ in range(3):
            net(torch.randn(16, 3, SIDE, SIDE, device=DEVICE))
    return net.eval()


def inversion(way: str) -> tuple[Step, int]:
    """`inversion.Inversion.advance`, eight batches of 42 in one forward pass; as a graph, without its bookkeeping."""
    together = 8 if ON_GPU else 2
    phase = Phase(size=SIDE, iterations=LONG, lr=0.1)
    recipe = Synthesis(images=42 * together, phases=(phase,), together=together, jitter=30)
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
    run = Inversion(source, 0, range(together), labels, TeacherNetwork(net), None, DEVICE)
    if way == "compiled":
        net.compile(backend=BACKEND, dynamic=False)
    if way != "graph":
        return run.advance, 42 * together
    optimiser = torch.optim.Adam([run.images], lr=0.1, capturable=ON_GPU)

    def work() -> None:
        found = run._terms(phase)
        sum(weight * found[name] for name, weight in run.terms).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return replayed(work), 42 * together


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


def attention(net: str) -> tuple[Step, int]:
    """Attention alone, forward and backward: 12 heads of 16, 197 tokens in bf16, with a quadratic bias that learns."""
    heads, tokens, dim = 12, 197, 16
    path = net.partition(",")[0]
    layer = MHCA(heads * dim, heads, (14, 14), rpe=Rpe(path="auto" if path == "none" else path, drop=0.0))
    layer = layer.to(DEVICE).train().requires_grad_("frozen" not in net)
    q, k, v = (torch.randn(BATCH, heads, tokens, dim, device=DEVICE, dtype=HALF, requires_grad=True) for _ in range(3))
    up = torch.randn_like(q)
    attend = torch.nn.functional.scaled_dot_product_attention if net == "none" else layer.attend

    def step() -> None:
        with half():
            out = attend(q, k, v)
        out.backward(up)
        for x in (q, k, v):
            x.grad = None
        layer.zero_grad(set_to_none=True)

    return step, BATCH


def lpips_pairs() -> tuple[Step, int]:
    """LPIPS in fp32, with a random trunk, which takes as long as a trained one."""
    from dearkd.jobs import diversity  # the package lpips may be missing, which costs no other measurement

    count = 64 if ON_GPU else 2
    lpips = diversity.Lpips(Diversity(trunk="random", size=SIDE)).to(DEVICE)
    first, second = (torch.rand(count, 3, SIDE, SIDE, device=DEVICE) for _ in range(2))
    return lambda: lpips(first, second), count


def arrival(finish: str) -> tuple[Step, int]:
    """Micro-batches on their way from pinned memory: floats, or eight bits that the card normalises and erases."""
    data, augment = Data(kind="folder", classes=CLASSES, image_size=SIDE), Augment(finish=finish)
    pixels = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    pixels, labels = (pixels if finish == "device" else pixels.float()), torch.zeros(BATCH, dtype=torch.long)
    if ON_GPU:
        pixels, labels = pixels.pin_memory(), labels.pin_memory()
    loaded: Iterator[tuple[MicroBatch, Tensor, Tensor]] = itertools.repeat((FIRST, pixels, labels))
    arrived = arriving(loaded, DEVICE, Finish(data, augment, 0, DEVICE) if finish == "device" else None)
    return lambda: next(arrived), BATCH
