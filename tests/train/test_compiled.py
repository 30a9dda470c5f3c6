"""`training.compile: blocks`: two kinds of block are compiled twice, whatever their drop path, and compute the same."""

import os

import pytest
import torch
from timm.layers import DropPath
from torch._dynamo.utils import counters

from dearkd.model import networks
from dearkd.model.position import QuadraticBias
from dearkd.model.teachers import FeatureShape, TeacherNetwork
from dearkd.model.trainee import Trainee
from dearkd.plan.stage import Distillation, Model, Rpe
from dearkd.train import compiled

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")]  # torch.compile's


def student(rate, **more):
    args = {"depth": 12, "embed_dim": 36, "num_heads": 9, "img_size": 12, "patch_size": 3, "in_chans": 1}
    args |= {"num_classes": 10, "drop_path_rate": rate, "rpe": (("drop", 0.1),), **more}
    return networks.create(Model(name="dearkd_tiny_patch16_224", args=tuple(sorted(args.items()))), 0)


@pytest.fixture(autouse=True)
def _forget(traceable):
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_twelve_blocks_of_two_kinds_are_two_programs(rate):
    """torch.compile gives up at eight of one function; with a rate of its own in each block it did."""
    net = student(rate).train()
    names = list(net.state_dict())
    compiled.compile_parts(Trainee(net), None, "eager")
    net(torch.randn(2, 1, 12, 12)).sum().backward()
    assert counters["stats"]["unique_graphs"] == 2 and counters["frames"]["total"] == counters["frames"]["ok"]
    with torch.no_grad():
        for size in (3, 4):
            net.eval()(torch.randn(size, 1, 12, 12))
    assert counters["frames"]["total"] == counters["frames"]["ok"], "none was given up"
    assert counters["stats"]["unique_graphs"] < 8, "two kinds of block, and each size of an evaluation"
    assert list(net.state_dict()) == names, "nothing that a checkpoint would hold"


def test_a_compiled_stage_computes_what_it_did():
    """Student, aligner, pooled head and teacher of stage I, in evaluation, where nothing is random."""
    torch.manual_seed(0)
    cnn = networks.create(Model(name="convnet_micro", args=(("in_chans", 1), ("num_classes", 10))), 0)
    teacher, images = TeacherNetwork(cnn, (1,)).fold(), torch.randn(4, 1, 12, 12)
    knobs = Distillation(pairs=((8, 1),))
    features = tuple(FeatureShape(f.shape[1], tuple(f.shape[2:]), True) for f in teacher.features(images))
    trainee = Trainee(student(0.1), ("ce", "logit", "hidden"), knobs, features).eval()
    before, seen = trainee(images), teacher(images)
    compiled.compile_parts(trainee, teacher, "eager")
    after, seen_after = trainee(images), teacher(images)
    for one, other in zip((*before[:2], *before.hidden), (*after[:2], *after.hidden), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen.decisions, seen_after.decisions)
    torch.testing.assert_close(seen.features, seen_after.features)
    after.logits.sum().backward()
    assert counters["stats"]["unique_graphs"] >= 6, "two kinds of block, aligner, pooled head, stem and stages"


def test_compiled_gradients_of_the_bias_are_those_of_fp32():
    """The loop computes gradients outside autocast, and so does a compiled part, which is traced within."""
    compiled.compile_parts(Trainee(student(0.0)), None, "eager")
    bias = QuadraticBias(12, 16, (14, 14), 1, Rpe(drop=0.0))
    up = torch.randn(12, 197, 197)
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.compile(bias.dense, backend="aot_eager", dynamic=False)()
    found = torch.autograd.grad((out * up).sum(), bias.alpha)[0]
    (expected,) = torch.autograd.grad((bias.double().dense() * up.double()).sum(), bias.alpha)
    assert (found - expected).norm() < 5e-4 * expected.norm(), "2e-3 in bf16"


def test_a_skipped_path_is_drop_path():
    torch.manual_seed(0)
    path, x = compiled.SkippedPath(DropPath(0.25)), torch.ones(4000, 3, 2, requires_grad=True)
    out = path.train()(x)
    kept = out.flatten(1)[:, 0] > 0
    assert 0.72 < kept.float().mean() < 0.78
    assert torch.equal(out[kept], torch.full_like(out[kept], 1 / 0.75)) and not out[~kept].any()
    out.sum().backward()
    assert torch.equal(x.grad, out)
    assert path.eval()(x) is x
    assert torch.equal(compiled.SkippedPath(torch.nn.Identity()).train()(x), x)


def test_jobs_share_what_they_compile_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv(compiled.CACHE, raising=False)
    compiled.share_cache(tmp_path)
    assert os.environ[compiled.CACHE] == str(tmp_path)
    monkeypatch.setenv(compiled.CACHE, "/elsewhere")
    compiled.share_cache(tmp_path)
    assert os.environ[compiled.CACHE] == "/elsewhere"
