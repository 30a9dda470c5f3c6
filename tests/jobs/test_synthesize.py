"""Images out of a teacher: batches that do not touch each other, runs that can be killed, archives that hold."""

import csv
import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from dearkd import disk, record
from dearkd.__main__ import main
from dearkd.data import image_archive
from dearkd.errors import InputError
from dearkd.jobs import image_sets, inputs, invert, synthesis
from dearkd.jobs.evaluate import evaluate_run
from dearkd.jobs.inversion import Best, Inversion, advice, classes_of, learning_rate, require_batchnorm
from dearkd.jobs.train import train_stage
from dearkd.model import teachers
from dearkd.plan import experiments, methods
from dearkd.plan.stage import Phase, Synthesis, Teacher
from dearkd.report import records, tables
from dearkd.schema import override
from dearkd.train.checkpoint import Checkpoints
from dearkd.verbs import own_cnn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(smoke_project):
    return experiments.load("smoke")


def make_teacher(plan):
    spec, data = plan.scale.teachers["main"], plan.scale.data["main"]
    return teachers.build(spec, data, plan.paths.teacher_weights("main"))


def with_recipe(plan, name, **changes):
    scale = override(plan.scale, {f"synthesis.{k}": v for k, v in changes.items()}, "test")
    return methods.source(scale, name)


def run(source, batches, teacher, steps=None, student=None, seed=0):
    classes = range(source.data.classes)
    labels = torch.tensor([classes_of(b, source.recipe, classes, seed) for b in batches])
    inversion = Inversion(source, seed, batches, labels, teacher, student)
    while inversion.step < (inversion.total if steps is None else steps):
        inversion.advance()
    return inversion


def test_classes_are_different_within_a_batch_and_equally_frequent_over_all():
    recipe = Synthesis(batch_classes=6, per_class=7)
    chosen = [classes_of(b, recipe, range(12), 0) for b in range(8)]
    assert all(len(set(c)) == 6 and Counter(c).most_common(1)[0][1] == 7 for c in chosen)
    assert set(Counter(c for classes in chosen for c in classes).values()) == {4 * 7}
    assert chosen != [classes_of(b, recipe, range(12), 1) for b in range(8)]


def test_learning_rate_warms_up_and_ends_near_zero():
    phase = Phase(size=8, iterations=100, lr=0.5)
    rates = [learning_rate(phase, i, 20) for i in range(100)]
    assert rates[0] == pytest.approx(0.025) and max(rates) == pytest.approx(0.5) and rates[99] < 0.001
    assert rates.index(max(rates)) in (19, 20)


