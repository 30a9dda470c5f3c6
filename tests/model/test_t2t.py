"""T2T-ViT: published names, sizes and costs; its Performer attention and positions against direct evaluation."""

import argparse
import math
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import PROJECT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dearkd.errors import InputError
from dearkd.model import networks, t2t
from dearkd.model.trainee import Trainee
from dearkd.model.weights import load_weights
from dearkd.plan.stage import Model, Training
from dearkd.train.optimise import optimiser

SMALL = {
    "img_size": 12,
    "in_chans": 1,
    "num_classes": 10,
    "splits": ((3, 1, 1), (3, 1, 1), (3, 3, 0)),
    "embed_dim": 36,
    "depth": 4,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "token_dim": 8,
}


def small(**changes):
    args = tuple(sorted({**SMALL, **changes}.items()))
    return networks.create(Model(name="t2t_vit_7", args=args, init="timm"), seed=0).eval()


def published(name):
    with torch.device("meta"):
        return timm.create_model(name).eval()


def layer(inputs, outputs, bias=True):
    return {".weight": (outputs, inputs), **({".bias": (outputs,)} if bias else {})}


def norm(width):
    return {".weight": (width,), ".bias": (width,)}


def under(prefix, parts):
    return {f"{prefix}{name}{end}": shape for name, shapes in parts.items() for end, shape in shapes.items()}


def performer(width):
    parts = {"kqv": layer(width, 192), "proj": layer(64, 64), "norm1": norm(width), "norm2": norm(64)}
    return {"w": {"": (32, 64)}, **parts, "mlp.0": layer(64, 64), "mlp.2": layer(64, 64)}


@pytest.mark.parametrize(
    "name, depth, block, tokens, rest, millions",
    [
        ("t2t_vit_7", 7, 526_336, 43_366 + 126_592 + 147_712, 50_432 + 256 + 512 + 257_000, 4.3),
        ("t2t_vit_14", 14, 1_478_016, 43_366 + 126_592 + 221_568, 75_648 + 384 + 768 + 385_000, 21.5),
        ("t2t_vit_19", 19, 2_011_072, 43_366 + 126_592 + 258_496, 88_256 + 448 + 896 + 449_000, 39.2),
    ],
)
def test_parameters(name, depth, block, tokens, rest, millions):
    """Blocks; attention 1 and 2 and projection; positions, class token, norm and head. Published: millions."""
    model = published(name)
    assert [sum(p.numel() for p in b.parameters()) for b in model.blocks] == [block] * depth
    assert sum(p.numel() for p in model.tokens_to_token.parameters()) == tokens
    total = sum(p.numel() for p in model.parameters())
    assert total == depth * block + tokens + rest and round(total / 1e6, 1) == millions
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {"pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w"}


@pytest.mark.parametrize("name, gmacs", [("t2t_vit_7", 1.1), ("t2t_vit_14", 4.8), ("t2t_vit_19", 8.5)])
def test_multiply_adds_are_the_published_ones(name, gmacs):
    model = published(name)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert round(counter.get_total_flops() / 2e9, 1) == gmacs


def test_names_and_shapes_of_the_weights_are_the_published_ones():
    whole = {"cls_token": {"": (1, 1, 384)}, "pos_embed": {"": (1, 197, 384)}, "norm": norm(384)}
    expected = under("", {**whole, "head": layer(384, 1000)})
    expected |= under("tokens_to_token.attention1.", performer(3 * 7 * 7))
    expected |= under("tokens_to_token.attention2.", performer(64 * 3 * 3))
    expected |= under("tokens_to_token.", {"project": layer(64 * 3 * 3, 384)})
    attention = {"attn.qkv": layer(384, 1152, bias=False), "attn.proj": layer(384, 384)}
    mlp = {"mlp.fc1": layer(384, 1152), "mlp.fc2": layer(1152, 384)}
    for i in range(14):
        expected |= under(f"blocks.{i}.", {"norm1": norm(384), **attention, "norm2": norm(384), **mlp})
    model = published("t2t_vit_14")
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert {b.attn.num_heads for b in model.blocks} == {6} and model.blocks[0].attn.scale == 64**-0.5


@pytest.mark.parametrize("wrapped", [True, False])
def test_published_file_loads_strictly(tmp_path, wrapped):
    weights = {name: torch.randn_like(value) for name, value in small().state_dict().items()}
    published = {"state_dict": {}, "state_dict_ema": {f"module.{name}": value for name, value in weights.items()}}
    torch.save(published if wrapped else weights, tmp_path / "81.5_T2T_ViT_14.pth")
    model = small()
    load_weights(model, tmp_path / "81.5_T2T_ViT_14.pth")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_program_of_the_docs_converts_a_checkpoint_with_arguments(tmp_path, monkeypatch):
    weights = {name: torch.randn_like(value) for name, value in small().state_dict().items()}
    args = argparse.Namespace(model="t2t_vit_14", lr=5e-4, mean=None, aug_splits=0)
    published = {"epoch": 309, "args": args, "state_dict_ema": {f"module.{name}": v for name, v in weights.items()}}
    monkeypatch.chdir(tmp_path)
    torch.save(published, "81.5_T2T_ViT_14.pth.tar")
    with pytest.raises(InputError, match=r"holds more than tensors .*docs/paper-scale\.md"):
        load_weights(small(), Path("81.5_T2T_ViT_14.pth.tar"))
    page = (PROJECT / "docs/paper-scale.md").read_text()
    (program,) = re.findall(r"```python\n(import argparse.*?)```", page, re.DOTALL)
    exec(program, {})
    model = small()
    load_weights(model, Path("t2t_vit_14.safetensors"))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def attention_by_pairs(w, k, q, v):
    """Every pair's kernel, mean over w of exp(w (q_i + k_j) - (|q_i|^2 + |k_j|^2) / 2), in fp64."""
    w, k, q, v = (x.double() for x in (w, k, q, v))
    exponents = torch.einsum("md,bijd->bijm", w, q[:, :, None] + k[:, None])
    halved = (q.square().sum(-1)[:, :, None] + k.square().sum(-1)[:, None]) / 2
    kernel = (exponents - halved[..., None]).exp().mean(-1)
    return (kernel @ v / (kernel.sum(-1, keepdim=True) + 1e-8)).float()


