"""The gate before a teacher: orders of outputs, mean and std, side and channels of a CNN of one's own."""

import dataclasses
import time
import unicodedata

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import dearkd.models  # noqa: F401  registers convnet_micro
from dearkd.data.datasets import Images
from dearkd.errors import InputError
from dearkd.fingerprint import fingerprint
from dearkd.jobs import gate
from dearkd.model import hub, teachers
from dearkd.plan import stage
from dearkd.schema import build

CLASSES, SIDE = 12, 16
NAMES = sorted(map(str, range(CLASSES)))
"""Folders 0, 1, 10, 11, 2, ... as they are read."""
PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DATA = stage.Data(kind="folder", classes=CLASSES, image_size=SIDE)
CPU = torch.device("cpu")


def pictures(count, seed):
    """(n, side, side, 3) noisy images whose class is their colour, and their class by number."""
    random = np.random.default_rng(seed)
    numbers = np.arange(CLASSES).repeat(count)
    pixels = random.integers(0, 40, (len(numbers), SIDE, SIDE, 3), dtype=np.uint8)
    for image, number in zip(pixels, numbers, strict=True):
        green, red = divmod(number, 4)
        image += np.uint8([70 * red, 100 * green, 50])
    return pixels, numbers


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A CNN that learned the classes in the order of their numbers, from pixels normalised with 0.5 and 0.5."""
    torch.manual_seed(0)
    net = timm.create_model("convnet_micro", num_classes=CLASSES, widths=(8, 16, 16))
    pixels, numbers = pictures(8, 0)
    images, labels = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(numbers)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        nn.functional.cross_entropy(net(images), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
    path = tmp_path_factory.mktemp("cnn") / "cnn.safetensors"
    save_file(net.state_dict(), path)
    return path


def images_of(names):
    """Twelve images a class, whose folder is the class's number."""
    pixels, numbers = pictures(12, 1)
    labels = np.array([names.index(str(n)) for n in numbers])
    order = np.argsort(labels, kind="stable")
    return Images([f"{names[labels[i]]}/{i}.png" for i in order], labels[order], pixels[order])


def measure(weights, images=None, **said):
    said = {"top1": 95.0, "tolerance": 5.0, "mean": PIXELS[0], "std": PIXELS[1], **said}
    teacher = stage.Teacher(model="convnet_micro", args=(("widths", (8, 16, 16)),), weights=str(weights), **said)
    loaded = teachers.build(teacher, DATA)
    if teacher.outputs:
        gate.reorder(loaded.net, gate.in_order(teacher.outputs, NAMES))
    return gate.measure("main", teacher, DATA, loaded, images or images_of(NAMES), NAMES, CPU)


NUMBERS = tuple(str(n) for n in range(CLASSES))


@pytest.mark.parametrize("outputs", [("numeric",), NUMBERS, tuple(range(CLASSES))])
def test_the_order_of_the_outputs_can_be_given(weights, outputs):
    assert measure(weights, outputs=outputs) == (100.0, "")


@pytest.mark.parametrize("tolerance", [5.0, 95.0])
def test_numeric_order_is_named_where_it_fits_and_never_passes_in_silence(weights, tolerance):
    with pytest.raises(InputError, match=r"fit the class folders in numeric order \(100.00 %\): set .*\[numeric\]"):
        measure(weights, tolerance=tolerance)


def test_any_other_order_is_named_too(weights):
    swapped = (*NUMBERS[:4], *reversed(NUMBERS[4:]))
    with pytest.raises(InputError, match=r"another order of its outputs fits better \(100.00 %; .*`outputs`"):
        measure(weights, outputs=swapped)
    _, warning = measure(weights, outputs=swapped, top1=50.0, tolerance=50.0)
    assert "another order of its outputs fits better" in warning


def test_the_mean_and_std_that_would_fit_are_named(weights):
    raw = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "outputs": ("numeric",)}
    with pytest.raises(
        InputError, match=r"with Inception's mean and std its top-1 is 100.0 % .*mean: \[0.5, 0.5, 0.5\]"
    ):
        measure(weights, **raw)
    top1, warning = measure(weights, **raw, top1=50.0, tolerance=50.0)
    assert top1 < 30 and "chance is 8.3 %" in warning and "Inception's" in warning


