"""Images of one's own, as a stranger brings them: scikit-learn's digits as image files, through `custom.yaml`."""

import dataclasses
import math
import shutil
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

from dearkd import record
from dearkd.data import datasets
from dearkd.errors import InputError
from dearkd.jobs import fetch
from dearkd.jobs.subset import list_subsets
from dearkd.jobs.teacher import admit_teacher
from dearkd.jobs.train import train_stage
from dearkd.plan import experiments
from dearkd.plan.experiments import load_scale
from dearkd.plan.stage import Teacher, Training
from dearkd.report import savings, tables
from dearkd.schema import override

pytestmark = pytest.mark.slow

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
    assert len(saved) >= 2
    assert all("DearKD-Ti" in line and line.endswith("(one seed, 36 test images).") for line in saved[:2])
    assert saved[0][2:].replace("'", "&#x27;") in Path("results/mine/report.html").read_text()
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
    whole = experiments.load("mine.yaml")
    list_subsets(whole, "main")
    admit_teacher(whole, "main")
    train_stage(whole, whole.runs["dearkd-Ti"], 0, "I")
    taught = record.read(Path("results/mine/runs/dearkd-Ti/seed0/I.json"))["teacher"]
    assert taught["weights_sha256"] == record.read(Path("results/mine/teachers/main.json"))["weights_sha256"]
    save_file(timm.create_model("resnet10t", num_classes=5).state_dict(), "cnn.safetensors")
    with pytest.raises(InputError, match=r"cnn\.safetensors.*fc"):
        admit_teacher(whole, "main")


def test_a_cnn_is_fine_tuned_from_weights_of_another_task(folder):
    """After a stage of three epochs at no rate to speak of, everything but the new classifier is where it started."""
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=5)
    save_file(net.state_dict(), "elsewhere.safetensors")
    values = yaml.safe_load(Path("mine.yaml").read_text())
    values["teachers"]["main"] |= {"start": "elsewhere.safetensors"}
    values["teachers"]["main"]["training"] |= {"lr": 1e-9, "weight_decay": 0.0}
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    whole = experiments.load("mine.yaml")
    list_subsets(whole, "main")
    train_stage(whole, whole.runs["teacher-main"], 0, "I")
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
    with pytest.raises(InputError, match=r"elsewhere\.safetensors: the weights are missing"):
        train_stage(whole, whole.runs["teacher-main"], 1, "I")
    save_file({"conv1.weight": torch.zeros(2)}, "elsewhere.safetensors")
    with pytest.raises(InputError, match=r"elsewhere\.safetensors: has the weights of another network"):
        train_stage(whole, whole.runs["teacher-main"], 1, "I")


def test_what_weights_and_start_are_for_is_said():
    training = Training(epochs=2, stage1_epochs=2, warmup_epochs=0)
    with pytest.raises(InputError, match="has both weights and training; set training: null"):
        Teacher(model="resnet10t", top1=50.0, weights="cnn.safetensors", training=training)
    with pytest.raises(InputError, match="has start but no training"):
        Teacher(model="resnet10t", top1=50.0, start="timm")


def test_the_test_images_are_a_share_of_each_class_and_stay_the_same(folder, images):
    spec = load_scale("mine.yaml").data["main"]
    sets = datasets.read(spec)
    assert [np.bincount(sets[s].labels).tolist() for s in ("train", "test")] == [[48] * 3, [12] * 3]
    assert not set(sets["train"].names) & set(sets["test"].names)
    assert datasets.read(spec)["test"].names == sets["test"].names
    for i, mode in enumerate({sets["train"].open(i, 3).mode for i in range(len(sets["train"]))}):
        assert (i, mode) == (0, "RGB")


