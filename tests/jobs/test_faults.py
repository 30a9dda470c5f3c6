"""Faults of data, weights and disk, each done to real files under the real command: one sentence, status 2, nothing
lost, and the same command goes on once the cause is gone. Faults of images: test_data.py; of weights: test_evaluate.py;
of a cluster: test_slurm.py; of two jobs on one run: test_lease.py.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import copy_project, small_disk

from dearkd import disk, record
from dearkd.errors import InputError
from dearkd.jobs import inputs
from dearkd.jobs.train import train_stage
from dearkd.model.weights import weights_sha256
from dearkd.plan import experiments
from dearkd.plan.scale import Scale
from dearkd.schema import build
from dearkd.train.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

STATE = "checkpoints/smoke/dearkd-Ti/seed0/I"
RESULT = "results/smoke/runs/dearkd-Ti/seed0/I.json"


def dearkd(*arguments, check=False):
    return subprocess.run([sys.executable, "-m", "dearkd", *arguments], capture_output=True, text=True, check=check)


def train(*arguments, scale="smoke"):
    return dearkd("train", "dearkd-Ti", "--scale", scale, "--seed", "0", "--stage", "I", *arguments)


def refused(done, *words):
    """Status 2 and one sentence on stderr with these words."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("dearkd ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def untrained(project):
    """The project before stage I, and what its record must be in the end."""
    expected = record.read(project / RESULT)
    shutil.rmtree(project / "checkpoints/smoke/dearkd-Ti")
    shutil.rmtree(project / "results/smoke/runs/dearkd-Ti")
    return expected


def test_a_checkpoint_cut_at_any_byte_is_passed_over(tmp_path, capsys):
    """At 300 lengths, and with a bit flipped at 300 places: the one before it is taken, never half a state."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1, "weights": torch.arange(50.0)})
    newest = checkpoints.save(2, {"step": 2, "weights": torch.arange(50.0) + 1})
    raw, chance = newest.read_bytes(), random.Random(0)
    for length in sorted({0, 1, len(raw) - 1, *chance.sample(range(len(raw)), 300)}):
        newest.write_bytes(raw[:length])
        assert checkpoints.load()["step"] == 1
    for place in chance.sample(range(len(raw)), 300):
        newest.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << chance.randrange(8)]) + raw[place + 1 :])
        assert checkpoints.load()["step"] == 1
    assert "the checkpoint is damaged and is skipped" in capsys.readouterr().err
    newest.write_bytes(raw)
    assert checkpoints.load()["step"] == 2


def test_a_run_whose_newest_checkpoint_was_cut_ends_the_same(project, untrained):
    assert train("--save-seconds", "0").returncode == 0
    (project / RESULT).unlink()
    newest = max((project / STATE).glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    done = train()
    assert done.returncode == 0 and f"{newest.name}: the checkpoint is damaged and is skipped" in done.stderr
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


def flip(path, chance):
    """One bit of a file, somewhere."""
    raw = bytearray(path.read_bytes())
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


def test_stage_two_takes_exactly_the_state_that_the_record_describes_or_refuses(project, untrained):
    """A bit of the final checkpoint flipped, an earlier checkpoint there: refused, and the printed command mends it."""
    assert train("--save-seconds", "0").returncode == 0
    described, plan = record.read(project / RESULT), experiments.load("smoke")
    final, chance, run = max((project / STATE).glob("step-*.pt")), random.Random(0), plan.runs["dearkd-Ti"]
    assert len(list((project / STATE).glob("step-*.pt"))) == 2
    whole = final.read_bytes()
    for _ in range(20):
        flip(final, chance)
        with pytest.raises(InputError, match="final state of stage I, which is missing, damaged or not what") as error:
            train_stage(plan, run, 0, "II")
        final.write_bytes(whole)
    record.write(project / RESULT, {**described, "weights_sha256": "0" * 64})
    with pytest.raises(InputError, match="final state of stage I"):
        train_stage(plan, run, 0, "II")
    flip(final, chance)
    command = re.search(r"`python (.*)`", str(error.value))[1].split()
    assert subprocess.run([sys.executable, *command]).returncode == 0
    train_stage(plan, run, 0, "II")
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


def test_a_teacher_whose_weights_were_damaged_is_taken_again_once_they_are_restored(project):
    """Kept beside its record and copied to where jobs read it: a damaged copy outlives neither."""
    plan = experiments.load("smoke")
    used, kept = plan.paths.teacher_weights("main"), plan.paths.kept_weights("main")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    used.unlink()
    with pytest.raises(InputError, match="run `python -m dearkd teacher main --scale smoke`"):
        inputs.teacher_weights(plan, "main")
    used.write_bytes(whole[:-1])
    kept.write_bytes(whole)
    inputs.teacher_weights(plan, "main")
    assert used.read_bytes() == whole


def test_what_a_killed_writer_left_is_swept(tmp_path):
    """Of a dead process at once, of another machine after a day; a living process's file stays."""
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    names = {f".dearkd-{disk._machine()}-{dead.pid}-0.tmp", ".dearkd-00000000-1-0.tmp"}
    stay = {f".dearkd-{disk._machine()}-{os.getppid()}-7.tmp", ".dearkd-11111111-1-0.tmp", ".other.tmp"}
    for name in names | stay:
        (tmp_path / name).touch()
    os.utime(tmp_path / ".dearkd-00000000-1-0.tmp", (0, 0))
    disk.write(tmp_path / "a.txt", "a")
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", *stay}


