"""The students in timm: sizes, weights, decay, initial statistics, and what stage I adds without leaking it."""

import pytest
import timm
import torch

from dearkd.errors import InputError
from dearkd.model import networks, resize
from dearkd.model.aligner import Aligner
from dearkd.model.attention import MHCA
from dearkd.model.resize import by_product
from dearkd.model.teachers import FeatureShape
from dearkd.model.trainee import Trainee
from dearkd.plan.stage import Distillation, Model, Rpe, Training
from dearkd.train.optimise import optimiser

SMALL = {
    "img_size": 12,
    "patch_size": 3,
    "embed_dim": 36,
    "depth": 4,
    "num_heads": 9,
    "in_chans": 1,
    "num_classes": 10,
    "n_mhca": 3,
}


def small(**changes):
    return networks.create(
        Model(name="dearkd_tiny_patch16_224", args=tuple(sorted({**SMALL, **changes}.items()))), seed=0
    )


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("dearkd_tiny_patch16_224", 5_717_704),
        ("dearkd_small_patch16_224", 22_050_952),
        ("dearkd_base_patch16_224", 86_568_040),
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_base_patch16_224", 86_567_656),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
        ("deit_small_distilled_patch16_224", 22_436_432),
        ("deit_base_distilled_patch16_224", 87_338_192),
    ],
)
def test_parameters(name, parameters):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_eight_mhca_then_four_mhsa_blocks():
    model = timm.create_model("dearkd_tiny_patch16_224")
    assert [isinstance(b.attn, MHCA) for b in model.blocks] == [True] * 8 + [False] * 4
    assert {b.attn.num_heads for b in model.blocks} == {12}


def test_pooled_head_adds_193000_parameters_in_stage_one_only():
    student = timm.create_model("dearkd_tiny_patch16_224")
    trainee = Trainee(student, ("ce", "logit"), Distillation())
    assert sum(p.numel() for p in trainee.auxiliary.parameters()) == 193_000
    assert not [n for n in student.state_dict() if "pool" in n or "aligner" in n]


def test_aligner_size_and_zero_channels_pattern():
    """The paper's pair: 192 x 14 x 14 to RegNetY-16GF's 448 x 28 x 28, about 0.094 M parameters."""
    aligner = Aligner(192, (14, 14), 448, (28, 28), nonnegative=True)
    assert sum(p.numel() for p in aligner.parameters()) == pytest.approx(94_000, rel=0.02)
    out = aligner(torch.randn(2, 196, 192))
    assert out.shape == (2, 448, 28, 28) and out.min() >= 0
    assert Aligner(192, (14, 14), 8, (7, 7), False)(torch.randn(1, 196, 192)).shape == (1, 8, 7, 7)


