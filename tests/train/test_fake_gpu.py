"""A step as a GPU would see it, without one: PyTorch's fake tensors know their device and refuse to tell their values.

So each of these tests shows two things at once: no tensor of the CPU meets one of the GPU, and nothing in a step asks
the device for a number, for which the host would have to wait. Autograd itself needs a real device; its place is taken
by gradients of the right shape.
"""

import dataclasses
import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dearkd.data.arrival import Finish, arriving
from dearkd.data.loader import affine, training_loader
from dearkd.data.order import Schedule
from dearkd.errors import InputError
from dearkd.jobs.inputs import gather
from dearkd.keys import torch_generator
from dearkd.model import networks, teachers
from dearkd.model.trainee import Trainee
from dearkd.plan import experiments
from dearkd.plan.stage import Augment, Data
from dearkd.train import evaluate, optimise, replay, state
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.loop import Learner
from dearkd.train.processes import Processes

pytestmark = pytest.mark.slow

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _parameters_are_replaced():
    """Moving a module to a fake device makes new parameters; a real one cannot become a fake one in place."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.fixture
def fake_learner(project, monkeypatch):
    """A function from a run and a stage to its learner on a fake GPU, and the mode in which to use it."""
    plan = experiments.load("smoke")

    def make(run_name, stage_name):
        run = plan.runs[run_name]
        stage = run.stage(stage_name)
        stage = dataclasses.replace(stage, training=dataclasses.replace(stage.training, clip=1.0))
        inputs, _ = gather(plan, run, 0, run.stage(stage_name))
        student = networks.create(stage.model, 0)
        trainee = Trainee(student, tuple(n for n, _ in stage.losses), stage.distillation, inputs.features)
        monkeypatch.setattr(networks, "create", lambda *_: student)  # what draws random numbers is made before
        monkeypatch.setattr(state, "Trainee", lambda *_: trainee)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            run = Learner(stage, 0, inputs, Processes(CUDA))
        run.replayed = None  # a CUDA graph needs CUDA
        monkeypatch.undo()
        monkeypatch.chdir(project)
        return run, mode

    return make


def devices(run):
    """Where each tensor of a learner's state is."""
    run = run.state
    yield from ((n, v.device.type) for n, v in run.trainee.state_dict().items())
    for i, moments in enumerate(run.optimiser.state.values()):
        yield from ((f"moments {i}: {name}", value.device.type) for name, value in moments.items())
    yield from ((n, v.device.type) for n, v in vars(run.meters).items() if isinstance(v, torch.Tensor))
    if run.scale:
        yield "scale of features", run.scale.mean_square.device.type


def fake_gradients(monkeypatch, run):
    def backward(_):
        for parameter in run.state.trainee.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("run_name, stage", [("teacher-main", "I"), ("dearkd-Ti", "I"), ("dearkd-Ti", "II")])
def test_a_step_stays_on_the_device_and_asks_it_nothing(fake_learner, monkeypatch, run_name, stage):
    run, mode = fake_learner(run_name, stage)
    assert {where for _, where in devices(run)} == {"cuda"}
    fake_gradients(monkeypatch, run)
    augment, data, first = run.stage.training.augment, run.stage.data, run.state.step
    with mode:
        batches = training_loader(run.inputs.train, data, augment, run.schedule, first, first + 2, 0, CUDA)
        for _, batch in itertools.groupby(batches, key=lambda item: item[0].step):
            run.step(batch)
    assert run.state.step == first + 2
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