@pytest.mark.parametrize("name", ["deepinversion", "df_dearkd"])
def test_batches_that_share_a_forward_pass_do_not_touch_each_other(project, whole, name):
    source, teacher = with_recipe(whole, name), make_teacher(whole)
    together = run(source, [0, 1], teacher).images
    alone = torch.cat([run(source, [b], teacher).images for b in (0, 1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_synthesis_makes_images_the_teacher_believes_in(project, whole):
    schedule = [{"size": 12, "iterations": 100, "lr": 0.5}]
    source = with_recipe(whole, "deepinversion", phases=schedule, r_bn=0.0, augment=None, jitter=0)
    teacher = make_teacher(whole)
    with torch.no_grad():
        teacher.net.get_classifier().weight.mul_(100)  # the smoke scale's teacher is unsure of everything
    made = run(source, [0], teacher)
    assert made.last["ce"][0] < 0.5 * made.first["ce"][0]


def test_r_bn_and_easy_positive_fall_when_they_are_asked_for(project, whole):
    schedule = [{"size": 12, "iterations": 60, "lr": 0.1}]
    source = with_recipe(whole, "df_dearkd", phases=schedule)
    made = run(source, [0], make_teacher(whole))
    assert made.last["r_bn"][0] < 0.7 * made.first["r_bn"][0]
    assert made.last["easy_positive"][0] < made.first["easy_positive"][0]


def test_pixels_stay_valid_and_the_low_phase_sees_pooled_images(project, whole):
    source = with_recipe(whole, "deepinversion", phases=[{"size": 6, "iterations": 2, "lr": 5.0}])
    made = run(source, [0], make_teacher(whole))
    pixels = made.images.detach() * made.std + made.mean
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    assert made.result().dtype == torch.uint8


def test_jitter_rolls_a_whole_batch_by_at_most_its_reach(project, whole):
    source = with_recipe(whole, "deepinversion", augment=None, jitter=2, flip=0.0)
    inversion = run(source, [0], make_teacher(whole), steps=0)
    with torch.no_grad():
        inversion.images.zero_()
        inversion.images[..., 6, 6] = 1.0
    places = set()
    for step in range(40):
        inversion.step = step
        rows, columns = torch.nonzero(inversion._augmented()[:, 0], as_tuple=True)[1:]
        assert len(set(rows.tolist())) == len(set(columns.tolist())) == 1
        places.add((rows[0].item() - 6, columns[0].item() - 6))
    assert {p[0] for p in places} == {p[1] for p in places} == {-2, -1, 0, 1, 2}


def test_the_competing_student_changes_the_images_and_its_term_only_with_adi(project, whole):
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 10))
    source, teacher = with_recipe(whole, "adi"), make_teacher(whole)
    assert "competition" in run(source, [0], teacher, 1, student).first
    assert "competition" not in run(source, [0], teacher, 1).first
    assert not torch.equal(run(source, [0], teacher, student=student).images, run(source, [0], teacher).images)


def test_a_network_without_batchnorm_is_refused_with_the_reason(whole):
    with pytest.raises(InputError, match="no BatchNorm layers"):
        require_batchnorm(torch.nn.Linear(2, 2), "mixer")


def test_advice_names_a_better_weight():
    assert advice(Synthesis(r_bn=0.05), {"r_bn": [3.0]}) == ""
    assert "`r_bn: 0.0016`" in advice(Synthesis(r_bn=0.05), {"r_bn": [100.0]})


def test_a_loss_that_is_not_finite_names_its_term(project, whole):
    source, teacher = with_recipe(whole, "deepinversion"), make_teacher(whole)
    with torch.no_grad():
        teacher.net.get_classifier().weight.fill_(float("nan"))
    with pytest.raises(InputError, match="ce is not finite at iteration 0"):
        run(source, [0], teacher, 1)


def test_there_are_no_more_rounds_than_shards(whole):
    with pytest.raises(InputError, match=r"synthesis\.rounds: 3 is not between 1 and 2"):
        with_recipe(whole, "adi", rounds=3)


# ---------------------------------------------------------------------------------------------- shards


def test_a_shard_is_an_archive_whose_manifest_says_what_is_in_it(project, whole):
    synthesis.synthesise_shard(whole, "df_dearkd", 0, 0)
    made = record.read(whole.paths.shard("df_dearkd", 0, 0))
    path = whole.paths.archive("df_dearkd", 0, 0)
    assert made["archive_sha256"] == disk.sha256(path) and made["images"] == 20
    with whole.paths.shard("df_dearkd", 0, 0).with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    with zipfile.ZipFile(path) as members:
        assert members.namelist() == [line["image"] for line in lines]
        pixels = np.asarray(Image.open(io.BytesIO(members.read(lines[3]["image"]))))
    images, _ = inputs.synthetic(whole, "df_dearkd", 0, shards=1)
    np.testing.assert_array_equal(images.pixels[3, :, :, 0], pixels)
    assert images.labels.tolist() == [int(line["label"]) for line in lines]
    normal = (torch.from_numpy(images.pixels).permute(0, 3, 1, 2) / 255 - 0.135) / 0.293
    verdict = make_teacher(whole).codes_and_logits(normal)[1].argmax(1)
    assert [int(line["teacher_top1"]) for line in lines] == verdict.tolist()


def test_a_student_learns_from_synthetic_images_and_its_record_knows_which(project, whole):
    for shard in (0, 1):
        synthesis.synthesise_shard(whole, "df_dearkd", 0, shard)
    run = whole.runs["dearkd-Ti-images~df_dearkd"]
    for stage in ("I", "II"):
        train_stage(whole, run, 0, stage)
    evaluate_run(whole, run, 0)
    made = record.read(whole.paths.stage(run.name, 0, "I"))
    assert made["data"]["images"] == 40 and made["data"]["source"] == "df_dearkd"
    assert len(records.load(whole, [run])) == 1
    path = whole.paths.shard("df_dearkd", 0, 1)
    record.write(path, {**record.read(path), "archive_sha256": "0"})
    with pytest.raises(InputError, match=r"stale record .the images of df_dearkd have changed"):
        records.load(whole, [run])


def test_adi_competes_with_the_student_of_the_round_before(project, whole):
    assert whole.competitor("adi", 0).name == "dearkd-Ti-images~deepinversion"
    assert whole.competitor("adi", 1).name == "adi-student-round1"
    assert {s.shards for s in whole.competitor("adi", 1).stages} == {1}
    assert whole.competitor("df_dearkd", 0) is None
    with pytest.raises(InputError, match=r"~deepinversion/seed0/I\.json: record is missing.* -- '.*/II\.json"):
        synthesis.synthesise_shard(whole, "adi", 0, 0)
    run = whole.competitor("adi", 0)
    for shard in (0, 1):
        synthesis.synthesise_shard(whole, "deepinversion", 0, shard)
    for stage in run.stages:
        train_stage(whole, run, 0, stage.name)
    synthesis.synthesise_shard(whole, "adi", 0, 0)
    made = record.read(whole.paths.shard("adi", 0, 0))
    assert made["student"]["run"] == run.name and "last_competition" in made["terms"][0]


def test_a_verifier_in_the_students_place_is_recorded_and_named_in_the_tables(project):
    whole = experiments.load(experiments.load_scale("smoke", {"synthesis": {"verifier": "main"}}))
    assert whole.competitor("adi", 0) is None and "adi-student-round1" not in whole.runs
    synthesis.synthesise_shard(whole, "adi", 0, 0)
    made = record.read(whole.paths.shard("adi", 0, 0))
    assert made["student"]["verifier"] == "main"
    # teacher and verifier are one here: they agree on every image, whose competition is at its largest
    assert made["terms"][0]["last_competition"] == pytest.approx(0.2 * 1.0, abs=1e-4)
    for table, said in (("table5", True), ("table6", True), ("table2", False)):
        frame = tables.tidy(whole.tables[table], tables.values_of(whole, table))
        text = tables.to_markdown(whole, whole.tables[table], tables.arrange(whole.tables[table], frame), False)
        assert ("its rows are not data-free" in text) == said


def test_a_set_of_images_is_described_and_a_changed_recipe_refuses_the_description(project, whole):
    for shard in (0, 1):
        synthesis.synthesise_shard(whole, "df_dearkd", 0, shard)
    for name in ("df_dearkd", "real"):
        image_sets.describe(whole, name, 0)
    frame = records.diversity(whole, ["real", "df_dearkd"]).set_index("run")
    assert frame.loc["df_dearkd", "teacher_top1"] == pytest.approx(
        np.mean([record.read(whole.paths.shard("df_dearkd", 0, i))["teacher_accuracy"] for i in (0, 1)])
    )
    folder = whole.paths.images("df_dearkd", 0)
    with Image.open(folder / "sample.png") as picture:
        assert picture.size == (4 * 12, 10 * 12), "no more columns than images of a class"
    codes = np.loadtxt(folder / "latents.csv", delimiter=",", skiprows=1, usecols=range(2, 66))
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=0.01)
    tables.write(whole, "table6")
    text = (whole.paths.results / "tables/table6.md").read_text()
    said = " ".join(text.split())
    assert re.search(r"whose weights are random, over \d+ pairs? of each class\.", said) and "0.710" in said
    assert "Images are grey in all three channels, resized to 32 pixels" in said
    assert "| real images, blurred |" in text and "| real images, noisy |" in text and "| VGG-16 |" not in text
    said = record.read(whole.paths.diversity("real", 0))
    assert said["lpips"].items() >= {"trunk": "random", "size": 32, "interpolation": "bilinear, antialiased"}.items()
    real, blurred, noisy = (frame.loc[n, "lpips"] for n in ("real", "real~blurred", "real~noisy"))
    assert blurred < real < noisy
    assert "controls" not in {k for k, v in record.read(whole.paths.diversity("df_dearkd", 0)).items() if v}
    path = whole.paths.diversity("df_dearkd", 0)
    record.write(path, {**record.read(path), "source_fingerprint": "0"})
    with pytest.raises(InputError, match=r"stale record .the recipe of its images has changed"):
        records.diversity(whole, ["df_dearkd"])