def test_where_nothing_fits_the_causes_are_named_with_what_is_used_now(weights):
    pixels, numbers = pictures(12, 1)
    labels = np.random.default_rng(0).permutation(numbers)
    noise = Images([f"{NAMES[n]}/{i}.png" for i, n in enumerate(labels)], labels, pixels)
    with pytest.raises(InputError, match=r"other weights, .*\(now mean: \[0.5, .*\) or side \(now 16\)"):
        measure(weights, noise)


def test_a_weak_teacher_of_our_own_is_called_weak(weights):
    teacher = stage.Teacher(model="convnet_micro", top1=50.0, tolerance=50.0, training=stage.Training())
    loaded = teachers.build(teacher, DATA, _fresh(weights))
    _, warning = gate.measure("main", teacher, DATA, loaded, images_of(NAMES), NAMES, CPU)
    assert "chance is 8.3 %: its students learn its mistakes" in warning


def _fresh(weights):
    torch.manual_seed(0)
    path = weights.with_name("fresh.safetensors")
    save_file(timm.create_model("convnet_micro", num_classes=CLASSES).state_dict(), path)
    return path


def test_a_part_of_the_outputs_is_enough(weights):
    teacher = stage.Teacher(
        model="convnet_micro",
        args=(("widths", (8, 16, 16)),),
        weights=str(weights),
        top1=0.0,
        outputs=NUMBERS,
        mean=PIXELS[0],
        std=PIXELS[1],
    )
    few = ["11", "3", "4"]
    data = dataclasses.replace(DATA, classes=3)
    loaded = teachers.build(teacher, data)
    whole = loaded.net(torch.zeros(1, 3, SIDE, SIDE))
    gate.reorder(loaded.net, gate.in_order(teacher.outputs, few))
    torch.testing.assert_close(loaded.net(torch.zeros(1, 3, SIDE, SIDE)), whole[:, [11, 3, 4]])
    saved = weights.with_name("few.safetensors")
    save_file(loaded.net.state_dict(), saved)
    again = teachers.build(teacher, data, saved)
    torch.testing.assert_close(again.net(torch.zeros(1, 3, SIDE, SIDE)), whole[:, [11, 3, 4]])


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1), min_size=2, unique=True))
def test_any_names_can_be_ordered_and_found(names):
    assert sorted(gate.numeric(names)) == sorted(names)
    natural = gate.numeric(names)
    if len({unicodedata.normalize("NFC", name) for name in names}) == len(names):
        assert [natural[i] for i in gate.in_order(["numeric"], names)] == names


def test_numbers_count_as_numbers():
    assert gate.numeric(["c10", "c2", "b10", "1", "10", "9"]) == ["1", "9", "10", "b10", "c2", "c10"]


@pytest.mark.parametrize(
    "outputs, message",
    [
        (("cat", "cat", "dog"), r"'cat' names the outputs \[0, 1\]"),
        (("cta", "dog"), "unknown class folder 'cat'; did you mean 'cta'"),
    ],
)
def test_outputs_that_do_not_fit_the_folders(outputs, message):
    with pytest.raises(InputError, match=message):
        gate.in_order(outputs, ["cat", "dog"])


@pytest.mark.parametrize(
    "said, message",
    [
        ({"mean": [0.5]}, "mean and std need the same number of values"),
        ({"mean": [0.5], "std": [0]}, "std is 0.0; write a number above 0 and up to 255"),
        ({"channels": 2}, "channels is 2; write 1 or 3"),
        ({"channels": 1, "mean": [0.5] * 3, "std": [0.5] * 3}, "write 1 or 3, the number of values of mean"),
        ({"image_size": -1}, "image_size is -1"),
        ({"outputs": [True, False]}, "outputs: YAML reads True, which is no text"),
        ({"outputs": ["numeric"], "training": {}}, "outputs, which says how weights from elsewhere"),
        ({"mean": [0.5], "std": [0.5], "training": {}}, "mean, which says how weights from elsewhere"),
    ],
)
def test_what_is_said_of_a_cnn_must_fit_itself(said, message):
    with pytest.raises(InputError, match=message):
        build(stage.Teacher, {"model": "resnet18", "top1": 50, **said}, "mine.yaml: teachers.main")


def test_new_keys_change_no_old_teacher():
    assert fingerprint(stage.Teacher(model="resnet18", top1=50.0)) == "213ae30d92aa8fff"


