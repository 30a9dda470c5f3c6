"""MHCA against Eq. 2 written out, its fold against the dense bias, and Cordonnier et al.'s theorem."""

import dataclasses
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd
from torch.nn.attention import flex_attention

import dearkd.models  # noqa: F401  registers the students
from dearkd.errors import InputError
from dearkd.model import attention_cpu, attention_flex
from dearkd.model.attention import MHCA
from dearkd.model.attention_cpu import SharedBiasAttention, dropped_entries, unfuse_few_tokens
from dearkd.model.position import QuadraticBias
from dearkd.plan.stage import Rpe

KNOBS = [
    Rpe(),
    Rpe(form="centred"),
    Rpe(scale="sqrt_d"),
    Rpe(param="free"),
    Rpe(positive=True),
    Rpe(learn_delta=False),
    Rpe(init="rect"),
    Rpe(init="random"),
    Rpe(coord="rescaled"),
]


def trained(heads=12, head_dim=16, grid=(14, 14), rpe=Rpe(), prefix=1):
    """A bias whose alpha and Delta look as after training, not as at the start."""
    torch.manual_seed(0)
    bias = QuadraticBias(heads, head_dim, grid, prefix, rpe)
    with torch.no_grad():
        for parameter in bias.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return bias


@pytest.mark.parametrize("rpe", KNOBS)
@pytest.mark.parametrize("grid", [(14, 14), (5, 7)])
def test_fold_is_the_dense_bias(rpe, grid):
    bias = trained(grid=grid, rpe=rpe).double()
    query, key = bias.folded()
    assert torch.allclose(query @ key.T, bias.dense(), atol=1e-10, rtol=0)


