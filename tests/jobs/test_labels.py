"""Labels computed ahead are those the loop would ask for, shared by runs that see the same pixels, and safe to read."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dearkd import record
from dearkd.data.order import Decisions, MicroBatch
from dearkd.errors import InputError
from dearkd.jobs import inputs, labels
from dearkd.jobs.train import train_stage
from dearkd.plan import experiments
from dearkd.plan.plan import Labels

pytestmark = pytest.mark.slow

SCALE = """extends: smoke
name: {name}
label_epochs: {epochs}
training: {{epochs: 3, stage1_epochs: 2, augment: {{mixup: 0.5, cutmix: 0.5}}}}
"""


def make_scale(project, name, epochs):
    """A scale with mixing, and with the teacher and subsets that the smoke scale has made."""
    (project / f"workflow/scales/{name}.yaml").write_text(SCALE.format(name=name, epochs=epochs))
    for folder in ("results", "checkpoints"):
        for part in ("subsets", "teachers"):
            if (project / folder / "smoke" / part).is_dir():
                shutil.copytree(project / folder / "smoke" / part, project / folder / name / part)
    return experiments.load(name)


def train(plan, run, stage="I"):
    train_stage(plan, plan.runs[run], 0, stage)
    return record.read(plan.paths.stage(run, 0, stage))


def make(plan, run):
    """All shards of the labels that a run's first stage reads."""
    stage = plan.runs[run].stages[0]
    for shard in plan.label_shards(stage):
        labels.label_shard(plan, plan.labels_of(stage).name, 0, shard)
    return plan.labels_of(stage).name


@pytest.mark.parametrize(
    "run, epochs",
    [
        ("dearkd-Ti", 1),
        ("dearkd-Ti-hidden~no-two_stage~no", 2),
        ("deit_distilled-Ti-fraction~10", 2),
    ],
)
def test_a_run_is_the_same_with_labels_as_without(project, run, epochs):
    asked, cached = make_scale(project, "asked", 0), make_scale(project, "cached", epochs)
    make(cached, run)
    expected, got = train(asked, run), train(cached, run)
    assert got["weights_sha256"] == expected["weights_sha256"] and got["curve"] == expected["curve"]
    assert expected["labels"] is None and len(got["labels"]["sha256"]) == len(
        cached.label_shards(cached.runs[run].stages[0])
    )


def test_without_hidden_features_the_teacher_never_runs(project, monkeypatch):
    cached = make_scale(project, "cached", 3)
    run = "dearkd-Ti-hidden~no-two_stage~no"
    make(cached, run)

    def refuse(self, images):
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr("timm.models.byobnet.ByobNet.forward_features", refuse)
    monkeypatch.setattr("timm.models.byobnet.ByobNet.forward_intermediates", refuse)
    train(cached, run)


