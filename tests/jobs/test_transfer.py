"""Table 4: fine-tuning from a finished student, on data derived from the digits; and weights of others (Table 3)."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from dearkd import record
from dearkd.__main__ import main
from dearkd.data import datasets
from dearkd.errors import InputError
from dearkd.jobs import fetch
from dearkd.jobs.evaluate import evaluate_run
from dearkd.jobs.subset import list_subsets
from dearkd.jobs.train import train_stage
from dearkd.model import networks, teachers
from dearkd.model.objective import objective
from dearkd.model.trainee import Outputs
from dearkd.plan import experiments, methods
from dearkd.plan.scale import Peer
from dearkd.report import tables
from dearkd.schema import override

pytestmark = pytest.mark.slow

RUN = "transfer-Ti-target~left_of_two"

# ------------------------------------------------------------------------------------------------- targets


def digits(task, size=12):
    main = experiments.load_scale("digits").data["main"]
    return datasets.read(dataclasses.replace(main, task=task, image_size=size, classes=2 if task == "parity" else 10))


def test_targets_have_the_same_digits_in_train_and_test():
    names = {task: [digits(task, 18)[s].names for s in ("train", "test")] for task in datasets.TASKS}
    assert all(n == names["digit"] for n in names.values())


def test_what_each_target_asks():
    plain, turned, odd, textured = (digits(t)["test"] for t in ("digit", "upside_down", "parity", "textured"))
    assert np.array_equal(turned.pixels, np.rot90(plain.pixels, 2, axes=(1, 2)))
    assert np.array_equal(odd.pixels, plain.pixels) and np.array_equal(odd.labels, plain.labels % 2)
    assert textured.pixels.min(axis=(1, 2, 3)).max() < 40 and np.median(textured.pixels) > 40
    assert (plain.pixels == 0).mean() > 0.5 and np.array_equal(textured.labels, plain.labels)


def test_the_second_of_two_digits_is_of_the_same_split():
    pairs, plain = digits("left_of_two", 16), digits("digit", 8)
    for split, images in pairs.items():
        known = {_cut(digit).tobytes() for digit in plain[split].pixels[..., 0]}
        left, right = images.pixels[:, :, :8, 0], images.pixels[:, :, 8:, 0]
        assert {_cut(digit).tobytes() for digit in right} == known
        assert all(np.array_equal(_cut(a), _cut(b)) for a, b in zip(left, plain[split].pixels[..., 0], strict=True))


def _cut(pixels):
    """The smallest box around a digit's ink."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def test_two_digits_need_room():
    with pytest.raises(InputError, match="left_of_two needs image_size 16 or more, not 12"):
        digits("left_of_two")


# ------------------------------------------------------------------------------------------------- recipe


def test_a_transfer_is_one_stage_from_the_end_of_another_run():
    whole = experiments.load("imagenet")
    run = whole.runs["transfer-B-pretraining~deit_distilled-target~cifar100"]
    (stage,) = run.stages
    assert run.initial == "deit_distilled-B" and stage.initial == whole.runs[run.initial].stages
    assert stage.teacher is None and dict(stage.losses) == {"ce": 0.5, "token_label": 0.5}
    assert dict(stage.model.args)["num_classes"] == 100 and stage.model.name == "deit_base_distilled_patch16_224"
    t = stage.training
    assert (t.optimiser, t.peak_lr, t.weight_decay, t.epochs, t.batch) == ("sgd", 0.01, 1e-4, 1000, 768)
    assert (t.drop_path, t.augment.erasing, t.augment.auto) == (0, 0, "rand-m9-mstd0.5-inc1")


def test_the_short_recipe_is_one_word(tmp_path):
    scale = tmp_path / "short.yaml"
    scale.write_text("extends: imagenet\nname: short\ntransfer: {recipe: adamw}\n")
    t = experiments.load(str(scale)).runs["transfer-Ti-target~cifar10"].stages[0].training
    assert (t.optimiser, t.peak_lr, t.weight_decay, t.epochs) == ("adamw", 5e-5, 0.05, 100)


@pytest.mark.parametrize(
    "switches, message",
    [
        ({"target": "cifar11"}, "unknown value 'cifar11'; did you mean 'cifar10"),
        ({"target": "cifar10", "pretraining": "deer"}, "unknown value 'deer'; did you mean 'dearkd"),
    ],
)
def test_mistakes_in_a_transfer_row(switches, message):
    with pytest.raises(InputError, match=message):
        methods.transfer(experiments.load_scale("imagenet"), "Ti", **switches)


def test_both_heads_of_a_distilled_student_learn_the_labels():
    logits, taught = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    parts = objective({"ce": 0.5, "token_label": 0.5}, Outputs(logits, taught, ()), torch.tensor([[1.0, 0.0]]), None)
    right, wrong = np.log1p(np.exp(-2.0)), np.log1p(np.exp(1.0))
    assert parts["loss"].item() == pytest.approx((right + wrong) / 2, rel=1e-6)


