"""Images of one's own, as a stranger brings them: scikit-learn's digits as image files, through `custom.yaml`."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from conftest import PROJECT, copy_project
from PIL import Image
from safetensors.torch import load_file, save_file

from dearkd import data, fetch, jobs, matrix, record, savings
from dearkd.matrix import load_scale
from dearkd.schema import InputError, override
from dearkd.spec import Teacher, Training

MINE = """
extends: custom
name: mine
seeds: [0]
fractions: [50, 100]
data: {{main: {{root: "{root}", test_share: 0.2, classes: 3, validation: 9, image_size: 32}}}}
students: {{Ti: {{args: {{embed_dim: 36, depth: 4}}, n_mhca: 3}}}}
training: &quick {{epochs: 3, stage1_epochs: 2, warmup_epochs: 1, batch: 32, micro_batch: 32}}
teachers: {{main: {{model: resnet10t, training: *quick}}}}
distillation: {{pairs: [[3, 1]]}}
only: [table2, figure1, figure4]
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """root/<class>/<number>.png, 60 a class, grey, RGB and with a palette, of no square size."""
    from sklearn.datasets import load_digits

    root, digits = tmp_path_factory.mktemp("own") / "my images", load_digits()
    for label, name in enumerate(("nought", "one", "two")):
        (root / name).mkdir(parents=True)
        for i, pixels in enumerate(digits.images[digits.target == label][:60]):
            image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((40, 36))
            image.convert(("L", "RGB", "P")[i % 3]).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def folder(tmp_path, monkeypatch, images):
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(MINE.format(root=images))
    return tmp_path


def test_from_a_folder_of_images_to_the_line_that_says_what_was_saved(folder):
    command = [sys.executable, "-m", "dearkd", "warm", str(Path(sys.executable).with_name("snakemake"))]
    subprocess.run(
        [*command, "-c2", "--config", "scale=mine.yaml", "--", "all", "report"], check=True, capture_output=True
    )
    saved = Path("results/mine/savings.md").read_text().splitlines()
    assert len(saved) == 2 and all("DearKD-Ti" in line and line.endswith("(one seed).") for line in saved)
    assert saved[0] in Path("results/mine/report.html").read_text()
    assert record.read(Path("results/mine/subsets/main/data.json"))["images"] == {
        "train": 144,
        "test": 36,
        "validation": 9,
        "train-50": 66,
        "train-100": 135,
    }
    tested = record.read(Path("results/mine/runs/dearkd-Ti/seed0/metrics.json"))
    assert tested["data"]["images"] == 36 and 0 <= tested["metrics"]["top1"] <= 100
    assert Path("figures/mine/figure1.png").is_file()


def test_a_cnn_with_weights_of_ones_own_teaches(folder):
    """Trained elsewhere, here not at all: what counts is that its weights arrive and its accuracy is checked."""
    net = timm.create_model("resnet10t", num_classes=3)
    save_file(net.state_dict(), "cnn.safetensors")
    values = yaml.safe_load(Path("mine.yaml").read_text())
    values["teachers"]["main"] = {"model": "resnet10t", "weights": "cnn.safetensors", "training": None}
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    whole = matrix.load("mine.yaml")
    jobs.subset(whole, "main")
    jobs.teacher(whole, "main")
    jobs.train(whole, whole.runs["dearkd-Ti"], 0, "I")
    taught = record.read(Path("results/mine/runs/dearkd-Ti/seed0/I.json"))["teacher"]
    assert taught["weights_sha256"] == record.read(Path("results/mine/teachers/main.json"))["weights_sha256"]
    save_file(timm.create_model("resnet10t", num_classes=5).state_dict(), "cnn.safetensors")
    with pytest.raises(InputError, match=r"cnn\.safetensors.*fc"):
        jobs.teacher(whole, "main")


