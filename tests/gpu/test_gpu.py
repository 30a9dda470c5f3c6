"""On a real GPU: every torch job of the smoke scale to its end, resumes, precisions, folds, processes, and no waiting.

What does not need CUDA itself also runs on a CPU, so that these tests are known to be sound before a GPU is at hand.
`DEARKD_GPU_REHEARSAL=1` adds those that other tests show on a CPU already.
"""

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from dearkd import arithmetic
from dearkd.data import subsets
from dearkd.data.arrival import Finish, arriving
from dearkd.data.loader import training_loader
from dearkd.data.order import MicroBatch, Schedule
from dearkd.jobs import labels
from dearkd.jobs.evaluate import evaluate_run
from dearkd.jobs.inputs import available_device, gather
from dearkd.jobs.subset import list_subsets
from dearkd.jobs.teacher import admit_teacher
from dearkd.jobs.train import train_stage
from dearkd.keys import seed_all
from dearkd.model import networks, teachers
from dearkd.model.attention import MHCA
from dearkd.model.losses import hidden_loss, logit_loss
from dearkd.model.teachers import FeatureShape
from dearkd.model.trainee import Trainee
from dearkd.plan import experiments
from dearkd.plan.stage import Augment, Data, Distillation, Model, Rpe
from dearkd.train import optimise
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.loop import Learner
from dearkd.train.processes import Processes
from dearkd.train.replay import GRAPHS, Replayed

os.environ.update(arithmetic.ON_GPU)  # before cuBLAS is used, for the tests of sums in a fixed order
ON_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.slow, pytest.mark.cold]
SKIP = not ON_GPU and "DEARKD_GPU_REHEARSAL" not in os.environ
rehearsed = pytest.mark.skipif(SKIP, reason="other tests show this on a CPU")
needs_cuda = pytest.mark.skipif(not ON_GPU, reason="is about CUDA itself")
DEVICE = available_device()
ROOT = Path(__file__).parents[2]
SCALE = {"extends": "smoke", "name": "gpu", "summary": "a few steps on a GPU", "label_epochs": 1}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A copy of the project with subsets, teacher, labels and both stages of DearKD-Ti, all made on the GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    for name in ("dearkd", "workflow", "profiles", "paper"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "gpu.yaml").write_text(yaml.safe_dump(SCALE))
    before = Path.cwd()
    os.chdir(folder)
    try:
        plan = experiments.load("gpu.yaml")
        list_subsets(plan, "main")
        train_stage(plan, plan.runs["teacher-main"], 0, "I")
        admit_teacher(plan, "main")
        run = plan.runs["dearkd-Ti"]
        for shard in plan.label_shards(run.stage("I")):
            labels.label_shard(plan, plan.labels_of(run.stage("I")).name, 0, shard)
        for stage in ("I", "II"):
            train_stage(plan, run, 0, stage)
        evaluate_run(plan, run, 0)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def plan(study, monkeypatch):
    monkeypatch.chdir(study)
    return experiments.load("gpu.yaml")


def weights(plan, stage, run="dearkd-Ti"):
    return load_file(plan.paths.state(run, 0, stage) / "student.safetensors")


def apart(first, second):
    """Largest difference between two sets of weights, and whether they are the same bits."""
    return max((first[k].float() - second[k].float()).abs().max().item() for k in first), all(
        torch.equal(first[k], second[k]) for k in first
    )


