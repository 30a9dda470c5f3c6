"""A step as a GPU would see it, without one: PyTorch's fake tensors know their device and refuse to tell their values.

So each of these tests shows two things at once: no tensor of the CPU meets one of the GPU, and nothing in a step asks
the device for a number, for which the host would have to wait. Autograd itself needs a real device; its place is taken
by gradients of the right shape.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dearkd.data.loader import affine, training_loader
from dearkd.jobs.inputs import gather
from dearkd.keys import torch_generator
from dearkd.model import students, teachers
from dearkd.plan import experiments
from dearkd.train import evaluate, optimise
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.session import Session

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _parameters_are_replaced():
    """Moving a module to a fake device makes new parameters; a real one cannot become a fake one in place."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.fixture
def fake_session(project, monkeypatch):
    """A function from a run and a stage to its session on a fake GPU, and the mode in which to use it."""
    plan = experiments.load("smoke")

    def make(run_name, stage_name):
        run = plan.runs[run_name]
        stage = run.stage(stage_name)
        stage = dataclasses.replace(stage, training=dataclasses.replace(stage.training, clip=1.0))
        work, _ = gather(plan, run, 0, run.stage(stage_name))
        work = dataclasses.replace(work, device=CUDA, checkpoints=Checkpoints(Path("nowhere")))
        student = students.create(stage.model, 0)
        trainee = students.Trainee(student, tuple(n for n, _ in stage.losses), stage.distillation, work.features)
        monkeypatch.setattr(students, "create", lambda *_: student)  # what draws random numbers is made before
        monkeypatch.setattr(students, "Trainee", lambda *_: trainee)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            work.teacher = work.teacher and work.teacher.to(CUDA)
            run = Session(stage, 0, work)
        run.replayed = None  # a CUDA graph needs CUDA
        monkeypatch.undo()
        monkeypatch.chdir(project)
        return run, mode

    return make


def devices(run):
    """Where each tensor of a session's state is."""
    yield from ((n, v.device.type) for n, v in run.trainee.state_dict().items())
    for i, moments in enumerate(run.optimiser.state.values()):
        yield from ((f"moments {i}: {name}", value.device.type) for name, value in moments.items())
    yield from ((n, v.device.type) for n, v in vars(run.meters).items() if isinstance(v, torch.Tensor))
    if run.scale:
        yield "scale of features", run.scale.mean_square.device.type


def fake_gradients(monkeypatch, run):
    def backward(_):
        for parameter in run.trainee.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("run_name, stage", [("teacher-main", "I"), ("dearkd-Ti", "I"), ("dearkd-Ti", "II")])
def test_a_step_stays_on_the_device_and_asks_it_nothing(fake_session, monkeypatch, run_name, stage):
    run, mode = fake_session(run_name, stage)
    assert {where for _, where in devices(run)} == {"cuda"}
    fake_gradients(monkeypatch, run)
    augment, data = run.stage.training.augment, run.stage.data
    with mode:
        batches = training_loader(run.work.train, data, augment, run.schedule, run.step, run.step + 2, 0, CUDA)
        for batch, images, truth in batches:
            images, targets = run.mix(images, truth)
            assert images.device.type == targets.device.type == "cuda"
            run.learn(images, targets, run.decided(batch), last=batch.group + 1 == run.schedule.groups)
    wrong = [name for name, where in devices(run) if where != "cuda"]
    assert not wrong


def test_a_fake_device_would_notice_a_wait():
    """The instrument: asking a fake tensor for its value raises, and so does mixing devices."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.ones(2, device=CUDA)
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(RuntimeError, match="devices"):
            x + torch.ones(2)


def test_moments_are_restored_where_torch_restores_them(fake_session, project):
    """AdamW's count of steps beside its parameter: fused kernels on a GPU refuse one on the CPU."""
    run, mode = fake_session("dearkd-Ti", "I")
    saved = Checkpoints(experiments.load("smoke").paths.state("dearkd-Ti", 0, "I")).load()["moments"]
    with mode:
        optimise.restore_moments(run.optimiser, run.trainee, saved)
        other = torch.optim.AdamW(run.optimiser.param_groups[0]["params"][:1], fused=True)
        first = {p: n for n, p in run.trainee.named_parameters()}[other.param_groups[0]["params"][0]]
        groups = other.state_dict()["param_groups"]
        other.load_state_dict({"state": {0: saved[first]}, "param_groups": groups})
    assert len(run.optimiser.state) == len(saved)
    for parameter, moments in run.optimiser.state.items():
        assert {v.device.type for v in moments.values()} == {parameter.device.type} == {"cuda"}
    (expected,) = other.state.values()
    found = run.optimiser.state[other.param_groups[0]["params"][0]]
    assert {k: (v.device, v.dtype) for k, v in found.items()} == {k: (v.device, v.dtype) for k, v in expected.items()}


def test_evaluation_and_attention_distance_run_on_a_device(fake_session):
    run, mode = fake_session("dearkd-Ti", "II")
    student = run.trainee.student
    with mode:
        images = torch.empty(4, 1, 12, 12)
        logits, labels = evaluate.predict(student, [(images, torch.zeros(4, dtype=torch.long))], CUDA)
        distance = evaluate.attention_distance(student, images.to(CUDA))
    assert logits.device.type == labels.device.type == "cpu"
    assert distance.device.type == "cuda" and distance.shape == (3, 9)


def test_affine_maps_drawn_on_the_cpu_move_pixels_of_a_device(fake_session):
    run, mode = fake_session("dearkd-Ti", "II")
    with mode:
        moved = affine(torch.empty(3, 1, 12, 12, device=CUDA), run.stage.training.augment, torch_generator(1))
    assert moved.device.type == "cuda"


def test_a_teacher_answers_on_a_device(fake_session):
    run, mode = fake_session("dearkd-Ti", "I")
    assert isinstance(run.work.teacher, teachers.Teacher)
    with mode:
        images = torch.empty(4, 1, 12, 12, device=CUDA)
        seen = run.work.teacher(images)
        early = run.work.teacher.features(images)
    assert {t.device.type for t in (seen.decisions, *seen.features, *early)} == {"cuda"}