def test_a_cnn_is_fine_tuned_from_weights_of_another_task(folder):
    """After a stage of three epochs at no rate to speak of, everything but the new classifier is where it started."""
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=5)
    save_file(net.state_dict(), "elsewhere.safetensors")
    values = yaml.safe_load(Path("mine.yaml").read_text())
    values["teachers"]["main"] |= {"start": "elsewhere.safetensors"}
    values["teachers"]["main"]["training"] |= {"lr": 1e-9, "weight_decay": 0.0}
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    whole = matrix.load("mine.yaml")
    jobs.subset(whole, "main")
    jobs.train(whole, whole.runs["teacher-main"], 0, "I")
    trained = load_file(whole.paths.state("teacher-main", 0, "I") / "student.safetensors")
    for name, parameter in net.named_parameters():
        if name.startswith("fc."):
            assert len(trained[name]) == 3
        else:
            torch.testing.assert_close(trained[name], parameter.detach(), rtol=0, atol=1e-3)
    started = record.read(whole.paths.stage("teacher-main", 0, "I"))["initial"]
    assert started["run"] == "elsewhere.safetensors" and len(started["weights_sha256"]) == 64
    missing = [need.name for need in fetch.needs(whole) if need.missing]
    Path("elsewhere.safetensors").unlink()
    assert [n.name for n in fetch.needs(whole) if n.missing] == [*missing, "weights resnet10t"]
    with pytest.raises(InputError, match=r"elsewhere\.safetensors: weights are missing"):
        jobs.train(whole, whole.runs["teacher-main"], 1, "I")
    save_file({"conv1.weight": torch.zeros(2)}, "elsewhere.safetensors")
    with pytest.raises(InputError, match=r"elsewhere\.safetensors: weights of another network"):
        jobs.train(whole, whole.runs["teacher-main"], 1, "I")


def test_what_weights_and_start_are_for_is_said():
    training = Training(epochs=2, stage1_epochs=2)
    with pytest.raises(
        InputError, match="has weights and training; name weights that its training starts from `start`"
    ):
        Teacher(model="resnet10t", top1=50.0, weights="cnn.safetensors", training=training)
    with pytest.raises(InputError, match="has start but no training"):
        Teacher(model="resnet10t", top1=50.0, start="timm")


def test_the_test_images_are_a_share_of_each_class_and_stay_the_same(folder, images):
    spec = load_scale("mine.yaml").data["main"]
    sets = data.read(spec)
    assert [np.bincount(sets[s].labels).tolist() for s in ("train", "test")] == [[48] * 3, [12] * 3]
    assert not set(sets["train"].names) & set(sets["test"].names)
    assert data.read(spec)["test"].names == sets["test"].names
    for i, mode in enumerate({sets["train"].open(i, 3).mode for i in range(len(sets["train"]))}):
        assert (i, mode) == (0, "RGB")


@pytest.mark.parametrize(
    "values, said",
    [
        ({"classes": 4}, "3 class folders, but the scale says classes: 4"),
        ({"classes": 1}, "classes: 1; a classifier needs at least 2"),
        ({"test_share": 0.0}, "has no train/.*set test_share"),
        ({"test_share": 0.995}, "nought: 60 images are too few to hold out"),
        ({"test_share": -0.2}, "test_share is -0.2; it is a share of the images, from 0 to less than 1"),
        ({"root": "$NOWHERE"}, r"root: \$NOWHERE: set this environment variable"),
    ],
)
def test_a_scale_that_does_not_fit_the_folder_is_one_sentence(folder, values, said):
    mine = yaml.safe_load(Path("mine.yaml").read_text())
    mine["data"]["main"] |= values
    Path("mine.yaml").write_text(yaml.safe_dump(mine))
    with pytest.raises(InputError, match=said):
        data.read(load_scale("mine.yaml").data["main"])