def test_files_that_belong_together_are_written_together_or_not_at_all(tmp_path):
    with small_disk(tmp_path / "disk", 64):
        disk.write(tmp_path / "disk/one", b"before")
        with pytest.raises(InputError, match=r"disk/two: cannot be written \(No space left on device"):
            disk.write_all({tmp_path / "disk/one": b"after", tmp_path / "disk/two": bytes(10**6)})
        assert [p.name for p in (tmp_path / "disk").iterdir()] == ["one"]
        assert (tmp_path / "disk/one").read_bytes() == b"before"


def test_a_full_disk_for_curves_and_for_tensorboard(project):
    """One sentence, without the traceback of TensorBoard's own thread; an earlier figure stays."""
    curves = ("curves", "dearkd-Ti", "--scale", "smoke")
    assert dearkd(*curves).returncode == 0
    before = {p.name: p.read_bytes() for p in (project / "figures/smoke/curves").iterdir()}
    with small_disk(project / "figures/smoke/curves", sum(map(len, before.values())) // 1024 + 12):
        refused(dearkd(*curves), "curves/dearkd-Ti", "No space left on device", "make room")
        assert {p.name: p.read_bytes() for p in (project / "figures/smoke/curves").iterdir()} == before
    shutil.rmtree(project / STATE)
    (project / "board").mkdir()
    (project / "board/full").write_bytes(bytes(4096))
    with small_disk(project / "board", 4):
        refused(train("--tensorboard", "board"), "board/dearkd-Ti/seed0: cannot be written (No space left on device)")
    assert train().returncode == 0


def test_a_full_disk_while_saving(project, untrained):
    """Room for the first checkpoint, not for those after it; with more room it ends with the same bits."""
    folder = project / STATE
    with small_disk(folder, 1500):
        refused(train("--save-seconds", "0"), "No space left on device", "make room", "step-")
        whole = Checkpoints(folder).load()
        assert whole is not None and whole["step"] > 0 and not list(folder.glob(".*.tmp"))
        kept = [(p.name, p.read_bytes()) for p in folder.iterdir() if p.name.startswith("step-")]
    for name, raw in kept:
        (folder / name).write_bytes(raw)
    done = train()
    assert done.returncode == 0 and f"continues after step {whole['step']}" in done.stdout
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


@pytest.mark.parametrize("place", ["results/smoke/runs", "checkpoints/smoke/dearkd-Ti"])
def test_a_read_only_folder(project, untrained, place):
    """Of results: the finished weights stay, and the record is written in a second once it may be."""
    (project / place).mkdir(parents=True, exist_ok=True)
    with small_disk(project / place, 10000, "ro"):
        refused(train(), place, "Read-only file system")
    done = train()
    assert done.returncode == 0
    assert place.startswith("checkpoints") or "continues after step 28 of 28" in done.stdout
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


@pytest.mark.parametrize("verb", [("subset", "main"), ("evaluate", "dearkd-Ti", "--seed", "0"), ("table", "table2")])
def test_other_jobs_on_a_read_only_folder(project, verb):
    with small_disk(project / "results/smoke", 20000, "ro"):
        refused(dearkd(*verb, "--scale", "smoke"), "results/smoke", "Read-only" if verb[0] != "table" else "")


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(project, untrained):
    """It names step and term; the state that gave it is dropped, the one before it is there, finite."""
    scale = project / "workflow/scales/smoke.yaml"
    text = scale.read_text()
    scale.write_text(text.replace("warmup_epochs: 1,", "warmup_epochs: 0, lr: 1.0e+9, clip: 0,"))
    done = train("--save-seconds", "0")
    refused(done, " is nan at step ", "training.lr")
    step = int(done.stderr.split(" at step ")[1].split(";")[0])
    good = Checkpoints(project / STATE).load()
    assert good is None or good["step"] < step
    scale.write_text(text)
    assert train().returncode == 0
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


@pytest.mark.cold
def test_two_runs_started_by_hand_in_one_folder(project, untrained):
    """The second is refused by the first's process number; the first ends as if alone."""
    command = [sys.executable, "-m", "dearkd", "train", "dearkd-Ti", "--scale", "smoke", "--seed", "0", "--stage", "I"]
    first = subprocess.Popen([*command, "--save-seconds", "0"], stdout=subprocess.DEVNULL)
    while not (project / STATE / "lease.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = dearkd(*command[3:])
    first.send_signal(signal.SIGCONT)
    refused(second, f"in use by process {first.pid}", "wait for it or stop it")
    assert first.wait(120) == 0
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


@pytest.mark.parametrize("how", ["hangup", "nohup", "reader"])
def test_a_terminal_that_closes_and_a_reader_that_leaves_lose_nothing(project, untrained, how):
    """SIGHUP and `| head` save and stop; under nohup the training goes on."""
    command = [sys.executable, "-m", "dearkd", "train", "dearkd-Ti", "--scale", "smoke", "--seed", "0", "--stage", "I"]
    ignored = signal.SIG_IGN if how == "nohup" else signal.SIG_DFL
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, ignored),
    ) as process:
        assert "epoch 1" in process.stdout.readline()
        process.stdout.close() if how == "reader" else process.send_signal(signal.SIGHUP)
        said = process.stderr.read()
        assert process.wait(120) == (0 if how == "nohup" else 75) and "Traceback" not in said
    if how != "nohup":
        assert "the same command resumes from here" in said
        assert train().returncode == 0
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


