"""Folders as people keep them: what a walk takes and leaves out, which layout is meant, and what has changed since."""

import csv
import io
import os
import shutil
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import PROJECT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dearkd import record
from dearkd.data import datasets, folder, subsets
from dearkd.data.images import Images
from dearkd.disk import sha256
from dearkd.errors import InputError
from dearkd.jobs import fetch
from dearkd.jobs.evaluate import evaluate_run
from dearkd.jobs.export import export
from dearkd.jobs.inputs import real_images, trained_student
from dearkd.jobs.subset import class_names, list_subsets
from dearkd.jobs.train import train_stage
from dearkd.model import teachers
from dearkd.plan import experiments, files
from dearkd.plan.stage import Data, Teacher
from dearkd.report import status
from dearkd.schema import override, to_json

SCALE = """
extends: smoke
name: mine
fractions: [50, 100]
data: {main: {kind: folder, root: mine, classes: 3, image_size: 12, channels: 3, validation: 3, test_share: 0.25,
              mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}}
training: {batch: 4, micro_batch: 4, augment: {kind: timm, auto: "", mixup: 0, cutmix: 0, repeats: 1}}
teachers: {main: {training: {batch: 4, micro_batch: 4}}}
only: [table2]
quoted: {}
peers: {}
transfer: {targets: []}
"""