@pytest.mark.parametrize("resize", [resize.bilinear, resize.average])
@pytest.mark.parametrize("grid, size", [((14, 14), (28, 28)), ((4, 3), (6, 9)), ((28, 28), (14, 14)), ((7, 5), (3, 4))])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_a_size_by_a_product_is_that_of_torch(grid, size, resize, dtype, bound):
    """What a GPU computes instead, for an order of sums that is always the same: outputs, gradients and their type."""
    maps = torch.randn(2, 5, *grid, dtype=dtype, requires_grad=True)
    up = torch.randn(2, 5, *size, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        outs = resize(maps, size), by_product(maps, size, resize)
    found = [(out, *torch.autograd.grad(out, maps, up)) for out in outs]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


def test_reshape_keeps_rows_and_columns():
    """A token's value lands where its patch stands: row 1, column 2 of a 3 x 4 grid is token 6."""
    aligner = Aligner(1, (3, 4), 1, (3, 4), False)
    seen = []
    aligner.mix.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    aligner(torch.arange(12.0).view(1, 12, 1))
    assert seen[0][0, 0, 1, 2] == 6


def test_deit_weights_in_timms_layout_load_unchanged_and_give_the_same_logits():
    """A file as timm publishes it loads strictly; DearKD with no MHCA block is that DeiT."""
    torch.manual_seed(0)
    published = timm.create_model("deit_tiny_patch16_224", num_classes=10).eval()
    ours = timm.create_model("dearkd_tiny_patch16_224", n_mhca=0, num_heads=3, num_classes=10).eval()
    ours.load_state_dict(published.state_dict(), strict=True)
    image = torch.randn(1, 3, 224, 224)
    assert torch.equal(ours(image), published(image))
    mixed = timm.create_model("dearkd_tiny_patch16_224", num_heads=3, num_classes=10)
    with pytest.warns(UserWarning, match="alpha and Delta of the 8 MHCA blocks keep their values"):
        mixed.load_state_dict(published.state_dict(), strict=True)
    assert torch.equal(mixed.blocks[0].attn.qkv.weight, published.blocks[0].attn.qkv.weight)


def test_alpha_and_delta_are_out_of_weight_decay_by_name():
    student = small()
    built = optimiser(Trainee(student), Training(weight_decay=0.05))
    names = {p: n for n, p in student.named_parameters()}
    decayed = {names[p] for g in built.param_groups if g["weight_decay"] for p in g["params"]}
    free = {names[p] for g in built.param_groups if not g["weight_decay"] for p in g["params"]}
    assert {n for n in free if ".rpe." in n} == {
        f"blocks.{i}.attn.rpe.{p}" for i in range(3) for p in ("alpha", "delta")
    }
    assert {"pos_embed", "cls_token", "norm.bias", "head.bias"} <= free
    assert "blocks.0.attn.qkv.weight" in decayed and len(decayed) + len(free) == len(names)
    knob = small(rpe={"weight_decay": True})
    groups = optimiser(Trainee(knob), Training()).param_groups
    assert any(p is knob.blocks[0].attn.rpe.delta for g in groups if g["weight_decay"] for p in g["params"])


def test_methods_with_one_seed_start_from_the_same_weights():
    dearkd, plain = small().state_dict(), small(n_mhca=0, num_heads=3).state_dict()
    assert all(torch.equal(dearkd[name], plain[name]) for name in plain)
    other = networks.create(
        Model(name="dearkd_tiny_patch16_224", args=tuple(sorted(SMALL.items()))), seed=1
    ).state_dict()
    assert not torch.equal(dearkd["head.weight"], other["head.weight"])


def test_initial_statistics_are_deits():
    model = networks.create(Model(name="deit_tiny_patch16_224"), seed=0)
    for name in ("blocks.3.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "head.weight", "pos_embed"):
        assert model.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.03), name
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not model.head.bias.any() and (model.norm.weight == 1).all() and model.norm.eps == 1e-6
    bound = 1 / (3 * 16 * 16) ** 0.5
    assert model.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_trainee_returns_class_token_pooled_tokens_and_hidden():
    student = small().eval()
    shape = FeatureShape(16, (6, 6), True)
    trainee = Trainee(student, ("ce", "logit", "hidden"), Distillation(pairs=((2, 1),)), (shape,)).eval()
    images = torch.randn(2, 1, 12, 12)
    out = trainee(images)
    assert torch.equal(out.logits, student(images))
    tokens = student.forward_features(images)
    assert torch.allclose(out.taught, trainee.auxiliary["pooled_head"](tokens[:, 1:].mean(1)))
    assert out.hidden[0].shape == (2, 16, 6, 6)
    shared = Trainee(student, ("ce", "logit"), Distillation(pooled_head="shared")).eval()
    assert torch.allclose(shared(images).taught, student.head(tokens[:, 1:].mean(1))) and not shared.auxiliary
    plain = Trainee(student).eval()(images)
    assert plain.taught is None and plain.hidden == ()


def test_before_norm_pools_the_residual_stream():
    student = small().eval()
    images = torch.randn(2, 1, 12, 12)
    trainee = Trainee(student, ("ce", "logit"), Distillation(pool_before_norm=True)).eval()
    stream = student.forward_intermediates(images, indices=[3], output_fmt="NLC", intermediates_only=True)[0]
    assert torch.allclose(trainee(images).taught, trainee.auxiliary["pooled_head"](stream.mean(1)))


def test_other_image_sizes():
    model = small().eval()
    model.set_input_size((15, 15))
    assert model.blocks[0].attn.rpe.grid == (5, 5)
    assert model(torch.randn(1, 1, 15, 15)).shape == (1, 10)
    with pytest.raises(InputError, match="set_input_size"):
        timm.create_model("dearkd_tiny_patch16_224", dynamic_img_size=True)


def test_intermediates_and_new_classifier():
    model = small()
    last, features = model.forward_intermediates(torch.randn(2, 1, 12, 12), indices=[0, 3])
    assert last.shape == (2, 17, 36) and [f.shape for f in features] == [(2, 36, 4, 4)] * 2
    model.reset_classifier(3)
    assert model(torch.randn(1, 1, 12, 12)).shape == (1, 3)


def test_value_identity():
    model = small(rpe={"value_identity": True})
    assert torch.equal(model.blocks[0].attn.qkv.weight[-36:], torch.eye(36))


@pytest.mark.parametrize(
    "args, message",
    [
        ({"n_mhca": 9}, "n_mhca is 9, but the model has 4 blocks; take 0 to 4"),
        ({"rpe": {"drp": 0.1}}, "did you mean 'drop'"),
        ({"num_heads": 7}, "divisible"),
    ],
)
def test_bad_arguments_name_the_model_and_the_key(args, message):
    with pytest.raises(InputError, match=message):
        small(**args)


def test_unknown_model():
    with pytest.raises(InputError, match="deit_tinny"):
        networks.create(Model(name="deit_tinny"), seed=0)


def test_rpe_spec_reaches_the_layers():
    model = small(rpe={"drop": 0.3, "init": "zero"})
    assert model.blocks[0].attn.rpe.knobs == Rpe(drop=0.3, init="zero") and not model.blocks[0].attn.rpe.delta.any()


def test_a_trainee_without_the_knobs_of_its_losses_is_refused():
    with pytest.raises(ValueError, match="the losses ce, logit need `knobs`"):
        Trainee(timm.create_model("dearkd_tiny_patch16_224", depth=1, n_mhca=1), ("ce", "logit"))