@needs_cuda
def test_a_graph_replays_random_numbers_and_a_learning_rate():
    """`Replayed` alone, before anything takes a minute: the bits of a launched step, with dropout and AdamW in it."""
    weights = []
    for graph in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 8)).to(DEVICE)
        optimiser = torch.optim.AdamW(net.parameters(), fused=True, capturable=True)

        def work(x, net=net, optimiser=optimiser):
            net(x).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        run = Replayed(work)
        for i in range(12):
            torch.cuda.manual_seed_all(i)
            optimiser.param_groups[0]["lr"] = 1e-2 / (1 + i // 6)
            x = torch.full((16, 32), 1.0 + i, device=DEVICE)
            run(i // 6, x) if graph else work(x)
        weights.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@needs_cuda
def test_a_graph_is_captured_while_another_thread_pins_memory():
    """As the thread of a DataLoader does; CUDA's default is to refuse this, and the capture with it."""
    ended, pinned = threading.Event(), []

    def pin():
        while not ended.is_set():
            pinned.append(torch.empty(2**20 + 4096 * len(pinned)).pin_memory())
            del pinned[:-2]

    thread, total = threading.Thread(target=pin), torch.zeros(4, device=DEVICE)
    run = Replayed(lambda x: total.add_(x))
    thread.start()
    try:
        for key in range(40):
            run(key, torch.ones(4, device=DEVICE))
    finally:
        ended.set()
        thread.join()
    assert pinned and torch.equal(total, torch.full_like(total, 40.0))


@needs_cuda
def test_a_step_that_cannot_be_captured_names_the_way_out():
    """In a process of its own, because a capture that fails may leave CUDA unusable."""
    code = """
import torch
from dearkd.train.replay import Replayed
run = Replayed(lambda x: x.sum().item())
for _ in range(4):
    run(0, torch.ones(2, device="cuda"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "InputError: a step cannot be captured as a CUDA graph" in done.stderr
    assert f"set {GRAPHS}=off" in done.stderr


def learner(plan, stage_name="I", previous=None, device=DEVICE, losses=None, **changes):
    """A learner of DearKD-Ti with its teacher asked; `losses`: those kept of its stage."""
    run = plan.runs["dearkd-Ti"]
    stage = run.stage(stage_name)
    kept = tuple((name, weight) for name, weight in stage.losses if losses is None or name in losses)
    stage = dataclasses.replace(stage, losses=kept, training=dataclasses.replace(stage.training, **changes))
    inputs, _ = gather(plan, run, 0, run.stage(stage_name))
    return Learner(stage, 0, dataclasses.replace(inputs, previous=previous, decisions=None), Processes(device))


def loaded(run, first, last):
    """Micro-batches of steps `first` to `last` - 1; the images are on the device once the first has been asked for."""
    augment, device = run.stage.training.augment, run.processes.device
    return training_loader(run.inputs.train, run.stage.data, augment, run.schedule, first, last, 0, device)


def steps(run, count, first=0, batches=None):
    """So many steps of the loop, without its bookkeeping."""
    micro = itertools.islice(batches or loaded(run, first, first + count), count * run.schedule.groups)
    for step, batch in itertools.groupby(micro, key=lambda item: item[0].step):
        run.state.step = step
        run.step(batch)


@needs_cuda
@pytest.mark.parametrize("micro_batch", [32, 8])
@pytest.mark.parametrize("losses", [("ce",), ("ce", "logit"), ("ce", "logit", "hidden")])
def test_a_replayed_step_is_the_launched_one(plan, monkeypatch, losses, micro_batch):
    """CUDA graphs of a step, captured anew for each learning rate, give the weights of kernels launched singly.

    To the bit; but with the hidden loss a convolution's gradient may have no fixed order, and two launched runs then
    differ as well.
    """
    monkeypatch.setenv(GRAPHS, "all")
    runs = [learner(plan, losses=losses, batch=32, micro_batch=micro_batch) for _ in range(3)]
    assert runs[0].replayed
    runs[1].replayed = runs[2].replayed = None
    for run in runs:
        steps(run, 2 * run.schedule.steps_per_epoch + 3)
    states = [run.state.trainee.state_dict() for run in runs]
    (replayed, same), (launched, _) = apart(states[0], states[1]), apart(states[1], states[2])
    print(f"{losses}: replayed against launched {replayed:.2e}, launched twice {launched:.2e}, same bits: {same}")
    assert same or ("hidden" in losses and replayed <= 3 * launched)


@needs_cuda
def test_a_step_never_makes_the_host_wait(plan):
    """Launched one by one, and with labels ahead: after two steps no call of a step waits for the device."""
    run = learner(plan)
    run.replayed = None
    batches = loaded(run, 0, 6)
    steps(run, 3, 0, batches)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(run, 3, 3, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_restored_state_lies_where_torch_would_put_it(plan):
    """Stage II takes over AdamW's moments, its count of steps included, on the parameter's device, and then steps."""
    before = Checkpoints(plan.paths.state("dearkd-Ti", 0, "I")).load()
    resumed = learner(plan, "II", before)
    for parameter, state in resumed.state.optimiser.state.items():
        assert {v.device for v in state.values()} == {parameter.device}
    steps(resumed, 2, resumed.state.step)
    assert resumed.state.meters.bad() is None


@needs_cuda
@pytest.mark.parametrize("finish", ["loader", "device"])
def test_a_copy_ahead_overwrites_nothing_that_a_step_still_reads(finish):
    """Steps that are slower than copies: each sees its own pixels, the host never waits, memory is used again."""
    data = Data(kind="folder", classes=2, image_size=224, mean=(0.0,) * 3, std=(1.0,) * 3)
    kind = torch.uint8 if finish == "device" else torch.float32
    pixels = [torch.full((64, 3, 224, 224), i, dtype=kind).pin_memory() for i in range(4)]
    labels, batches = torch.zeros(64, dtype=torch.long).pin_memory(), [MicroBatch(0, i, 0, (), ()) for i in range(40)]
    last = Finish(data, Augment(finish="device", erasing=0.0), 0, DEVICE) if finish == "device" else None
    found = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _, images, _ in arriving(((b, pixels[b.step % 4], labels) for b in batches), DEVICE, last):
            torch.cuda._sleep(20_000_000)
            found.append(torch.stack([images.amin(), images.amax()]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = torch.arange(40.0) % 4 / (255 if finish == "device" else 1)
    torch.testing.assert_close(torch.stack(found).cpu(), expected[:, None].expand(-1, 2))


def test_pixels_finished_on_the_device_are_the_cpus_to_rounding():
    data = Data(kind="folder", classes=2, image_size=32)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    batch, augment = MicroBatch(0, 0, 0, (), ()), Augment(finish="device", erasing=0.0)
    found = []
    for device in (DEVICE, torch.device("cpu")):
        loaded = [(batch, pixels, torch.zeros(8, dtype=torch.long))]
        ((_, finished, _),) = arriving(loaded, device, Finish(data, augment, 0, device))
        found.append(finished.cpu())
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)
    erased = Finish(data, Augment(finish="device", erasing=1.0), 0, DEVICE)(batch, pixels.to(DEVICE)).cpu()
    share = (erased != found[0]).any(1).float().mean()
    assert 0.02 < share < 0.4


@needs_cuda
def test_compiled_steps_are_replayed_and_learn(plan, monkeypatch):
    """Blocks and pooled head compiled, the step a CUDA graph: the bits of compiled kernels launched singly.

    A second job finds what the first one compiled.
    """
    monkeypatch.setenv(GRAPHS, "all")
    counters.clear()
    ends = []
    for graph in (True, False):
        torch.compiler.reset()
        run = learner(plan, losses=("ce", "logit"), compile="blocks", batch=32, micro_batch=32)
        assert run.replayed
        run.replayed = run.replayed if graph else None
        steps(run, 2)
        first = run.state.meters.sums()["ce"] / 2
        steps(run, 20, 2)
        run.state.meters.start(0)
        steps(run, 2, 22)
        assert run.state.meters.bad() is None and run.state.meters.sums()["ce"] / 2 < first
        ends.append(run.state.trainee.state_dict())
        print(f"graph {graph}: {dict(counters['inductor'])}")
    difference, same = apart(*ends)
    print(f"compiled: replayed against launched {difference:.2e}, same bits: {same}")
    assert same
    assert counters["inductor"]["fxgraph_cache_hit"] > 0


def test_both_stages_are_trained_and_evaluated(plan):
    from dearkd import record

    for stage in ("I", "II"):
        made = record.read(plan.paths.stage("dearkd-Ti", 0, stage))
        assert np.isfinite([e["loss"] for e in made["curve"]]).all()
        assert (made["gpu_seconds"] > 0) == ON_GPU
    found = record.read(plan.paths.metrics("dearkd-Ti", 0))["metrics"]
    assert 0 <= found["top1"] <= found["top5"] <= 100


def killed_after_a_checkpoint(command, folder, state, environment=None):
    """Start a training and end it by SIGKILL once it has a checkpoint, or after two minutes."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, env=environment, **quiet)
    for _ in range(2400):
        if list(state.glob("step-*.pt")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


@rehearsed
def test_a_killed_run_ends_with_the_same_weights(plan, study, tmp_path):
    """SIGKILL in mid-run, on the GPU; the same command goes on."""
    folder = tmp_path / "killed"
    shutil.copytree(study, folder)
    state = folder / plan.paths.state("dearkd-Ti", 0, "II")
    shutil.rmtree(state)
    command = [sys.executable, "-m", "dearkd", "train", "dearkd-Ti", "--scale", "gpu.yaml", "--seed", "0"]
    command += ["--stage", "II", "--save-seconds", "0", "--wait"]
    killed_after_a_checkpoint(command, folder, state)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    difference, same = apart(weights(plan, "II"), load_file(state / "student.safetensors"))
    print(f"killed and resumed: largest difference {difference:.2e}, same bits: {same}")
    assert difference < 1e-3


@rehearsed
def test_with_sums_in_a_fixed_order_a_killed_run_ends_with_the_same_bits(plan, study, tmp_path):
    """DEARKD_ARITHMETIC=deterministic: stage I with the hidden loss and its aligner, once whole and once killed."""
    command = [sys.executable, "-m", "dearkd", "train", "dearkd-Ti", "--scale", "gpu.yaml", "--seed", "0"]
    command += ["--stage", "I", "--save-seconds", "0"]
    environment, ends = {**os.environ, arithmetic.CHOICE: "deterministic"}, []
    for name, killed in (("whole", False), ("killed", True)):
        folder = tmp_path / name
        shutil.copytree(study, folder)
        state = folder / plan.paths.state("dearkd-Ti", 0, "I")
        shutil.rmtree(state)
        if killed:
            killed_after_a_checkpoint(command, folder, state, environment)
        done = subprocess.run([*command, "--wait"], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        ends.append(load_file(state / "student.safetensors"))
    assert apart(*ends) == (0.0, True)


@needs_cuda
def test_with_sums_in_a_fixed_order_gradients_at_197_tokens_have_the_same_bits():
    """Two blocks of DearKD-Ti and the aligner to RegNetY-16GF's map, in bf16; and whether they differ without."""
    args = (("depth", 2), ("n_mhca", 1), ("rpe", (("drop", 0.1),)))
    student = networks.create(Model(name="dearkd_tiny_patch16_224", args=args), 0)
    knobs = Distillation(pairs=((1, 2),), pooled_head="separate")
    trainee = Trainee(student, ("ce", "logit", "hidden"), knobs, (FeatureShape(448, (28, 28), True),)).to(DEVICE)
    images, feature = torch.randn(64, 3, 224, 224, device=DEVICE), torch.rand(64, 448, 28, 28, device=DEVICE)
    decisions = torch.arange(64, device=DEVICE)

    def gradients():
        trainee.zero_grad()
        seed_all(0, "test")
        with torch.autocast("cuda", torch.bfloat16):
            out = trainee(images)
            loss = out.logits.float().square().mean() + logit_loss(out.taught, decisions)
            loss = loss + hidden_loss(out.hidden[0], feature)
        loss.backward()
        return {name: p.grad.clone() for name, p in trainee.named_parameters()}

    for asked in (False, True):
        torch.use_deterministic_algorithms(asked)
        torch.utils.deterministic.fill_uninitialized_memory = False
        try:
            difference, same = apart(gradients(), gradients())
        finally:
            torch.use_deterministic_algorithms(False)
        print(f"fixed order {asked}: largest difference {difference:.2e}, same bits: {same}")
    assert same


@rehearsed
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(plan, precision):
    run = learner(plan, precision=precision)
    steps(run, 2)
    first = run.state.meters.sums()["ce"] / 2
    for _ in range(3):
        steps(run, 10)
    run.state.meters.start(0)
    steps(run, 2)
    assert run.state.meters.bad() is None
    assert run.state.meters.sums()["ce"] / 2 < first


@needs_cuda
def test_a_step_that_fp16_skips_leaves_everything_alone(plan):
    run = learner(plan, precision="fp16", ema=0.9)
    state = run.state
    state.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    student = {k: v.clone() for k, v in state.student.state_dict().items()}
    average = {k: v.clone() for k, v in state.ema.module.state_dict().items()}
    steps(run, 1)
    scale = state.scale.mean_square.clone()
    steps(run, 1, 1)
    assert all(torch.equal(v, student[k]) for k, v in state.student.state_dict().items())
    assert all(torch.equal(v, average[k]) for k, v in state.ema.module.state_dict().items())
    assert torch.equal(scale, state.scale.mean_square)
    assert state.scaler.get_scale() < 2.0**40


def test_pixels_on_the_device_are_the_cpus_to_rounding(plan):
    images = subsets.splits(plan, "main")["validation"]
    data = plan.scale.data["main"]
    augment = plan.scale.training.augment
    schedule = Schedule(len(images), len(images), 10, 5, 1, seed=3)
    there, here = (training_loader(images, data, augment, schedule, 0, 4, 0, d) for d in (DEVICE, torch.device("cpu")))
    for (one, theirs, their_labels), (two, ours, our_labels) in zip(there, here, strict=True):
        assert one == two and torch.equal(their_labels.cpu(), our_labels)
        torch.testing.assert_close(theirs.cpu(), ours, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fold_is_the_dense_bias_at_197_tokens(dtype):
    """Output and gradients of MHCA by its dense, folded and FlexAttention paths, against fp64."""
    torch.manual_seed(0)
    grid, tokens, heads, dim = (14, 14), 197, 12, 192
    found = {}
    reference = MHCA(dim, heads, grid, rpe=Rpe(path="dense", drop=0.0)).double()
    with torch.no_grad():
        reference.rpe.alpha.uniform_(0.2, 2)
        reference.rpe.delta.normal_()
    x = torch.randn(4, tokens, dim)
    up = torch.randn(4, tokens, dim)
    for path in ("exact", "dense", "folded", "flex"):
        layer = reference if path == "exact" else MHCA(dim, heads, grid, rpe=Rpe(path=path, drop=0.0)).to(DEVICE)
        layer.load_state_dict(reference.state_dict())
        layer.zero_grad()
        given = x.to(next(layer.parameters()))
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32 and path != "exact"):
            out = layer(given)
        (out.double() * up.to(out.device).double()).sum().backward()
        found[path] = [v.double().cpu() for v in (out, layer.rpe.alpha.grad, layer.rpe.delta.grad)]
    bounds = (1e-4, 1e-3, 1e-3) if dtype == torch.float32 else (2e-2, 2e-1, 2e-1)
    for path in ("dense", "folded", "flex"):
        for mine, exact, bound in zip(found[path], found["exact"], bounds, strict=True):
            error = ((mine - exact).norm() / exact.norm()).item()
            print(f"{path} {dtype}: relative error {error:.1e}")
            assert error < bound, path


def test_labels_ahead_are_those_of_the_teacher_asked(plan):
    """Shards hold the teacher's decision on the very pixels of the loop, and training with either ends alike."""
    run = plan.runs["dearkd-Ti"]
    stage = run.stage("I")
    inputs, _ = gather(plan, run, 0, stage)
    asked = learner(plan)
    whole = teachers.build(stage.teacher, stage.data, plan.paths.teacher_weights("main")).fold().to(DEVICE)
    batches = training_loader(inputs.train, stage.data, stage.training.augment, asked.schedule, 0, 10, 0, DEVICE)
    differ = total = 0
    for batch, images, truth in batches:
        seed_all(0, "forward", batch.step, batch.group)
        images, _ = optimise.mix(asked.mixup, images.to(DEVICE), truth.to(DEVICE))
        with optimise.autocast(stage.training.precision, DEVICE):
            decisions = whole(images).decisions.cpu()
        differ += int((decisions != inputs.decisions.of(batch)).sum())
        total += len(decisions)
    assert differ == 0, f"{differ} of {total} labels differ"


@needs_cuda
def test_two_processes_on_one_card_train_the_same(plan, study, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(study, folder)
    shutil.rmtree(folder / plan.paths.state("dearkd-Ti", 0, "II"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dearkd"]
    command += ["train", "dearkd-Ti", "--scale", "gpu.yaml", "--seed", "0", "--stage", "II"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(folder / plan.paths.state("dearkd-Ti", 0, "II") / "student.safetensors")
    difference, _ = apart(weights(plan, "II"), found)
    print(f"two processes against one: largest difference {difference:.2e}")
    assert difference < 2e-2


@needs_cuda
def test_compiled_blocks_agree_with_eager_ones():
    data = Data(kind="folder", classes=10, image_size=64)
    args = (("depth", 2), ("drop_path_rate", 0.0), ("img_size", 64), ("n_mhca", 1), ("num_classes", 10))
    model = Model(name="dearkd_tiny_patch16_224", args=(*args, ("rpe", (("drop", 0.0),))))
    images = torch.randn(4, data.channels, 64, 64, device=DEVICE)
    eager, compiled = (networks.create(model, 0).to(DEVICE) for _ in range(2))
    for block in compiled.blocks:
        block.compile()
    a, b = eager(images), compiled(images)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for out in (a, b):
        out.square().sum().backward()
    pairs = zip(eager.named_parameters(), compiled.parameters(), strict=True)
    for (name, mine), theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-3, rtol=1e-2, msg=lambda m, n=name: f"{n}: {m}")


@rehearsed
def test_other_jobs_run_to_their_records(plan):
    """Synthesis, its student, diversity, evaluation of throughput, export: to finished records."""
    from dearkd import record
    from dearkd.jobs import image_sets, synthesis
    from dearkd.jobs.export import export

    synthesis.synthesise_shard(plan, "deepinversion", 0, 0)
    synthesis.synthesise_shard(plan, "df_dearkd", 0, 0)
    for index in range(1, plan.sources["deepinversion"].recipe.shards):
        synthesis.synthesise_shard(plan, "deepinversion", 0, index)
    run = plan.run("dearkd-Ti-images~deepinversion")
    for stage in run.stages:
        train_stage(plan, run, 0, stage.name)
    evaluate_run(plan, run, 0)
    for images in ("real", "deepinversion"):
        image_sets.describe(plan, images, 0)
        assert record.read(plan.paths.diversity(images, 0))["metrics"]["lpips"] > 0
    export(plan, plan.runs["dearkd-Ti"], 0, Path("exported"))
    assert Path("exported/model.safetensors").is_file()


def test_optimiser_of_a_frozen_encoding_restores(plan):
    """A parameter without gradient has no moments; restoring the others leaves it alone."""
    run = learner(plan)
    steps(run, 3)
    state = run.state.values()
    other = learner(plan).state
    optimise.restore_moments(other.optimiser, other.trainee, state["moments"])
    names = {p: n for n, p in other.trainee.named_parameters()}
    for parameter, moments in other.optimiser.state.items():
        for key, value in moments.items():
            assert torch.equal(value, state["moments"][names[parameter]][key])


def test_a_gpus_augmentation_draws_what_the_cpu_draws():
    """Affine maps are drawn on the CPU, so no number of them depends on the device."""
    from dearkd.data.loader import affine
    from dearkd.keys import torch_generator

    images = torch.rand(6, 1, 12, 12)
    augment = Augment(kind="affine", shift=2.0, rotate=10.0, zoom=0.1)
    here = affine(images, augment, torch_generator(1))
    there = affine(images.to(DEVICE), augment, torch_generator(1))
    torch.testing.assert_close(there.cpu(), here, atol=2e-6, rtol=1e-5)