# ------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "dearkd_tiny_patch16_224"])
def test_adopting_keeps_all_but_the_heads_and_resamples_positions(name):
    small = {"patch_size": 3, "embed_dim": 36, "depth": 2, "num_heads": 9, "in_chans": 1}
    small |= {"n_mhca": 1} if name.startswith("dearkd") else {}
    before = timm.create_model(name, img_size=12, num_classes=10, **small).eval()
    after = timm.create_model(name, img_size=18, num_classes=4, **small).eval()
    fresh = {k: v.clone() for k, v in after.state_dict().items() if k.startswith("head")}
    networks.adopt(after, before.state_dict())
    state = after.state_dict()
    assert all(torch.equal(state[k], v) for k, v in fresh.items())
    prefix = before.num_prefix_tokens
    assert torch.equal(state["pos_embed"][:, :prefix], before.pos_embed[:, :prefix])
    # bicubic resampling leaves the mean of a smooth table where it was
    assert state["pos_embed"].shape[1] == prefix + 36
    same = [k for k in state if not k.startswith("head") and k != "pos_embed"]
    assert all(torch.equal(state[k], before.state_dict()[k]) for k in same)
    again = timm.create_model(name, img_size=12, num_classes=10, **small).eval()
    networks.adopt(again, before.state_dict())
    again.load_state_dict({**again.state_dict(), **{k: v for k, v in before.state_dict().items() if "head" in k}})
    images = torch.randn(2, 1, 12, 12)
    assert torch.equal(again(images), before(images)), "on the same grid nothing has changed"


def test_a_transfer_starts_from_the_finished_student(project):
    whole = experiments.load("smoke")
    run = whole.runs[RUN]
    list_subsets(whole, "left_of_two")
    train_stage(whole, run, 0, "transfer")
    made = json.loads(whole.paths.stage(RUN, 0, "transfer").read_text())
    last = json.loads(whole.paths.stage("dearkd-Ti", 0, "II").read_text())
    assert made["initial"] == {"run": "dearkd-Ti", "weights_sha256": last["weights_sha256"]}
    before = load_file(whole.paths.state("dearkd-Ti", 0, "II") / "student.safetensors")
    after = load_file(whole.paths.state(RUN, 0, "transfer") / "student.safetensors")
    moved = {k: (after[k] - before[k]).abs().max().item() for k in before if "head" not in k and k != "pos_embed"}
    # one epoch of 11 steps at a peak of 1e-3: fresh weights would be 0.2 away
    assert 0 < max(moved.values()) < 0.05
    evaluate_run(whole, run, 0)
    values = tables.values_of(whole, "table4")
    assert values["run"].tolist() == [RUN]


def test_a_transfer_from_other_weights_is_stale(project):
    whole = experiments.load("smoke")
    list_subsets(whole, "left_of_two")
    train_stage(whole, whole.runs[RUN], 0, "transfer")
    evaluate_run(whole, whole.runs[RUN], 0)
    path = whole.paths.stage("dearkd-Ti", 0, "II")
    record.write(path, {**record.read(path), "weights_sha256": "0" * 64})
    with pytest.raises(InputError, match="dearkd-Ti, from which it starts, has other weights now"):
        tables.values_of(whole, "table4")


# ------------------------------------------------------------------------------------------------- others' weights


