"""Subsets, order and augmentation as pure functions of their keys; damaged images named."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import copy_project
from PIL import Image

from dearkd.data import datasets, loader, subsets
from dearkd.data.datasets import Images
from dearkd.data.order import Schedule, epoch_order
from dearkd.errors import InputError
from dearkd.jobs import inputs
from dearkd.jobs.subset import list_subsets
from dearkd.keys import torch_generator
from dearkd.plan import experiments
from dearkd.plan.experiments import load_scale
from dearkd.plan.stage import Augment, Data

DIGITS = Data(kind="digits", classes=10, image_size=12, channels=1, mean=(0.1,), std=(0.3,), validation=250, crop=1.0)


@pytest.fixture(scope="module")
def digits():
    return datasets.read(DIGITS)


@pytest.fixture
def folder(tmp_path):
    """Two classes of three 20 x 20 images each, in ImageNet's layout."""
    for split in ("train", "val"):
        for label in range(2):
            for i in range(3):
                path = tmp_path / split / f"n{label}" / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((20, 20, 3), 60 * label + 40 * i, np.uint8)).save(path)
    return Data(kind="folder", root=str(tmp_path), classes=2, image_size=16)


# ------------------------------------------------------------------------------------------------ data sets


def test_placed_digits(digits):
    train, test = digits["train"], digits["test"]
    assert (len(train), len(test)) == (1000, 797) and not set(train.names) & set(test.names)
    assert train.pixels.shape == (1000, 12, 12, 1) and train.pixels.max() == 255
    offsets = {(np.argwhere(p[..., 0])[:, 0].min(), np.argwhere(p[..., 0])[:, 1].min()) for p in train.pixels}
    assert len(offsets) > 15, "digits stand in many places"
    assert train.sha256() == datasets.read(DIGITS)["train"].sha256()
    mean, std = train.pixels.mean() / 255, train.pixels.std() / 255
    scale = load_scale("digits").data["main"]
    assert (mean, std) == (pytest.approx(scale.mean[0], abs=2e-3), pytest.approx(scale.std[0], abs=2e-3))


def test_label_noise_flips_its_share_of_the_training_labels_only(digits):
    noisy = datasets.read(Data(**{**DIGITS.__dict__, "label_noise": 0.3}))
    assert 0.25 < (noisy["train"].labels != digits["train"].labels).mean() < 0.35
    assert (noisy["test"].labels == digits["test"].labels).all()


def test_folder(folder):
    sets = datasets.read(folder)
    assert sets["train"].names == [f"n{c}/{i}.jpg" for c in range(2) for i in range(3)]
    assert sets["test"].labels.tolist() == [0, 0, 0, 1, 1, 1]


def idx_file(path, values):
    array = np.asarray(values, np.uint8)
    path.write_bytes(
        struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    )


def test_idx_files_and_their_faults(tmp_path):
    spec = Data(kind="idx", root=str(tmp_path), classes=2, image_size=4, channels=1, mean=(0.0,), std=(1.0,))
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        datasets.read(spec)
    for prefix in ("train", "t10k"):
        idx_file(tmp_path / f"{prefix}-images-idx3-ubyte", np.arange(48).reshape(3, 4, 4))
        idx_file(tmp_path / f"{prefix}-labels-idx1-ubyte", [0, 1, 1])
    sets = datasets.read(spec)
    assert sets["train"].pixels[1, 0, 0, 0] == 16 and sets["test"].labels.tolist() == [0, 1, 1]
    idx_file(tmp_path / "t10k-labels-idx1-ubyte", [0, 1, 2])
    with pytest.raises(InputError, match="labels run from 0 to 2, but the scale says classes: 2"):
        datasets.read(spec)
    (tmp_path / "train-images-idx3-ubyte").write_bytes((tmp_path / "train-images-idx3-ubyte").read_bytes()[:-5])
    with pytest.raises(InputError, match="train-images-idx3-ubyte: not a whole IDX file"):
        datasets.read(spec)


