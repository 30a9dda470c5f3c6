"""Accuracy and attention distance against values computed by hand; teachers and their gate."""

import json
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

import dearkd.models  # noqa: F401  registers the models
from dearkd import record
from dearkd.errors import InputError
from dearkd.jobs.evaluate import evaluate_run
from dearkd.jobs.teacher import admit_teacher
from dearkd.jobs.train import train_stage
from dearkd.model import teachers
from dearkd.plan import experiments
from dearkd.plan.stage import Data, Teacher
from dearkd.report import page
from dearkd.report.diagrams import uniform_distance
from dearkd.train.evaluate import accuracy, attention_distance


def test_accuracy_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([0, 2, 2, 2])
    assert (
        accuracy(logits, labels) == 50.0
        and accuracy(logits, labels, 2) == 75.0
        and accuracy(logits, labels, 5) == 100.0
    )


def vit(**args):
    return timm.create_model(
        "dearkd_tiny_patch16_224", img_size=56, patch_size=4, embed_dim=24, depth=2, num_heads=4, n_mhca=1, **args
    ).eval()


def test_uniform_attention_on_14_by_14_is_7_281_patches():
    assert uniform_distance((14, 14)) == pytest.approx(7.2808, abs=1e-4)
    model = vit(rpe={"alpha": 0.0})
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.zero_()
    distance = attention_distance(model, torch.randn(2, 3, 56, 56))
    assert distance.shape == (2, 4) and torch.allclose(distance, torch.full((2, 4), 7.2808), atol=1e-3)


def test_no_attention_distance_of_blocks_that_normalise_after_their_attention():
    model = timm.create_model("vit_base_patch16_rpn_224", img_size=32, embed_dim=24, depth=1, num_heads=4)
    with pytest.raises(InputError, match="VisionTransformer has other blocks than timm's"):
        attention_distance(model, torch.randn(1, 3, 32, 32))


def test_attention_distance_by_hand():
    """A head of MHCA with a huge alpha at Delta = (0, 1): one patch, but the last column attends to itself."""
    model = vit()
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.zero_()
        model.blocks[0].attn.rpe.alpha.fill_(500.0)
        model.blocks[0].attn.rpe.delta.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]))
    first = attention_distance(model, torch.randn(1, 3, 56, 56))[0]
    # two rows down: 12 rows move 2 patches, row 12 moves 1, row 13 none
    assert first.tolist() == pytest.approx([0.0, 13 / 14, (12 * 2 + 1) / 14, 0.0], abs=1e-4)


def test_attention_distance_is_of_the_attention_that_the_model_computes():
    """Each layer sees its own input, and distillation tokens are left out: compare with timm's own attention maps."""
    torch.manual_seed(0)
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=56, patch_size=4, embed_dim=24, depth=2, num_heads=4
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    images, maps = torch.randn(1, 3, 56, 56), []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, args, out: maps.append(out))
    model(images)
    positions = torch.cartesian_prod(torch.arange(14.0), torch.arange(14.0))
    patches = maps[1][:, :, 2:, 2:]
    expected = (patches / patches.sum(-1, keepdim=True) * torch.cdist(positions, positions)).sum(-1).mean((0, 2))
    assert torch.allclose(attention_distance(model, images)[1], expected, atol=1e-4)


# ------------------------------------------------------------------------------------------------ teachers


def test_any_stage_of_a_timm_cnn():
    torch.manual_seed(0)
    net = timm.create_model("regnety_002", num_classes=5)
    teacher = teachers.TeacherNetwork(net, stages=(2, 1))
    images = torch.randn(2, 3, 64, 64)
    seen = teacher.train()(images)
    assert torch.equal(seen.decisions, net.eval()(images).argmax(1)), "stays in evaluation mode"
    assert [tuple(f.shape[2:]) for f in seen.features] == [(8, 8), (16, 16)]
    shapes = teacher.feature_shapes(images)
    assert [s.size[0] for s in shapes] == [32, 16, 8, 4, 2] and shapes[1].nonnegative
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("name", ["regnety_002", "convnet_micro", "resnet18"])
def test_a_folded_teacher_is_the_same_network(name):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5)
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    teacher, images = teachers.TeacherNetwork(net.double(), stages=(1,)), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    logits, features = teacher.logits_and_features(images)
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    folded_logits, folded_features = teacher.fold().logits_and_features(images)
    torch.testing.assert_close(folded_logits, logits)
    torch.testing.assert_close(folded_features, features)
    left = sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    assert left == (norms if name == "resnet18" else 0)
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    "tag, stage, channels", [("regnety_160", 2, 448), ("resnet101", 2, 512), ("efficientnet_lite0", 2, 40)]
)
def test_the_papers_teachers_have_the_specs_features(tag, stage, channels):
    with torch.device("meta"):
        net = timm.create_model(tag)
    info = net.feature_info[stage]
    assert (info["num_chs"], info["reduction"]) == (channels, 8)


