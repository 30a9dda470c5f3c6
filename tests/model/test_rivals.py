"""Methods of other papers: each loss and module against its formula or an independent implementation."""

import dataclasses
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import pattern
from timm.loss import BinaryCrossEntropy
from timm.models import convit

from dearkd.errors import InputError
from dearkd.model.aligner import Pointwise
from dearkd.model.attention import MHCA
from dearkd.model.gated import GPSA
from dearkd.model.losses import binary_loss, guidance_loss, orthogonal_loss, soft_loss
from dearkd.model.objective import FeatureScale, objective
from dearkd.model.teachers import FeatureShape, Seen, TeacherNetwork
from dearkd.model.trainee import Trainee
from dearkd.plan import methods
from dearkd.plan.experiments import load_scale
from dearkd.plan.stage import Distillation, Rpe, Training
from dearkd.train import optimise
from dearkd.train.evaluate import attention_maps

SMALL = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_classes": 5}

# ------------------------------------------------------------------------------------------ losses


def test_soft_loss_by_hand():
    """Temperature 2, logits (0, 2 log 3) and (2 log 3, 0): student (1/4, 3/4), teacher (3/4, 1/4) at that temperature.

    KL = 3/4 log 3 + 1/4 log 1/3 = log(3) / 2; times 4. The second image agrees, and the mean halves it.
    """
    student = torch.tensor([[0.0, 2 * math.log(3)], [1.0, -1.0]])
    teacher = torch.tensor([[2 * math.log(3), 0.0], [1.0, -1.0]])
    assert soft_loss(student, teacher, 2.0).item() == pytest.approx(math.log(3))
    assert soft_loss(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-7)


def test_binary_loss_is_timms_with_the_threshold_of_deit_three():
    targets = torch.tensor([[0.7, 0.0, 0.3], [0.0, 1.0, 0.0]])
    logits = torch.tensor([[0.3, -2.0, 1.5], [4.0, 0.1, -0.2]])
    expected = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0)(logits, targets)
    assert binary_loss(logits, targets).item() == pytest.approx(expected.item())
    assert binary_loss(torch.zeros(1, 2), torch.tensor([[0.2, 0.0]])).item() == pytest.approx(math.log(2))


def test_binary_loss_refuses_smoothed_labels():
    (stage,) = methods.deit3(load_scale("digits"), "Ti")
    smooth = dataclasses.replace(stage.training.augment, smoothing=0.1)
    with pytest.raises(
        InputError, match="stage I: the loss bce takes every class with a label above 0 for right; set smoothing: 0"
    ):
        dataclasses.replace(stage, training=dataclasses.replace(stage.training, augment=smooth))


def test_guidance_loss_meets_at_the_larger_side():
    """Rows (0, 4) of one column against one row of columns (0, 4): bilinear doubling repeats, so (0 - 0)^2, (0 - 4)^2,
    (4 - 0)^2 and (4 - 4)^2."""
    rows, columns = torch.tensor([0.0, 4.0]).view(1, 1, 2, 1), torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    assert guidance_loss(rows, columns).item() == pytest.approx(8.0)
    small, large = torch.rand(2, 3, 2, 2), torch.rand(2, 3, 5, 5)
    expected = (F.interpolate(small, (5, 5), mode="bilinear") - large).square().mean()
    assert guidance_loss(small, large).item() == guidance_loss(large, small).item() == pytest.approx(expected.item())


def test_orthogonal_loss_by_hand():
    """A teacher's map with means (3, 1) is standardised to (1, -1); smooth L1 of (0.5, -3): 0.125 and 1.5."""
    feature = torch.tensor([[[2.0, 4.0]], [[0.0, 2.0]]])[None]
    projected = torch.tensor([0.5, -3.0]).view(1, 2, 1, 1)
    assert orthogonal_loss(projected, feature).item() == pytest.approx((0.125 + 1.5) / 2, abs=1e-4)


@pytest.mark.parametrize("dim, channels", [(8, 20), (8, 8), (20, 8)])
def test_the_projector_stays_orthogonal_while_it_learns(dim, channels):
    """Under the loop's own optimiser: its weight decay would turn the projector into 0."""
    student = timm.create_model("deit_tiny_patch16_224", **{**SMALL, "embed_dim": dim, "num_heads": 1})
    shape = FeatureShape(channels, (3, 3), True)
    trainee = Trainee(student, ("orthogonal",), Distillation(pairs=((3, -1),)), (shape,))
    project, tokens = trainee.auxiliary["aligner3"], torch.rand(4, 9, dim)
    optimiser = optimise.optimiser(trainee, Training(weight_decay=0.5, lr=0.1, lr_scaling="none"))
    before = project.project.weight.detach().clone()
    for _ in range(5):
        (project(tokens) - 1).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    weight = project.project.weight.detach()
    gram = weight.T @ weight if channels >= dim else weight @ weight.T
    assert torch.allclose(gram, torch.eye(min(dim, channels)), atol=1e-5) and (weight - before).abs().max() > 0.01
    assert torch.allclose(project(tokens).flatten(1), tokens.mean(1) @ weight.T, atol=1e-6)