def test_images_made_again_leave_their_record_and_a_changed_record_is_written_anew(project, whole):
    synthesis.synthesise_shard(whole, "df_dearkd", 0, 0)
    target, path = whole.paths.shard("df_dearkd", 0, 0), whole.paths.archive("df_dearkd", 0, 0)
    first, listed = target.read_bytes(), target.with_suffix(".csv").read_bytes()
    path.unlink()
    target.with_suffix(".csv").write_text("cut")
    synthesis.synthesise_shard(whole, "df_dearkd", 0, 0)
    assert (target.read_bytes(), target.with_suffix(".csv").read_bytes()) == (first, listed) and path.is_file()
    record.write(target, {**record.read(target), "teacher_accuracy": 99.0})
    synthesis.synthesise_shard(whole, "df_dearkd", 0, 0)
    assert record.read(target)["teacher_accuracy"] == json.loads(first)["teacher_accuracy"]


def test_a_damaged_or_missing_archive_is_named(project, whole):
    synthesis.synthesise_shard(whole, "deepinversion", 0, 0)
    path = whole.paths.archive("deepinversion", 0, 0)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"shard-0000\.zip: missing or not what .* make it again"):
        inputs.synthetic(whole, "deepinversion", 0, shards=1)


def test_large_sets_are_read_member_by_member(tmp_path, monkeypatch):
    monkeypatch.setattr(image_archive, "IN_MEMORY", 0)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    image_archive.write(tmp_path / "shard-0000.zip", pixels, ["a.png", "b.png", "c.png"])
    images = image_archive.read(
        [tmp_path / "shard-0000.zip"], [f"shard-0000.zip/{n}.png" for n in "abc"], np.array([0, 1, 2]), 3
    )
    assert images.pixels is None
    np.testing.assert_array_equal(np.asarray(images.take([2, 0]).open(0, 3)), pixels[2])
    missing = dataclasses.replace(images, names=["shard-0000.zip/d.png"] * 3)
    with pytest.raises(InputError, match=r"shard-0000\.zip: d\.png cannot be read"):
        missing.open(0, 3)


