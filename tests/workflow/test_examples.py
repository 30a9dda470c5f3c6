"""The examples: each runs, and the one file is the package, number by number."""

import importlib.util
import re
import runpy
import sys

import pytest
import timm
import torch
from conftest import PROJECT
from timm.data.mixup import mixup_target

from dearkd.model.objective import FeatureScale, mean_squares, objective
from dearkd.model.teachers import FeatureShape, Seen
from dearkd.model.trainee import Trainee
from dearkd.plan.stage import Distillation

pytestmark = pytest.mark.slow


def load(name):
    spec = importlib.util.spec_from_file_location(name, PROJECT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["dearkd_in_one_file", "timm_loop"])
def test_an_example_runs_a_few_steps_and_says_what_it_measured(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "12"])
    runpy.run_path(str(PROJECT / "examples" / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["CNN", "DeiT", "DearKD"]
    assert all(0 < float(re.search(r"([\d.]+) %$", line)[1]) <= 100 for line in lines)


def test_the_one_file_imports_nothing_of_the_package():
    text = (PROJECT / "examples/dearkd_in_one_file.py").read_text()
    assert {line.split()[1].split(".")[0] for line in text.splitlines() if re.match(r"(import|from) ", line)} == {
        "sys",
        "torch",
        "sklearn",
    }


ONE_FILE = {  # its names, and those of timm and the package
    "patch_embed.": "patch_embed.proj.",
    ".attn.alpha": ".attn.rpe.alpha",
    ".attn.delta": ".attn.rpe.delta",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.2.": ".mlp.fc2.",
}
ALIGNER = {
    "mix.0.": "aligner2.mix.0.",
    "mix.1.": "aligner2.mix.1.",
    "mix.3.": "aligner2.project.",
    "refine.": "aligner2.refine.",
}


def renamed(name, table):
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def twins():
    """(the one file's student and additions of stage I, the package's trainee) with the same random weights."""
    example = load("dearkd_in_one_file")
    torch.manual_seed(0)
    student, extra = example.Student(mhca=2, heads=9), example.StageOne(torch.rand(6, 16, 12, 12))
    package = timm.create_model(
        "dearkd_tiny_patch16_224",
        **{"img_size": 12, "patch_size": 3, "embed_dim": 36, "depth": 3, "in_chans": 1, "num_classes": 10},
        **{"num_heads": 9, "n_mhca": 2},
    )
    knobs = Distillation(pairs=((2, 1),), alpha=example.ALPHA, beta=example.BETA)
    shape = FeatureShape(16, (12, 12), nonnegative=True)
    trainee = Trainee(package, ("ce", "logit", "hidden"), knobs, (shape,))
    for ours in (student, extra):
        for parameter in ours.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    package.load_state_dict(
        {renamed(n, ONE_FILE): v for n, v in student.state_dict().items() if not n.endswith("attn.d")}, strict=True
    )
    trainee.auxiliary.load_state_dict({renamed(n, ALIGNER): v for n, v in extra.state_dict().items()}, strict=True)
    return example, student, extra, trainee


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training, with dropout of the bias"])
def test_the_one_file_gives_the_packages_losses_and_gradients(training):
    example, student, extra, trainee = twins()
    images, labels = torch.randn(6, 1, 12, 12), torch.randint(10, (6,))
    decision, features = torch.randn(6, 10), torch.rand(6, 16, 12, 12)
    extra.scale = features.square().mean().sqrt()
    student.train(training), trainee.train(training)

    torch.manual_seed(1)
    loss, terms = example.stage_one(student, extra, lambda _: (decision, features), images, labels)
    loss.backward()

    scale = FeatureScale("rms", 1)
    scale.update(mean_squares((features,)))
    weights = {"ce": example.ALPHA, "logit": 1 - example.ALPHA, "hidden": example.BETA}
    torch.manual_seed(1)
    soft = mixup_target(labels, 10, smoothing=0.1)
    expected = objective(weights, trainee(images), soft, Seen(decision.argmax(1), (features,)), scale)
    expected["loss"].backward()

    assert loss.item() == pytest.approx(expected["loss"].item(), abs=1e-6)
    for name, value in terms.items():
        assert value.item() == pytest.approx(expected[name].item(), abs=1e-6), name
    for module, reference, table in ((student, trainee.student, ONE_FILE), (extra, trainee.auxiliary, ALIGNER)):
        for name, parameter in module.named_parameters():
            wanted = reference.get_parameter(renamed(name, table)).grad
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6, msg=name)

    torch.manual_seed(2)
    second = example.stage_two(student, images, labels)
    torch.manual_seed(2)
    expected = objective({"ce": 1.0}, Trainee(trainee.student).train(training)(images), soft, None)
    assert second.item() == pytest.approx(expected["loss"].item(), abs=1e-6)


def test_heads_of_the_one_file_start_as_the_packages():
    example = load("dearkd_in_one_file")
    ours, theirs = (
        example.MHCA(9),
        timm.create_model("dearkd_tiny_patch16_224", num_heads=9, embed_dim=36, depth=1, n_mhca=1),
    )
    assert torch.equal(ours.delta, theirs.blocks[0].attn.rpe.delta)
    assert torch.equal(ours.alpha, theirs.blocks[0].attn.rpe.alpha)
