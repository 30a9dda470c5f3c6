"""An iteration of DeepInversion: ours against NVlabs' loop on the same network, images and terms.

Given a checkout (`git clone https://github.com/NVlabs/DeepInversion`, `--deepinversion PATH`), the peer's statistics
and image prior are theirs; otherwise the same written plainly. Their loop needs a GPU, so its iteration is copied here:
the network's weights take gradients, which are not used, and the best images are kept.
Both sides start from the same images; their losses are compared before anything is timed.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Result, in_turns, peak_mb, ratio
from dearkd.jobs.inversion import Inversion
from dearkd.model.teachers import TeacherNetwork
from dearkd.plan import stage
from dearkd.plan.stage import Data, Phase, Source, Synthesis
from dearkd.plan.synthesis import terms

NET, SIDE, CLASSES, PER_CLASS = "resnet50", 112, 2, 4
BATCH = CLASSES * PER_CLASS
ROUNDS = 7


def run(options: argparse.Namespace) -> list[Result]:
    torch.manual_seed(0)
    memory = peak_mb(lambda: _ours(_network())()), peak_mb(lambda: _peer(_network(), options.deepinversion)())
    ours, peer = _ours(_network()), _peer(_network(), options.deepinversion)
    for mine, theirs in zip(ours(), peer(), strict=True):
        if abs(mine - theirs) > 1e-4 * abs(theirs) + 1e-5:  # ours are rounded to five digits
            raise RuntimeError(f"the losses differ before anything is timed: {mine} and {theirs}")
    mine, theirs = in_turns(ours, peer, ROUNDS)
    middle, low, high = ratio(mine, theirs, "speed")
    common = {"setting": f"{NET}, {SIDE} pixels, batch {BATCH}", "peer_name": "NVlabs' loop"}
    return [
        Result(
            name="synthesis, DeepInversion",
            kind="speed",
            ratio=middle,
            low=low,
            high=high,
            bound="at least",
            target=1.5,
            ours=BATCH / float(np.median(mine)),
            peer=BATCH / float(np.median(theirs)),
            unit="images x iterations/s",
            ours_peak_mb=memory[0],
            peer_peak_mb=memory[1],
            **common,
        ),
        Result(
            name="synthesis, memory",
            kind="memory",
            ratio=memory[0] / memory[1],
            low=memory[0] / memory[1],
            high=memory[0] / memory[1],
            bound="at most",
            target=1.0,
            ours=memory[0],
            peer=memory[1],
            unit="MB",
            **common,
        ),
    ]


def _network() -> nn.Module:
    """Random weights whose running statistics are those of a little noise, so that R_BN has a sane size."""
    torch.manual_seed(0)
    net = timm.create_model(NET, pretrained=False).train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(BATCH, 3, SIDE, SIDE))
    return net.eval()


def _recipe() -> Synthesis:
    return Synthesis(
        images=BATCH,
        batch_classes=CLASSES,
        per_class=PER_CLASS,
        together=1,
        phases=(Phase(size=SIDE, iterations=1000, lr=0.1),),
        jitter=0,
        flip=0.0,
        keep="best",
    )


def _ours(net: nn.Module) -> Callable[[], list[float]]:
    """`Inversion.advance`; the work returns the terms of its first iteration."""
    recipe, data = _recipe(), Data(kind="folder", classes=1000, image_size=SIDE)
    teacher = stage.Teacher(model=NET, top1=0.0)
    source = Source(
        name="deepinversion",
        terms=terms(recipe, "deepinversion"),
        recipe=recipe,
        data=data,
        teacher_name="main",
        teacher=teacher,
    )
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)[None]
    built = TeacherNetwork(net.to(memory_format=torch.channels_last))
    inversion = Inversion(source, 0, [0], labels, built)

    def work() -> list[float]:
        inversion.advance()
        return [inversion.first[name][0] for name in ("ce", "tv", "l2", "r_bn")]

    return work


def _peer(net: nn.Module, checkout: Path | None) -> Callable[[], list[float]]:
    """NVlabs' iteration; the work returns the weighted terms of the images it was given."""
    recipe, data = _recipe(), Data(kind="folder", classes=1000, image_size=SIDE)
    hook, prior = _theirs(checkout) if checkout else (_Hook, _total_variation)
    layers = [hook(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    start = Inversion(
        Source(
            name="start",
            terms=(),
            recipe=recipe,
            data=data,
            teacher_name="",
            teacher=stage.Teacher(model=NET, top1=0.0),
        ),
        0,
        [0],
        torch.zeros(1, BATCH, dtype=torch.long),
        TeacherNetwork(timm.create_model("test_resnet")),
    )
    images = start.images.detach()[0].clone().requires_grad_(True)
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    optimiser = torch.optim.Adam([images], lr=0.1 / recipe.warmup, betas=recipe.betas, eps=1e-8)
    low, high = start.low, start.high
    best: list[Tensor] = []

    def work() -> list[float]:
        optimiser.zero_grad()
        net.zero_grad()
        ce = F.cross_entropy(net(images), labels)
        tv, l2 = prior(images)[1], torch.norm(images.view(BATCH, -1), dim=1).mean()
        r_bn = sum(layer.r_feature * (recipe.first_bn if i == 0 else 1.0) for i, layer in enumerate(layers))
        parts = [recipe.ce * ce, recipe.tv * tv, recipe.l2 * l2, recipe.r_bn * r_bn]
        loss = sum(parts)
        loss.backward()
        optimiser.step()
        images.data = torch.max(torch.min(images.data, high), low)
        loss.item()
        best[:] = [images.data.clone()]
        return [part.item() for part in parts]

    return work


def _theirs(checkout: Path) -> tuple[Callable, Callable]:
    """NVlabs' hook and image prior, from a checkout."""
    sys.path.insert(0, str(checkout))
    found = importlib.util.spec_from_file_location("their_deepinversion", checkout / "deepinversion.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.DeepInversionFeatureHook, module.get_image_prior_losses


class _Hook:
    """Distance of a BatchNorm layer's input to its running statistics."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        layer.register_forward_hook(self.look)

    def look(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        x = inputs[0]
        flat = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1)
        variance, mean = flat.var(1, unbiased=False), x.mean([0, 2, 3])
        self.r_feature = torch.norm(layer.running_var - variance, 2) + torch.norm(layer.running_mean - mean, 2)


def _total_variation(images: Tensor) -> tuple[None, Tensor]:
    right = images[:, :, :, :-1] - images[:, :, :, 1:]
    down = images[:, :, :-1, :] - images[:, :, 1:, :]
    one, other = (
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
    )
    return None, sum(torch.norm(d) for d in (right, down, one, other))
