"""The loop: schedule, stage switch, killing and resuming, processes, and what it does when the loss is not finite."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from dearkd import record
from dearkd.data.loader import training_loader
from dearkd.disk import sha256
from dearkd.errors import InputError
from dearkd.jobs.inputs import gather, teacher_of
from dearkd.jobs.train import train_stage
from dearkd.model import networks
from dearkd.plan import experiments
from dearkd.plan.experiments import load_scale
from dearkd.plan.methods import dearkd
from dearkd.plan.stage import Model, Training
from dearkd.schema import override
from dearkd.train import loop, optimise
from dearkd.train.attempt import Attempt
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.inputs import Inputs

pytestmark = pytest.mark.slow


def rates(recipe, stage=None, epochs=None):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=1.0)
    rate = (
        optimise.learning_rate(optimiser, stage)
        if stage
        else optimise.LearningRate(optimiser, recipe, 0, recipe.epochs, 1.0)
    )
    found = {}
    for epoch in epochs:
        rate.step(epoch)
        found[epoch] = optimiser.param_groups[0]["lr"]
    return found


def test_learning_rate_is_deits_and_the_papers():
    """5e-4 x 2048/512 = 2e-3; warm-up from 1e-6 over 5 epochs; cosine to 1e-5; 1.433e-4 at the switch (250 of 300)."""
    assert Training().peak_lr == pytest.approx(2e-3)
    lr = rates(Training(), epochs=range(300))
    assert lr[0] == pytest.approx(1e-6)
    assert lr[2] == pytest.approx(1e-6 + 2 / 5 * (2e-3 - 1e-6))
    assert lr[150] == pytest.approx((2e-3 + 1e-5) / 2)
    assert lr[250] == pytest.approx(1.433e-4, abs=5e-8)
    assert lr[299] == pytest.approx(1e-5, abs=1e-7)
    long = rates(Training(epochs=1000, stage1_epochs=800), epochs=[800])
    assert long[800] == pytest.approx(2.0e-4, rel=1e-3)


def test_stage_two_continues_the_cosine_or_restarts_it():
    scale = load_scale("imagenet")
    first, second = dearkd(scale, "Ti")
    assert (first.first_epoch, first.last_epoch, second.first_epoch, second.last_epoch) == (0, 250, 250, 300)
    assert rates(None, second, [250])[250] == pytest.approx(1.433e-4, abs=5e-8)
    restarted = override(scale, {"training.stage2_lr": "restart", "training.stage2_peak": 0.5}, "test")
    lr = rates(None, dearkd(restarted, "Ti")[1], [250, 255, 299])
    assert lr[250] == pytest.approx(1e-6) and lr[255] == pytest.approx(0.973e-3, rel=0.01) and lr[299] < 2e-5


def second_stage(stage, before):
    """The state of stage II before its first step, and the step that it begins with."""
    from dearkd.data import datasets

    images = datasets.read(stage.data)["train"].take(range(950))
    inputs = Inputs(train=images, validation=images, draws=950, previous=before, fingerprint="x")
    learner = loop.Learner(stage, 0, inputs)
    return learner.state, 2 * learner.schedule.steps_per_epoch


def test_the_switch_keeps_weights_and_moments_and_drops_aligner_and_pooled_head(project):
    whole = experiments.load("smoke")
    run = whole.runs["dearkd-Ti"]
    before = Checkpoints(whole.paths.state("dearkd-Ti", 0, "I")).load()
    assert any(k.startswith("aligner2") for k in before["auxiliary"]) and any(
        "pooled_head" in k for k in before["auxiliary"]
    )
    resumed, first_step = second_stage(run.stage("II"), before)
    assert not list(resumed.trainee.auxiliary.parameters())
    assert resumed.step == first_step == before["step"]
    for name, parameter in resumed.trainee.named_parameters():
        assert torch.equal(parameter, before["student"][name.removeprefix("student.")])
        for key, value in before["moments"][name].items():
            assert torch.equal(resumed.optimiser.state[parameter][key], value), (name, key)
    assert len(resumed.optimiser.state) == len(list(resumed.trainee.parameters()))


def test_a_step_that_overflows_leaves_weights_average_and_feature_scale_alone(project):
    """fp16 with a loss scale far too high: the scaler skips the step and lowers the scale."""
    whole = experiments.load("smoke")
    run = whole.runs["dearkd-Ti"]
    stage = dataclasses.replace(
        run.stage("I"), training=dataclasses.replace(run.stage("I").training, ema=0.9, micro_batch=64)
    )
    inputs, _ = gather(whole, run, 0, run.stage("I"))
    learner = loop.Learner(stage, 0, inputs)
    state, augment = learner.state, stage.training.augment
    batches = training_loader(inputs.train, stage.data, augment, learner.schedule, 0, 3, 0)

    def step(contrast=1.0):
        batch, images, labels = next(batches)
        learner.step([(batch, contrast * images, labels)])
        return [
            {k: v.clone() for k, v in m.state_dict().items()} for m in (state.student, state.ema.module, state.scale)
        ]

    before = step()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    after = step(1e4)
    assert all(torch.equal(one[k], other[k]) for one, other in zip(before, after, strict=True) for k in one)
    assert state.scaler.get_scale() == 2.0**126
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    later = step()
    assert all(any(not torch.equal(one[k], other[k]) for k in one) for one, other in zip(before, later, strict=True))


def test_exported_weights_hold_the_student_alone(project):
    from safetensors.torch import load_file

    weights = load_file("checkpoints/smoke/dearkd-Ti/seed0/I/student.safetensors")
    stage = experiments.load("smoke").runs["dearkd-Ti"].stage("I")
    assert weights.keys() == networks.create(stage.model, 0).state_dict().keys()


def train_command(*arguments):
    return [
        sys.executable,
        "-m",
        "dearkd",
        "train",
        "dearkd-Ti",
        "--scale",
        "smoke",
        "--seed",
        "0",
        "--save-seconds",
        "0",
        *arguments,
    ]


def kill_at(stage, folder, steps, number):
    """Start a stage and send it a signal once it has saved `steps` more steps; returns whether it was still running."""
    start = newest(folder)
    process = subprocess.Popen(train_command("--stage", stage), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and newest(folder) < start + steps:
        time.sleep(0.005)
    running = process.poll() is None
    process.send_signal(number)
    process.wait(60)
    return running


def newest(folder):
    return max((int(p.name.split("-")[1]) for p in folder.glob("step-*.pt")), default=-1)


@pytest.mark.cold
def test_a_run_killed_again_and_again_ends_with_the_same_bits(project):
    """SIGKILL in stage I, right before its end, and in stage II; each time the next process goes on."""
    expected = {s: record.read(project / f"results/smoke/runs/dearkd-Ti/seed0/{s}.json") for s in ("I", "II")}
    for path in ("results/smoke/runs/dearkd-Ti", "checkpoints/smoke/dearkd-Ti"):
        subprocess.run(["rm", "-r", path], check=True)
    kills = 0
    for stage, stops in (("I", (3, 9, 12)), ("II", (4,))):
        folder = project / f"checkpoints/smoke/dearkd-Ti/seed0/{stage}"
        for steps in stops:
            kills += kill_at(stage, folder, steps, signal.SIGKILL)
        subprocess.run(train_command("--stage", stage), check=True, stdout=subprocess.DEVNULL)
        got = record.read(project / f"results/smoke/runs/dearkd-Ti/seed0/{stage}.json")
        assert got["weights_sha256"] == expected[stage]["weights_sha256"]
        assert got["curve"] == expected[stage]["curve"]
        assert got["attention_distance_heads"] == expected[stage]["attention_distance_heads"]
        assert got["attempts"] > 1
    assert kills == 4, "every signal must have met a running process"


def test_asked_to_stop_it_saves_and_says_so(project):
    subprocess.run(
        ["rm", "-r", "checkpoints/smoke/dearkd-Ti/seed0/II", "results/smoke/runs/dearkd-Ti/seed0/II.json"], check=True
    )
    folder = project / "checkpoints/smoke/dearkd-Ti/seed0/II"
    process = subprocess.Popen(
        train_command("--stage", "II"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and newest(folder) < 0:
        time.sleep(0.005)
    process.send_signal(signal.SIGURG)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped at step" in said and "the same command resumes from here" in said
    assert not (folder / "lease.json").exists() and newest(folder) > 28


def test_micro_batches_add_up_to_the_batch(project):
    """Without mixing and dropout, 64 images at once and twice 32 give the same weights up to rounding."""
    whole = experiments.load("smoke")
    ends = []
    for micro_batch in (64, 32):
        scale = override(
            whole.scale,
            {
                "training.micro_batch": micro_batch,
                "rpe.drop": 0,
                "training.augment.kind": "none",
                "training.epochs": 1,
                "training.stage1_epochs": 1,
            },
            "test",
        )
        stage = dataclasses.replace(dearkd(scale, "Ti", two_stage=False)[0])
        ends.append(in_process(whole, stage, f"m{micro_batch}")["student"])
    for name in ends[0]:
        assert torch.allclose(ends[0][name], ends[1][name], atol=2e-4), name


def test_in_half_precision_gradients_are_computed_outside_autocast(project, monkeypatch):
    """Within, torch would round the fp32 gradients of alpha and Delta to bf16. On a CPU only a test asks for bf16."""
    whole = experiments.load("smoke")
    run = whole.runs["dearkd-Ti"]
    inputs, _ = gather(whole, run, 0, run.stage("I"))
    learner, seen = loop.Learner(run.stage("I"), 0, inputs), {"forward": set(), "backward": set()}
    monkeypatch.setattr(optimise, "autocast", lambda *_: torch.autocast("cpu", torch.bfloat16))
    assert learner.share == 2
    for block in learner.state.student.blocks:
        block.register_forward_hook(lambda *_: seen["forward"].add(torch.is_autocast_enabled("cpu")))
        block.attn.register_full_backward_hook(lambda *_: seen["backward"].add(torch.is_autocast_enabled("cpu")))
    batches = training_loader(
        inputs.train, run.stage("I").data, learner.stage.training.augment, learner.schedule, 0, 2, 0
    )
    for _, batch in itertools.groupby(batches, key=lambda item: item[0].step):
        learner.step(batch)
    assert seen == {"forward": {True}, "backward": {False}}
    assert learner.state.meters.bad() is None


def in_process(whole, stage, name, seed=0):
    """Train a stage of the smoke scale with its teacher; returns the final state."""
    from dearkd.data import datasets, subsets

    sets = datasets.read(stage.data)
    images, _ = subsets.read(sets["train"], whole.paths.subsets("main"), f"train-{stage.fraction}", whole.argument)
    teacher, features, _ = teacher_of(whole, stage)
    inputs = Inputs(
        train=images,
        validation=images.take(range(50)),
        draws=len(images),
        teacher=teacher,
        features=features,
        fingerprint=name,
    )
    with Attempt(whole.paths.state(name, seed, "I"), name, name, save_seconds=300.0) as attempt:
        return loop.train(stage, seed, inputs, attempt)


def test_a_loss_that_is_not_finite_stops_with_step_and_term(project):
    whole = experiments.load("smoke")
    scale = override(whole.scale, {"training.lr": 1e9, "training.clip": 0, "training.warmup_epochs": 0}, "test")
    with pytest.raises(InputError, match=r"(loss|ce|hidden|logit) is (nan|inf) at step \d+.*training\.lr"):
        in_process(whole, dearkd(scale, "Ti")[0], "explodes")


def test_stage_two_needs_stage_one(project):
    whole = experiments.load("smoke")
    subprocess.run(["rm", "-r", "checkpoints/smoke/dearkd-Ti/seed0/I"], check=True)
    with pytest.raises(InputError, match="stage II starts from the final state of stage I, which is missing"):
        train_stage(whole, whole.runs["dearkd-Ti"], 0, "II")


def test_a_changed_recipe_starts_anew(project, capsys):
    text = (project / "workflow/scales/smoke.yaml").read_text()
    (project / "workflow/scales/smoke.yaml").write_text(
        text.replace("attention_images: 16", "attention_images: 16\nrpe: {drop: 0.3}")
    )
    whole = experiments.load("smoke")
    train_stage(whole, whole.runs["dearkd-Ti"], 0, "I")
    assert "the recipe has changed since the last checkpoint; starting again" in capsys.readouterr().out
    assert dict(record.read(whole.paths.stage("dearkd-Ti", 0, "I"))["specs"][0]["model"]["args"])["rpe"] == [
        ["drop", 0.3]
    ]


def test_other_images_or_another_teacher_start_anew(project, capsys):
    """Weights made from what is no longer there must not come under a record of what is there now."""
    whole = experiments.load("smoke")
    run, path = whole.runs["dearkd-Ti"], whole.paths.teacher("main")
    kept = record.read(whole.paths.stage(run.name, 0, "I"))
    train_stage(whole, run, 0, "I")
    assert "starting again" not in capsys.readouterr().out
    weights = whole.paths.teacher_weights("main")
    state = load_file(weights)
    save_file({k: v.flip(0) if k.startswith("head.fc.") else v for k, v in state.items()}, weights)  # other decisions
    record.write(path, {**record.read(path), "weights_sha256": sha256(weights)})
    train_stage(whole, run, 0, "I")
    assert (
        "what it learns or starts from has changed since the last checkpoint; starting again" in capsys.readouterr().out
    )
    assert record.read(whole.paths.stage(run.name, 0, "I"))["weights_sha256"] != kept["weights_sha256"]


def test_average_of_weights(project):
    whole = experiments.load("smoke")
    scale = override(whole.scale, {"training.ema": 0.5, "training.epochs": 1, "training.stage1_epochs": 1}, "test")
    state = in_process(whole, dearkd(scale, "Ti", two_stage=False)[0], "ema")
    raw, mean = state["student"]["head.weight"], state["ema"]["head.weight"]
    assert mean.shape == raw.shape and not torch.equal(raw, mean) and torch.allclose(raw, mean, atol=0.1)


def test_frozen_position_encoding_in_stage_two(project):
    whole = experiments.load("smoke")
    scale = override(whole.scale, {"distillation.freeze_rpe": True}, "test")
    second = dearkd(scale, "Ti")[1]
    assert second.freeze_rpe
    before = Checkpoints(whole.paths.state("dearkd-Ti", 0, "I")).load()
    run, _ = second_stage(second, before)
    assert not any(p.requires_grad for n, p in run.trainee.named_parameters() if ".rpe." in n)
    assert not any(
        p is q
        for g in run.optimiser.param_groups
        for q in g["params"]
        for n, p in run.trainee.named_parameters()
        if ".rpe." in n
    )


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_change_only_the_order_of_sums(project, processes):
    """torchrun with gloo: the same loss curve to 1e-5 as one process, with mixing, drop path and dropout on."""
    scale = project / "workflow/scales/smoke.yaml"
    text = scale.read_text().replace(
        "micro_batch: 32, ", "micro_batch: 16, drop_path: 0.1, augment: {cutmix: 1.0, mixup: 0.8}, "
    )
    scale.write_text(text)
    curves = []
    for n in (1, processes):
        for path in ("results/smoke/runs/dearkd-Ti", "checkpoints/smoke/dearkd-Ti"):
            subprocess.run(["rm", "-rf", path], check=True)
        launcher = (
            [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", "-m"]
            if n > 1
            else [sys.executable, "-m"]
        )
        done = subprocess.run(
            [*launcher, "dearkd", "train", "dearkd-Ti", "--scale", "smoke", "--seed", "0", "--stage", "I"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        values = json.loads((project / "results/smoke/runs/dearkd-Ti/seed0/I.json").read_text())
        assert values["processes"] == n
        curves.append(values["curve"])
    for one, many in zip(*curves, strict=True):
        for name in ("loss", "ce", "logit", "hidden"):
            assert many[name] == pytest.approx(one[name], abs=1e-5), (one["epoch"], name)


def test_a_model_that_timm_does_not_know():
    with pytest.raises(InputError, match="no_such_model"):
        networks.create(Model(name="no_such_model"), 0)