def test_vkds_objective_is_its_authors():
    """CE on the class token + KL on the other at temperature 1 + smooth L1 of the projected mean token."""
    teacher = TeacherNetwork(pattern(timm.create_model("convnet_micro", widths=(8, 16, 16), num_classes=5)), (2,))
    student = pattern(timm.create_model("deit_tiny_distilled_patch16_224", num_heads=3, **SMALL)).eval()
    knobs = Distillation(kind="soft", temperature=1.0, pairs=((3, -1),), hidden_ln=True)
    losses = {"ce": 1.0, "soft_token": 1.0, "orthogonal": 1.0}
    images, targets = torch.rand(4, 3, 12, 12), torch.eye(5)[[0, 2, 4, 1]]
    trainee = Trainee(student, tuple(losses), knobs, (FeatureShape(16, (3, 3), True),))
    scale, seen = FeatureScale("none", 1), teacher(images)
    parts = objective(losses, trainee(images), targets, seen, scale, knobs)
    tokens = student.forward_features(images)
    ce = F.cross_entropy(student.head(tokens[:, 0]), targets)
    answer, taught = (x.softmax(1) for x in (teacher.net(images), student.head_dist(tokens[:, 1])))
    divergence = (answer * (answer / taught).log()).sum(1).mean()
    code = teacher.net.forward_features(images).mean((2, 3))
    code = (code - code.mean(1, keepdim=True)) / (code.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    weight = trainee.auxiliary["aligner3"].project.weight
    apart = (tokens[:, 2:].mean(1) @ weight.T - code).abs()
    smooth = torch.where(apart < 1, apart.square() / 2, apart - 0.5).mean()
    assert parts["loss"].item() == pytest.approx((ce + divergence + smooth).item(), rel=1e-5)
    assert parts["orthogonal"].item() == pytest.approx(smooth.item(), rel=1e-5)


def test_locality_guidance_sums_over_the_papers_blocks():
    """Blocks 0, 6 and 11 from 0, the last three stages, a point-wise convolution each and weight 2.5."""
    (stage,) = methods.locality_guidance(load_scale("imagenet"), "Ti")
    assert stage.pairs == ((1, -3), (7, -2), (12, -1)) and stage.losses == (("ce", 1.0), ("guidance", 2.5))
    student = pattern(timm.create_model("deit_tiny_patch16_224", num_heads=3, **SMALL)).eval()
    knobs = Distillation(pairs=((1, 1), (3, 2)))
    shapes = tuple(FeatureShape(c, (n, n), True) for c, n in ((6, 6), (10, 2)))
    trainee = Trainee(student, ("guidance",), knobs, shapes)
    images, features = torch.rand(2, 3, 12, 12), (torch.rand(2, 6, 6, 6), torch.rand(2, 10, 2, 2))
    seen = Seen(torch.zeros(2, dtype=torch.int64), features)
    assert [type(a) for a in trainee.auxiliary.values()] == [Pointwise, Pointwise]
    found = objective({"guidance": 1.0}, trainee(images), torch.eye(5)[:2], seen, FeatureScale("none", 2))["loss"]
    expected = 0.0
    x = student._pos_embed(student.patch_embed(images))
    for i, block in enumerate(student.blocks, 1):
        x = block(x)
        if i != 2:
            layer, feature = trainee.auxiliary[f"aligner{i}"].project, features[i // 3]
            ours = F.conv2d(x[:, 1:].mT.reshape(2, 24, 3, 3), layer.weight, layer.bias)
            side = max(3, feature.shape[-1])
            a, b = (F.interpolate(y, (side, side), mode="bilinear") for y in (ours, feature))
            expected += (a - b).square().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


# ------------------------------------------------------------------------------------------ students


def test_deit_threes_student_is_timms():
    """Same weights, same logits; LayerScale starts at 1e-4 and the class token has no position."""
    (stage,) = methods.deit3(load_scale("imagenet"), "S")
    assert stage.training.augment.auto == "3a" and not stage.training.augment.erasing
    given = {k: v for k, v in stage.model.args if k != "drop_path_rate"} | {"depth": 2, "num_classes": 7}
    ours = timm.create_model(stage.model.name, **given)
    assert all(torch.equal(p, torch.full((384,), 1e-4)) for n, p in ours.named_parameters() if "gamma" in n)
    theirs = pattern(timm.create_model("deit3_small_patch16_224", depth=2, num_classes=7))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(2, 3, 224, 224)
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-5)


def gated(prefix, drop=0.0):
    return pattern(GPSA(18, 9, (4, 4), prefix, Rpe(mix="gated", drop=drop)))


def test_gated_attention_is_convits():
    """timm's GPSA with the same weights, its bias of position being that of Eq. 2 but for a constant."""
    ours, theirs = gated(0), convit.GPSA(18, 9, qkv_bias=True)
    qkv = ours.qkv
    values = {
        "qk.weight": qkv.weight[:36],
        "qk.bias": qkv.bias[:36],
        "v.weight": qkv.weight[36:],
        "v.bias": qkv.bias[36:],
        "proj.weight": ours.proj.weight,
        "proj.bias": ours.proj.bias,
        "gating_param": ours.rpe.gate,
        "pos_proj.bias": torch.rand(9),
    }
    alpha, (rows, columns) = ours.rpe.alpha, ours.rpe.delta.T
    values["pos_proj.weight"] = torch.stack([2 * alpha * columns, 2 * alpha * rows, -alpha], 1)
    theirs.load_state_dict(values, strict=True)
    x = torch.randn(2, 16, 18)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert torch.allclose(ours.weights(*ours.project(x)[:2]), theirs.get_attention(x), atol=1e-6)


def test_convits_initialisation_is_timms():
    ours, theirs = GPSA(18, 9, (4, 4), 0, Rpe(mix="gated")), convit.GPSA(18, 9)
    theirs.local_init()
    alpha, (rows, columns) = ours.rpe.alpha, ours.rpe.delta.T
    found = torch.stack([2 * alpha * columns, 2 * alpha * rows, -alpha], 1)
    order = [3 * column + row for row in range(3) for column in range(3)]
    assert torch.allclose(found, theirs.pos_proj.weight[order]) and torch.equal(ours.rpe.gate, theirs.gating_param)


def test_the_class_token_has_no_place_in_gated_attention():
    """A closed gate is plain attention; an open one position alone; the class token attends by content."""
    x, attention = torch.randn(2, 17, 18), gated(1)
    plain = timm.layers.Attention(18, 9, qkv_bias=True)
    plain.load_state_dict({k: v for k, v in attention.state_dict().items() if "rpe" not in k})
    with torch.no_grad():
        attention.rpe.gate.fill_(-50)
        assert torch.allclose(attention(x), plain(x), atol=1e-5)
        content = attention.weights(*attention.project(x)[:2])
        attention.rpe.gate.fill_(50)
        opened = attention.weights(*attention.project(x)[:2])
    assert torch.allclose(opened[:, :, 0], content[:, :, 0]) and opened[:, :, 1:, 0].abs().max() < 1e-6
    assert torch.allclose(opened[:, :, 1:, 1:], attention.rpe.dense()[:, 1:, 1:].softmax(-1).expand(2, -1, -1, -1))
    assert torch.allclose(opened.sum(-1), torch.ones(2, 9, 17))


@pytest.mark.parametrize("mask", [{"attn_mask": torch.zeros(5, 5)}, {"is_causal": True}], ids=["mask", "causal"])
def test_gated_attention_refuses_a_mask(mask):
    gated = GPSA(36, 9, (2, 2), 1, Rpe(mix="gated"))
    assert gated(torch.randn(1, 5, 36)).shape == (1, 5, 36)
    with pytest.raises(InputError, match=r"rpe\.mix: gated takes no attention mask"):
        gated(torch.randn(1, 5, 36), **mask)


def test_gated_blocks_stand_in_the_place_of_mhca():
    rpe = {"mix": "gated", "drop": 0.0}
    net = timm.create_model("dearkd_tiny_patch16_224", num_heads=4, n_mhca=2, rpe=rpe, **SMALL)
    kinds = [type(block.attn) for block in net.blocks]
    assert kinds[:2] == [GPSA, GPSA] and kinds[2] is not MHCA
    assert {n for n in net.no_weight_decay() if "gate" in n} == {f"blocks.{i}.attn.rpe.gate" for i in (0, 1)}
    images = torch.rand(2, 3, 12, 12)
    first = next(attention_maps(net, images))
    block = net.blocks[0]
    x = block.norm1(net._pos_embed(net.patch_embed(images)))
    weights = block.attn.weights(*block.attn.project(x)[:2])[:, :, 1:, 1:]
    assert torch.allclose(first, weights / weights.sum(-1, keepdim=True), atol=1e-5)
    net(images).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with pytest.raises(InputError, match=r"path: folded cannot compute the two softmaxes"):
        Rpe(mix="gated", path="folded")
