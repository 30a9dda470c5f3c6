"""Decoding and augmenting files: timm's pixels by default, the same choices when reduced, the smaller copy."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import copy_project, snakemake
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision.transforms import RandomResizedCrop

from dearkd.data import datasets, loader, presize
from dearkd.data.arrival import Finish
from dearkd.data.augment import Transform, reduce
from dearkd.data.datasets import Images
from dearkd.data.loader import TrainingImages
from dearkd.data.order import MicroBatch, Schedule
from dearkd.errors import InputError
from dearkd.fingerprint import fingerprint
from dearkd.keys import seed_all, seed_cpu, torch_generator
from dearkd.plan import experiments
from dearkd.plan.stage import Augment, Data

SPEC = Data(kind="folder", classes=2, image_size=64)
GREY = Data(kind="folder", classes=2, image_size=64, channels=1, mean=(0.5,), std=(0.2,))
GEOMETRY = {"auto": "", "erasing": 0.0}
BATCH = MicroBatch(0, 0, 0, tuple(range(16)), tuple(range(16)))


def smooth(width, height, shift=0.0):
    """A photograph without fine detail."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    bands = [np.sin(5 * x + 3 * y + shift + c) * np.cos(4 * y - 2 * x + c) for c in range(3)]
    return Image.fromarray((127 + 100 * np.stack(bands, -1)).astype(np.uint8))


def files(root, **images):
    """Image files and an `Images` of them, in the order given."""
    names = [name.replace("__", ".") for name in images]
    for name, image in zip(names, images.values(), strict=True):
        image, options = image if isinstance(image, tuple) else (image, {})
        image.save(root / name, **{"format": "JPEG", "quality": 95, **options})
    return Images(names, np.zeros(len(names), np.int64), root=root)


def one(images, index, seed, spec=SPEC, **augment):
    out = torch.empty(spec.channels, spec.image_size, spec.image_size)
    transform = Transform(spec, Augment(**augment))
    seed_cpu(seed)  # last: what checks types here draws from the same generator
    transform(images, index, out)
    return out


def pictures():
    y, x, c = np.mgrid[:120, :160, :3]
    pixels = np.stack([(x * (i + 1) + y * 2 + c * 40) % 256 for i in range(16)]).astype(np.uint8)
    return Images([str(i) for i in range(16)], np.arange(16) % 2, pixels)


# ------------------------------------------------------------------------------------------------ the default


def sha(pixels):
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()[:16]


def test_the_default_gives_the_pixels_it_always_gave():
    """Taken before there was another way; erasing is off because its noise depends on the processor."""
    for augment, digest in (
        (Augment(erasing=0.0), "7d93f61f4368da07"),
        (Augment(**GEOMETRY), "682bc257995c22c4"),
    ):
        assert sha(TrainingImages(pictures(), SPEC, augment, 0).__getitems__(BATCH)[1]) == digest
    assert fingerprint(Augment(decode="full")) == fingerprint(Augment()), "old records stay valid"


@pytest.mark.parametrize("spec", [SPEC, GREY], ids=["colour", "grey"])
def test_the_default_is_timms_transform_bit_for_bit(tmp_path, spec):
    images = files(tmp_path, a__jpg=smooth(160, 120), b__jpg=smooth(70, 90, 1.0).convert("L"))
    theirs = create_transform(
        (spec.channels, 64, 64),
        is_training=True,
        color_jitter=0.0,
        auto_augment="rand-m9-mstd0.5-inc1" if spec is SPEC else None,
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        mean=spec.mean,
        std=spec.std,
    )
    for seed in range(40):
        for index in range(2):
            ours = one(images, index, seed, spec, **({} if spec is SPEC else {"auto": ""}))
            seed_all(seed)
            assert torch.equal(ours, theirs(images.open(index, spec.channels)))