def both_paths(dtype, biases=None):
    """Output and gradients (x, alpha, Delta) of the dense and the folded path on the same weights and input."""
    results = []
    for path in ("dense", "folded"):
        torch.manual_seed(2)
        layer = MHCA(192, 12, (14, 14), rpe=Rpe(drop=0.0, path=path))
        if biases is not None:
            layer.rpe.load_state_dict(biases.state_dict())
        layer = layer.double() if dtype == torch.float64 else layer.float()
        torch.manual_seed(1)
        x = torch.randn(8, 197, 192, dtype=torch.float64).to(next(layer.parameters()).dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = layer(x)
        out.double().square().sum().backward()
        results.append([out, x.grad, layer.rpe.alpha.grad, layer.rpe.delta.grad])
    return results


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("biases", [None, trained()], ids=["initial", "trained"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_paths_agree(dtype, tolerance, biases):
    for dense, folded in zip(*both_paths(dtype, biases), strict=True):
        assert relative(folded, dense) < tolerance


@pytest.mark.parametrize("biases", [None, trained()], ids=["initial", "trained"])
def test_folded_path_in_bf16_is_within_a_percent_of_fp32(biases):
    """With the hi/lo split: output, and gradients of x, alpha and Delta. docs/decisions.md: where alpha's is worse."""
    reference, (_, folded) = both_paths(torch.float32, biases)[0], both_paths(torch.bfloat16, biases)
    errors = [relative(a, b) for a, b in zip(folded, reference, strict=True)]
    assert max(errors) < 1e-2, errors


def test_one_bf16_copy_would_not_do():
    """Why the query part is split: a single copy errs by more than 0.5 in a logit, two by less than 0.01."""
    bias = trained()
    query, key = bias.folded()
    exact, key = query @ key.T, key.bfloat16().float()
    assert torch.equal(key, bias.folded()[1]), "positions are exact in bf16"
    high = query.bfloat16().float()
    low = (query - high).bfloat16().float()
    assert (high @ key.T - exact).abs().max() > 0.5
    assert ((high + low) @ key.T - exact).abs().max() < 0.01


@pytest.mark.parametrize("small", [0, 2**16], ids=["by image", "at once"])
def test_the_gradient_of_a_shared_bias_is_that_of_autograd(small, monkeypatch):
    monkeypatch.setattr(attention_cpu, "SMALL", small)
    torch.manual_seed(0)
    shapes = [(3, 2, 5, 4)] * 3 + [(2, 5, 5)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *x: SharedBiasAttention.apply(*x, 0.5), inputs)
    q, k, v, bias = inputs
    expected = F.scaled_dot_product_attention(q, k, v, bias[None], scale=0.5)
    torch.testing.assert_close(SharedBiasAttention.apply(q, k, v, bias, 0.5), expected)


def test_a_few_tokens_differentiate_the_same_without_the_fused_kernel():
    """What a competing student of synthesis takes: its weights are fixed, the gradient goes to its input."""
    layer = MHCA(36, 9, (4, 4), rpe=Rpe(drop=0.0)).double().eval().requires_grad_(False)
    q, k, v = torch.randn(3, 2, 9, 17, 4, dtype=torch.float64).requires_grad_().unbind(0)
    out = layer.attend(q, k, v)
    expected = F.scaled_dot_product_attention(q, k, v, layer.rpe.dense()[None], scale=0.5)
    assert "SharedBias" in out.grad_fn.name()
    torch.testing.assert_close(out, expected)
    target = torch.randn_like(out)
    for got, wanted in zip(*(torch.autograd.grad(o, (q, k, v), target) for o in (out, expected)), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("side, fused", [(18, False), (24, True)], ids=["37 tokens", "65 tokens"])
def test_plain_attention_of_few_tokens_is_not_fused(side, fused):
    student = timm.create_model("dearkd_tiny_patch16_224", img_size=side, patch_size=3, depth=2, n_mhca=1).eval()
    images = torch.randn(2, 3, side, side)
    before = student(images)
    unfuse_few_tokens(student)
    assert [block.attn.fused_attn for block in student.blocks] == [True, fused], "MHCA chooses by itself"
    torch.testing.assert_close(student(images), before)


def test_evaluation_remembers_the_bias_until_something_changes():
    layer = MHCA(36, 9, (4, 4)).eval()
    x = torch.randn(2, 17, 36)
    changes = [
        lambda: layer.rpe.alpha.data.mul_(2),  # which raises no version
        lambda: layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()}),
        lambda: layer.rpe.set_grid((2, 8)),
        lambda: layer.double(),
    ]
    with torch.no_grad():
        assert layer.rpe.remembered() is layer.rpe.remembered()
        for change in changes:
            change()
            x = x.to(layer.qkv.weight.dtype)
            assert torch.equal(layer.rpe.remembered(), layer.rpe.dense())
            q, k, v = layer.qkv(x).reshape(2, 17, 3, 9, 4).permute(2, 0, 3, 1, 4)
            expected = F.scaled_dot_product_attention(q, k, v, layer.rpe.dense()[None])
            torch.testing.assert_close(layer.attend(q, k, v), expected)
    assert "kept" not in "".join(layer.state_dict())


MASKS = {
    "bool": torch.rand(17, 17, generator=torch.Generator().manual_seed(0)) > 0.3,
    "added": torch.randn(17, 17, generator=torch.Generator().manual_seed(1)),
    "one an image": torch.randn(2, 1, 17, 17, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mask", [*MASKS, "causal"])
def test_a_mask_is_added_to_the_bias_as_timm_adds_it_to_the_logits(mask, fused):
    torch.manual_seed(3)
    layer = MHCA(36, 9, (4, 4)).double().eval()
    layer.fused_attn = fused
    x, given = torch.randn(2, 17, 36, dtype=torch.float64), MASKS.get(mask, torch.ones(17, 17).tril().bool())
    added = given.double() if given.is_floating_point() else torch.zeros(17, 17).double().masked_fill(~given, -math.inf)
    _, _, v = layer.project(x)
    out = ((layer.logits(x).double() + added).softmax(-1) @ v).transpose(1, 2).reshape(2, 17, 36)
    got = layer(x, is_causal=True) if mask == "causal" else layer(x, attn_mask=added if mask != "bool" else given)
    torch.testing.assert_close(got, layer.proj(out), rtol=1e-5, atol=1e-5)


PATHS = [
    # asked, drop_mode, training, learns, input learns, tokens, masked, attention dropout -> path on a CPU
    ("auto", "element", False, False, False, 17, False, 0.0, "dense"),
    ("auto", "element", False, True, False, 17, False, 0.0, "folded"),
    ("auto", "element", True, True, False, 17, False, 0.0, "shared"),
    ("auto", "element", True, True, False, 17, False, 0.1, "dense"),
    ("auto", "query", True, True, False, 17, False, 0.0, "folded"),
    ("auto", "query", True, True, False, 17, True, 0.0, "dense"),
    ("auto", "element", False, False, True, 17, False, 0.0, "shared"),
    ("auto", "element", False, False, True, 65, False, 0.0, "dense"),
    ("dense", "query", True, True, False, 17, False, 0.0, "shared"),
    ("folded", "query", False, False, False, 17, False, 0.0, "folded"),
    ("folded", "query", False, False, False, 17, True, 0.0, "dense"),
    ("flex", "element", False, False, False, 17, False, 0.0, "flex"),
    ("flex", "element", True, False, False, 17, False, 0.0, "flex"),
    ("flex", "query", True, False, False, 17, False, 0.0, "dense"),
    ("flex", "element", True, False, False, 17, False, 0.1, "dense"),
    ("flex", "element", False, False, False, 17, True, 0.0, "dense"),
    ("flex", "element", True, True, False, 17, False, 0.0, "shared"),
    ("flex", "element", False, True, True, 17, False, 0.0, "folded"),
]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("asked, mode, training, learns, input_learns, tokens, masked, attn_drop, expected", PATHS)
def test_which_path_is_taken(
    traceable, asked, mode, training, learns, input_learns, tokens, masked, attn_drop, expected
):
    """And that it gives, without dropout, the numbers of the explicit one."""
    side = math.isqrt(tokens - 1)
    layer = MHCA(36, 9, (side, side), rpe=Rpe(path=asked, drop_mode=mode), attn_drop=attn_drop).train(training)
    layer.requires_grad_(learns)
    q = torch.randn(2, 9, tokens, 4, requires_grad=input_learns)
    assert layer.path(q, masked) == expected
    layer.fused_attn = False
    assert layer.path(q, masked) == "explicit"
    x, mask = torch.randn(2, tokens, 36), torch.zeros(tokens, tokens).fill_diagonal_(1.0) if masked else None
    layer.eval()
    explicit = layer(x, attn_mask=mask)
    layer.fused_attn = True
    torch.testing.assert_close(layer(x, attn_mask=mask), explicit, rtol=1e-4, atol=1e-5)


def test_on_a_gpu_a_fixed_bias_folds():
    layer = MHCA(36, 9, (4, 4)).eval().requires_grad_(False)
    assert layer.path(torch.empty(1, 9, 17, 4, device="meta")) == "folded"


@pytest.mark.parametrize("width, expected", [(16, "flex"), (8, "dense")])
def test_on_a_gpu_flex_attention_has_its_gradients_but_no_narrow_heads(width, expected):
    layer = MHCA(9 * width, 9, (4, 4), rpe=Rpe(path="flex")).train()
    assert layer.path(torch.empty(1, 9, 17, width, device="meta")) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("rpe", [Rpe(form="centred"), Rpe(param="free"), Rpe(learn_delta=False)], ids=str)
def test_the_gradient_of_flex_attention_is_one_that_a_gpu_can_compile(traceable, monkeypatch, rpe):
    """The check that inductor makes before it writes a backward kernel, and the gradients of the graph that it gets.

    A CPU refuses the gradient in its first line, and its graph then runs there all the same.
    """
    from torch._inductor.kernel.flex.flex_attention import validate_joint_graph

    graphs = []

    def keep(module, _):
        graphs.extend(part.graph for part in module.modules() if isinstance(part, torch.fx.GraphModule))
        return module

    def attend(q, k, v, bias):
        return flex_attention.flex_attention(q, k, v, score_mod=attention_flex.score_mod(bias), scale=0.25)

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    bias = QuadraticBias(4, 16, (4, 4), 1, dataclasses.replace(rpe, path="flex", drop=0.0))
    inputs = [torch.randn(2, 4, 17, 16, requires_grad=True) for _ in range(3)]
    torch.compiler.reset()
    out = torch.compile(attend, backend=aot_autograd(fw_compiler=lambda module, _: module, bw_compiler=keep))
    found = torch.autograd.grad(out(*inputs, bias).square().sum(), (*inputs, *bias.parameters()))
    dense = F.scaled_dot_product_attention(*inputs, bias.dense()[None], scale=0.25)
    expected = torch.autograd.grad(dense.square().sum(), (*inputs, *bias.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert graphs
    for graph in graphs:
        validate_joint_graph(graph)


@pytest.mark.parametrize("rpe", KNOBS)
def test_flex_attention_is_the_dense_bias(rpe):
    """Its closed form for each pair, the gradients of its coefficients, and the output of the layer."""
    bias = trained(grid=(5, 7), rpe=rpe).double().eval()
    every = [torch.arange(n) for n in (len(bias.coefficients()[0]), 36, 36)]
    closed = attention_flex.score_mod(bias)(torch.zeros(()).double(), every[0], *torch.meshgrid(*every, indexing="ij"))
    assert torch.allclose(closed, bias.dense(), atol=1e-10, rtol=0)
    up = torch.randn_like(closed)
    theirs = torch.autograd.grad(bias.dense(), tuple(bias.parameters()), up)
    for mine, other in zip(torch.autograd.grad(closed, tuple(bias.parameters()), up), theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_flex_attention_attends_as_the_dense_path(traceable, drop):
    """At a head of 16, the least that FlexAttention takes, with the same entries dropped."""
    layers = [MHCA(144, 9, (4, 4), rpe=Rpe(path=path, drop=drop)).requires_grad_(False) for path in ("flex", "dense")]
    layers[1].load_state_dict(layers[0].state_dict())
    x, out = torch.randn(2, 17, 144), []
    for layer, path in zip(layers, ("flex", "dense"), strict=True):
        torch.manual_seed(3)
        assert layer.train().path(layer.project(x)[0]) == path
        out.append(layer(x))
    torch.testing.assert_close(*out, rtol=1e-4, atol=1e-5)


def test_nine_heads_express_any_3x3_convolution():
    """Cordonnier et al., Theorem 1: one head per shift, alpha large, values and output projection hold the kernel."""
    torch.manual_seed(0)
    channels, size = 4, 6
    layer = MHCA(36, 9, (size, size), prefix=0, rpe=Rpe(drop=0.0), qkv_bias=False).double()
    convolution = torch.nn.Conv2d(channels, 36, 3, padding=1, bias=True).double()
    with torch.no_grad():
        layer.rpe.alpha.fill_(400.0)
        layer.qkv.weight.zero_()
        layer.proj.bias.copy_(convolution.bias)
        for head, (row, column) in enumerate(layer.rpe.delta.long().tolist()):
            # content attention is off; head h copies the input's first 4 channels to its values
            layer.qkv.weight[2 * 36 + 4 * head : 2 * 36 + 4 * head + channels, :channels] = torch.eye(channels)
            layer.proj.weight[:, 4 * head : 4 * head + 4] = convolution.weight[:, :, row + 1, column + 1]
    image = torch.randn(2, channels, size, size, dtype=torch.float64)
    tokens = F.pad(image.flatten(2).transpose(1, 2), (0, 36 - channels))
    attended = layer(tokens).transpose(1, 2).unflatten(2, (size, size))
    # at the border a head whose patch lies outside attends to the nearest one inside: compare where all nine exist
    assert torch.allclose(attended[:, :, 1:-1, 1:-1], convolution(image)[:, :, 1:-1, 1:-1], atol=1e-8)


def test_element_dropout_zeroes_entries_of_the_bias_and_shares_the_mask():
    layer = MHCA(36, 9, (4, 4), rpe=Rpe(drop=0.5)).train()
    dense = layer.rpe.dense()
    torch.manual_seed(0)
    dropped = layer.rpe.dropped(3)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], 2 * dense[kept])
    assert 0.3 < (kept & (dense != 0)).sum() / (dense != 0).sum() < 0.7
    torch.manual_seed(0)
    same = layer(torch.ones(3, 17, 36))
    assert torch.equal(same[0], same[1]), "one mask for the batch"
    assert torch.equal(layer.eval().rpe.dropped(3), dense)


@pytest.mark.parametrize("side", [4, 200])  # torch's own dropout, and 16 bits a number
def test_dropped_entries_keep_the_mean_and_the_gradient_of_what_is_kept(side):
    torch.manual_seed(0)
    x = torch.ones(12, side, side, requires_grad=True)
    dropped = dropped_entries(x, 0.1)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.9, rel=1e-4)]
    share = (dropped == 0).double().mean().item()
    assert abs(share - 0.1) < 5 * math.sqrt(0.09 / x.numel()), "five standard deviations of a share of 0.1"
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())
    torch.manual_seed(0)
    assert torch.equal(dropped_entries(x, 0.1), dropped)
    assert not torch.equal(dropped_entries(x, 0.1), dropped)


@pytest.mark.parametrize("mode", ["query", "key", "head"])
def test_factored_dropout_is_the_same_on_both_paths(mode):
    torch.manual_seed(0)
    x, outputs = torch.randn(2, 17, 36), []
    for path in ("dense", "folded"):
        torch.manual_seed(1)
        layer = MHCA(36, 9, (4, 4), rpe=Rpe(drop=0.5, drop_mode=mode, path=path)).train()
        torch.manual_seed(5)
        outputs.append(layer(x))
    assert torch.allclose(*outputs, atol=1e-5)
    torch.manual_seed(6)
    assert not torch.allclose(layer(x), outputs[1], atol=1e-3), "another draw, another output"


@pytest.mark.parametrize("path", ["dense", "folded"])
@pytest.mark.parametrize("mode", ["query", "key", "head"])
def test_per_sample_dropout_differs_between_images(path, mode):
    layer = MHCA(36, 9, (4, 4), rpe=Rpe(drop=0.5, drop_mode=mode, per_sample=True, path=path)).train()
    torch.manual_seed(0)
    out = layer(torch.ones(1, 17, 36).expand(2, -1, -1).clone())
    assert not torch.equal(out[0], out[1])
    plain = MHCA(36, 9, (4, 4), rpe=Rpe(drop=0.5, drop_mode=mode, path=path)).train()
    shared = plain(torch.ones(1, 17, 36).expand(2, -1, -1).clone())
    assert torch.equal(shared[0], shared[1])
    assert out.shape == shared.shape
    query = layer.rpe.drop_mask(2, layer.rpe.folded()[0])
    assert not torch.equal(query[0], query[1])


def test_refusals():
    with pytest.raises(InputError, match=r"drop is 1.0; write a number from 0 to below 1"):
        Rpe(drop=1.0)
    with pytest.raises(InputError, match="per_sample needs drop_mode"):
        Rpe(per_sample=True)
    with pytest.raises(InputError, match=r"rpe.path: folded cannot drop single elements"):
        MHCA(36, 9, (4, 4), rpe=Rpe(path="folded")).train()(torch.ones(1, 17, 36))