@pytest.mark.parametrize(
    "values, said",
    [
        ({"classes": 4}, "3 class folders, but the scale says classes: 4"),
        ({"classes": 1}, "data.main: classes is 1; write 2 or more"),
        ({"test_share": 0.0}, "has no train/.*set test_share"),
        ({"test_share": 0.995}, "nought: 60 images are too few to hold out"),
        ({"test_share": -0.2}, "test_share is -0.2; write a number from 0 to below 1"),
        ({"root": "$NOWHERE"}, r"root: \$NOWHERE: the environment variable is not set"),
    ],
)
def test_a_scale_that_does_not_fit_the_folder_is_one_sentence(folder, values, said):
    mine = yaml.safe_load(Path("mine.yaml").read_text())
    mine["data"]["main"] |= values
    Path("mine.yaml").write_text(yaml.safe_dump(mine))
    with pytest.raises(InputError, match=said):
        datasets.read(load_scale("mine.yaml").data["main"])


def test_an_empty_class_and_too_few_images_are_named(folder, tmp_path):
    for name, count in (("a", 3), ("b", 0)):
        (tmp_path / "few" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8)).save(tmp_path / "few" / name / f"{i}.png")
    mine = yaml.safe_load(Path("mine.yaml").read_text())
    mine["data"]["main"] |= {"root": str(tmp_path / "few"), "classes": 2, "validation": 2}
    mine["fractions"] = [100]
    Path("mine.yaml").write_text(yaml.safe_dump(mine))
    with pytest.raises(InputError, match="few/b: has no images of this class"):
        datasets.read(load_scale("mine.yaml").data["main"])
    for i in range(3):
        Image.new("L", (8, 8)).save(tmp_path / "few/b" / f"{i}.png")
    whole = experiments.load("mine.yaml")
    with pytest.raises(InputError, match="batch of 32 is more than the 2 training images of data main; lower `batch`"):
        list_subsets(whole, "main")


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


def answers(top1, images):
    """So many percent of the images right, the first ones."""
    return np.arange(images) < round(top1 / 100 * images)


def described(accuracy, images=2000, seeds=2, step=2.0, classes=10):
    """What is said where DearKD-Ti has these accuracies (by fraction) and the others theirs on all images.

    Of two seeds one lies `step` / 2 above and one below for every method, so that their differences are equal. What the
    less accurate method has right, the other has right too.
    """
    scale = experiments.load("digits").scale
    data = {**scale.data, "main": dataclasses.replace(scale.data["main"], classes=classes)}
    whole = dataclasses.replace(experiments.load("digits"), scale=dataclasses.replace(scale, data=data))
    lines = [
        {"run": cell.run, "seed": seed, "top1": here, "right": answers(here, images)}
        for row in whole.tables["table2"].rows
        for cell in row.cells
        for seed in range(seeds)
        for top1 in [accuracy.get((row.label, dict(cell.keys)["fraction"]), accuracy.get(row.label))]
        if top1 is not None
        for here in [top1 + step * (seed - (seeds - 1) / 2)]
    ]
    return savings.describe(whole, pd.DataFrame(lines))


def curve(*top1):
    return {("DearKD-Ti", f): a for f, a in zip((10, 25, 50, 100), top1, strict=True)}


def test_a_saving_is_where_the_interval_lies_above_the_other_method():
    """DeiT 65 lies at 25 x 2^0.5 = 35 %."""
    said = described({**curve(50, 60, 70, 80), "DeiT-Ti": 65.0, "DeiT-Ti distilled": 81.0})
    assert said == [
        "DearKD-Ti on 50 % of the images beats DeiT-Ti on all of them: +5.0 [+4.1, +5.9] points; straight lines "
        "between the means make them equal at 35 % (2 seeds, 2000 test images).",
        "DearKD-Ti does not reach DeiT-Ti distilled, both on all images: -1.0 [-1.3, -0.7] points (2 seeds, 2000 test "
        "images).",
    ]


def measured(*strings):
    """top1 and right by seed, from a string of 0 and 1 for each seed."""
    right = [np.array([*map(int, one)]) == 1 for one in strings]
    return pd.DataFrame({"top1": [100 * one.mean() for one in right], "right": right})


