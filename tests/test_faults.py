"""Faults of data, weights and disk, each done to real files under the real command: one sentence, status 2, nothing
lost, and the same command goes on once the cause is gone. Faults of images: test_data.py; of weights: test_evaluate.py;
of a cluster: test_slurm.py; of two jobs on one run: test_lease.py.
"""

import contextlib
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
from conftest import copy_project

from dearkd import matrix, record
from dearkd.checkpoint import Checkpoints
from dearkd.scale import Scale
from dearkd.schema import InputError, build

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


@contextlib.contextmanager
def small_disk(folder, kilobytes, options=""):
    """A file system of that size in the place of a folder, with what the folder holds."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    kept = [(p, p.read_bytes()) for p in folder.rglob("*") if p.is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        for path, raw in kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
        if options:
            subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


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
    assert "damaged, the checkpoint before it is taken" in capsys.readouterr().err
    newest.write_bytes(raw)
    assert checkpoints.load()["step"] == 2


def test_a_run_whose_newest_checkpoint_was_cut_ends_the_same(project, untrained):
    assert train("--save-seconds", "0").returncode == 0
    (project / RESULT).unlink()
    newest = max((project / STATE).glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    done = train()
    assert done.returncode == 0 and f"{newest.name}: damaged" in done.stderr
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


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
    assert done.returncode == 0 and f"goes on at step {whole['step']}" in done.stdout
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


@pytest.mark.parametrize("place", ["results/smoke/runs", "checkpoints/smoke/dearkd-Ti"])
def test_a_read_only_folder(project, untrained, place):
    """Of results: the finished weights stay, and the record is written in a second once it may be."""
    (project / place).mkdir(parents=True, exist_ok=True)
    with small_disk(project / place, 10000, "ro"):
        refused(train(), place, "Read-only file system")
    done = train()
    assert done.returncode == 0
    assert place.startswith("checkpoints") or "goes on at step 28 of 28" in done.stdout
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


@pytest.mark.parametrize("verb", [("subset", "main"), ("evaluate", "dearkd-Ti", "--seed", "0"), ("table", "table2")])
def test_other_jobs_on_a_read_only_folder(project, verb):
    with small_disk(project / "results/smoke", 20000, "ro"):
        refused(dearkd(*verb, "--scale", "smoke"), "results/smoke", "Read-only" if verb[0] != "table" else "")


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(project, untrained):
    """It names step and term; the state that gave it is dropped, the one before it is there, finite."""
    scale = project / "workflow/scales/smoke.yaml"
    text = scale.read_text()
    scale.write_text(text.replace("warmup_epochs: 1,", "warmup_epochs: 0, lr: 1.0e+30, clip: 0,"))
    done = train("--save-seconds", "0")
    refused(done, " is nan at step ", "training.lr")
    step = int(done.stderr.split(" at step ")[1].split(";")[0])
    good = Checkpoints(project / STATE).load()
    assert good is None or good["step"] < step
    scale.write_text(text)
    assert train().returncode == 0
    assert record.read(project / RESULT)["weights_sha256"] == untrained["weights_sha256"]


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
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, ignored),
    )
    assert "epoch 1" in process.stdout.readline()
    process.stdout.close() if how == "reader" else process.send_signal(signal.SIGHUP)
    said = process.stderr.read()
    assert process.wait(120) == (0 if how == "nohup" else 75) and "Traceback" not in said
    if how != "nohup":
        assert "the same command goes on from here" in said
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
    process = subprocess.Popen(
        [sys.executable, "-m", "dearkd", *verb], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) in (0, 141) and not said, said


def test_gpus_on_a_machine_without_any(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refused(train("--gpu", "8"), "8 GPUs asked for, none visible", "or --gpu")


def test_windows_is_refused_in_a_sentence():
    code = "import sys, runpy; sys.platform = 'win32'; runpy.run_module('dearkd', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "inside WSL 2" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_label_that_is_no_class(project):
    """Of synthetic images; of files on disk: test_data.py."""
    plan = matrix.load("smoke")
    assert dearkd("synthesize", "deepinversion", "--scale", "smoke").returncode == 0
    manifest = plan.paths.shard("deepinversion", 0, 0).with_suffix(".csv")
    manifest.write_text(re.sub(r"(?<=\.png,)\d+", "10", manifest.read_text()))
    from dearkd.artifacts import synthetic

    with pytest.raises(InputError, match="a label is not one of the 10 classes; make the shard again"):
        synthetic(plan, "deepinversion", 0, 1)


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

    from dearkd import spec, teachers

    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("convnet_micro", num_classes=5).state_dict(), path)
    data = spec.Data(kind="folder", classes=5, image_size=32)
    given = {"model": "convnet_micro", "top1": 1.0, "weights": str(path)}
    found = teachers.weights_sha256(teachers.build(spec.Teacher(**given), data).net)
    teachers.build(spec.Teacher(**given, sha256=found), data)
    with pytest.raises(InputError, match=f"have sha256 {found}, but the scale expects 00"):
        teachers.build(spec.Teacher(**given, sha256="00"), data)


def test_nothing_unpickles(project):
    """Every torch.load is with weights_only, and no other reader of pickles is used."""
    for path in (project / "dearkd").glob("*.py"):
        text = path.read_text()
        assert text.count("torch.load(") == text.count("weights_only=True"), path
        for reader in ("pickle.load", "joblib", "allow_pickle=True", "torch.hub.load(", "extractall", "shell=True"):
            assert reader not in text, (path, reader)
