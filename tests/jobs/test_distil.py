"""From a CNN alone to a student that timm loads: the real commands, one after the other."""

import zipfile
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import copy_project
from PIL import Image
from safetensors.torch import save_file

from dearkd import record
from dearkd.__main__ import main
from dearkd.errors import InputError
from dearkd.jobs import distil, single
from dearkd.plan import experiments

pytestmark = pytest.mark.slow

RECIPE = "{phases: [{size: 32, iterations: 2, lr: 0.1}], batch_classes: 2, per_class: 8, jitter: 2}"
CLASSES = ["9", "10", "cat"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_project(tmp_path))
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), "mine.safetensors")
    return tmp_path


def test_from_a_cnn_to_a_student(folder, capsys):
    Path("recipe.yaml").write_text(RECIPE)
    cnn = ["--teacher", "resnet10t", "--weights", "mine.safetensors", "--classes", ",".join(CLASSES), "--pick", "9,10"]
    assert main(["synthesize", *cnn, "--recipe", "recipe.yaml", "--images", "32", "--out", "cnn"]) == 0
    command = ["distil", "--images", "cnn/images.zip", "--epochs", "2", "--out", "mine", "--weights"]
    assert main([*command, "mine.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "on the tenth of these images that was held out" in said and 'create_model("local-dir:mine/student"' in said
    assert "The student's outputs are 10, 9, as in label_names of its config.json; the CNN has 3 outputs" in said
    student = timm.create_model("local-dir:mine/student", pretrained=True).eval()
    assert student.pretrained_cfg["label_names"] == ["10", "9"]
    assert student(torch.zeros(1, 3, 32, 32)).shape == (1, 2) and type(student).__name__ == "DearKD"
    taught = record.read(Path("results/distil-mine/runs/dearkd-Ti/seed0/I.json"))
    assert "logit" in taught["curve"][0] and "hidden" in taught["curve"][0]
    gate = record.read(Path("results/distil-mine/teachers/main.json"))
    assert gate["spec"]["outputs"] == CLASSES and gate["state_sha256"] == gate["spec"]["sha256"]
    tested = record.read(Path("results/distil-mine/runs/dearkd-Ti/seed0/metrics.json"))
    assert main([*command, "mine.safetensors"]) == 0, "the same command again is no mistake"
    again = record.read(Path("results/distil-mine/runs/dearkd-Ti/seed0/metrics.json"))
    assert again["weights_sha256"] == tested["weights_sha256"]
    assert main([*command, "mine.safetensors", "--student", "S"]) == 2
    assert "mine/scale.yaml: belongs to a student with other settings" in capsys.readouterr().err
    assert main(["distil", "--images", "cnn", *command[3:], "mine.safetensors"]) == 0, "the folder of synthesize"
    assert main([*command, "none.safetensors"]) == 2
    assert "none.safetensors: the CNN's weights are missing; name their file" in capsys.readouterr().err
    assert main(["synthesize", *cnn, "--recipe", "recipe.yaml", "--images", "32", "--seed", "1", "--out", "new"]) == 0
    before = {path: path.read_bytes() for path in Path("mine/images").rglob("*.png")}
    assert main(["distil", "--images", "new/images.zip", *command[3:], "mine.safetensors"]) == 2
    assert "mine/images: has other images than new/images.zip; name another folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("mine/images").rglob("*.png")}
    torch.manual_seed(1)
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), "other.safetensors")
    assert main([*command[:-2], "other", "--weights", "other.safetensors"]) == 2
    assert "correct sha256 in the scale" in capsys.readouterr().err


def pictures(folder, counts, side=24):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (side, side), (i, 0, 0)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "counts, arguments, message",
    [
        ({"a": 2}, ["--teacher", "resnet10t"], "1 class folders, the smallest with 2 images; add images"),
        ({"a": 2, "b": 1}, ["--teacher", "resnet10t"], "2 class folders, the smallest with 1 images"),
        ({"a": 2, "b": 2}, [], "--teacher: no images.json beside the images names a CNN"),
        ({"a": 2, "b": 2}, ["--student", "M"], "unknown student 'M'; known: B, S, Ti"),
        ({}, ["--teacher", "resnet10t"], "no such archive or folder"),
        ({"a": 2, "b": 2}, ["--teacher", "resnet10t", "--set", "lr=1e-4"], "'lr'; did you mean 'training.lr'?"),
    ],
)
def test_what_does_not_belong_together_is_named(folder, capsys, counts, arguments, message):
    pictures(folder / "photos", counts)
    assert main(["distil", "--images", "photos", *arguments, "--out", "mine"]) == 2
    assert message in capsys.readouterr().err and not Path("mine").exists()


def test_a_damaged_archive_is_named(folder):
    Path("images.zip").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match=r"images\.zip: not a whole archive"):
        distil.distil(Path("images.zip"), "resnet10t", "", "Ti", Path("mine"))
    assert not Path("mine").exists()


@pytest.mark.parametrize("name", ["../cat/1.png", "/cat/1.png", "cat/../../1.png", "../1.png", "cat/run.py", "1.png"])
def test_an_archive_cannot_write_beside_its_folder(folder, name):
    with zipfile.ZipFile("images.zip", "w") as members:
        members.writestr("cat/0.png", b"PNG")
        members.writestr(name, b"PNG")
    with pytest.raises(InputError, match="is no PNG in the folder of a class"):
        distil.distil(Path("images.zip"), "resnet10t", "", "Ti", Path("mine"))
    assert not [path for path in folder.rglob("*") if path.name in ("1.png", "run.py")] and not Path("mine").exists()


@pytest.mark.parametrize("student", ["Ti", "S", "B"])
@pytest.mark.parametrize("side", [12, 17, 28, 32, 61, 64, 97, 100, 200, 211, 224, 256])
def test_a_student_fits_images_of_any_side(side, student):
    fits = distil.fitting(side)
    values = distil.sized_student(student, fits)
    args = values["args"]
    assert 0.9 * side <= fits <= side and fits % args["patch_size"] == 0 and fits // args["patch_size"] <= 16
    assert args["embed_dim"] % values["deit_heads"] == args["embed_dim"] % values["dearkd_heads"] == 0
    assert values["n_mhca"] <= args["depth"]
    if side >= distil.LARGE and side % 16 == 0:
        assert (args["patch_size"], args["depth"]) == (16, 12)


def test_the_scale_that_is_written_is_one_that_the_workflow_reads(folder):
    photos = pictures(folder / "photos", {"a": 9, "b": 12})
    values = distil._scale(photos, {}, "resnet18", "", "Ti", folder / "my student", 60, 3)
    Path("scale.yaml").write_text(single.HEADER.format(verb="distil") + yaml.safe_dump(values))
    plan = experiments.load("scale.yaml")
    assert plan.scale.name == "distil-my-student" and plan.scale.seeds == (3,) and "dearkd-Ti" in plan.runs
    assert [stage.last_epoch for stage in plan.runs["dearkd-Ti"].stages] == [50, 60]
    assert plan.scale.training.batch == 19 and plan.scale.data["main"].image_size == 24
