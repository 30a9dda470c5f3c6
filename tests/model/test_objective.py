"""Losses by hand, and the first step against DeiT's published criterion."""

import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
from conftest import pattern
from timm.data.mixup import Mixup

from dearkd.errors import InputError
from dearkd.model.losses import class_loss, hidden_loss, logit_loss
from dearkd.model.objective import TERMS, FeatureScale, mean_squares, objective
from dearkd.model.teachers import FeatureShape, Seen, TeacherNetwork
from dearkd.model.trainee import Trainee
from dearkd.plan import experiments
from dearkd.plan.stage import LOSSES, Distillation

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_classes": 5}


def mixed_batch():
    """Six 32 x 32 images after timm's mixup or cutmix with numpy seed 3, smoothing 0.1, five classes."""
    wave = torch.arange(3 * 32 * 32, dtype=torch.float64)
    images = (
        torch.stack([(i + 1) / 3 * torch.sin(wave * 0.011 * (3 * i + 1)) for i in range(6)]).view(6, 3, 32, 32).float()
    )
    np.random.seed(3)
    return Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=5)(
        images, torch.tensor([0, 1, 2, 3, 4, 1])
    )


class LinearTeacher(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5, bias=False))

    def forward(self, images):
        return self.layers(images)


def test_first_step_of_deit_distilled_equals_deits_criterion():
    """Golden value from DeiT's losses.DistillationLoss (hard, alpha 0.5) with timm's SoftTargetCrossEntropy."""
    images, targets = mixed_batch()
    net = LinearTeacher()
    pattern(net.layers)
    seen = TeacherNetwork(net)(images)
    assert seen.decisions.tolist() == [3, 0, 0, 0, 0, 3]
    student = pattern(timm.create_model("deit_tiny_distilled_patch16_224", num_heads=3, **SMALL)).train()
    parts = objective({"ce": 0.5, "token": 0.5}, Trainee(student, ("ce", "token"))(images), targets, seen)
    assert parts["loss"].item() == pytest.approx(3.3758790493011475, abs=1e-6)


def test_first_step_of_deit_equals_deits_criterion():
    images, targets = mixed_batch()
    student = pattern(timm.create_model("deit_tiny_patch16_224", num_heads=3, **SMALL)).train()
    parts = objective({"ce": 1.0}, Trainee(student)(images), targets, None)
    assert parts["loss"].item() == pytest.approx(2.746206283569336, abs=1e-6)


def test_stage_one_of_dearkd_is_equation_6():
    """alpha CE + (1 - alpha) CE with the decision + beta MSE, each from its definition."""
    images, targets = mixed_batch()
    student = pattern(
        timm.create_model("dearkd_tiny_patch16_224", num_heads=4, n_mhca=1, rpe={"drop": 0.0}, **SMALL)
    ).train()
    trainee = Trainee(
        student, ("ce", "logit", "hidden"), Distillation(pairs=((1, 0),)), (FeatureShape(6, (8, 8), True),)
    )
    pattern(trainee.auxiliary)
    feature = torch.rand(6, 6, 8, 8)
    seen = Seen(torch.tensor([3, 0, 0, 0, 0, 3]), (feature,))
    out = trainee(images)
    parts = objective({"ce": 0.3, "logit": 0.7, "hidden": 2.0}, out, targets, seen, FeatureScale("none", 1))
    ce = -(targets * out.logits.log_softmax(1)).sum(1).mean()
    logit = -out.taught.log_softmax(1)[range(6), seen.decisions].mean()
    hidden = (out.hidden[0] - feature).square().mean()
    assert parts["loss"].item() == pytest.approx((0.3 * ce + 0.7 * logit + 2.0 * hidden).item(), abs=1e-6)
    assert set(parts) == {"loss", "ce", "logit", "hidden"}


def test_class_loss_by_hand():
    """Two classes, logits (0, log 3): probabilities 1/4 and 3/4; targets (0.5, 0.5)."""
    expected = -0.5 * math.log(0.25) - 0.5 * math.log(0.75)
    assert class_loss(torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.5, 0.5]])).item() == pytest.approx(expected)


def test_logit_loss_by_hand_and_without_smoothing():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert logit_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2)


def test_hidden_loss_by_hand_zero_when_equal_and_strict_about_shape():
    aligned = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    assert hidden_loss(aligned, torch.zeros(1, 2, 1, 1)).item() == pytest.approx(5.0)
    assert hidden_loss(aligned, aligned).item() == 0
    with pytest.raises(Exception, match=r"shape|width"):
        hidden_loss(torch.zeros(2, 5, 6, 6), torch.zeros(2, 5, 6, 1))


def test_gradient_reaches_the_student_only():
    images, targets = mixed_batch()
    teacher = TeacherNetwork(
        pattern(timm.create_model("convnet_micro", widths=(8, 16, 16), num_classes=5)), stages=(0,)
    )
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student = timm.create_model("dearkd_tiny_patch16_224", num_heads=4, n_mhca=1, **SMALL)
    trainee = Trainee(
        student, ("ce", "logit", "hidden"), Distillation(pairs=((1, 0),)), (FeatureShape(8, (32, 32), True),)
    )
    seen = teacher.train()(images)
    scale = FeatureScale("rms", 1)
    scale.update(mean_squares(seen.features))
    objective({"ce": 0.5, "logit": 0.5, "hidden": 1.0}, trainee(images), targets, seen, scale)["loss"].backward()
    assert all(p.grad is not None for p in trainee.parameters())
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.net.training
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items()), "BatchNorm statistics do not move"


def test_rms_makes_predicting_zero_cost_one():
    scale = FeatureScale("rms", 1)
    feature = 7.0 * torch.randn(4, 3, 5, 5)
    squares = mean_squares((feature,))
    scale.update(squares)
    (normalised,) = scale.normalise((feature,))
    assert normalised.square().mean().item() == pytest.approx(1.0, abs=1e-5)
    scale.update(4 * squares)
    assert scale.mean_square.item() == pytest.approx(squares.item() * 1.03, rel=1e-5)


def test_ln_normalises_channels_at_each_position():
    (normalised,) = FeatureScale("ln", 1).normalise((5 + 3 * torch.randn(2, 64, 3, 3),))
    assert normalised.mean(1).abs().max() < 1e-5
    assert torch.allclose(normalised.var(1, unbiased=False), torch.ones(2, 3, 3), atol=1e-3)


def test_the_losses_of_the_plan_are_those_that_have_a_function():
    assert set(TERMS) == set(LOSSES)


def test_a_loss_of_another_name_is_refused_with_the_nearest():
    stage = experiments.load("digits").runs["dearkd-Ti"].stages[0]
    with pytest.raises(InputError, match="stage I: unknown loss 'lgoit'; did you mean 'logit'"):
        dataclasses.replace(stage, losses=(("ce", 0.5), ("lgoit", 1.0)))


def test_losses_need_what_they_compare_with():
    run = experiments.load("digits").runs["dearkd-Ti"]
    for change, message in (({"teacher": None}, "logit needs a teacher"), ({"distillation": None}, "a Distillation")):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], **change),))
    with pytest.raises(InputError, match="give each its own name"):
        dataclasses.replace(run, stages=run.stages[:1] * 2)
    with pytest.raises(InputError, match=r"distillation\.pairs names block 4, but the student has blocks 1 to 3"):
        knobs = dataclasses.replace(run.stages[0].distillation, pairs=((4, 1),))
        dataclasses.replace(run.stages[0], distillation=knobs)