def test_affine_micro_batches_are_still_shifted_then_normalised():
    digits = experiments.load_scale("digits")
    spec, augment = digits.data["main"], digits.training.augment
    images = datasets.read(spec)["train"]
    given = torch.from_numpy(images.pixels[:16]).permute(0, 3, 1, 2).float() / 255
    moved = loader.affine(given, augment, torch_generator(0, "augment", 0, 0, 0))
    expected = (moved - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    assert torch.equal(TrainingImages(images, spec, augment, 0).__getitems__(BATCH)[1], expected)


def test_posterising_to_no_bits_is_black_and_does_not_fail(tmp_path):
    """PIL 13 refuses 0 bits, which timm's RandAugment asks for at magnitude 10."""
    transform = Transform(SPEC, Augment())
    policy = next(t for t in transform.colour.transforms if isinstance(t, auto_augment.RandAugment))
    operation = next(o for o in policy.ops if o.name == "PosterizeIncreasing")
    operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0.0
    assert np.asarray(operation(smooth(64, 64))).max() == 0
    operation.magnitude = 5  # 4 - int(5 / 10 x 4) = 2 bits
    assert set(np.unique(np.asarray(operation(smooth(64, 64))))) <= {0, 64, 128, 192}


# ------------------------------------------------------------------------------------------------ reduced


def psnr(first, second):
    """Of normalised pixels, against the whole range of a channel (1/0.225)."""
    return 10 * np.log10((1 / 0.225) ** 2 / max(((first - second) ** 2).mean().item(), 1e-12))


@pytest.mark.parametrize("size", [(500, 375), (90, 300), (1000, 700), (40, 50)])
def test_reduced_makes_the_same_choices_with_nearly_the_same_pixels(tmp_path, size):
    """Box, flip and erasing alike: 40 dB apart at most, where another box or flip is below 25 dB."""
    images = files(tmp_path, a__jpg=smooth(*size))
    for seed in range(12):
        full, reduced = (one(images, 0, seed, auto="", decode=decode) for decode in ("full", "reduced"))
        assert psnr(full, reduced) > 40
        assert psnr(full, one(images, 0, seed + 100, auto="", decode="reduced")) < 35


@pytest.mark.parametrize("factor, bound", [(1, 65), (2, 38), (4, 38)])
def test_a_real_photograph_at_its_size_and_reduced(tmp_path, factor, bound):
    """Within 2 of 255 where nothing is reduced; a reduction by 2 or 4 has another filter, seen on sharp edges."""
    import sklearn

    photo = Image.open(Path(sklearn.__file__).parent / "datasets/images/china.jpg")
    images = files(tmp_path, a__jpg=photo.resize((64 * 4 * factor, 43 * 4 * factor), Image.Resampling.LANCZOS))
    spec = dataclasses.replace(SPEC, image_size=128)
    for seed in range(8):
        given = {**GEOMETRY, "crop_scale": (0.8, 1.0)}
        full, reduced = (one(images, 0, seed, spec, **given, decode=decode) for decode in ("full", "reduced"))
        levels = ((full - reduced).abs() * 255 * torch.tensor(spec.std)[:, None, None]).max().item()
        assert psnr(full, reduced) > bound
        assert factor > 1 or levels < 2.01


def test_reduced_draws_the_very_boxes_of_the_full_path(tmp_path, monkeypatch):
    images, boxes = files(tmp_path, a__jpg=smooth(1000, 700)), {"full": [], "reduced": []}
    for decode, seen in boxes.items():
        transform = Transform(SPEC, Augment(decode=decode))
        draw = transform.crop.get_params
        monkeypatch.setattr(transform.crop, "get_params", lambda *a, d=draw, s=seen: s.append(d(*a)) or s[-1])
        for seed in range(50):
            seed_cpu(seed)
            transform(images, 0, torch.empty(3, 64, 64))
    assert boxes["full"] == boxes["reduced"] and len(set(boxes["full"])) == 50


def test_boxes_are_distributed_as_torchvisions():
    """Mean and spread of area and of log ratio over 4000 boxes, within four standard errors."""
    transform, image = Transform(SPEC, Augment(decode="reduced")), Image.new("RGB", (500, 375))
    seed_cpu(0)
    ours = np.array([transform._box(image) for _ in range(4000)], float)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], float)
    for statistic in (lambda b: b[:, 2] * b[:, 3] / 187_500, lambda b: np.log(b[:, 3] / b[:, 2]), lambda b: b[:, 0]):
        mine, other = statistic(ours), statistic(theirs)
        assert abs(mine.mean() - other.mean()) < 4 * other.std() * (2 / 4000) ** 0.5
        assert mine.std() == pytest.approx(other.std(), rel=0.06)