def test_runs_share_labels_that_depend_on_the_pixels_alone():
    plan = experiments.load("imagenet")
    stage = plan.runs["dearkd-Ti"].stages[0]
    of = plan.labels_of
    assert of(stage) == of(plan.runs["dearkd-B"].stages[0]) == of(plan.runs["deit_distilled-S"].stages[0])
    assert of(stage) == of(plan.runs["dearkd-Ti-long~yes"].stages[0]), "a longer run goes on where a shorter one ends"
    assert of(plan.runs["dearkd-Ti"].stages[1]) is None and of(plan.runs["deit-Ti"].stages[0]) is None
    assert list(plan.label_shards(stage)) == list(range(stage.last_epoch // plan.scale.label_epochs))
    other = dataclasses.replace(stage.training, lr=1.0, drop_path=0.5, weight_decay=0.0)
    assert Labels.of(dataclasses.replace(stage, training=other, losses=(("token", 1.0),))) == of(stage)
    for change in ({"augment": dataclasses.replace(stage.training.augment, mixup=0.1)}, {"micro_batch": 128}):
        changed = dataclasses.replace(stage, training=dataclasses.replace(stage.training, **change))
        assert Labels.of(changed).name != of(stage).name
    assert of(plan.runs["dearkd-Ti-fraction~10"].stages[0]).name != of(stage).name


def test_labels_do_not_enter_the_identity_of_a_run():
    scale = experiments.load_scale("imagenet")
    without = experiments.load(dataclasses.replace(scale, label_epochs=0))
    for name, run in experiments.load(scale).runs.items():
        assert without.runs[name] == run
    assert not without.labels


def test_of_takes_positions_of_an_epoch():
    shards = {0: np.arange(12, dtype=np.uint16).reshape(2, 6), 1: np.arange(12, 24, dtype=np.uint16).reshape(2, 6)}
    batch = MicroBatch(epoch=3, step=0, group=0, indices=(9, 9, 9), positions=(4, 0, 5))
    assert Decisions(shards, 2).of(batch).tolist() == [22, 18, 23]


def test_interrupted_and_resumed_it_ends_with_the_same_bytes(project):
    whole, broken = make_scale(project, "whole", 3), make_scale(project, "broken", 3)
    name = make(whole, "dearkd-Ti")
    folder = broken.paths.label_file(name, 0, 0).with_suffix("")
    command = [sys.executable, "-m", "dearkd", "labels", name, "--scale", "broken", "--seed", "0", "--shard", "0"]
    process = subprocess.Popen([*command, "--save-seconds", "0"], stderr=subprocess.PIPE, text=True)
    while not list(folder.glob("step-*.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "and saved; the same command resumes from here" in said
    labels.label_shard(broken, name, 0, 0)
    assert broken.paths.label_file(name, 0, 0).read_bytes() == whole.paths.label_file(name, 0, 0).read_bytes()
    made = record.read(broken.paths.labels(name, 0, 0))
    assert made["attempts"] == 2 and 0 < made["agreement"] <= 100 and not list(folder.glob("step-*.pt"))


def test_a_missing_cut_or_foreign_file_is_named(project):
    plan = make_scale(project, "cached", 3)
    name = make(plan, "dearkd-Ti")
    path = plan.paths.label_file(name, 0, 0)
    whole = path.read_bytes()
    for damage in (whole[:-1], whole[:-2] + b"xx", None):
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(InputError, match=f"{path}: missing, .* or not what .*: python -m dearkd labels {name}"):
            train(plan, "dearkd-Ti")
    path.write_bytes(whole)
    teacher = record.read(plan.paths.teacher("main"))
    record.write(plan.paths.teacher("main"), {**teacher, "weights_sha256": "0" * 64})
    with pytest.raises(InputError, match="its teacher main has other weights now"):
        inputs.decisions(
            plan, plan.runs["dearkd-Ti"].stages[0], 0, record.read(plan.paths.labels(name, 0, 0))["images_sha256"]
        )


def test_shards_of_another_length_and_shards_that_nobody_reads(project):
    plan = make_scale(project, "cached", 3)
    name = make(plan, "dearkd-Ti")
    (project / "workflow/scales/cached.yaml").write_text(SCALE.format(name="cached", epochs=2))
    shorter = experiments.load("cached")
    with pytest.raises(InputError, match=r"it covers epochs \[0, 3\], but label_epochs is 2"):
        train(shorter, "dearkd-Ti")
    with pytest.raises(InputError, match=f"--shard -1: {name} has the shards 0 to 1; name one of them"):
        labels.label_shard(shorter, name, 0, -1)
    make(shorter, "dearkd-Ti")
    train(shorter, "dearkd-Ti")


def test_the_workflow_computes_labels_before_the_runs_that_share_them(project):
    make_scale(project, "cached", 1)
    snakemake = [sys.executable, "-m", "snakemake", "-n", "--config", "scale=cached", "--"]
    wanted = [f"results/cached/runs/{run}/seed0/I.json" for run in ("dearkd-Ti", "dearkd-S", "deit-Ti")]
    done = subprocess.run([*snakemake, *wanted], capture_output=True, text=True, check=True)
    counts = dict(line.split()[:2] for line in done.stdout.splitlines() if line[:7] in ("labels ", "train  "))
    assert counts["labels"] == "2" and int(counts["train"]) >= 3