@pytest.fixture
def with_others(project):
    """The smoke scale with timm's smallest ResNet, whose weights lie in a local file."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    save_file(net.state_dict(), "others.safetensors")
    (project / "others.yaml").write_text(
        "extends: smoke\nname: others\nonly: [table3]\n"
        "peers: {ResNet-50: {model: test_resnet.r160_in1k, weights: others.safetensors}}\n"
    )
    shutil.copytree(project / "results/smoke/subsets", project / "results/others/subsets")
    return experiments.load("others.yaml")


def test_weights_of_others_are_evaluated_at_their_own_size_and_marked(with_others):
    assert set(with_others.pretrained) == {"ResNet-50"}
    assert main(["pretrained", "ResNet-50", "--scale", "others.yaml"]) == 0
    made = json.loads(with_others.paths.pretrained("ResNet-50").read_text())
    assert made["input"] == {"image_size": 160, "crop": 0.95, "interpolation": "bilinear"}
    assert made["images"] == 797 and 0 <= made["metrics"]["top1"] <= 100
    frame = tables.tidy(with_others.tables["table3"], tables.values_of(with_others, "table3"))
    found = frame[frame["metric"] == "top1"].set_index("row")
    assert found.loc["ResNet-50", "source"] == "pretrained" and found.loc["ResNet-50", "paper"] == 76.2
    assert found.loc["ResNet-101", "source"] == "quoted"
    shown = tables.arrange(with_others.tables["table3"], frame).set_index("")
    assert shown.loc["ResNet-50", "source"] == "pretrained"


def test_changed_weights_of_others_are_stale(with_others):
    main(["pretrained", "ResNet-50", "--scale", "others.yaml"])
    changed = dataclasses.replace(with_others, pretrained={"ResNet-50": Peer(model="resnet50.tv_in1k")})
    with pytest.raises(InputError, match=r"stale record .*model"):
        tables.values_of(changed, "table3")


# ------------------------------------------------------------------------------------------------- Table 3


def test_throughput_measured_otherwise_is_stale():
    whole = experiments.load("digits")
    changed = override(whole.scale, {"throughput.batch": 2}, "test")
    with pytest.raises(InputError, match=r"architectures\.json: stale record \(batch: 1 recorded, 2 planned\)"):
        tables.values_of(experiments.load(changed), "table3")


def test_every_system_of_the_paper_has_its_row_and_architecture():
    with Path("paper/table3.csv").open(newline="") as file:
        systems = [row["method"] for row in csv.DictReader(file)]
    for scale in ("digits", "imagenet"):
        rows = experiments.load(scale).tables["table3"].rows
        assert [row.label for row in rows] == systems
        assert all(row.architecture and row.cells[0].paper for row in rows)


def test_the_long_schedule_is_the_papers():
    first, second = experiments.load("imagenet").runs["dearkd-Ti-long~yes"].stages
    assert (first.last_epoch, second.first_epoch, second.last_epoch) == (800, 800, 1000)
    assert experiments.load("imagenet").runs["deit_distilled-S-long~yes"].stages[0].training.epochs == 1000


def test_a_row_left_to_the_paper_must_exist(tmp_path):
    scale = tmp_path / "typo.yaml"
    scale.write_text("extends: smoke\nname: typo\nquoted: {table3: [ResNet-19]}\n")
    with pytest.raises(InputError, match=r"quoted\.table3: unknown row 'ResNet-19'; did you mean 'ResNet-1"):
        experiments.load(str(scale))


# ------------------------------------------------------------------------------------------------- fetch


def test_what_is_missing_is_listed_with_the_command_that_brings_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("IMAGENET", str(tmp_path / "imagenet"))
    monkeypatch.setenv("TRANSFER", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("dearkd.jobs.fetch.try_to_load_from_cache", lambda repository, file: None)
    assert main(["fetch", "--check", "--scale", "imagenet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dearkd fetch: scale imagenet lacks 21 of its needs:")
    lines = said.splitlines()[1:]
    assert len(lines) == 21 and all(line.endswith("]") for line in lines)
    assert f"data main: {tmp_path}/imagenet: no such folder" in said
    assert "timm/regnety_160.deit_in1k is not in the hub's cache" in said
    assert (
        "LPIPS trunk alex" in said and "LPIPS trunk vgg" in said and "[python -m dearkd fetch --scale imagenet]" in said
    )


def test_only_data_that_a_run_sees_is_asked_for(monkeypatch):
    monkeypatch.setenv("IMAGENET", "nowhere")
    named = {need.name for need in fetch.needs(experiments.load("first"))}
    assert "data main" in named and not [name for name in named if name.startswith("data ") and name != "data main"]


def test_without_internet_fetch_says_so_once_and_at_once(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr("dearkd.model.hub.reachable", lambda: asked.append(1))
    monkeypatch.setattr("dearkd.jobs.fetch.try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setenv("IMAGES", str(tmp_path))
    scale = tmp_path / "tags.yaml"
    scale.write_text(
        "extends: custom\nname: tags\nteachers: {main: {model: resnet18.a1_in1k, training: null}, "
        "two: {model: resnet50.a1_in1k, top1: 80}}\n"
    )
    assert main(["fetch", "--scale", str(scale)]) == 2
    said = capsys.readouterr()
    assert said.out.count("does not answer") == 1 and len(asked) == 1
    assert said.err.count("is not in the hub's cache (HF_HOME)") == 2


def test_weights_that_are_there_are_named_with_what_pins_them(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("IMAGES", str(tmp_path))
    torch.manual_seed(0)
    net = timm.create_model("convnet_micro", num_classes=10)
    save_file(net.state_dict(), tmp_path / "cnn.safetensors")
    scale = tmp_path / "mine.yaml"
    text = "extends: custom\nname: mine\nteachers: {{main: {{model: convnet_micro, weights: {}, training: null{}}}}}\n"
    scale.write_text(text.format(tmp_path / "cnn.safetensors", ""))
    main(["fetch", "--scale", str(scale)])
    pin = re.search(
        r"weights convnet_micro: present; to pin these weights, write (sha256: \w{64})", capsys.readouterr().out
    )
    scale.write_text(text.format(tmp_path / "cnn.safetensors", f", {pin[1]}"))
    teacher = experiments.load_scale(str(scale)).teachers["main"]
    teachers.build(teacher, experiments.load_scale(str(scale)).data["main"])
    torch.manual_seed(1)
    save_file(timm.create_model("convnet_micro", num_classes=10).state_dict(), tmp_path / "cnn.safetensors")
    with pytest.raises(InputError, match="correct sha256 in the scale"):
        teachers.build(teacher, experiments.load_scale(str(scale)).data["main"])


def test_nothing_is_missing_at_the_laptops_scale(capsys):
    assert main(["fetch", "--check", "--scale", "digits"]) == 0
    assert "data left_of_two: present" in capsys.readouterr().out