@pytest.mark.parametrize("side", [64, 224])
def test_a_reduced_crop_is_never_smaller_than_the_student(tmp_path, side):
    """Nor larger than it must be: half of it would be too small, or an eighth is all that JPEG has."""
    shapes = random.Random(0)
    for _ in range(80):
        width, height = shapes.randrange(20, 2500), shapes.randrange(20, 2500)
        crop = shapes.randrange(10, min(width, height) + 1)
        Image.new("L", (width, height)).save(tmp_path / "a.jpg")
        with Image.open(tmp_path / "a.jpg") as image:
            shrink = reduce(image, crop // side)
            assert image.size == (-(-width // shrink), -(-height // shrink)), "before anything is decoded"
        assert shrink == 1 or crop / shrink >= side
        assert shrink == 8 or crop / (2 * shrink) < side
    image = Image.new("RGB", (2000, 2000))
    assert reduce(image, 8) == 1, "what is no JPEG file is not reduced"


def odd(kind, image):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees, which nobody who trains on ImageNet heeds
    return {
        "grey": (image.convert("L"), {}),
        "cmyk": (image.convert("CMYK"), {}),
        "png named jpeg": (image, {"format": "PNG"}),
        "palette": (image.convert("P"), {"format": "PNG"}),
        "transparent": (image.convert("RGBA"), {"format": "PNG"}),
        "exif": (image, {"exif": exif}),
        "progressive": (image, {"progressive": True}),
    }[kind]


@pytest.mark.parametrize("kind", ["grey", "cmyk", "png named jpeg", "palette", "transparent", "exif", "progressive"])
@pytest.mark.parametrize("spec", [SPEC, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("size", [(300, 200), (900, 700)])
def test_odd_files_are_read_alike_in_both_ways(tmp_path, kind, spec, size):
    images = files(tmp_path, a__JPEG=odd(kind, smooth(*size)))
    for seed in range(3):
        full, reduced = (one(images, 0, seed, spec, **GEOMETRY, decode=decode) for decode in ("full", "reduced"))
        # PIL and libjpeg make grey out of colour by formulas that differ by 1; a palette's edges are not smooth
        assert psnr(full, reduced) > (25 if kind == "palette" else 35)


@pytest.mark.parametrize("decode", ["full", "reduced"])
def test_copies_of_an_image_share_its_decoding_and_have_the_pixels_that_each_has_alone(tmp_path, decode):
    """Sizes of which every crop, some and none are reduced; a CMYK file and a turned one among them."""
    odd_ones = {f"{k}__jpg": odd(k, smooth(90, 70)) for k in ("cmyk", "exif")}
    images = files(tmp_path, a__jpg=smooth(900, 700), b__jpg=smooth(200, 150), c__jpg=smooth(60, 80), **odd_ones)
    augment = Augment(decode=decode, erasing=0.0)
    copies = MicroBatch(2, 0, 0, (0, 0, 0, 1, 1, 1, 0, 2, 2, 3, 3, 4, 4, 3), tuple(range(14)))
    together = TrainingImages(images, SPEC, augment, 5).__getitems__(copies)[1]
    for i, (index, position) in enumerate(zip(copies.indices, copies.positions, strict=True)):
        single = dataclasses.replace(copies, indices=(index,), positions=(position,))
        assert torch.equal(TrainingImages(images, SPEC, augment, 5).__getitems__(single)[1][0], together[i])


def test_a_copy_does_not_read_its_file_again(tmp_path):
    images = files(tmp_path, a__jpg=smooth(160, 120), b__jpg=smooth(160, 120, 1.0))
    transform, out = Transform(SPEC, Augment(**GEOMETRY)), torch.empty(3, 64, 64)
    transform(images, 0, out)
    (tmp_path / "a.jpg").unlink()
    transform(images, 0, out)
    transform(images, 1, out)
    with pytest.raises(InputError, match=r"a\.jpg: image is missing"):
        transform(images, 0, out)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
@pytest.mark.parametrize("size", [(100, 90), (900, 700)])
def test_a_damaged_file_is_named(tmp_path, damage, size):
    images = files(tmp_path, a__jpg=smooth(*size))
    path = tmp_path / "a.jpg"
    raw = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(
        {"empty": b"", "truncated": raw[: len(raw) // 2], "text": b"no image"}[damage]
    )
    with pytest.raises(InputError, match=r"a\.jpg: (image is missing|not a readable image)"):
        one(images, 0, 0, decode="reduced", crop_scale=(0.9, 1.0))


# ------------------------------------------------------------------------------------------------ finish: device

LATER = {"auto": "", "finish": "device"}
FOUR = Schedule(size=16, draws=16, batch=8, micro_batch=4, repeats=1, seed=0)
CPU = torch.device("cpu")


def arrived(augment, workers=0, schedule=FOUR):
    return list(loader.training_loader(pictures(), SPEC, augment, schedule, 0, 2, workers))


def test_pixels_finished_on_the_device_are_those_of_the_loader_bit_for_bit():
    ours, theirs = arrived(Augment(**LATER, erasing=0.0)), arrived(Augment(**GEOMETRY))
    assert len(ours) == len(theirs) == 4
    for (batch, pixels, labels), (batch0, pixels0, labels0) in zip(ours, theirs, strict=True):
        assert batch == batch0 and torch.equal(labels, labels0) and torch.equal(pixels, pixels0)
    crossing = TrainingImages(pictures(), SPEC, Augment(**LATER), 0).__getitems__(BATCH)[1]
    assert crossing.dtype == torch.uint8, "a quarter of the bytes cross the bus"


@pytest.mark.slow
def test_erasing_on_the_device_depends_on_the_micro_batch_alone():
    """Rectangles of noise, the same for any number of workers and processes; no other pixel moves."""
    always, never = arrived(Augment(**LATER, erasing=1.0)), arrived(Augment(**LATER, erasing=0.0))
    for workers, rank in ((1, None), (0, 1)):
        schedule = FOUR if rank is None else dataclasses.replace(FOUR, rank=rank, processes=2)
        again = {batch: pixels for batch, pixels, _ in arrived(Augment(**LATER, erasing=1.0), workers, schedule)}
        same = [torch.equal(again[batch], pixels) for batch, pixels, _ in always if batch in again]
        assert all(same) and len(same) == (4 if rank is None else 2)
    for (_, erased, _), (_, whole, _) in zip(always, never, strict=True):
        for image in (erased != whole).any(1):
            rows, columns = (image.any(i).nonzero().flatten().tolist() for i in (1, 0))
            box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box.all() and 0.01 < box.numel() / image.numel() < 0.4
    many = Finish(SPEC, Augment(**LATER), 0, CPU)(BATCH, torch.full((2000, 3, 64, 64), 7, dtype=torch.uint8))
    changed = (many != many[:, :, :1, :1]).flatten(1).any(1)
    assert 0.21 < changed.float().mean() < 0.29, "a quarter of 2,000 images"


def test_what_finishes_on_the_device_is_a_recipe_of_its_own():
    assert fingerprint(Augment(finish="loader")) == fingerprint(Augment()) != fingerprint(Augment(finish="device"))
    with pytest.raises(InputError, match=r"finish: device needs kind: timm, but kind is affine"):
        Augment(kind="affine", finish="device")


# ------------------------------------------------------------------------------------------------ the smaller copy

SCALE = """
extends: smoke
name: copied
summary: JPEG files, of which training reads a smaller copy
fractions: [50, 100]
data: {main: {kind: folder, root: tiny, classes: 2, image_size: 12, channels: 3, validation: 0, presize: 24,
              mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}}
teachers: {main: {training: {batch: 4, micro_batch: 4}}}
training: {batch: 8, micro_batch: 4, augment: {kind: timm, auto: "", decode: reduced}}
only: [table2]
quoted: {}
peers: {}
transfer: {targets: []}
"""


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A project with two classes of six training images: large, small and a PNG in each; grey and CMYK among them."""
    folder = copy_project(tmp_path / "project")
    (folder / "copied.yaml").write_text(SCALE)
    for split, count in (("train", 6), ("val", 2)):
        for label in range(2):
            place = folder / "tiny" / split / f"n{label}" / "deep"
            place.mkdir(parents=True)
            for i in range(count):
                image = smooth(*((100, 60), (20, 90), (48, 48))[i % 3], i + 7.0 * label)
                image = image.convert({4: "L", 3: "CMYK"}.get(i, "RGB"))
                image.save(place / (f"{i}.png" if i == 2 else f"{i}.JPEG"), quality=95)
    monkeypatch.chdir(folder)
    return folder


def copies(folder):
    root = folder / "checkpoints/copied/presized/main-24"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_copy_keeps_layout_and_never_enlarges(copied):
    presize.presize(experiments.load("copied.yaml"), "main")
    source = copied / "tiny/train"
    made = copies(copied)
    assert list(made) == sorted(p.relative_to(source).as_posix() for p in source.rglob("*.*"))
    root = copied / "checkpoints/copied/presized/main-24"
    for name, content in made.items():
        with Image.open(source / name) as before, Image.open(root / name) as after:
            assert min(after.size) == min(24, *before.size)
            if min(before.size) <= 24:
                assert content == (source / name).read_bytes()
            else:
                assert after.format == before.format and after.mode == "RGB"
                assert after.width / after.height == pytest.approx(before.width / before.height, rel=0.03)
    record = json.loads((copied / "results/copied/presized/main.json").read_text())
    assert record["images"] == 12 and record["bytes_after"] == sum(map(len, made.values())) < record["bytes_before"]


def test_a_copy_killed_midway_goes_on_and_ends_with_the_same_bytes(copied, monkeypatch):
    plan, record = experiments.load("copied.yaml"), copied / "results/copied/presized/main.json"
    presize.presize(plan, "main")
    whole = copies(copied)
    for name in list(whole)[::2]:
        (copied / "checkpoints/copied/presized/main-24" / name).unlink()
    record.unlink()
    images = datasets.read(plan.scale.data["main"])["train"]
    with pytest.raises(
        InputError, match=r"main\.json: the smaller copy is not finished; run `python -m dearkd presize"
    ):
        presize.copy(plan, "main", images)
    worked, before = [], presize._resized
    monkeypatch.setattr(presize, "_resized", lambda source, spec: worked.append(source) or before(source, spec))
    presize.presize(plan, "main")
    assert copies(copied) == whole and len(worked) == 6
    presize.presize(plan, "main")
    assert copies(copied) == whole and len(worked) == 6, "nothing was left to do"
    assert presize.copy(plan, "main", images).open(0, 3).size == (40, 24)


@pytest.mark.parametrize("kept_time", [False, True])
def test_a_copy_of_an_image_that_has_changed_is_refused_and_made_again(copied, monkeypatch, kept_time):
    """Even where the new original has the old one's time and size; the other copies stay."""
    plan, original = experiments.load("copied.yaml"), copied / "tiny/train/n0/deep/0.JPEG"
    presize.presize(plan, "main")
    before, images = copies(copied), datasets.read(plan.scale.data["main"])["train"]
    times = original.stat()
    smooth(100, 60, 3.0).save(original, quality=95)
    if kept_time:
        os.utime(original, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InputError, match=r"n0/deep/0\.JPEG: missing, .* or no longer the copy of its original"):
        presize.copy(plan, "main", images)
    worked, resized = [], presize._resized
    monkeypatch.setattr(presize, "_resized", lambda source, spec: worked.append(source.name) or resized(source, spec))
    presize.presize(plan, "main")
    after = copies(copied)
    assert worked == ["0.JPEG"] and {n for n in after if after[n] != before[n]} == {"n0/deep/0.JPEG"}
    presize.copy(plan, "main", images)
    listed = copied / "checkpoints/copied/presized/main-24.csv"
    listed.write_text(listed.read_text().replace("n1/deep/1", "n1/deep/9"))
    with pytest.raises(InputError, match=r"main-24\.csv: missing or not what .* describes"):
        presize.copy(plan, "main", images)


def test_a_corrupt_image_is_named_and_leaves_no_record(copied):
    path = copied / "tiny/train/n1/deep/1.JPEG"  # small enough to be copied as it is
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"train/n1/deep/1\.JPEG: not a readable image"):
        presize.presize(experiments.load("copied.yaml"), "main")
    assert not (copied / "results/copied/presized/main.json").exists()
    assert not [name for name in copies(copied) if name.endswith(".tmp")]


@pytest.mark.slow
def test_the_workflow_makes_the_copy_before_it_trains_on_it(copied):
    target = "results/copied/runs/deit-Ti/seed0/I.json"
    done = snakemake("--config", "scale=copied.yaml", "--", target, cwd=copied)
    assert "rule presize" in done.stdout + done.stderr
    stage = json.loads((copied / target).read_text())["specs"][0]
    assert stage["data"]["presize"] == 24 and stage["training"]["augment"]["decode"] == "reduced"
    for name in copies(copied):
        (copied / "checkpoints/copied/presized/main-24" / name).write_bytes(b"")
    shutil.rmtree(copied / "checkpoints/copied/deit-Ti")
    done = snakemake("--config", "scale=copied.yaml", "--forcerun", target, "--", target, cwd=copied, check=False)
    assert done.returncode != 0
    log = (copied / "logs/copied/deit-Ti/seed0-I.log").read_text()
    assert "presized/main-24/n" in log and "not a readable image" in log, "training reads the copy"


@pytest.mark.parametrize(
    "given, message",
    [
        ({"presize": 32}, "presize 32 is smaller than image_size 64"),
        ({"presize": 128, "kind": "cifar10"}, "presize works on image files, and cifar10 has none"),
    ],
)
def test_a_copy_that_cannot_be_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        Data(**{"kind": "folder", "classes": 2, "image_size": 64, **given})


def test_the_copy_is_part_of_the_recipe(copied):
    plan = experiments.load("copied.yaml")
    (copied / "other.yaml").write_text(
        SCALE.replace("presize: 24", "presize: 0").replace("name: copied", "name: other")
    )
    other = experiments.load("other.yaml")
    assert plan.run("deit-Ti").fingerprint("I") != other.run("deit-Ti").fingerprint("I")
    with pytest.raises(InputError, match=r"data\.main\.presize is 0 in scale other"):
        presize.presize(other, "main")