def picture(path, value=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(256, size=(14, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **{"format": "PNG", **options})


def classes(root, names="abc", count=8, first=0):
    for label, name in enumerate(names):
        for i in range(count):
            picture(root / name / f"{i}.png", first + 100 * label + i)
    return root


def spec(root, **values):
    return Data(**{"kind": "folder", "root": str(root), "classes": 3, "image_size": 12, **values})


# ------------------------------------------------------------------------------------------------ one walk


def test_what_is_taken_and_what_is_left_out_and_why(tmp_path):
    root, elsewhere = tmp_path / "root", classes(tmp_path / "elsewhere", "x", 2)
    for name in ("a/1.png", "a/2.TIFF", "a/deep/er/3.JPeG", "b/4.ppm", "c-1/5.bmp", "c/6.webp", "c/7.tif", "0.png"):
        picture(root / name)
    for name in ("a/.ipynb_checkpoints/1.png", "a/._1.png", ".git/x/1.png", "a/@eaDir/1.png", "__MACOSX/a/1.png"):
        picture(root / name)
    for name in ("a/8.gif", "b/note.txt", "b/Thumbs.db", "b/README"):
        (root / name).write_bytes(b"")
    (root / "b/clinic").symlink_to(elsewhere / "x")
    (root / "b/9.jpg").symlink_to(elsewhere / "x/0.png")
    (root / "c/loop").symlink_to(root)
    os.mkfifo(root / "c/pipe.png")
    found = files.walk(root)
    assert found.images == [
        "0.png",
        *("a/1.png", "a/2.TIFF", "a/deep/er/3.JPeG"),
        *("b/4.ppm", "b/9.jpg", "b/clinic/0.png", "b/clinic/1.png"),
        *("c/6.webp", "c/7.tif", "c-1/5.bmp"),
    ], "sorted as pathlib sorts: by folder, then by name"
    assert found.folders == ["a", "b", "c", "c-1"]
    assert found.left_out == {
        "hidden": [".git", "__MACOSX", "a/._1.png", "a/.ipynb_checkpoints", "a/@eaDir"],
        ".gif": ["a/8.gif"],
        "no extension": ["b/README"],
        ".db": ["b/Thumbs.db"],
        ".txt": ["b/note.txt"],
        "a link back to a folder above": ["c/loop"],
        "no regular file": ["c/pipe.png"],
    }
    assert files.left_out(found.left_out).startswith("5 hidden (.git), 1 .gif (a/8.gif), ")


def test_folders_that_link_to_each_other_end(tmp_path):
    classes(tmp_path / "a", "x", 1)
    classes(tmp_path / "b", "y", 1)
    (tmp_path / "a/x/there").symlink_to(tmp_path / "b")
    (tmp_path / "b/y/back").symlink_to(tmp_path / "a")
    found = files.walk(tmp_path / "a")
    assert found.images == ["x/0.png", "x/there/y/0.png"]
    assert found.left_out == {"a link back to a folder above": ["x/there/y/back"]}


@pytest.mark.parametrize("kind", ["latin-1", "line break", "separator", "dangling", "circle"])
def test_what_no_list_can_hold_is_named(tmp_path, kind):
    classes(tmp_path, "a", 3)
    if kind == "dangling":
        for name in ("3.png", "4.png", "more", "note.txt"):
            (tmp_path / "a" / name).symlink_to("../.git/annex/objects/missing.png")
        said = r"a/3\.png is a link to nothing \(3 in all\); fetch"
    elif kind == "circle":
        (tmp_path / "a/loop.png").symlink_to("loop.png")
        (tmp_path / "a/self").symlink_to("self")
        said = r"a/loop\.png is a link to nothing \(2 in all\); fetch"
    else:
        odd = {"latin-1": b"Stra\xdfe.png", "line break": b"a\nb.png", "separator": "a\u2028b.png".encode()}[kind]
        shutil.copy(tmp_path / "a/0.png", os.fsencode(tmp_path / "a") + b"/" + odd)
        said = r"the name 'a/.*\\.*\.png' is not UTF-8 or has a line break \(1 in all\); rename it"
    with pytest.raises(InputError, match=said) as raised:
        files.walk(tmp_path)
    str(raised.value).encode()


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES.filter(lambda n: len(n.encode()) < 200))
def test_any_name_is_refused_or_comes_back_from_lists_and_tables(tmp_path, name):
    """As a class and as a file: commas, quotes, spaces, accents, what a spreadsheet takes for a formula."""
    root = tmp_path / str(time.monotonic_ns())
    (root / "good").mkdir(parents=True)
    for place in ("good", name) if name not in (".", "..") else ("good",):
        (root / place).mkdir(exist_ok=True)
        (root / place / f"{name}.png").write_bytes(b"")
    try:
        found = files.walk(root).images
    except InputError as error:
        assert name.splitlines() != [name] and str(error).isprintable()
        return
    visible = not name.startswith(".") and name not in files.SYSTEM
    assert set(found) == ({f"good/{name}.png"} | {f"{name}/{name}.png"} if visible else set())
    images = datasets.Images(found, np.zeros(len(found), np.int64), root=root)
    listed = files.table(("image", "label"), ((n, 0) for n in found))
    subsets.write(images, {"all": np.arange(len(found))}, root / "lists", {"all.csv": listed})
    assert list(subsets.read(images, root / "lists", "all", "smoke")[0].names) == found
    rows = list(csv.reader(io.StringIO(files.verified(root / "lists/all.csv", "smoke"), newline="")))
    assert rows == [["image", "label"], *([n, "0"] for n in found)]


# ------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("name", folder.HELD_OUT)
def test_the_images_to_report_on_may_have_any_usual_name(tmp_path, name):
    classes(tmp_path / "train")
    classes(tmp_path / name, count=2)
    (tmp_path / "labels.csv").write_text("")
    sets, left_out = folder.read(spec(tmp_path))
    assert (sets["test"].root, len(sets["test"])) == (tmp_path / name, 6)
    assert left_out == {f"beside train/ and {name}/": ["labels.csv"]}


def test_of_three_splits_test_is_reported_on_and_the_other_one_named(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "val", count=3)
    (tmp_path / "test").mkdir()
    picture(tmp_path / "test/1.png")  # as ImageNet's, without classes
    sets, left_out = folder.read(spec(tmp_path))
    assert len(sets["test"]) == 9 and left_out == {"beside train/ and val/": ["test"]}
    classes(tmp_path / "test", count=2)
    sets, left_out = folder.read(spec(tmp_path))
    assert len(sets["test"]) == 6
    assert left_out == {"beside train/ and test/": ["val"], "beside the class folders": ["test/1.png"]}


def test_accents_written_in_two_ways_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Rosé") for form in ("NFC", "NFD"))
    classes(tmp_path / "train", ("a", composed, "z"))
    classes(tmp_path / "val", ("a", decomposed, "z"), 2)
    sets = datasets.read(spec(tmp_path))
    assert sets["test"].labels.tolist() == [0, 0, 1, 1, 2, 2] and sets["test"].names[0] == f"{decomposed}/0.png"
    shares = []
    for name in (composed, decomposed):
        (tmp_path / name).mkdir()
        shares.append(datasets.read(spec(classes(tmp_path / name / "all", ("a", name, "z")), test_share=0.5))["test"])
    assert [n[-5:] for n in shares[0].names] == [n[-5:] for n in shares[1].names], "the same images are held out"
    classes(tmp_path / "train", [decomposed], 1)
    with pytest.raises(InputError, match=r"two folders are called .*, their accents written in two ways; merge them"):
        datasets.read(spec(tmp_path))


def test_a_class_may_be_called_train(tmp_path):
    classes(tmp_path, ("bus", "car", "train"))
    assert len(datasets.read(spec(tmp_path, test_share=0.25))["test"]) == 6
    with pytest.raises(
        InputError, match=r"train: has images but no class folders; if train is a class .* set test_share"
    ):
        datasets.read(spec(tmp_path))
    shutil.rmtree(tmp_path / "train")
    classes(tmp_path / "train")
    with pytest.raises(InputError, match="train/ has folders, so it is split already; take test_share out"):
        datasets.read(spec(tmp_path, test_share=0.25))


def test_train_and_held_out_have_the_same_classes(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "val", "abD", 2)
    with pytest.raises(InputError, match="differ in classes: only train/ has c; only val/ has D; rename or"):
        datasets.read(spec(tmp_path))
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match="none of test, val, valid, validation has class folders"):
        datasets.read(spec(tmp_path))