def test_moments_are_restored_where_torch_restores_them(fake_learner, project):
    """AdamW's count of steps beside its parameter: fused kernels on a GPU refuse one on the CPU."""
    run, mode = fake_learner("dearkd-Ti", "I")
    state = run.state
    saved = Checkpoints(experiments.load("smoke").paths.state("dearkd-Ti", 0, "I")).load()["moments"]
    with mode:
        optimise.restore_moments(state.optimiser, state.trainee, saved)
        other = torch.optim.AdamW(state.optimiser.param_groups[0]["params"][:1], fused=True)
        first = {p: n for n, p in state.trainee.named_parameters()}[other.param_groups[0]["params"][0]]
        groups = other.state_dict()["param_groups"]
        other.load_state_dict({"state": {0: saved[first]}, "param_groups": groups})
    assert len(state.optimiser.state) == len(saved)
    for parameter, moments in state.optimiser.state.items():
        assert {v.device.type for v in moments.values()} == {parameter.device.type} == {"cuda"}
    (expected,) = other.state.values()
    found = state.optimiser.state[other.param_groups[0]["params"][0]]
    assert {k: (v.device, v.dtype) for k, v in found.items()} == {k: (v.device, v.dtype) for k, v in expected.items()}


def test_evaluation_and_attention_distance_run_on_a_device(fake_learner):
    run, mode = fake_learner("dearkd-Ti", "II")
    student = run.state.student
    with mode:
        images = torch.empty(4, 1, 12, 12)
        logits, labels = evaluate.predict(student, [(images, torch.zeros(4, dtype=torch.long))], CUDA)
        distance = evaluate.attention_distance(student, images.to(CUDA))
    assert logits.device.type == labels.device.type == "cpu"
    assert distance.device.type == "cuda" and distance.shape == (3, 9)


@pytest.mark.parametrize("finish", ["loader", "device"])
def test_images_of_files_arrive_and_are_finished_on_a_device(finish):
    """With the device's own erasing and without: no tensor of the CPU meets one of the device, nothing waits."""
    spec, schedule = Data(kind="folder", classes=2, image_size=16), Schedule(4, 4, 4, 2, 1, seed=0)
    augment = Augment(auto="", erasing=1.0, repeats=1, finish=finish)
    with FakeTensorMode(allow_non_fake_inputs=True):
        item = torch.zeros(2, 3, 16, 16, dtype=torch.uint8 if finish == "device" else torch.float32)
        made = [(batch, item, torch.zeros(2, dtype=torch.long)) for batch in schedule.batches(0, 2)]
        last = Finish(spec, augment, 0, CUDA) if finish == "device" else None
        arrived = list(arriving(made, CUDA, last))
    assert [batch for batch, _, _ in arrived] == [batch for batch, _, _ in made]
    assert {(p.device.type, p.dtype, y.device.type) for _, p, y in arrived} == {("cuda", torch.float32, "cuda")}


def test_affine_maps_drawn_on_the_cpu_move_pixels_of_a_device(fake_learner):
    run, mode = fake_learner("dearkd-Ti", "II")
    with mode:
        moved = affine(torch.empty(3, 1, 12, 12, device=CUDA), run.stage.training.augment, torch_generator(1))
    assert moved.device.type == "cuda"


def test_a_teacher_answers_on_a_device(fake_learner):
    run, mode = fake_learner("dearkd-Ti", "I")
    assert isinstance(run.teacher, teachers.TeacherNetwork)
    with mode:
        images = torch.empty(4, 1, 12, 12, device=CUDA)
        seen = run.teacher(images)
        early = run.teacher.features(images)
    assert {t.device.type for t in (seen.decisions, *seen.features, *early)} == {"cuda"}


@pytest.mark.parametrize(
    "asked, replayed",
    [
        ("off", (False, False, False)),
        (None, (True, False, False)),
        ("tested", (True, False, False)),
        ("all", (True,) * 3),
    ],
)
def test_which_steps_are_replayed_is_what_the_environment_asks_for(monkeypatch, asked, replayed):
    """A step of one micro-batch, one of several, and a compiled one."""
    monkeypatch.delenv(replay.GRAPHS, raising=False)
    if asked:
        monkeypatch.setenv(replay.GRAPHS, asked)
    assert (replay.replayable(1, False), replay.replayable(2, False), replay.replayable(1, True)) == replayed
    monkeypatch.setenv(replay.GRAPHS, "al")
    with pytest.raises(InputError, match=r"DEARKD_CUDA_GRAPHS: unknown value 'al'; did you mean 'all'\?"):
        replay.replayable(1, False)