def test_a_teacher_with_its_own_normalisation_gets_its_own_pixels():
    net = timm.create_model("regnety_002", num_classes=5).eval()
    given, own = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    raw = torch.rand(2, 3, 64, 64)
    normalise = lambda m: (raw - torch.tensor(m[0]).view(3, 1, 1)) / torch.tensor(m[1]).view(3, 1, 1)  # noqa: E731
    expected = net(normalise(own))
    got, _ = teachers.TeacherNetwork(net, (), given, own).logits_and_features(normalise(given))
    assert torch.allclose(got, expected, atol=1e-5)
    same, _ = teachers.TeacherNetwork(net, (), given, given).logits_and_features(normalise(given))
    assert torch.equal(same, net(normalise(given)))


def test_a_teacher_at_chance_passes_a_wide_gate_with_a_warning_that_the_report_repeats(project):
    plan = experiments.load("smoke")
    said = record.read(plan.paths.teacher("main"))
    assert said["top1"] < 32 and "its students learn its mistakes" in said["warning"]
    assert said["warning"] in page._teachers(plan)[0]


def test_the_gate_refuses_a_teacher_of_another_accuracy(project):
    path = project / "workflow/scales/smoke.yaml"
    path.write_text(path.read_text().replace("top1: 50", "top1: 99.9").replace("tolerance: 50", "tolerance: 0.05"))
    (project / "results/smoke/teachers/main.json").unlink()
    with pytest.raises(
        InputError, match=r"teacher main \(convnet_micro\): top-1 [\d.]+ % on validation, but the scale expects 99.9"
    ):
        admit_teacher(experiments.load("smoke"), "main")
    assert not (project / "results/smoke/teachers/main.json").exists()


def test_a_stage_that_the_teacher_does_not_have(project):
    path = project / "workflow/scales/smoke.yaml"
    path.write_text(path.read_text() + "distillation: {pairs: [[3, 7]]}\n")
    whole = experiments.load("smoke")
    with pytest.raises(InputError, match="names teacher stage 7, but convnet_micro has stages 0 to 2"):
        train_stage(whole, whole.runs["dearkd-Ti"], 0, "I")


class Payload:
    def __reduce__(self):
        import os

        return os.mkdir, ("you-have-been-had",)


@pytest.mark.parametrize(
    "damage, message",
    [
        ("missing", "weights are missing"),
        ("truncated", "not a whole weights file"),
        ("empty", "not a whole weights file"),
        ("pickle", "holds more than tensors"),
        ("other network", "weights of another network"),
        ("other classes", r"1 of another shape, for example head\.|2 of another shape, for example head\."),
    ],
)
def test_wrong_weights_are_named_and_never_unpickled(tmp_path, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)
    net = timm.create_model("convnet_micro", num_classes=5)
    path = tmp_path / ("weights.pt" if damage == "pickle" else "weights.safetensors")
    save_file(net.state_dict(), path)
    if damage == "missing":
        path.unlink()
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"model": Payload()}, protocol=2))  # torch.save's own
    elif damage in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 5000 if damage == "truncated" else 0])
    elif damage == "other network":
        save_file(timm.create_model("convnet_micro", num_classes=5, depths=(1, 2, 1)).state_dict(), path)
    elif damage == "other classes":
        save_file(timm.create_model("convnet_micro", num_classes=6).state_dict(), path)
    data = Data(kind="folder", classes=5, image_size=32)
    with pytest.raises(InputError, match=message) as error:
        teachers.build(Teacher(model="convnet_micro", top1=1.0), data, path)
    assert str(path) in str(error.value) and not (tmp_path / "you-have-been-had").exists()


def test_a_plain_state_dict_file_loads(tmp_path):
    net = timm.create_model("convnet_micro", num_classes=5)
    torch.save({"model": net.state_dict()}, tmp_path / "weights.pth")
    built = teachers.build(
        Teacher(model="convnet_micro", top1=1.0),
        Data(kind="folder", classes=5, image_size=32),
        tmp_path / "weights.pth",
    )
    assert all(torch.equal(v, built.net.state_dict()[k]) for k, v in net.state_dict().items())


def test_evaluating_other_weights_than_the_record_describes_is_refused(project):
    path = project / "checkpoints/smoke/dearkd-Ti/seed0/II/student.safetensors"
    path.write_bytes((project / "checkpoints/smoke/dearkd-Ti/seed0/I/student.safetensors").read_bytes())
    whole = experiments.load("smoke")
    with pytest.raises(InputError, match="is not the file that"):
        evaluate_run(whole, whole.runs["dearkd-Ti"], 0)
    path.unlink()
    remedy = "python -m dearkd train dearkd-Ti --scale smoke --seed 0 --stage I && "
    with pytest.raises(InputError, match=f"missing, though its record is there, .*make it again: {remedy}"):
        evaluate_run(whole, whole.runs["dearkd-Ti"], 0)


def test_evaluation_needs_no_prediction_of_ours_to_be_believed(project):
    metrics = json.loads((project / "results/smoke/runs/dearkd-Ti/seed0/metrics.json").read_text())
    assert 0 <= metrics["metrics"]["top1"] <= metrics["metrics"]["top5"] <= 100 and metrics["data"]["images"] == 797