def test_the_error_of_the_test_set_by_hand():
    """5 of 20 images, the same for both seeds: variance 100² x 1/4 x 3/4 x 20/19, over 20 images 98.68, and one image,
    25: √123.68 x 1.96 = 21.80. One seed has no interval."""
    ours, others = "1" * 15 + "0" * 5, "1" * 10 + "0" * 10
    found = savings.difference(measured(ours, ours), measured(others, others))
    assert (found.mean, found.high) == pytest.approx((25, 25 + 21.797), abs=1e-3)
    assert str(found) == "+25.0 [+3.2, +46.8] points"
    assert str(savings.difference(measured(ours), measured(others))) == "+25.0 points"


def test_only_seeds_that_both_have_are_compared():
    ours, others = measured("1100", "1110", "0000"), measured("1000", "1110").set_axis([0, 1])
    assert savings.difference(ours, others).mean == pytest.approx(12.5)
    assert math.isnan(savings.difference(ours, others.set_axis([7, 8])).low)


def test_two_images_of_forty_are_no_saving():
    """The case of a folder with 40 test images, of which 2 decide."""
    accuracy = {**curve(62.5, 62.5, 65, 65), "DeiT-Ti": 60.0, "DeiT-Ti distilled": 67.5}
    said = described(accuracy, images=40, step=0)
    assert len(said) == 2 and all("cannot be told apart, both on all images" in line for line in said)
    assert all("beats" not in line and line.endswith("(2 seeds, 40 test images).") for line in said)


def test_one_seed_gives_a_difference_and_no_verdict():
    said = described({**curve(50, 60, 70, 80), "DeiT-Ti": 60.0, "DeiT-Ti distilled": 90.0}, seeds=1)
    assert said == [
        "DearKD-Ti and DeiT-Ti, both on all images: +20.0 points, and one seed is no verdict (one seed, 2000 test "
        "images).",
        "DearKD-Ti and DeiT-Ti distilled, both on all images: -10.0 points, and one seed is no verdict (one seed, "
        "2000 test images).",
    ]


def test_what_lies_below_the_saving_and_cannot_be_told_apart_is_said():
    accuracy = {**curve(80.1, 88, 92, 93), "DeiT-Ti": 80.0, "DeiT-Ti distilled": 60.0}
    said = described(accuracy)
    assert "DearKD-Ti on 25 % of the images beats DeiT-Ti on all of them: +8.0 [" in said[0]
    assert "; on 10 % the two cannot be told apart (2 seeds, 2000 test images)." in said[0]
    assert said[1].startswith("DearKD-Ti on 10 % of the images beats DeiT-Ti distilled on all of them")


def test_a_fraction_below_one_that_is_not_enough_is_no_saving():
    """25 % is enough by chance and 50 % is not: only all images are said to beat the other method."""
    said = described({**curve(80, 88, 80, 93), "DeiT-Ti": 80.0, "DeiT-Ti distilled": 70.0})
    assert said[0].startswith("DearKD-Ti on 100 % of the images beats DeiT-Ti on all of them: +13.0 [")
    assert "; on 10 % and 50 % the two cannot be told apart" in said[0]


def test_the_seeds_of_a_sentence_are_those_of_what_it_says():
    """50 % has two of three seeds, and the sentence is of 50 %; 10 % has one, of which nothing is said."""
    whole = experiments.load("digits")
    top1 = {("DearKD-Ti", 10): 50, ("DearKD-Ti", 50): 70, ("DearKD-Ti", 100): 80, ("DeiT-Ti", 100): 60}
    seeds = {("DearKD-Ti", 10): 1, ("DearKD-Ti", 50): 2}
    lines = [
        {"run": cell.run, "seed": seed, "top1": top1[at] + seed, "right": answers(top1[at] + seed, 2000)}
        for row in whole.tables["table2"].rows
        for cell in row.cells
        for at in [(row.label, dict(cell.keys)["fraction"])]
        for seed in range(seeds.get(at, 3))
        if at in top1
    ]
    (said,) = savings.describe(whole, pd.DataFrame(lines))
    assert said.startswith("DearKD-Ti on 50 %") and said.endswith("(2 seeds, 2000 test images).")