def test_performer_layer_is_attention_over_all_pairs():
    torch.manual_seed(0)
    layer = t2t.TokenPerformer(20, 8).eval()
    x = torch.randn(2, 11, 20)
    k, q, v = F.linear(F.layer_norm(x, (20,)), layer.kqv.weight, layer.kqv.bias).split(8, -1)
    mixed = v + layer.proj(attention_by_pairs(layer.w, k, q, v))
    hidden = F.gelu(layer.mlp[0](F.layer_norm(mixed, (8,))))
    torch.testing.assert_close(layer(x), mixed + layer.mlp[2](hidden), rtol=1e-4, atol=1e-5)


def test_performer_features_are_orthogonal_and_stay_in_fp32():
    torch.manual_seed(0)
    layer = t2t.TokenPerformer(20, 64)
    torch.testing.assert_close(layer.w @ layer.w.T, 32 * torch.eye(32), rtol=1e-4, atol=1e-4)
    k, q, v = (0.5 * torch.randn(3, 1, 9, 64)).bfloat16()
    k[0, 0] = layer.w[0]  # its feature is exp(16), beyond fp16
    exact = attention_by_pairs(layer.w, k, q, v)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer.attend(k.float(), q.float(), v.float())
    torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-5)
    half = layer.bfloat16()
    assert half(torch.randn(1, 9, 20).bfloat16()).dtype == torch.bfloat16


def test_positions_by_hand():
    table = t2t.sinusoid(4, 4)
    expected = [
        [0, 1, 0, 1],
        [0.841471, 0.540302, 0.0099998, 0.99995],
        [0.909297, -0.416147, 0.0199987, 0.99980],
        [0.141120, -0.989992, 0.0299955, 0.99955],
    ]
    torch.testing.assert_close(table, torch.tensor(expected), rtol=0, atol=1e-6)
    assert t2t.sinusoid(197, 384)[196, 7].item() == pytest.approx(math.cos(196 / 10000 ** (6 / 384)), abs=1e-6)
    assert torch.equal(small().pos_embed[0], t2t.sinusoid(17, 36))


def test_soft_splits_keep_rows_and_columns():
    """With nothing between the splits, 1 x 1 ones and a 3 x 3 one cut an image of 6 x 9 into its 2 x 3 patches."""
    module = t2t.TokensToToken((6, 9), 2, 5, 2, ((1, 1, 0), (1, 1, 0), (3, 3, 0)))
    module.attention1 = module.attention2 = module.project = nn.Identity()
    images = torch.randn(1, 2, 6, 9)
    patches = images.unfold(2, 3, 3).unfold(3, 3, 3)
    assert module.grid_size == (2, 3)
    assert torch.equal(module(images), patches.permute(0, 2, 3, 1, 4, 5).reshape(1, 6, 18))


def test_small_member_and_its_gradients():
    model = small()
    images = torch.randn(2, 1, 12, 12)
    logits = model(images)
    assert logits.shape == (2, 10) and model.forward_features(images).shape == (2, 17, 36)
    (logits * torch.randn(2, 10)).sum().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {n for n, p in model.named_parameters() if p.requires_grad}


def test_drop_path_grows_with_depth():
    assert [b.drop_path1.drop_prob for b in small(drop_path_rate=0.3).blocks[1:]] == pytest.approx([0.1, 0.2, 0.3])


def test_initial_statistics_are_the_originals():
    model = timm.create_model("t2t_vit_7")
    for name in ("blocks.3.attn.qkv.weight", "tokens_to_token.attention2.kqv.weight", "head.weight"):
        assert model.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.03), name
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith(".bias"))


def test_class_token_is_out_of_weight_decay_and_fixed_tensors_out_of_training():
    trainee = Trainee(small())
    groups = optimiser(trainee, Training(weight_decay=0.05)).param_groups
    decay = {id(p): bool(g["weight_decay"]) for g in groups for p in g["params"]}
    student = trainee.student
    assert "cls_token" in student.no_weight_decay() and not decay[id(student.cls_token)]
    assert decay[id(student.tokens_to_token.attention1.kqv.weight)]
    assert id(student.pos_embed) not in decay and id(student.tokens_to_token.attention1.w) not in decay


def test_works_as_any_of_timms_vits():
    model = small()
    images = torch.randn(2, 1, 12, 12)
    assert torch.equal(Trainee(model)(images).logits, model(images))
    _, features = model.forward_intermediates(images, indices=[0, 3])
    assert [f.shape for f in features] == [(2, 36, 4, 4)] * 2
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
