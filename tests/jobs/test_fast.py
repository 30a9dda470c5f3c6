"""Fast synthesis: a start that rehearsals teach, independent batches, the same images after a stop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dearkd.fingerprint import fingerprint
from dearkd.jobs import fast, synthesis
from dearkd.jobs.inversion import classes_of
from dearkd.model import teachers
from dearkd.model.generator import Generator, first_order
from dearkd.plan import experiments, methods
from dearkd.plan.stage import Fast, Synthesis
from dearkd.plan.synthesis import recipe_of
from dearkd.schema import override
from dearkd.stop import Interrupted
from dearkd.train.attempt import Attempt

KNOBS = {"rehearsals": 2, "iterations": 3, "width": 4, "code": 8, "lr": 0.01, "lr_code": 0.1, "shard_batches": 4}


@pytest.fixture(scope="module")
def whole(smoke_project):
    return experiments.load(experiments.load_scale("smoke", {"synthesis": {"fast": KNOBS}}))


def make_teacher(plan):
    return teachers.build(plan.scale.teachers["main"], plan.scale.data["main"], plan.paths.teacher_weights("main"))


def shard_of(plan, **changes):
    scale = override(plan.scale, {f"synthesis.{key}": value for key, value in changes.items()}, "test")
    source = methods.source(scale, "fast")
    return synthesis.Shard(source, 0, 0, range(source.data.classes))


def made(shard, teacher, folder, save_seconds=1e6, stop_at=None):
    """The images of a shard, asked to stop at each of the steps of `stop_at`, after which another attempt goes on."""
    for stop in [*(stop_at or ()), None]:
        attempt = Attempt(folder, "fast", fingerprint(shard.source), save_seconds)
        if stop is not None:
            checkpoint = attempt.checkpoint
            attempt.checkpoint = lambda step, *rest, c=checkpoint, s=stop: c(step, *rest, asked=step >= s)
        try:
            with attempt:
                return synthesis._invert(shard, teacher, None, attempt, torch.device("cpu"))
        except Interrupted:
            assert stop is not None
    raise AssertionError


def test_the_gradient_of_the_start_is_the_sum_over_the_steps_by_hand():
    # f(w) = w^2 / 2 from w = 1 by plain steps of 0.5: w = 1, 0.5, 0.25, whose gradients are themselves
    steps = [[torch.tensor([1.0])], [torch.tensor([0.5])], [torch.tensor([0.25])]]
    assert first_order(steps)[0].item() == 1.75


def test_the_start_moves_by_adams_first_step_against_that_sum(project, whole):
    shard = shard_of(whole)
    source, device = shard.source, torch.device("cpu")
    start = fast.Start(source, source.recipe.fast, 0, device)
    before = [p.detach().clone() for p in start.network.parameters()]
    rehearsal = fast.begin(source, 0, [-1], shard.labels([-1]), make_teacher(whole), None, start, device)
    while rehearsal.step < rehearsal.total:
        rehearsal.advance()
    assert len(rehearsal.gradients) == 3
    assert all(torch.equal(a, b) for a, b in zip(before, start.network.parameters(), strict=True)), "copies move alone"
    start.learn(rehearsal)
    for old, new, *gradients in zip(before, start.network.parameters(), *rehearsal.gradients, strict=True):
        total = sum(gradients)
        # the first step of Adam is lr g / (|g| + eps); the start's rate is that of a copy times its iterations
        torch.testing.assert_close(new, old - 0.01 * 3 * total / (total.abs() + 1e-8), rtol=1e-4, atol=1e-6)


def test_codes_move_at_a_rate_of_their_own(project, whole):
    shard = shard_of(whole)
    start = fast.Start(shard.source, shard.source.recipe.fast, 0, torch.device("cpu"))
    group = fast.begin(shard.source, 0, [0], shard.labels([0]), make_teacher(whole), None, start, torch.device("cpu"))
    codes, weights = group.codes.detach().clone(), start.network.last.weight.detach().clone()
    group.advance()
    assert (group.codes - codes).abs().max().item() == pytest.approx(0.1, rel=1e-3)
    assert (group.networks[0].last.weight - weights).abs().max().item() == pytest.approx(0.01, rel=1e-3)


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(0, 4), st.sampled_from([(0.5,), (0.135,), (0.485, 0.456, 0.406)]))
def test_a_generator_fills_any_side_and_starts_at_the_mean_pixel(side, upsamplings, mean):
    random = torch.Generator().manual_seed(0)
    network = Generator(3, side, mean, code=8, width=4, class_code=1.0, upsamplings=upsamplings, random=random)
    codes = torch.randn(6, *network.code_shape, generator=random)
    with torch.no_grad():
        network.last.weight.zero_()
        drawn = network(codes, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert drawn.shape == (6, len(mean), side, side)
    torch.testing.assert_close(drawn.mean((0, 2, 3)), torch.tensor(mean), rtol=1e-4, atol=1e-4)
    assert network.code_shape[1] == math.ceil(side / 2**upsamplings)


def test_a_batch_depends_on_source_and_seed_alone(project, whole, tmp_path):
    """Its images are the same whichever batches share its forward pass, its job, or come before it."""
    teacher = make_teacher(whole)
    (together, _), (alone, _) = (made(shard_of(whole, together=t), teacher, tmp_path / str(t)) for t in (2, 1))
    assert len(together) == 40 and (together.int() - alone.int()).abs().max() <= 1
    shard = shard_of(whole, **{"together": 1, "fast": {**KNOBS, "shard_batches": 1}})
    second, _ = made(synthesis.Shard(shard.source, 0, 1, shard.classes), teacher, tmp_path / "second")
    assert torch.equal(second, alone[20:])
    other, _ = made(synthesis.Shard(shard.source, 1, 1, shard.classes), teacher, tmp_path / "other")
    assert not torch.equal(other, second)


@pytest.mark.parametrize("stops", [(1,), (3,), (4, 5), (6,), (8, 11)])
def test_a_stopped_shard_goes_on_to_the_same_images(project, whole, tmp_path, stops):
    """Within the first rehearsal, at the end of one, in the second, at the first image, between batches."""
    teacher, shard = make_teacher(whole), shard_of(whole, together=1)
    straight, terms = made(shard, teacher, tmp_path / "straight")
    again, same = made(shard, teacher, tmp_path / "stopped", stop_at=stops)
    assert torch.equal(straight, again) and terms == same


def test_rehearsals_teach_the_start(project, whole, tmp_path):
    teacher = make_teacher(whole)
    reached = []
    for rehearsals in (0, 30):
        _, terms = made(shard_of(whole, fast={**KNOBS, "rehearsals": rehearsals}), teacher, tmp_path / str(rehearsals))
        reached.append(sum(t["last_r_bn"] + t["last_ce"] for t in terms))
    assert reached[1] < 0.8 * reached[0]


def test_only_the_method_fast_reads_its_knobs(whole):
    plain, knobs = methods.source(whole.scale, "df_dearkd"), methods.source(whole.scale, "fast").recipe
    assert fingerprint(plain) == fingerprint(methods.source(experiments.load("smoke").scale, "df_dearkd"))
    assert knobs.phases[0].iterations == 3 and knobs.shard_batches == 4 and knobs.warmup == 0
    assert recipe_of(Synthesis(), "fast", 32).fast == Fast()


def test_a_start_of_another_set_is_not_gone_on_from(project, whole, tmp_path, capsys):
    teacher = make_teacher(whole)
    attempt = Attempt(tmp_path, "fast", "another", 1e6)
    with attempt:
        attempt.resume()
        attempt.save(1, {"pixels": [], "terms": [], "count": 1})
    images, _ = made(shard_of(whole), teacher, tmp_path)
    assert len(images) == 40 and "has changed since the last checkpoint" in capsys.readouterr().out


def test_classes_of_rehearsals_are_balanced_too():
    recipe = Synthesis(batch_classes=6, per_class=7)
    assert sorted({*classes_of(-1, recipe, range(12), 0), *classes_of(-2, recipe, range(12), 0)}) == list(range(12))