def test_an_empty_class_and_too_few_images_are_named(folder, tmp_path):
    for name, count in (("a", 3), ("b", 0)):
        (tmp_path / "few" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8)).save(tmp_path / "few" / name / f"{i}.png")
    mine = yaml.safe_load(Path("mine.yaml").read_text())
    mine["data"]["main"] |= {"root": str(tmp_path / "few"), "classes": 2, "validation": 2}
    Path("mine.yaml").write_text(yaml.safe_dump(mine))
    with pytest.raises(InputError, match="few/b: no images of this class"):
        data.read(load_scale("mine.yaml").data["main"])
    for i in range(3):
        Image.new("L", (8, 8)).save(tmp_path / "few/b" / f"{i}.png")
    whole = matrix.load("mine.yaml")
    jobs.subset(whole, "main")
    with pytest.raises(InputError, match="shows 2 images, fewer than one batch of 32; lower `batch`"):
        jobs.train(whole, whole.runs["deit-Ti"], 0, "I")


# ---------------------------------------------------------------------------------------------- what was saved


@pytest.mark.parametrize(
    "accuracies, wanted, expected",
    [
        ([50.0, 60.0, 70.0], 40.0, 10),  # the smallest share is enough
        ([50.0, 60.0, 70.0], 50.0, 10),
        ([50.0, 60.0, 70.0], 70.0, 100),
        ([50.0, 60.0, 70.0], 65.0, math.sqrt(25 * 100)),  # half-way in accuracy: the geometric mean
        ([50.0, 60.0, 70.0], 52.0, 10**0.8 * 25**0.2),
        ([50.0, 45.0, 70.0], 60.0, 25 ** (10 / 25) * 100 ** (15 / 25)),  # a dip on the way does not count
        ([50.0, 60.0, 70.0], 71.0, math.nan),
        ([50.0, math.nan, 70.0], 65.0, math.nan),
    ],
)
def test_the_share_is_read_off_the_accuracies(accuracies, wanted, expected):
    assert savings.share(accuracies, [10, 25, 100], wanted) == pytest.approx(expected, nan_ok=True)


def test_the_sentences_say_what_the_seeds_say():
    """Seed 0: 65 is half-way from 60 to 70, sqrt(25 x 50) = 35 %; seed 1: 72 at 50 %; mean: 25 x 2^0.75 = 42 %."""
    whole = matrix.load("digits")
    accuracy = {("DearKD-Ti", f): a for f, a in zip((10, 25, 50, 100), (50, 60, 70, 80), strict=True)}
    accuracy |= {("DeiT-Ti", 100): 65, ("DeiT-Ti distilled", 100): 81}
    lines = [
        {"run": cell.run, "seed": seed, "top1": accuracy.get((row.label, dict(cell.keys)["fraction"]), 0) + 2 * seed}
        for row in whole.tables["table2"].rows
        for cell in row.cells
        for seed in (0, 1)
    ]
    values = pd.DataFrame(lines)
    values.loc[(values["run"] == "deit-Ti") & (values["seed"] == 1), "top1"] = 72
    said = savings.describe(whole, values)
    assert said == [
        "DearKD-Ti on 42 % of the images equals DeiT-Ti on all of them (its 2 seeds: 35 % to 50 %).",
        "DearKD-Ti does not reach DeiT-Ti distilled, both on all images (2 seeds).",
    ]


def test_nothing_is_said_of_what_was_not_measured():
    whole = matrix.load("digits")
    cells = [(c, r.label) for r in whole.tables["table2"].rows for c in r.cells]
    values = pd.DataFrame({"run": [c.run for c, _ in cells], "seed": 0, "top1": 50.0})
    quoted = values[~values["run"].str.startswith("deit_distilled")]
    assert [s.partition(" equals ")[2][:8] for s in savings.describe(whole, quoted)] == ["DeiT-Ti "]
    tenth = matrix.load(override(whole.scale, {"fractions": [10]}, "test"))
    assert savings.describe(tenth, values) == [
        "No row has all images: put 100 among the scale's fractions to see what was saved."
    ]


def test_custom_yaml_has_nothing_to_edit_but_the_marked_lines():
    text = (PROJECT / "workflow/scales/custom.yaml").read_text()
    assert text.count("# EDIT") == 4 and text.count("# CHOOSE") == 3
    assert matrix.load("custom").tables.keys() == {"table1", "table2"}