def test_ctrl_c_before_there_is_something_to_save(project, untrained):
    """While it waits for another machine's job."""
    (project / STATE).mkdir(parents=True)
    lease = {"host": "elsewhere", "machine": "m", "pid": 1, "job": "", "boot": "1"}
    (project / STATE / "lease.json").write_text(json.dumps(lease))
    command = [sys.executable, "-m", "dearkd", "train", "dearkd-Ti", "--scale", "smoke", "--seed", "0", "--stage", "I"]
    process = subprocess.Popen([*command, "--wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "waiting for it" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said == "dearkd train: stopped by Ctrl-C; nothing finished was lost\n"


@pytest.mark.parametrize("verb", [("plan",), ("--help",), ("status",)])
def test_the_reader_of_a_list_may_leave(verb):
    command = [sys.executable, "-m", "dearkd", *verb]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) in (0, 141) and not said, said


def test_gpus_on_a_machine_without_any(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refused(train("--gpu", "8"), "the job needs 8 GPUs, and none is visible", "or --gpu")


def test_windows_is_refused_in_a_sentence():
    code = "import sys, runpy; sys.platform = 'win32'; runpy.run_module('dearkd', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "inside WSL 2" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("age", ["new", "old"])
@pytest.mark.parametrize("damage", ["a class", "no class", "a line", "half a line", "an image", "nothing", "gone"])
def test_labels_of_synthetic_images_that_are_not_what_the_record_describes(made_images, damage, age):
    """Cut, flipped or gone; also where the record is from before it held the file's sha256."""
    plan = experiments.load("smoke")
    path = plan.paths.shard("deepinversion", 0, 0)
    if age == "old":
        values = record.read(path)
        del values["files"]
        path.write_text(json.dumps(values))
    images, _ = inputs.synthetic(plan, "deepinversion", 0, 1)
    assert len(images) == record.read(path)["images"]
    manifest = path.with_suffix(".csv")
    lines = manifest.read_text().splitlines(keepends=True)
    name, label, rest = lines[1].split(",", 2)
    changed = {
        "a class": [lines[0], f"{name},{(int(label) + 1) % 10},{rest}", *lines[2:]],
        "no class": [lines[0], f"{name},10,{rest}", *lines[2:]],
        "a line": lines[:-1],
        "half a line": [*lines[:-1], lines[-1][:12]],
        "an image": [lines[0], f"x{name},{label},{rest}", *lines[2:]],
        "nothing": [],
        "gone": None,
    }[damage]
    manifest.unlink() if changed is None else manifest.write_text("".join(changed))
    with pytest.raises(InputError, match=r"shard-0000\.csv: "):
        inputs.synthetic(plan, "deepinversion", 0, 1)


@pytest.fixture(scope="module")
def smoke_images(smoke_project, tmp_path_factory):
    """The smoke project with a shard of synthetic images."""
    folder = tmp_path_factory.mktemp("images") / "project"
    shutil.copytree(smoke_project, folder)
    command = [sys.executable, "-m", "dearkd", "synthesize", "deepinversion", "--scale", "smoke"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def made_images(smoke_images, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    shutil.copytree(smoke_images, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_finished_shard_is_not_made_again_when_its_record_is_lost(made_images):
    """Results read-only for a moment, Snakemake killed, a duplicate that waited: its record is only written again."""
    plan = experiments.load("smoke")
    path, archived = plan.paths.shard("deepinversion", 0, 0), plan.paths.archive("deepinversion", 0, 0)
    made, kept = record.read(path), archived.stat().st_mtime_ns
    path.unlink()
    with small_disk(made_images / "results/smoke/images", 100, "ro"):
        refused(dearkd("synthesize", "deepinversion", "--scale", "smoke"), "results/smoke/images", "Read-only")
    done = dearkd("synthesize", "deepinversion", "--scale", "smoke")
    assert "it was finished before, and only its record is written now" in done.stdout
    assert record.read(path) == made and archived.stat().st_mtime_ns == kept
    archived.write_bytes(archived.read_bytes()[:-1])
    assert "it was finished before" not in dearkd("synthesize", "deepinversion", "--scale", "smoke").stdout
    assert record.read(path)["archive_sha256"] == made["archive_sha256"], "a damaged archive is made again"


# ------------------------------------------------------------------------------------------------- trust


def test_no_name_reaches_a_shell(tmp_path):
    """Spaces, quotes and $() in the folder, the scale's file and a row's label: all of Snakemake's quoting at once."""
    folder = copy_project(tmp_path / "a 'b' \"c\" $(touch owned) ;touch owned")
    scale = folder / "my 'scale' \"of\" $(touch owned).yaml"
    scale.write_text("extends: smoke\nname: quoted\nfractions: [100]\nonly: [table1]\n")
    experiments = folder / "workflow/experiments.yaml"
    line = '      - {label: "\'a\' $(touch owned) \\"b\\"", method: deit, student: Ti}\n'
    experiments.write_text(experiments.read_text().replace("  table2:\n", f"{line}  table2:\n", 1))
    command = [sys.executable, "-m", "dearkd", "warm", str(Path(sys.executable).with_name("snakemake")), "--cores", "2"]
    done = subprocess.run(
        [*command, "--logger", "dearkd", "--config", f"scale={scale.name}", "--", "table1"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "'a' $(touch owned)" in (folder / "results/quoted/tables/table1.csv").read_text()
    assert not list(tmp_path.rglob("owned"))
    assert f"{(folder / 'results/quoted/tables/table1.md').read_text()}" in done.stderr, "each table when it is ready"
    assert "Full log: .snakemake/log/" in done.stderr and "rule train" not in done.stderr


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", "-rf"])
def test_a_name_that_would_leave_the_folder_is_refused(name):
    values = {"name": name, "summary": "", "seeds": [0], "fractions": [100], "students": {}}
    values |= {"data": {"main": {"kind": "digits", "classes": 10, "image_size": 12}}, "teachers": {"main": TEACHER}}
    values |= {"distillation": {"teacher": "main"}, "synthesis": {"teacher": "main"}}
    with pytest.raises(InputError, match="becomes part of paths"):
        build(Scale, values, "test")
    with pytest.raises(InputError, match="becomes part of paths"):
        build(Scale, {**values, "name": "fine", "data": {**values["data"], name: values["data"]["main"]}}, "test")


TEACHER = {"model": "convnet_micro", "top1": 90.0}


def test_weights_from_elsewhere_are_held_to_their_sha256(tmp_path):
    """A scale may name what it expects; the sentence says what was found."""
    import timm
    from safetensors.torch import save_file

    from dearkd.model import teachers
    from dearkd.plan import stage

    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("convnet_micro", num_classes=5).state_dict(), path)
    data = stage.Data(kind="folder", classes=5, image_size=32)
    given = {"model": "convnet_micro", "top1": 1.0, "weights": str(path)}
    found = weights_sha256(teachers.build(stage.Teacher(**given), data).net)
    teachers.build(stage.Teacher(**given, sha256=found), data)
    with pytest.raises(InputError, match=f"have sha256 {found}, but the scale expects {'0' * 64}"):
        teachers.build(stage.Teacher(**given, sha256="0" * 64), data)


def test_nothing_unpickles(project):
    """Every torch.load is with weights_only, and no other reader of pickles is used."""
    for path in (project / "dearkd").rglob("*.py"):
        text = path.read_text()
        assert text.count("torch.load(") == text.count("weights_only=True"), path
        for reader in ("pickle.load", "joblib", "allow_pickle=True", "torch.hub.load(", "extractall", "shell=True"):
            assert reader not in text, (path, reader)