def test_a_root_from_the_environment(folder, monkeypatch):
    spec = Data(**{**folder.__dict__, "root": "$SOME_IMAGES"})
    with pytest.raises(InputError, match=r"\$SOME_IMAGES: the environment variable is not set"):
        datasets.read(spec)
    monkeypatch.setenv("SOME_IMAGES", folder.root)
    assert len(datasets.read(spec)["train"]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "zero bytes", "truncated", "text"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(folder, damage, workers):
    images = datasets.read(folder)["train"]
    path = images.root / images.names[4]
    raw = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(
        {"zero bytes": b"", "truncated": raw[: len(raw) // 2], "text": b"not an image"}[damage]
    )
    schedule = Schedule(size=6, draws=6, batch=6, micro_batch=6, repeats=1, seed=0)
    with pytest.raises(InputError, match=r"n1/1\.jpg"):
        list(loader.training_loader(images, folder, Augment(), schedule, 0, 1, workers))
    with pytest.raises(InputError, match=r"n1/1\.jpg"):
        list(loader.evaluation_loader(images, folder, 6, workers))


def test_empty_class_and_wrong_number_of_classes(folder):
    for path in (datasets.Path(folder.root) / "val/n1").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="val/n1: has no images of this class"):
        datasets.read(folder)
    with pytest.raises(InputError, match="2 class folders, but the scale says classes: 3"):
        datasets.read(Data(**{**folder.__dict__, "classes": 3}))
    with pytest.raises(InputError, match="no such folder"):
        datasets.read(Data(**{**folder.__dict__, "root": "/nowhere"}))


# ------------------------------------------------------------------------------------------------ subsets


def test_subsets_are_balanced_nested_and_apart_from_validation(digits):
    chosen = subsets.choose(digits["train"].labels, DIGITS, (10, 25, 50, 100), seed=0)
    labels = digits["train"].labels
    assert np.bincount(labels[chosen["validation"]]).tolist() == [25] * 10
    assert set(chosen["train-10"]) < set(chosen["train-25"]) < set(chosen["train-50"]) < set(chosen["train-100"])
    assert not set(chosen["validation"]) & set(chosen["train-100"])
    pool = np.bincount(labels) - 25
    assert np.bincount(labels[chosen["train-10"]]).tolist() == [n * 10 // 100 for n in pool]
    again = subsets.choose(labels, DIGITS, (10, 10), seed=0)["train-10"]
    assert (again == chosen["train-10"]).all()
    assert set(subsets.choose(labels, DIGITS, (10,), seed=1)["train-10"]) != set(again)


def test_each_seed_may_draw_its_own_fractions_and_validation_stays(digits):
    labels = digits["train"].labels
    once = subsets.choose(labels, DIGITS, (10, 50, 100), seed=0)
    drawn = subsets.choose(labels, DIGITS, (10, 50, 100), seed=0, draws=(3, 4))
    assert {n: v.tolist() for n, v in once.items()} == {n: v.tolist() for n, v in drawn.items() if "seed" not in n}
    assert set(drawn) - set(once) == {f"train-{f}-seed{d}" for f in (10, 50) for d in (3, 4)}
    for d in (3, 4):
        tenth, half = drawn[f"train-10-seed{d}"], drawn[f"train-50-seed{d}"]
        assert set(tenth) < set(half) < set(once["train-100"])
        assert np.bincount(labels[tenth]).tolist() == np.bincount(labels[once["train-10"]]).tolist()
    alone = subsets.choose(labels, DIGITS, (10,), seed=0, draws=(4,))
    assert (alone["train-10-seed4"] == drawn["train-10-seed4"]).all(), "a draw depends on no other"
    tenths = [set(chosen) for name, chosen in drawn.items() if name.split("-")[1:2] == ["10"]]
    assert all(len(a & b) < 0.3 * len(a) for a in tenths for b in tenths if a is not b)


def test_a_job_reads_the_draw_of_its_seed(tmp_path, monkeypatch):
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("extends: smoke\nname: own\nseeds: [0, 1]\nsubset_draw: seed\nlabel_epochs: 2\n")
    plan = experiments.load("own.yaml")
    list_subsets(plan, "main")
    tenth, whole = (plan.runs[name].stages[0] for name in ("deit_distilled-Ti-fraction~10", "deit_distilled-Ti"))
    for of, differ in ((tenth, True), (plan.labels_of(tenth), True), (whole, False), (plan.labels_of(whole), False)):
        first, second = (inputs.real_images(plan, of, seed) for seed in (0, 1))
        assert (first[1] != second[1]) is (set(first[0].names) != set(second[0].names)) is differ
    assert tenth != experiments.load("smoke").runs["deit_distilled-Ti-fraction~10"].stages[0]
    assert whole == experiments.load("smoke").runs["deit_distilled-Ti"].stages[0]


def test_counts_at_imagenets_class_sizes():
    """1,281,167 images in classes of 732 to 1,300: floor per class gives the spec's counts to a thousandth."""
    rng = np.random.default_rng(0)
    sizes = np.where(rng.random(1000) < 0.895, 1300, rng.integers(732, 1300, 1000))
    labels = np.repeat(np.arange(1000), sizes)
    spec = Data(kind="folder", classes=1000, image_size=224)
    for fraction in (10, 25, 50, 100):
        count = len(subsets.choose(labels, spec, (fraction,), 0)[f"train-{fraction}"])
        assert len(labels) * fraction / 100 - 1000 < count <= len(labels) * fraction / 100
        assert count == sum(s * fraction // 100 for s in sizes)


def test_order_first_takes_the_first_files_of_each_class(digits):
    spec = Data(**{**DIGITS.__dict__, "order": "first", "validation": 0})
    labels = digits["train"].labels
    chosen = subsets.choose(labels, spec, (10,), 0)["train-10"]
    zeros = np.flatnonzero(labels == 0)
    assert [i for i in chosen if labels[i] == 0] == zeros[: len(zeros) // 10].tolist()


def test_subset_files_carry_their_sha256_and_refuse_an_edit(digits, tmp_path):
    chosen = subsets.choose(digits["train"].labels, DIGITS, (10,), 0)
    subsets.write(digits["train"], chosen, tmp_path)
    images, digest = subsets.read(digits["train"], tmp_path, "train-10", "own.yaml")
    assert digest == hashlib.sha256((tmp_path / "train-10.txt").read_bytes()).hexdigest()
    assert images.names == [digits["train"].names[i] for i in chosen["train-10"]]
    (tmp_path / "train-10.txt").write_text("digit-0001\n")
    with pytest.raises(InputError, match=r"train-10\.txt: differs from its sha256.* --scale own\.yaml`$"):
        subsets.read(digits["train"], tmp_path, "train-10", "own.yaml")
    with pytest.raises(InputError, match=r"train-50\.txt: missing.* --scale own\.yaml`$"):
        subsets.read(digits["train"], tmp_path, "train-50", "own.yaml")


# ------------------------------------------------------------------------------------------------ order


def test_an_epoch_is_a_permutation_and_a_fraction_is_several():
    order = epoch_order(10, 10, 1, seed=0, epoch=3)
    assert sorted(order) == list(range(10))
    quarter = epoch_order(3, 10, 1, seed=0, epoch=3)
    assert [sorted(quarter[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert (order == epoch_order(10, 10, 1, 0, 3)).all() and (order != epoch_order(10, 10, 1, 0, 4)).any()


def test_repeated_augmentation_shows_a_third_of_the_images_three_times():
    order = epoch_order(300, 300, 3, seed=0, epoch=0)
    values, counts = np.unique(order, return_counts=True)
    assert len(values) == 100 and (counts == 3).all()
    schedule = Schedule(size=300, draws=300, batch=12, micro_batch=4, repeats=3, seed=0)
    step = list(schedule.batches(0, 1))
    assert len(set(step[0].indices)) == 4, "copies of an image go to different micro-batches"
    assert set(step[0].indices) == set(step[1].indices) == set(step[2].indices)


def test_processes_share_the_same_micro_batches():
    def everything(processes):
        found = [
            b
            for rank in range(processes)
            for b in Schedule(
                size=100, draws=100, batch=16, micro_batch=4, repeats=1, seed=5, rank=rank, processes=processes
            ).batches(3, 9)
        ]
        return {(b.step, b.group): b for b in found}

    assert everything(1) == everything(2) == everything(4)
    with pytest.raises(InputError, match="3 processes cannot share 4 micro-batches"):
        everything(3)


def test_a_schedule_started_in_the_middle_goes_on_as_if_never_stopped():
    schedule = Schedule(size=50, draws=50, batch=8, micro_batch=8, repeats=1, seed=1)
    assert list(schedule.batches(0, 20))[9:] == list(schedule.batches(9, 20))


def test_too_few_images_for_a_batch():
    with pytest.raises(InputError, match="shows 5 images, fewer than one batch of 8"):
        Schedule(size=5, draws=5, batch=8, micro_batch=8, repeats=1, seed=0)


# ------------------------------------------------------------------------------------------------ pixels

AFFINE = Augment(kind="affine", shift=2.5, rotate=12.0, zoom=0.1, mixup=0.0, cutmix=0.0, repeats=1)


@pytest.mark.slow
@pytest.mark.parametrize("augment", [AFFINE, Augment(crop_scale=(0.5, 1.0))], ids=["affine", "timm"])
def test_workers_change_no_pixel(folder, digits, augment):
    spec, images = (DIGITS, digits["train"]) if augment.kind == "affine" else (folder, datasets.read(folder)["train"])
    schedule = Schedule(size=len(images), draws=len(images), batch=6, micro_batch=3, repeats=1, seed=0)
    last = min(schedule.steps_per_epoch, 5)
    runs = [list(loader.training_loader(images, spec, augment, schedule, 0, last, workers)) for workers in (0, 1, 2)]
    for batches in runs[1:]:
        for (key, pixels, labels), (key0, pixels0, labels0) in zip(batches, runs[0], strict=True):
            assert key == key0 and torch.equal(pixels, pixels0) and torch.equal(labels, labels0)
    second = next(
        loader.training_loader(
            images, spec, augment, schedule, schedule.steps_per_epoch, schedule.steps_per_epoch + 1, 0
        )
    )
    assert not torch.equal(second[1], runs[0][0][1]), "another epoch, other pixels"


def test_affine_with_nothing_to_do_is_the_identity_and_shift_moves():
    pixels = torch.rand(3, 1, 12, 12)
    still = loader.affine(pixels, Augment(kind="affine", mixup=0.0, cutmix=0.0), torch_generator(0))
    assert torch.allclose(still, pixels, atol=1e-5)
    dot = torch.zeros(200, 1, 12, 12)
    dot[:, :, 6, 6] = 1
    moved = loader.affine(dot, Augment(kind="affine", shift=2.0, mixup=0.0, cutmix=0.0), torch_generator(0))
    rows = (moved.sum((1, 3)) * torch.arange(12.0)).sum(1) / moved.sum((1, 2, 3))
    assert 1.6 < (rows - 6).abs().max() <= 2.01 and abs((rows - 6).mean()) < 0.3


def test_evaluation_pixels_are_resized_and_cropped(folder):
    images = datasets.read(folder)["train"]
    pixels, labels = next(loader.evaluation_loader(images, folder, 6))
    assert pixels.shape == (6, 3, 16, 16) and labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = (80 / 255 - 0.485) / 0.229
    assert pixels[2, 0].mean().item() == pytest.approx(expected, abs=0.02)


def test_cifar_sized_arrays_are_upsampled_for_a_larger_student():
    images = Images(["a", "b"], np.array([0, 1]), np.zeros((2, 32, 32, 3), np.uint8))
    spec = Data(kind="cifar10", classes=10, image_size=48)
    assert loader.whole_pixels(images, [0, 1], spec).shape == (2, 3, 48, 48)