# ---------------------------------------------------------------------------------------------- pixels


def of_pixels(data, **said):
    """The teacher for images of `data` that say `said` of the CNN, and a CNN that returns what it is given."""
    teacher = stage.Teacher(model="resnet18", top1=0.0, **said)
    net = nn.Identity()
    net.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
    own = teachers.moments(teacher, net, teacher.channels or data.channels)
    return teachers.TeacherNetwork(net, (), (data.mean, data.std), own, teacher.image_size)


def grey(mean, std):
    return dataclasses.replace(DATA, channels=1, mean=(mean,), std=(std,))


RAW = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def normal(pixels, mean, std):
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_pixels_get_the_mean_std_channels_and_side_of_the_cnn():
    rgb = normal(RAW, DATA.mean, DATA.std)
    torch.testing.assert_close(of_pixels(DATA).normalised(rgb), normal(RAW, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)))
    own = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    torch.testing.assert_close(of_pixels(DATA, **own).normalised(rgb), normal(RAW, *own.values()))
    luma = (RAW * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    made = of_pixels(DATA, channels=1, mean=(0.2,), std=(0.7,)).normalised(rgb)
    torch.testing.assert_close(made, normal(luma, (0.2,), (0.7,)))
    one = RAW[:, :1]
    made = of_pixels(grey(0.3, 0.2), channels=3).normalised(normal(one, (0.3,), (0.2,)))
    torch.testing.assert_close(made, normal(one.expand(-1, 3, -1, -1), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)))
    assert of_pixels(DATA, image_size=20).normalised(rgb).shape == (2, 3, 20, 20)


def test_equal_moments_of_three_channels_for_grey_images_still_make_three():
    same = of_pixels(grey(0.5, 0.5), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert same.normalised(torch.zeros(1, 1, 4, 4)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("data, channels", [(DATA, 1), (grey(0.5, 0.5), 3)])
def test_a_cnn_of_other_channels_is_built_with_its_own(tmp_path, data, channels):
    save_file(
        timm.create_model("resnet10t", num_classes=CLASSES, in_chans=channels).state_dict(), tmp_path / "w.safetensors"
    )
    given = {"weights": str(tmp_path / "w.safetensors"), "channels": channels, "image_size": 32}
    built = teachers.build(stage.Teacher(model="resnet10t", top1=0.0, **given), data, None, (1,))
    seen = built(torch.zeros(2, data.channels, SIDE, SIDE))
    assert seen.decisions.shape == (2,) and seen.features[0].shape[-1] == 8, "stage 1 of 32 pixels, not of 16"
    assert built.feature_shapes(torch.zeros(2, data.channels, SIDE, SIDE))[1].size == (8, 8)


@pytest.mark.parametrize("model", ["resnet10t", "dla46_c", "dpn48b", "resnetv2_50", "mobilenetv3_small_050"])
def test_codes_and_logits_are_the_networks_own_whatever_its_classifier(model):
    torch.manual_seed(0)
    net = timm.create_model(model, num_classes=3)
    images = torch.randn(2, 3, 64, 64)
    codes, logits = teachers.TeacherNetwork(net).codes_and_logits(images)
    assert codes.shape == (2, net.num_features) or codes.shape == (2, net.head_hidden_size)
    torch.testing.assert_close(logits, net(images))
    gate.reorder(net, [2, 0])
    torch.testing.assert_close(net(images), logits[:, [2, 0]])


# ---------------------------------------------------------------------------------------------- the hub


def test_a_hub_that_does_not_answer_is_asked_once_and_says_so_in_one_sentence(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    hub.reachable.cache_clear()
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(
            InputError,
            match=r"not on this machine, and http://127.0.0.1:9 does not answer; .* copy the folder HF_HOME here",
        ):
            hub.create("resnet10t.c3_in1k", True, {}, "weights")
    assert time.monotonic() - started < 10
    assert capfd.readouterr() == ("", "")
    assert not hub.constants.HF_HUB_OFFLINE
    hub.reachable.cache_clear()


def test_a_tag_of_another_number_of_classes_does_not_get_a_random_classifier():
    with pytest.raises(InputError, match=r"its weights have 1000 outputs, but the data have 12 classes; fine-tune"):
        teachers.build(stage.Teacher(model="resnet10t.c3_in1k", top1=50.0), DATA)
