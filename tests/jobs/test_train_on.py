"""`train-on`: from one folder of images to a DearKD, and the keys of --set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import copy_project
from PIL import Image

from dearkd import record
from dearkd.__main__ import main
from dearkd.errors import InputError
from dearkd.jobs import distil, single, train_on

CLASSES = ("100% ü & <i>", "it's {x}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two classes of ten images, blue and red, below names that people give."""
    monkeypatch.chdir(copy_project(tmp_path))
    for colour, name in zip(((0, 0, 200), (200, 0, 0)), CLASSES, strict=True):
        (tmp_path / "my $photos" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (16, 16), tuple(c + i for c in colour)).save(tmp_path / "my $photos" / name / f"{i} #.png")
    return tmp_path


@pytest.mark.slow
def test_from_a_folder_to_a_model_that_knows_its_classes(folder, capsys):
    command = ["train-on", "my $photos", "--out", "out", "--image-size", "16", "--epochs", "3"]
    small = ["--set", "teachers.main.model=resnet10t", "--set", "teachers.main.training.epochs=1"]
    small += ["--set", "teachers.main.training.stage1_epochs=1", "--set", "teachers.main.training.warmup_epochs=0"]
    assert main([*command, *small]) == 0
    said = capsys.readouterr().out
    assert (
        "% on 4 test images (one seed). Its teacher has" in said
        and "on 2 validation images. The records are in results/on-out.\n" in said
        and "images/s]" in said
        and "lr " in said
    )
    student = timm.create_model("local-dir:out/student", pretrained=True).eval()
    assert student(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    assert (
        student.pretrained_cfg["label_names"] == [*CLASSES]
        and "license" not in Path("out/student/config.json").read_text()
    )
    curve = record.read(Path("results/on-out/runs/dearkd-Ti/seed0/I.json"))["curve"]
    assert {"logit", "hidden"} <= curve[0].keys()
    assert main(["status", "table2", "--scale", "out/scale.yaml"]) == 0, "the workflow takes it from here"
    assert "dearkd-Ti seed 0" not in capsys.readouterr().out
    assert main([*command, *small, "--set", "training.lr=1e-4"]) == 2
    assert "out/scale.yaml: belongs to a student with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, said",
    [
        (["--set", "training.epoch=3"], "training: unknown key 'epoch'; did you mean 'epochs'?"),
        (["--set", "training.lr"], "--set training.lr: write a key of the scale and its value"),
        (["--set", "seeds.x=1"], "--set seeds.x=1: seeds has no keys below it"),
        (["--set", "seeds=[1"], "is no YAML"),
        (["--set", "name=digits"], "digits is the name of"),
        (["--image-size", "0"], "--image-size 0: write 8 pixels or more"),
        (["--student", "M"], "unknown student 'M'"),
        (["--epochs", "0"], "epochs is 0; write a number from 1 to 1,000,000"),
        (["--image-size", "61"], "--image-size 61: cannot be cut into 8 to 16 patches a side; take 60"),
        (["--set", "lr=1e-4"], "unknown key 'lr'; did you mean 'training.lr'?"),
        (["--out", "my $photos/out"], "--out my $photos/out: is inside the folder of images"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(folder, capsys, more, said):
    assert main(["train-on", "my $photos", "--out", "out", *more]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not Path("out").exists()


def test_a_setting_reaches_its_place_and_no_other(folder):
    values = train_on._scale(Path("my $photos").absolute(), Path("out").absolute(), "S", 64, 12, 3)
    before = yaml.safe_load(yaml.safe_dump(values))
    changed = single.with_settings(values, ["training.augment.crop_scale=[0.5, 1.0]"])
    assert values == before and changed["training"].pop("augment") == {"crop_scale": [0.5, 1.0]} and changed == before
    assert (values["training"]["stage1_epochs"], values["training"]["warmup_epochs"], values["seeds"]) == (10, 1, [3])


@pytest.mark.parametrize("epochs, taught", [(1, 1), (2, 1), (3, 2), (100, 83), (300, 250)])
def test_both_stages_have_epochs_where_there_are_two(epochs, taught):
    assert distil.first_stage(epochs) == taught


@pytest.mark.slow
def test_a_folder_that_has_trained_nothing_yet_takes_other_settings(folder, capsys):
    broken = folder / "my $photos" / CLASSES[0] / "0 #.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    command = ["train-on", "my $photos", "--out", "out", "--image-size", "16"]
    assert main([*command, "--epochs", "2"]) == 2
    assert "1 image cannot be used" in capsys.readouterr().err and Path("out/scale.yaml").is_file()
    assert main([*command, "--epochs", "3"]) == 2
    assert "1 image cannot be used" in capsys.readouterr().err
    assert yaml.safe_load(Path("out/scale.yaml").read_text())["training"]["epochs"] == 3
    Path("results/on-out/runs").mkdir(parents=True)
    assert main([*command, "--epochs", "4"]) == 2
    said = capsys.readouterr().err
    assert "training.epochs: 3 recorded, 4 planned" in said and "delete out and results/on-out" in said


@pytest.mark.slow
def test_a_way_out_names_the_scale_as_the_user_does_and_works(folder, tmp_path, monkeypatch, capsys):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    values = train_on._scale(folder / "my $photos", folder / "my out", "Ti", 16, 2, 0)
    single.written(Path("my out"), values, "train-on")
    assert main(["evaluate", "deit-Ti", "--scale", "my out/scale.yaml", "--seed", "0"]) == 2
    way = re.search("make it with `(.*)`", capsys.readouterr().err)[1]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    planned = subprocess.run(way.replace("-c2", "-n -c2"), shell=True, capture_output=True, text=True, env=environment)
    assert planned.returncode == 0 and "rule train" in planned.stdout + planned.stderr, planned.stderr


def test_a_class_of_one_image_is_named(folder):
    (folder / "my $photos" / "lonely").mkdir()
    Image.new("RGB", (16, 16)).save(folder / "my $photos/lonely/1.png")
    with pytest.raises(InputError, match="lonely: 1 images are too few to train, validate and test"):
        train_on.train_on(folder / "my $photos", Path("out"), "Ti", 16, 2, 0)