def test_equal_images_make_equal_archives(tmp_path):
    pixels = np.zeros((1, 4, 4, 1), dtype=np.uint8)
    first = image_archive.write(tmp_path / "a.zip", pixels, ["x.png"])
    time.sleep(0.01)
    assert first == image_archive.write(tmp_path / "b.zip", pixels, ["x.png"])


@pytest.mark.cold
def test_a_killed_shard_goes_on_to_the_same_images(project, tmp_path):
    """SIGKILL, several times, at whatever step it happens to be."""
    scale = tmp_path / "slow.yaml"
    scale.write_text(
        "extends: smoke\nname: slow\nsynthesis: {images: 40, per_class: 2, shard_batches: 2, rounds: 1, "
        "phases: [{size: 6, iterations: 120, lr: 0.2}, {size: 12, iterations: 120, lr: 0.2}]}\n"
    )
    plan = experiments.load(str(scale))
    for name in ("results", "checkpoints"):
        (project / name / "slow").symlink_to(project / name / "smoke")
    command = [sys.executable, "-m", "dearkd", "synthesize", "df_dearkd", "--scale", str(scale), "--save-seconds", "0"]
    path = plan.paths.archive("df_dearkd", 0, 0)
    kills = 0
    while kills < 3:
        job = subprocess.Popen([*command, "--seed", "0"], stdout=subprocess.DEVNULL)
        before = len(list(path.with_suffix("").glob("step-*"))) and max(path.with_suffix("").glob("step-*")).name
        while job.poll() is None and not any(p.name > (before or "") for p in path.with_suffix("").glob("step-*")):
            time.sleep(0.02)
        time.sleep(0.3)
        job.send_signal(signal.SIGKILL)
        job.wait()
        kills += 1
    assert not path.exists()
    subprocess.run([*command, "--seed", "0"], check=True, stdout=subprocess.DEVNULL)
    made = record.read(plan.paths.shard("df_dearkd", 0, 0))
    assert made["attempts"] == 4
    killed = made["archive_sha256"]
    path.unlink()
    for old in path.with_suffix("").glob("step-*"):
        old.unlink()
    subprocess.run([*command[:-1], "300", "--seed", "0"], check=True, stdout=subprocess.DEVNULL)
    again = record.read(plan.paths.shard("df_dearkd", 0, 0))
    assert again["archive_sha256"] == killed
    assert again["terms"] == made["terms"]


