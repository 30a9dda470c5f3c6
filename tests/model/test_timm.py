"""What timm promises of a vision transformer, asked of DearKD: one test a promise, each with every kind of student.

After timm's own tests/test_models.py; what cannot work is refused by name.
"""

import copy
import math
import warnings

import pytest
import timm
import timm.optim
import torch
from timm.models import FeatureInfo, group_parameters
from timm.utils import AttentionExtract
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import dearkd.models  # noqa: F401  registers the students
from dearkd.errors import InputError
from dearkd.model.attention import MHCA
from dearkd.train.evaluate import attention_maps

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 4, "n_mhca": 2, "num_classes": 10}
KINDS = {
    "as it is": {},
    "qk_norm": {"qk_norm": True},
    "scale_attn_norm": {"scale_attn_norm": True},
    "no proj_bias": {"proj_bias": False},
    "registers": {"reg_tokens": 2},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "LayerScale and RMSNorm": {"init_values": 0.1, "norm_layer": "rmsnorm"},
    "folded": {"rpe": {"path": "folded", "drop_mode": "query"}},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def create(kind="as it is", **changes):
    """A student whose every parameter is random: alpha 0 and zero biases would hide what is forgotten."""
    torch.manual_seed(0)
    model = timm.create_model("dearkd_tiny_patch16_224", **{**SHAPE, **KINDS[kind], **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def images(batch=2, channels=3, size=(32, 32)):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def unfused():
    """timm's switch for attention maps; it is read when a model is made."""
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(True)


@pytest.mark.parametrize("channels, size", [(3, (32, 32)), (1, (32, 32)), (5, (48, 32)), (3, (8, 64))])
@every_kind
def test_forward_and_backward_at_other_sizes_and_channels(kind, channels, size):
    model = create(kind, in_chans=channels, img_size=size).train()
    logits = model(images(2, channels, size))
    assert logits.shape == (2, 10) and logits.isfinite().all()
    logits.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert all(block.attn.rpe.alpha.grad.abs().sum() > 0 for block in model.blocks[:2])


@every_kind
def test_set_input_size_is_a_model_made_at_that_size(kind):
    moved, made = create(kind), create(kind, img_size=(48, 40))
    moved.set_input_size((48, 40))
    made.load_state_dict(moved.state_dict())
    torch.testing.assert_close(moved(images(size=(48, 40))), made(images(size=(48, 40))))


@every_kind
def test_features_head_and_classifier(kind):
    model, x = create(kind), images()
    features = model.forward_features(x)
    assert features.shape == (2, 16 + model.num_prefix_tokens, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    assert {f"{model.default_cfg[k]}.weight" for k in ("classifier", "first_conv")} <= set(model.state_dict())
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.fc_norm(features))
    model.reset_classifier(7, "token" if model.has_class_token else "avg")
    assert model(x).shape == (2, 7)


@every_kind
def test_forward_intermediates_are_the_blocks_outputs(kind):
    model, x, seen = create(kind), images(), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    last, maps = model.forward_intermediates(x, return_prefix_tokens=bool(model.num_prefix_tokens), output_fmt="NLC")
    for out, got in zip(seen, maps, strict=True):
        torch.testing.assert_close(torch.cat(got[::-1], 1) if model.num_prefix_tokens else got, out)
    torch.testing.assert_close(last, model.norm(seen[-1]))
    info = FeatureInfo(model.feature_info, 4)
    early = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True, norm=True)
    assert early[0].shape == (2, info.channels()[1], 32 // info.reduction()[1], 32 // info.reduction()[1])
    net = timm.create_model(
        "dearkd_tiny_patch16_224", features_only=True, out_indices=(0, 3), **{**SHAPE, **KINDS[kind]}
    )
    net.model.load_state_dict(model.state_dict(), strict=False)
    for got, wanted in zip(net.eval()(x), model.forward_intermediates(x, (0, 3), intermediates_only=True), strict=True):
        torch.testing.assert_close(got, wanted)


@every_kind
def test_gradient_checkpointing_changes_no_gradient(kind):
    """Dropout included: a checkpointed block draws the same masks again."""
    found = []
    for checkpointed in (False, True):
        model = create(kind, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(checkpointed)
        torch.manual_seed(3)
        model(images()).square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@every_kind
def test_layer_groups_put_a_position_encoding_into_its_block(kind):
    model = create(kind)
    layer = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layer) == {n for n, _ in model.named_parameters()}
    assert {layer[f"blocks.{i}.attn.rpe.alpha"] - layer[f"blocks.{i}.attn.qkv.weight"] for i in range(2)} == {0}
    optimiser = timm.optim.create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    group = {id(p): g for g in optimiser.param_groups for p in g["params"]}
    alpha, qkv = model.blocks[0].attn.rpe.alpha, model.blocks[0].attn.qkv.weight
    assert (group[id(alpha)]["weight_decay"], group[id(qkv)]["weight_decay"]) == (0, 0.1)
    assert group[id(alpha)]["lr_scale"] == group[id(qkv)]["lr_scale"] < 1


@every_kind
def test_attention_maps_by_hooks_and_by_fx_are_all_there_and_equal(kind, unfused, traceable):
    model, x = create(kind), images()
    if "rpe" in KINDS[kind]:
        assert model.blocks[0].attn.path(torch.empty(2, 4, 17, 12)) == "explicit", "the switch comes before rpe.path"
    hooked = list(AttentionExtract(copy.deepcopy(model), method="hook")(x).values())
    traced = list(AttentionExtract(copy.deepcopy(model), method="fx")(x).values())
    ours = list(attention_maps(model, x))
    prefix = model.num_prefix_tokens
    assert len(hooked) == len(traced) == len(ours) == 4
    for by_hook, by_fx, patches in zip(hooked, traced, ours, strict=True):
        torch.testing.assert_close(by_hook, by_fx)
        torch.testing.assert_close(by_fx.sum(-1), torch.ones(2, 4, 16 + prefix))
        among = by_fx[:, :, prefix:, prefix:]
        torch.testing.assert_close(among / among.sum(-1, keepdim=True), patches)


@every_kind
def test_without_fused_attention_the_logits_are_the_same(kind, unfused):
    explicit = create(kind)
    timm.layers.set_fused_attn(True)
    fused = create(kind)
    assert not explicit.blocks[0].attn.fused_attn and fused.blocks[0].attn.fused_attn
    torch.testing.assert_close(explicit(images()), fused(images()), rtol=1e-4, atol=1e-5)


@every_kind
def test_torch_fx_traces_the_model(kind, traceable):
    """Through torchvision's own extractor, which knows nothing of timm, and timm's `feature_cls="fx"`."""
    model, x = create(kind), images()
    nodes = create_feature_extractor(copy.deepcopy(model), {"blocks.1": "second", "head": "logits"})
    for mode in (False, True):
        torch.manual_seed(4)
        expected = model.train(mode)(x)
        torch.manual_seed(4)
        found = nodes.train(mode)(x)
        assert found["second"].shape == (2, 16 + model.num_prefix_tokens, 48)
        torch.testing.assert_close(found["logits"], expected)
    found["logits"].square().mean().backward()
    assert nodes.blocks.get_submodule("0").attn.rpe.alpha.grad.abs().sum() > 0
    net = timm.create_model("dearkd_tiny_patch16_224", features_only=True, feature_cls="fx", out_indices=(1,), **SHAPE)
    assert net(x)[0].shape == (2, 17, 48)


@every_kind
def test_dynamic_quantisation_keeps_the_logits(kind):
    model, x = create(kind), images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantised.blocks[0].attn.qkv, nn.Linear)
    error = (quantised(x) - model(x)).norm() / model(x).norm()
    assert 0 < error < 0.1, error


@every_kind
def test_a_copy_is_whole_and_apart(kind):
    model, x = create(kind), images()
    with torch.no_grad():
        expected = model(x)  # remembers the bias
    copied = copy.deepcopy(model)
    with torch.no_grad():
        torch.testing.assert_close(copied(x), expected, rtol=0, atol=0)
        copied.blocks[0].attn.rpe.alpha.add_(1.0)
        assert not torch.allclose(copied(x), expected)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


@every_kind
def test_saved_without_a_pickle_and_loaded_by_timm_alone(kind, tmp_path):
    model = create(kind)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(loaded(images()), model(images()), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["as it is", "qk_norm", "folded"])
def test_compile_captures_one_graph(kind, traceable):
    torch.compiler.reset()
    model, x = create(kind), images()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    model.train()
    compiled(x).square().mean().backward()
    assert model.blocks[0].attn.rpe.alpha.grad.isfinite().all()


@pytest.mark.slow
def test_compile_captures_the_papers_size_in_training(traceable):
    """197 tokens, where a CPU drops entries of the bias by 16 random bits each unless it is being recorded."""
    model = timm.create_model("dearkd_tiny_patch16_224", depth=2, n_mhca=1).train()
    torch.compile(model, backend="eager", fullgraph=True)(torch.randn(1, 3, 224, 224)).sum().backward()
    assert model.blocks[0].attn.rpe.alpha.grad.isfinite().all()


@every_kind
def test_jit_trace_of_a_fresh_model(kind, traceable):
    model = create(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes become constants, tracing is old: both are known
        traced = torch.jit.trace(model, images())
    torch.testing.assert_close(traced(images(5)), model(images(5)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cast", ["to", "dtype", "autocast"])
@every_kind
def test_bf16_is_near_fp32(kind, cast):
    model, x = create(kind), images()
    expected = model(x)
    if cast == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            got = model(x)
    else:
        low = copy.deepcopy(model).bfloat16() if cast == "to" else create(kind, dtype=torch.bfloat16)
        low.set_input_size((40, 40))
        low.set_input_size((32, 32))
        assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
        low.load_state_dict(model.state_dict())
        got = low(x.bfloat16())
        assert got.dtype == torch.bfloat16
    error = (got.float() - expected).norm() / expected.norm()
    assert error < 0.05, error


@every_kind
def test_a_model_of_the_meta_device_is_initialised_whole(kind):
    with torch.device("meta"):
        empty = timm.create_model("dearkd_tiny_patch16_224", **{**SHAPE, **KINDS[kind]})
    made = timm.create_model("dearkd_tiny_patch16_224", device="meta", **{**SHAPE, **KINDS[kind]})
    fresh = timm.create_model("dearkd_tiny_patch16_224", **{**SHAPE, **KINDS[kind]})
    for model in (empty, made):
        assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
        model.to_empty(device="cpu")
        model.init_weights(needs_reset=True)
        for got, wanted in zip(model.blocks[:2], fresh.blocks[:2], strict=True):
            torch.testing.assert_close(got.attn.rpe.dense(), wanted.attn.rpe.dense(), rtol=0, atol=0)
        assert model.eval()(images()).isfinite().all()


@pytest.mark.parametrize("size", [32, 48], ids=["same size", "larger"])
@pytest.mark.parametrize("way", ["checkpoint_path", "overlay"])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "dearkd_tiny_patch16_224"])
def test_weights_of_a_deit_and_of_another_size_are_taken_over_and_said(name, way, size, tmp_path):
    plain = {k: v for k, v in SHAPE.items() if k != "n_mhca" or name.startswith("dearkd")}
    torch.manual_seed(5)
    published = timm.create_model(name, **plain)
    for parameter in published.parameters():
        nn.init.normal_(parameter)
    file = tmp_path / "weights.pth"
    torch.save(published.state_dict(), file)
    how = (
        {"checkpoint_path": file}
        if way == "checkpoint_path"
        else {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file), "num_classes": 10}}
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = timm.create_model("dearkd_tiny_patch16_224", **{**SHAPE, "img_size": size}, **how)
    text = " ".join(str(w.message) for w in said)
    assert ("alpha and Delta of the 2 MHCA blocks keep" in text) == name.startswith("deit")
    own, fresh = model.state_dict(), timm.create_model("dearkd_tiny_patch16_224", **SHAPE).state_dict()
    for key, value in own.items():
        if key == "pos_embed":
            published.set_input_size((size, size))
            value, wanted = own[key], published.pos_embed
        else:
            wanted = published.state_dict().get(key, fresh[key])
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("deit_tiny_distilled_patch16_224", {}, "dist_token"),
        ("deit_tiny_patch16_224", {"embed_dim": 24}, "size mismatch for cls_token"),
        ("deit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "cls_token"),
    ],
)
@pytest.mark.filterwarnings("ignore:the weights are a plain ViT's", "ignore:pos_embed")
def test_weights_of_another_network_are_torchs_error(name, changes, said):
    other = timm.create_model(name, **{**{k: v for k, v in SHAPE.items() if k != "n_mhca"}, **changes})
    with pytest.raises(RuntimeError, match=said):
        create().load_state_dict(other.state_dict())


def test_part_of_the_position_encodings_missing_is_an_error():
    weights = create().state_dict()
    del weights["blocks.0.attn.rpe.alpha"]
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks.0.attn.rpe.alpha"):
        create().load_state_dict(weights)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"dynamic_img_size": True}, "dynamic_img_size"),
        ({"patch_drop_rate": 0.5}, "patch_drop_rate"),
        ({"attn_layer": "diff"}, "attn_layer"),
        ({"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, "block_fn"),
        ({"n_mhca": 5}, "n_mhca is 5"),
        ({"n_mhca": -1}, "n_mhca is -1"),
    ],
)
def test_what_cannot_work_is_refused_by_name(arguments, said):
    with pytest.raises(InputError, match=f"^{said}") as error:
        timm.create_model("dearkd_tiny_patch16_224", **{**SHAPE, **arguments})
    assert "\n" not in str(error.value)


def test_torchscript_is_refused_by_name():
    with (
        pytest.raises(InputError, match=r"^torch\.jit\.script cannot read MHCA; use torch\.export"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # torch itself calls it deprecated
        torch.jit.script(nn.Sequential(create()))


def test_without_mhca_all_that_timm_can_do_is_allowed():
    model = create(n_mhca=0, patch_drop_rate=0.5, attn_layer="diff")
    assert model.train()(images()).shape == (2, 10) and not any(isinstance(b.attn, MHCA) for b in model.blocks)


def test_fix_init_scales_a_layers_projection_once():
    """timm's `fix_init` divides by sqrt(2 (layer + 1)), MHCA's blocks included."""
    torch.manual_seed(7)
    plain = timm.create_model("dearkd_tiny_patch16_224", **SHAPE)
    torch.manual_seed(7)
    fixed = timm.create_model("dearkd_tiny_patch16_224", fix_init=True, **SHAPE)
    for i, (a, b) in enumerate(zip(plain.blocks, fixed.blocks, strict=True)):
        torch.testing.assert_close(b.attn.proj.weight * math.sqrt(2 * (i + 1)), a.attn.proj.weight)