def test_a_class_of_other_files_says_what_they_are(tmp_path):
    classes(tmp_path)
    for i in range(8):
        (tmp_path / f"b/{i}.png").rename(tmp_path / f"b/{i}.heic")
    with pytest.raises(InputError, match=r"b: has no images of this class \(.*\); left out: 8 \.heic \(b/0\.heic\)"):
        datasets.read(spec(tmp_path, test_share=0.25))


def test_a_home_folder_in_root(tmp_path, monkeypatch):
    classes(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(datasets.read(spec("~/photos", test_share=0.25))["train"]) == 18
    with pytest.raises(InputError, match=r"~nobody-of-that-name/photos: no such folder"):
        datasets.read(spec("~nobody-of-that-name/photos", test_share=0.25))


def test_a_home_folder_in_a_scales_other_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = experiments.load(override(experiments.load("smoke").scale, {"checkpoints": "~/scratch"}, "test"))
    assert plan.paths.state("deit-Ti", 0, "I") == tmp_path / "scratch/smoke/deit-Ti/seed0/I"
    given = Teacher(model="convnet_micro", top1=1.0, weights="~/cnn.safetensors")
    with pytest.raises(InputError, match=f"{tmp_path}/cnn.safetensors: the weights are missing"):
        teachers.build(given, spec(""))
    (tmp_path / "cnn.safetensors").touch()
    assert not fetch._weights("convnet_micro", "~/cnn.safetensors").missing


# ------------------------------------------------------------------------------------------------ what has changed


def test_only_what_differs_is_read_again(tmp_path):
    names = [f"{i}.png" for i in range(5)]
    for i, name in enumerate(names):
        picture(tmp_path / "a" / name, i)
    seen, opened = tmp_path / "seen.csv", []

    def look(path, raw):
        opened.append((path.name, len(raw)))

    first = files.contents(tmp_path / "a", names, seen, 2, look)
    assert sorted(n for n, _ in opened) == names and len(set(first.values())) == 5
    opened.clear()
    assert files.contents(tmp_path / "a", names, seen, 2, look) == first and not opened
    os.utime(tmp_path / "a/1.png")
    assert files.contents(tmp_path / "a", names, seen, 2, look) == first and [n for n, _ in opened] == ["1.png"]
    for kept in (False, True):  # the same size, and even the same time, which a program may set
        opened.clear()
        path = tmp_path / "a/2.png"
        status, raw = path.stat(), path.read_bytes()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        if kept:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        changed = files.contents(tmp_path / "a", names, seen, 2, look)
        assert {n for n in names if changed[n] != first[n]} == ({"2.png"} if not kept else set())
        assert [n for n, _ in opened] == ["2.png"]
    (tmp_path / "a/3.png").unlink()
    assert set(files.contents(tmp_path / "a", names, seen, 2)) == {*names} - {"3.png"}
    seen.write_bytes(b"\xff,not,a\ntable")
    assert files.contents(tmp_path / "a", ["0.png"], seen, 2) == {"0.png": first["0.png"]}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of three classes, of which a quarter is held out, with its subsets written."""
    monkeypatch.chdir(tmp_path)
    for name in ("workflow", "paper"):
        shutil.copytree(PROJECT / name, name)
    classes(Path("mine"))
    Path("mine.yaml").write_text(SCALE)
    plan = experiments.load("mine.yaml")
    list_subsets(plan, "main")
    return plan


def alone(plan):
    return {split: list(images.names) for split, images in subsets.splits(plan, "main").items()}


def test_the_record_of_the_lists_has_the_names_of_classes(mine):
    folders = sorted(path.name for path in Path("mine").iterdir() if path.is_dir())
    named = record.read(mine.paths.subsets("main") / "data.json")["class_names"]
    assert named == {str(label): name for label, name in enumerate(folders)}


def test_classes_of_photos_have_imagenets_names_and_those_of_digits_their_own():
    photos = Data(kind="photos", classes=1000, image_size=224)
    shown = Images(["a", "b", "c"], np.array([985, 282, 985]))
    assert class_names(photos, shown) == {282: "tiger cat", 985: "daisy"}
    digits = experiments.load("digits").scale.data
    assert class_names(digits["main"], shown) == dict(enumerate("0123456789"))
    assert class_names(digits["parity"], shown) == {}


def test_every_file_is_listed_with_its_split_and_sha256(mine):
    rows = files.listed(mine.paths.subsets("main"), mine.argument)
    sets = datasets.read(mine.scale.data["main"])
    assert [(r.split, r.image, r.label) for r in rows] == [
        (s, n, y) for s, i in sets.items() for n, y in zip(i.names, i.labels, strict=True)
    ]
    assert alone(mine)["test"] == list(sets["test"].names) and len(sets["test"]) == 6
    assert not {*alone(mine)["test"]} & {*alone(mine)["train"]} and {*alone(mine)["validation"]} < {
        *alone(mine)["train"]
    }
    described = record.read(mine.paths.subsets("main") / "data.json")
    assert described["folders"] == {"train": ".", "test": "."} and set(described["sha256"]) == {"train", "test"}


CHANGES = {
    "added": (lambda: picture(Path("mine/b/new.png"), 999), r"1 added \(b/new\.png\)"),
    "a new class": (lambda: picture(Path("mine/d/new.png"), 999), r"1 added \(d/new\.png\)"),
    "removed": (lambda: [Path(f"mine/c/{i}.png").unlink() for i in range(4)], r"4 removed \(c/\d\.png, .*, \.\.\.\)"),
    "replaced": (lambda: picture(Path("mine/a/0.png"), 999), r"1 changed \(a/0\.png\)"),
    "renamed": (lambda: Path("mine/a/0.png").rename("mine/a/x.png"), r"1 added \(a/x\.png\), 1 removed \(a/0\.png\)"),
    "moved": (lambda: Path("mine/a/0.png").rename("mine/b/x.png"), r"1 added \(b/x\.png\), 1 removed \(a/0\.png\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_job_uses_a_folder_that_has_changed(mine, change, capsys):
    """Training, evaluation and labels through `splits`; export and status by themselves; and what helps, helps."""
    run, before = mine.runs["deit-Ti"], alone(mine)
    act, said = CHANGES[change]
    shutil.copytree("mine", "kept")
    act()
    for use in (
        lambda: subsets.splits(mine, "main"),
        lambda: real_images(mine, run.stages[0], 0),
        lambda: train_stage(mine, run, 0, "I"),
        lambda: export(mine, run, 0, Path("out")),
    ):
        with pytest.raises(InputError, match=said):
            use()
    path = mine.paths.stage(run.name, 0, "I")
    record.write(path, trained(mine))
    standing = status.standings(mine, [run], set())[0]
    assert standing.state == "stale" and files.changes(mine, "main") in standing.note
    shutil.rmtree("mine")
    shutil.copytree("kept", "mine")
    assert alone(mine) == before, "put back, at other times"
    assert status.standings(mine, [run], set())[0].state == "done"
    act()
    if change != "a new class":
        list_subsets(mine, "main")
        assert set(alone(mine)["test"]) <= {n.removeprefix("mine/") for n in map(str, Path("mine").rglob("*.png"))}
        standing = status.standings(mine, [run], set())[0]
        assert standing.state == "stale" and "the images of main have changed" in standing.note


def trained(plan):
    """A committed record of a finished stage, as if it were of this data and recipe: enough for `results.check`."""
    run, sums = plan.runs["deit-Ti"], record.read(plan.paths.subsets("main") / "data.json")["sha256"]
    values = record.read(PROJECT / "results/digits/runs/deit-Ti/seed0/I.json")
    identity = {"scale": plan.scale.name, "fingerprint": run.fingerprint("I"), "specs": [to_json(run.stages[0])]}
    seen = {"sha256": sums, "images_sha256": sha256(plan.paths.subsets("main") / "train-100.txt")}
    return {**values, **identity, "data": {**values["data"], **seen}}


def test_records_are_read_where_the_images_are_not(mine):
    record.write(mine.paths.stage("deit-Ti", 0, "I"), trained(mine))
    shutil.rmtree("mine")
    assert status.standings(mine, [mine.runs["deit-Ti"]], set())[0].state == "done"
    with pytest.raises(InputError, match="mine: no such folder"):
        subsets.splits(mine, "main")


def test_a_split_drawn_before_test_images_were_listed_is_refused(mine):
    place = mine.paths.subsets("main")
    sums = [line for line in files.sums(place) if not line.endswith("test.txt")]
    (place / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    with pytest.raises(
        InputError, match="does not list the test images, which test_share draws; write the subsets again"
    ):
        subsets.splits(mine, "main")


@pytest.mark.parametrize("name", ["images.csv", "test.txt", "validation.txt"])
def test_a_list_that_was_edited_is_refused(mine, name):
    path = mine.paths.subsets("main") / name
    path.write_text(path.read_text().replace("a/", "b/", 1))
    with pytest.raises(InputError, match=f"{name}: differs from its sha256"):
        subsets.splits(mine, "main")


@pytest.mark.parametrize("key, value", [("test_share", 0.5), ("validation", 6), ("order", "first")])
def test_subsets_of_another_scale_are_refused(mine, key, value):
    path = Path("mine.yaml")
    values = yaml.safe_load(path.read_text())
    values["data"]["main"][key] = value
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=rf"describes other data \({key}: .* recorded, .* planned\)"):
        subsets.splits(experiments.load("mine.yaml"), "main")


def test_data_in_memory_are_compared_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("workflow", "paper"):
        shutil.copytree(PROJECT / name, name)
    plan = experiments.load("smoke")
    list_subsets(plan, "main")
    assert set(subsets.splits(plan, "main")) == {"train", "validation", "test"}
    path = plan.paths.subsets("main") / "data.json"
    described = record.read(path)
    record.write(path, {**described, "sha256": {**described["sha256"], "test": "0" * 64}})
    with pytest.raises(InputError, match="the test images of digits are not the images that it describes"):
        subsets.splits(plan, "main")


def test_committed_subsets_which_list_no_test_images_stay_valid():
    for scale in ("digits", "noisy-digits"):
        plan = experiments.load(scale)
        sets = subsets.splits(plan, "main")
        assert len(sets["test"]) == 797 and len(sets["validation"]) == 250 and len(sets["train"]) == 1000


@pytest.mark.slow
def test_after_new_subsets_what_learned_from_the_old_ones_is_not_used(mine, capsys):
    """Tested again only once it was trained again, from nothing, on images that are not tested now."""
    run, place = mine.runs["deit-Ti"], mine.paths.seed("deit-Ti", 0)

    def trained_and_tested():
        train_stage(mine, run, 0, "I")
        evaluate_run(mine, run, 0)
        with (place / "predictions.csv").open(newline="") as file:
            return record.read(place / "I.json"), {row["image"] for row in csv.DictReader(file)}

    before, tested = trained_and_tested()
    assert tested == {*alone(mine)["test"]}
    classes(Path("mine"), count=14, first=1000)
    list_subsets(mine, "main")
    for use in (lambda: evaluate_run(mine, run, 0), lambda: trained_student(mine, run, 0)):
        with pytest.raises(InputError, match=r"seed0/I\.json: stale record \(the images of main have changed"):
            use()
    after, tested = trained_and_tested()
    assert not tested & {*alone(mine)["train"]} and after["weights_sha256"] != before["weights_sha256"]
    assert after["data"]["sha256"] == record.read(mine.paths.subsets("main") / "data.json")["sha256"]
    assert "has changed since the last checkpoint; starting again" in capsys.readouterr().out
    names, first = mine.paths.subsets("main") / "train-100.txt", after["data"]["images_sha256"]
    listed = names.read_text()
    picture(Path("mine") / listed.splitlines()[0], 5000)
    list_subsets(mine, "main")
    assert names.read_text() == listed and real_images(mine, run.stages[0], 0)[1] != first, "same names, other pixels"


# ------------------------------------------------------------------------------------------------ opened once


def test_every_broken_file_is_listed_at_once_by_subset_and_fetch(mine, capsys):
    raw = Path("mine/a/0.png").read_bytes()
    for name, content in {"a/0.png": raw[:90], "b/3.png": b"", "c/7.png": b"no image"}.items():
        Path("mine", name).write_bytes(content)
    Path("mine/b/note.txt").write_text("")
    for use in (lambda: list_subsets(mine, "main"), lambda: fetch.fetch(mine, check=True)):
        with pytest.raises(InputError) as raised:
            use()
        assert "3 images cannot be used" in str(raised.value)
        for name in ("a/0.png", "b/3.png", "c/7.png"):
            assert f"{name}: not a readable image" in str(raised.value)
    for i, name in enumerate(("a/0.png", "b/3.png", "c/7.png")):
        picture(Path("mine", name), 500 + i)
    capsys.readouterr()
    list_subsets(mine, "main")
    said = capsys.readouterr().out
    assert said == "mine: 18 train images and 6 test images; left out: 1 .txt (b/note.txt)\n"
    fetch.fetch(mine, check=True)
    assert said in capsys.readouterr().out


def test_copies_of_an_image_are_said(mine, capsys):
    shutil.copy("mine/a/0.png", "mine/b/copy.png")
    list_subsets(mine, "main")
    assert "1 are copies of others, which may be in train and in test (" in capsys.readouterr().out


@pytest.mark.parametrize("count, fraction, least", [(9, 10, 12), (4, 24, 25), (1, 99, 100)])
def test_a_fraction_without_an_image_of_a_class_is_refused(count, fraction, least):
    labels = np.array([0] * 200 + [1] * count)
    given = Data(kind="folder", classes=2, image_size=8)
    with pytest.raises(InputError, match=rf"{fraction} % of {count} training images is none.*\(x\); take {least} % or"):
        subsets.choose(labels, given, (fraction, 100), 0, classes={0: "w", 1: "x"})
    chosen = subsets.choose(labels, given, (least,), 0)[f"train-{least}"]
    assert set(labels[chosen]) == {0, 1}
