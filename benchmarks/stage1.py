"""A step of stage I with RegNetY-16GF and DearKD-Ti at 224 pixels, against DeiT's way of distilling.

DeiT's step runs the whole teacher on every batch (`losses.DistillationLoss`, hard). Ours reads the decisions that a job
has computed ahead and runs only the teacher's early stages, for the hidden loss, which DeiT's step does not even have.
Given a checkout (`git clone https://github.com/facebookresearch/deit`, `--deit PATH`), the peer's loss is DeiT's own
class; otherwise it is the same written plainly. Weights are random, which costs as much as trained ones.
"""

import argparse
import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Result, in_turns, ratio
from dearkd.data.order import Decisions, MicroBatch
from dearkd.model import networks
from dearkd.model.objective import FeatureScale, mean_squares, objective
from dearkd.model.teachers import FeatureShape, Seen, TeacherNetwork
from dearkd.model.trainee import Trainee
from dearkd.plan.stage import Distillation, Model, Rpe, Training
from dearkd.train import optimise

BATCH, CLASSES, SIDE = 16, 1000, 224
"""Below 16 images one thread would take PyTorch's slow path for pointwise convolutions."""
STAGE = 2
"""Stage of the teacher: 448 channels at 28 x 28, the default pair of block 4."""
ROUNDS = 3


def run(options: argparse.Namespace) -> list[Result]:
    torch.manual_seed(0)
    net = timm.create_model("regnety_160", pretrained=False)
    images, truth = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))
    targets = F.one_hot(truth, CLASSES).float()
    peer_loss = _deit_loss(options.deit, net)
    deit = _step(_model("deit_tiny_distilled_patch16_224"), lambda out: peer_loss(images, out, targets), images)
    mhca = _model("dearkd_tiny_patch16_224", (("rpe", (("path", "dense"), ("drop", 0.1))),))
    pooled = Trainee(mhca, ("ce", "logit"), Distillation())
    same = _step(pooled, lambda out: peer_loss(images, (out.logits, out.taught), targets), images)
    full, logit = _ours(net, True, images, targets), _ours(net, False, images, targets)
    return [
        _result("stage I step, labels ahead", full, same, 2.0, "DeiT's distillation, DearKD-Ti"),
        _result("stage I step against DeiT's own student", full, deit, 1.0, "DeiT's distillation, DeiT-Ti distilled"),
        _result("logit loss alone, labels ahead", logit, same, 2.0, "DeiT's distillation, DearKD-Ti"),
    ]


def _result(name: str, ours: Callable, peer: Callable, target: float, peer_name: str) -> Result:
    mine, theirs = in_turns(ours, peer, ROUNDS)
    middle, low, high = ratio(mine, theirs, "speed")
    return Result(
        name=name,
        setting=f"RegNetY-16GF, DearKD-Ti, {SIDE} pixels, batch {BATCH}",
        kind="speed",
        ratio=middle,
        low=low,
        high=high,
        bound="at least",
        target=target,
        ours=BATCH / float(np.median(mine)),
        peer=BATCH / float(np.median(theirs)),
        unit="images/s",
        peer_name=peer_name,
    )


def _model(name: str, args: tuple = ()) -> nn.Module:
    return networks.create(Model(name=name, args=args), seed=0).train()


def _step(student: nn.Module, loss: Callable[..., Tensor], images: Tensor) -> Callable[[], None]:
    """DeiT's step: forward, loss with the teacher in it, backward, AdamW."""
    if hasattr(student, "set_distilled_training"):
        student.set_distilled_training()
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.05)

    def work() -> None:
        loss(student(images)).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return work


def _ours(net: nn.Module, hidden: bool, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """The loop's step, with decisions from a shard of labels."""
    losses = {"ce": 0.5, "logit": 0.5} | ({"hidden": 1.0} if hidden else {})
    knobs, student = Distillation(), _model("dearkd_tiny_patch16_224", (("rpe", (("drop", Rpe().drop),)),))
    early = copy.deepcopy(net).to(memory_format=torch.channels_last)  # as `teachers.build` has them at this size
    teacher = TeacherNetwork(early, (STAGE,) if hidden else ()).fold()
    features = [FeatureShape(f.shape[1], tuple(f.shape[2:]), True) for f in teacher.features(images)]
    trainee = Trainee(student, tuple(losses), knobs, tuple(features)).train()
    optimiser = optimise.optimiser(trainee, Training())
    scale = FeatureScale(knobs.hidden_norm, 1)
    decisions = Decisions({0: np.zeros((1, BATCH), dtype=np.uint16)}, 1)
    batch = MicroBatch(0, 0, 0, tuple(range(BATCH)), tuple(range(BATCH)))

    def work() -> None:
        seen = Seen(decisions.of(batch), teacher.features(images))
        if hidden:
            scale.update(mean_squares(seen.features))
        objective(losses, trainee(images), targets, seen, scale)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return work


def _deit_loss(checkout: Path | None, net: nn.Module) -> Callable[[Tensor, tuple[Tensor, Tensor], Tensor], Tensor]:
    """DeiT's hard distillation: half cross-entropy with the target, half with the whole teacher's decision."""
    net = net.eval()
    if checkout is not None:
        spec = importlib.util.spec_from_file_location("deit_losses", checkout / "losses.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.DistillationLoss(nn.CrossEntropyLoss(), net, "hard", 0.5, 1.0)

    def loss(images: Tensor, outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        with torch.no_grad():
            decisions = net(images).argmax(1)
        return 0.5 * F.cross_entropy(outputs[0], targets) + 0.5 * F.cross_entropy(outputs[1], decisions)

    return loss