@pytest.mark.parametrize(
    "classes, top1, low",
    [
        (10, 16.0, True),
        (10, 22.0, True),
        (10, 27.9, True),
        (10, 28.1, False),
        (2, 59.0, True),
        (2, 61.0, False),
        (3, 46.0, True),
        (1000, 0.29, True),
        (1000, 0.31, False),
        (1000, 15.0, False),
    ],
)
def test_near_chance(classes, top1, low):
    assert savings.near_chance(top1, classes) == low


def test_nothing_learned_and_nothing_left_to_learn_are_no_saving():
    """The case of students at 16 to 22 % of ten classes, and one of tests that all get right."""
    chance = described({**curve(16, 19, 20, 22), "DeiT-Ti": 16.0, "DeiT-Ti distilled": 17.0}, images=500)
    assert all(line.startswith("Nothing can be said of DearKD-Ti and DeiT-Ti") for line in chance)
    assert "with 22.0 and 16.0 % both are close to chance, 10.0 %" in chance[0]
    full = described({**curve(98, 99, 99, 99.5), "DeiT-Ti": 99.0, "DeiT-Ti distilled": 95.0}, images=300, step=0)
    assert "Nothing can be said" in full[0] and "nearly every test image right" in full[0]
    assert "beats DeiT-Ti distilled" in full[1]


@pytest.mark.parametrize("scale", sorted(path.parent.name for path in PROJECT.glob("results/*/savings.md")))
def test_what_is_committed_is_what_the_records_say(scale):
    whole = experiments.load(scale)
    values = tables.values_of(whole, "table2")
    said = [*(f"- {line}" for line in savings.describe(whole, values)), *savings.gaps(whole, values)]
    assert (whole.paths.results / "savings.md").read_text().splitlines() == said


def test_a_teacher_near_chance_is_named(folder_with_digits, monkeypatch):
    whole = experiments.load("digits")
    assert savings._teacher(whole) == []
    path = whole.paths.teacher("main")
    scale = Path("workflow/scales/digits.yaml")
    scale.write_text(scale.read_text().replace("top1: 98\n", "top1: 16\n"))
    record.write(path, {**(found := record.read(path)), "top1": 16.0, "spec": {**found["spec"], "top1": 16.0}})
    whole = experiments.load("digits")
    assert savings._teacher(whole) == ["The teacher is right on 16.0 % of its images, close to chance (10.0 %)."]


@pytest.fixture
def folder_with_digits(tmp_path, monkeypatch):
    copy_project(tmp_path)
    for kind in ("teachers", "runs", "subsets"):
        shutil.copytree(PROJECT / "results/digits" / kind, tmp_path / "results/digits" / kind)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_is_said_of_what_was_not_measured():
    assert len(described({**curve(50, 60, 70, 80), "DeiT-Ti": 65.0})) == 1
    assert described({("DearKD-Ti", 10): 50.0, "DeiT-Ti": 65.0}) == []
    whole = experiments.load("digits")
    tenth = experiments.load(override(whole.scale, {"fractions": [10]}, "test"))
    values = pd.DataFrame([{"run": "deit-Ti-f10", "seed": 0, "top1": 50.0, "right": np.array([True, False])}])
    assert savings.describe(tenth, values) == [
        "No row has all images: put 100 among the scale's fractions to see what was saved."
    ]


def test_custom_yaml_has_nothing_to_edit_but_the_marked_lines():
    text = (PROJECT / "workflow/scales/custom.yaml").read_text()
    assert text.count("# EDIT") == 4 and text.count("# CHOOSE") == 3
    assert experiments.load("custom").tables.keys() == {"table1", "table2"}