# ---------------------------------------------------------------------------------------------- a CNN of one's own


RECIPE = """
per_class: 2
batch_classes: 2
phases: [{size: 32, iterations: 2, lr: 0.1}]
jitter: 2
"""


@pytest.fixture
def own(tmp_path, monkeypatch, capsys):
    """`own(arguments)`: synthesize with a CNN of three outputs; (exit status, what it said, its record or None)."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)

    def weights(model="resnet10t", **args):
        torch.manual_seed(0)
        save_file(timm.create_model(model, **{"num_classes": 3, **args}).state_dict(), "mine.safetensors")
        return ("--teacher", model, "--weights", "mine.safetensors", "--recipe", "recipe.yaml", "--images", "4")

    def run(*arguments, out="out", cnn=None):
        status = main(["synthesize", *(weights() if cnn is None else cnn), *arguments, "--out", out])
        said, path = capsys.readouterr(), Path(out, "images.json")
        return status, said.out + said.err, record.read(path) if path.is_file() else None

    run.weights = weights
    return run


def members(out="out"):
    with zipfile.ZipFile(f"{out}/images.zip") as archive:
        return {n: Image.open(io.BytesIO(archive.read(n))) for n in archive.namelist()}


def test_a_users_own_cnn_and_class_names(own):
    named = ("--classes", "cat,my dog/..,bird", "--pick", "cat,bird")
    status, said, made = own(*named)
    assert status == 0 and "4 images (1 x 4) of 2 of 2 classes, 32 pixels, 2 iterations: about" in said
    assert {n.split("/")[0] for n in members()} == {"cat", "bird"}
    assert {image.size for image in members().values()} == {(32, 32)}, "what the recipe asks for, not the tag's 176"
    assert made["images"] == 4 and made["classes"] == ["cat", "my dog_", "bird"]
    assert made["names"] == ["cat", "my dog/..", "bird"]
    assert not list(Path("out").rglob("step-*.pt")), "finished, it leaves no checkpoints"
    status, said, again = own(*named)
    assert status == 0 and "already made with this recipe" in said and again == made
    for other in (("--seed", "1"), ("--pick", "cat")):
        status, said, again = own(*named, *other)
        assert status == 2 and "out: has images of another CNN, recipe or seed" in said and again == made
    _, _, other = own(*named, "--seed", "1", out="other")
    assert other["seed"] == 1 and other["archive_sha256"] != made["archive_sha256"]


def test_a_file_of_class_names_may_come_from_any_editor(tmp_path):
    (tmp_path / "names").write_bytes("\ufeffcat\r\n\r\n dög \r\n".encode())
    assert own_cnn.class_names(str(tmp_path / "names")) == ["cat", "dög"]


def test_a_folder_of_ones_own_images_is_left_alone(own):
    Path("out/cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("out/cat/1.png")
    status, said, _ = own()
    assert status == 2 and "has images that this command did not make (out/cat/1.png)" in said
    assert [path.name for path in Path("out").iterdir()] == ["cat"]


@pytest.mark.parametrize(
    "changed, said",
    [
        (("--mean", "0.5,x"), "--mean 0.5,x: give numbers separated by commas"),
        (("--classes", "none.txt"), "--classes: none.txt cannot be read (No such file or directory); give a text file"),
        (("--weights", "none.pth"), "--weights none.pth: no such file"),
        (("--recipe", "none.yaml"), "none.yaml: no such file"),
        (("--recipe", "below.yaml"), "write the keys of `synthesis` without `synthesis` above them"),
        (("--images", "0"), "at least one image"),
    ],
)
def test_a_mistaken_argument_is_named_before_the_cnn_is_built(tmp_path, monkeypatch, capsys, changed, said):
    monkeypatch.chdir(tmp_path)
    Path("below.yaml").write_text("synthesis: {r_bn: 0.5}")
    monkeypatch.setitem(sys.modules, "dearkd.jobs.invert", None)  # which imports torch
    assert main(["synthesize", "--teacher", "resnet18", *changed]) == 2
    assert said in capsys.readouterr().err and not Path("synthetic").exists()


def test_a_half_made_set_is_not_thrown_away_for_another(own):
    Checkpoints(Path("out/images")).save(1, {"identity": "of another recipe"})
    status, said, _ = own()
    assert status == 2 and "has images of another" in said and list(Path("out/images").glob("step-*"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--classes", "cat,dog"), "--classes names 2 classes, but mine.safetensors has 3 outputs"),
        (("--classes", "cats.txt"), "--classes: cats.txt cannot be read"),
        (("--classes", "cat,dog,bird", "--pick", "cta"), "did you mean 'cat'"),
        (("--classes", "cat,dog,cat", "--pick", "cat"), "'cat' is the name of outputs 0, 2; pick one by its number"),
        (("--recipe", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("--image-size", "16"), "phases: 32 pixels are more than --image-size 16"),
        (("--images", "0"), "at least one image"),
        (("--mean", "0.5,x"), "--mean 0.5,x: give numbers separated by commas"),
        (("--mean", "0.5", "--std", "0.5"), "--mean has 1 values, but resnet10t takes 3 channels"),
        (("--mean", "0.5,0.5,0.5"), "mean and std need the same number of values"),
    ],
)
def test_arguments_that_do_not_fit_the_cnn(own, arguments, message):
    status, said, made = own(*arguments)
    assert status == 2 and message in said and made is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--teacher", "resnet81"), "did you mean 'resnet"),
        (("--teacher", "resnet18.typo"), "timm has no model 'resnet18.typo'"),
        (("--weights", "mine.safetensors"), "--weights is about a CNN of your own: name it with --teacher"),
        ((), "name a method of the matrix"),
    ],
)
def test_arguments_that_name_no_cnn(own, arguments, message):
    status, said, _ = own(cnn=arguments)
    assert status == 2 and message in said


def test_adi_is_refused_where_there_is_no_student(own):
    status, said, made = own("adi")
    assert status == 2 and "adi: its images compete with a student" in said and made is None


@pytest.mark.parametrize("key", ["images: 5", "classes: [0]", "rounds: 2", "competition: 1", "shard_batches: 2"])
def test_a_recipe_key_that_something_else_decides_is_refused(own, key):
    Path("recipe.yaml").write_text(RECIPE + key)
    status, said, _ = own()
    assert status == 2 and f"recipe.yaml: {key.split(':')[0]} has no effect on a CNN of your own" in said


def test_equal_names_keep_their_own_folders(own):
    _, _, made = own("--classes", "crane,boat,Crane", "--images", "6")
    assert made["classes"] == ["0000-crane", "0001-boat", "0002-Crane"]
    _, said, made = own("--classes", "crane,boat,crane", "--pick", "2", out="other")
    assert "Some classes have the same name" in said
    assert {n.split("/")[0] for n in members("other")} == {"0002-crane"}


@given(
    st.lists(
        st.text(max_size=6) | st.sampled_from(["é", "e\u0301", "a/b", "a:b", "CON", "con", "..", " x"]), min_size=1
    )
)
def test_no_two_classes_share_a_folder_on_any_file_system(names):
    folders = image_archive.folders_of(names)
    assert len({unicodedata.normalize("NFC", f.casefold()) for f in folders}) == len(names)
    assert all(f.strip(". ") == f and f and not set(f) & set('/\\:*?"<>|\0\n') for f in folders)


def test_a_cnn_says_its_channels_and_takes_a_mean_and_std(own):
    grey = own.weights(in_chans=1)
    status, _, made = own("--mean", "0.5", "--std", "0.25", cnn=grey)
    assert status == 0 and made["spec"]["data"]["mean"] == [0.5] and made["spec"]["data"]["std"] == [0.25]
    assert {image.mode for image in members().values()} == {"L"}


@pytest.mark.parametrize("model", ["dla46_c", "resnetv2_50"])
def test_a_classifier_that_is_a_convolution(own, model):
    status, _, made = own(cnn=own.weights(model))
    assert status == 0 and made["images"] == len(members()) == 4


def test_images_that_the_cnn_does_not_believe_in_are_doubted(own):
    Path("recipe.yaml").write_text(RECIPE.replace("batch_classes: 2", "batch_classes: 3"))
    status, said, made = own("--images", "6")
    assert status == 0 and made["teacher_accuracy"] < 50, "one that learned nothing calls all three classes the same"
    assert "pixels of another mean and std than the CNN was trained on (now [0.485, 0.456, 0.406]" in made["warning"]
    assert made["warning"] in said


def test_quick_makes_a_tenth_of_the_iterations(own):
    Path("recipe.yaml").write_text(RECIPE.replace("iterations: 2", "iterations: 30"))
    _, said, made = own("--quick")
    assert made["iterations"] == 3 and "3 iterations: about" in said


def test_the_advice_can_be_pasted_into_the_recipe(own):
    _, _, made = own()
    pasted = re.search("`(r_bn: .*?)`", made["advice"])[1]
    Path("recipe.yaml").write_text(RECIPE + pasted)
    status, _, made = own(out="better")
    assert status == 0 and made["spec"]["recipe"]["r_bn"] == float(pasted.partition(":")[2])
    assert made["advice"] == "", "the weight that was proposed brings R_BN into its range"


def test_without_names_imagenets_outputs_have_theirs_and_others_a_number():
    names = invert._names_of(Teacher(model="resnet18", top1=0.0), 1000)
    assert (names[207], names[134], names[517]) == ("golden retriever", "crane", "crane")
    assert invert._names_of(Teacher(model="resnet18", top1=0.0, weights="mine.pth"), 1000)[7] == "0007"


def test_a_cnn_without_batchnorm_gets_the_reason(own):
    status, said, _ = own("--classes", "a,b,c", cnn=own.weights("convnext_atto"))
    assert status == 2 and "no BatchNorm layers" in said


def test_the_best_images_of_a_batch_are_those_of_its_smallest_loss():
    """Batch by batch; a loss that is not a number keeps what is there."""
    images, nan = torch.zeros(3, 2, 1, 2, 2, requires_grad=True), float("nan")
    best = Best(images)
    for number, losses in enumerate([[3.0, 1.0, nan], [2.0, 5.0, 4.0], [2.0, 0.5, nan]], 1):
        best.keep(images + number, torch.tensor(losses, requires_grad=True))
    assert best.loss.tolist() == [2.0, 0.5, 4.0]
    assert best.images.amin((1, 2, 3, 4)).tolist() == best.images.amax((1, 2, 3, 4)).tolist() == [2.0, 3.0, 2.0]
    assert not best.images.requires_grad
