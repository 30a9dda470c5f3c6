"""DearKDTask: our own loop's losses and weights, timm's tasks as independent judges, nothing of it in the student."""

import copy
import itertools

import pytest
import timm
import timm.optim
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.task import ClassificationTask, TokenDistillationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import nn

from dearkd import record
from dearkd.data.loader import training_loader
from dearkd.data.order import Schedule
from dearkd.errors import InputError
from dearkd.jobs import inputs
from dearkd.keys import key_of, seed_all
from dearkd.model import hub, networks, teachers
from dearkd.model.attention_cpu import unfuse_few_tokens
from dearkd.model.objective import FeatureScale, mean_squares, objective
from dearkd.model.trainee import Trainee
from dearkd.plan import experiments
from dearkd.plan.stage import Distillation
from dearkd.train import optimise, shared_scale
from dearkd.train.task import DearKDTask

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 5}
DEARKD = {"n_mhca": 1, "rpe": {"drop": 0.0}}
PAIR = {"pairs": ((1, 1),)}


def student(name="dearkd_tiny_patch16_224"):
    torch.manual_seed(0)
    return timm.create_model(name, **SHAPE, **(DEARKD if name.startswith("dearkd") else {}))


def teacher(name="convnet_micro", **changes):
    torch.manual_seed(1)
    return timm.create_model(name, **{"num_classes": 5, **changes})


def batch(seed=2, size=6):
    """(images, soft labels)."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (size,), generator=draw)
    return torch.randn(size, 3, 32, 32, generator=draw), mixup_target(labels, 5, lam=0.7, smoothing=0.1)


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------------ our own loop


def test_task_trains_what_our_loop_trains(project):
    """Both stages of the smoke scale through the task give the loop's mean losses and final weights."""
    plan = experiments.load("smoke")
    run = plan.runs["dearkd-Ti"]
    first, second = run.stages
    images, _, draws = inputs.real_images(plan, first, 0)
    _, weights = inputs.teacher_weights(plan, "main")
    taught_by = teachers.build(first.teacher, first.data, weights).fold().net
    net = networks.create(first.model, 0)
    unfuse_few_tokens(net)
    recipe = first.training
    schedule = Schedule(len(images), draws, recipe.batch, recipe.micro_batch, recipe.augment.repeats, seed=0)
    switch = first.last_epoch * schedule.steps_per_epoch
    torch.manual_seed(key_of(0, "auxiliary"))
    task = DearKDTask(
        net,
        taught_by,
        SoftTargetCrossEntropy(),
        distillation=first.distillation,
        losses=dict(first.losses),
        stage1_updates=switch,
    )
    task.train()
    optimiser = optimise.optimiser(task.get_trainable_module(), recipe)
    mixup = optimise.mixing(recipe.augment, first.data.classes)
    torch.set_flush_denormal(True)
    for stage in (first, second):
        rate = optimise.learning_rate(optimiser, stage)
        bounds = [e * schedule.steps_per_epoch for e in (stage.first_epoch, stage.last_epoch)]
        loader = training_loader(images, stage.data, recipe.augment, schedule, *bounds, 0)
        sums = {}
        for step, group in itertools.groupby(loader, key=lambda item: item[0].step):
            epoch = step // schedule.steps_per_epoch
            rate.step(epoch)
            for part, pixels, labels in group:
                seed_all(0, "forward", step, part.group)
                pixels, targets = optimise.mix(mixup, pixels, labels)
                result = task(pixels, targets)
                (result["loss"] / schedule.groups).backward()
                for name in ("loss", *(n for n, _ in stage.losses)):
                    sums[epoch, name] = sums.get((epoch, name), 0.0) + result[name].item()
            nn.utils.clip_grad_norm_(task.get_clip_parameters(), recipe.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            task.update_ema(step + 1)
        curve = record.read(plan.paths.stage(run.name, 0, stage.name))["curve"]
        passes = schedule.steps_per_epoch * schedule.groups
        for line in curve[-(stage.last_epoch - stage.first_epoch) :]:
            for name in ("loss", *(n for n, _ in stage.losses)):
                assert sums[line["epoch"] - 1, name] / passes == pytest.approx(line[name], abs=2e-6), (line, name)
        trained = load_file(plan.paths.state(run.name, 0, stage.name) / "student.safetensors")
        ours = task.get_checkpoint_state()["state_dict"]
        assert ours.keys() == trained.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, trained[name], rtol=0, atol=1e-6)
    assert task.stage == 2


KNOBS = [
    {},
    {"alpha": 0.3, "beta": 2.0, "hidden_norm": "none"},
    {"hidden_norm": "ln", "hidden_ln": True},
    {"pooled_head": "shared", "pool_before_norm": True},
    {"pairs": ((1, 0), (2, 2))},
]


@pytest.mark.parametrize("knobs", KNOBS)
def test_one_step_is_trainee_and_objective(knobs):
    """Loss, terms and gradients of Eq. 6 to 1e-6, with knobs and pairs of every kind."""
    knobs = Distillation(**{**PAIR, **knobs})
    images, targets = batch()
    cnn = teachers.TeacherNetwork(teacher(), tuple(stage for _, stage in knobs.pairs))
    shapes = cnn.feature_shapes(images)
    net = student()
    torch.manual_seed(3)
    trainee = Trainee(net, ("ce", "logit", "hidden"), knobs, tuple(shapes[stage] for _, stage in knobs.pairs)).train()
    seen, scale = cnn(images), FeatureScale(knobs.hidden_norm, len(knobs.pairs))
    scale.update(mean_squares(seen.features))
    weights = {"ce": knobs.alpha, "logit": 1 - knobs.alpha, "hidden": knobs.beta}
    expected = objective(weights, trainee(images), targets, seen, scale)
    expected["loss"].backward()

    net, cnn = student(), teacher()
    torch.manual_seed(3)
    task = DearKDTask(net, cnn, distillation=knobs, probe=images).train()
    got = task(images, targets)
    got["loss"].backward()
    assert set(got) == {*expected, "output"}
    for name in expected:
        assert got[name].item() == pytest.approx(expected[name].item(), abs=1e-6)
    found, wanted = gradients(task.get_trainable_module()), gradients(trainee)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6)


def test_the_scale_of_features_moves_once_an_update_over_all_its_passes():
    task = DearKDTask(student(), teacher(), distillation=PAIR).train()
    squares = []
    for seed in (4, 5):
        images, targets = batch(seed)
        task(images, targets)
        squares.append(mean_squares(task.teacher(images).features))
    torch.testing.assert_close(task.scale.mean_square, squares[0])
    task.update_ema(1)
    torch.testing.assert_close(task.scale.mean_square, squares[0].lerp((squares[0] + squares[1]) / 2, 0.01))
    task.eval()
    task(*batch(6))
    before = task.scale.mean_square.clone()
    task.update_ema(2)
    assert torch.equal(task.scale.mean_square, before), "evaluation moves nothing"


# ------------------------------------------------------------------------------------------ timm's own tasks


@pytest.mark.parametrize("soft", [True, False], ids=["mixed labels", "class indices"])
def test_deit_distilled_is_timms_token_distillation(soft):
    """Loss and gradients, with a teacher that wants other pixels than the student gets."""
    images, targets = batch()
    targets = targets if soft else targets.argmax(1)
    cnn = teacher()
    cnn.pretrained_cfg = {**cnn.pretrained_cfg, "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    theirs, ours = (student("deit_tiny_distilled_patch16_224").train() for _ in range(2))
    judge = TokenDistillationTask(
        theirs, copy.deepcopy(cnn), nn.CrossEntropyLoss(), distill_type="hard", task_loss_weight=0.5, verbose=False
    ).train()
    task = DearKDTask(ours, cnn, losses={"ce": 0.5, "token": 0.5}).train()
    expected, got = judge(images, targets), task(images, targets)
    for a, b in (("loss", "loss"), ("task_loss", "ce"), ("distill_loss", "token")):
        assert got[b].item() == pytest.approx(expected[a].item(), abs=1e-6)
    torch.testing.assert_close(got["output"], expected["output"])
    expected["loss"].backward()
    got["loss"].backward()
    for name, value in gradients(theirs).items():
        torch.testing.assert_close(gradients(ours)[name], value, rtol=0, atol=1e-6)


def test_stage_two_is_timms_classification():
    images, targets = batch()
    judge = ClassificationTask(student(), SoftTargetCrossEntropy(), verbose=False).train()
    task = DearKDTask(student(), teacher(), SoftTargetCrossEntropy(), distillation=PAIR).train()
    task.begin_stage_two()
    for each in (judge, task):
        each(images, targets)["loss"].backward()
    found = gradients(task.get_trainable_module())
    assert {n.removeprefix("student.") for n in found} == gradients(judge.get_trainable_module()).keys()
    for name, value in gradients(judge.get_trainable_module()).items():
        torch.testing.assert_close(found[f"student.{name}"], value, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------ any CNN, any student

CNNS = ["convnet_micro", "resnet10t", "regnetx_002", "efficientnet_lite0", "convnext_atto", "mobilenetv3_small_050"]
STUDENTS = ["dearkd_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize("cnn, name", [*((c, STUDENTS[0]) for c in CNNS), *((CNNS[0], s) for s in STUDENTS[1:])])
def test_any_cnn_teaches_any_student(cnn, name):
    """Everything that is trained gets a gradient, the teacher stays as it is, the student's state is its own."""
    task = DearKDTask(student(name), teacher(cnn), distillation=PAIR).train()
    before, keys = copy.deepcopy(task.teacher.state_dict()), list(student(name).state_dict())
    task(*batch())["loss"].backward()
    without = {n for n, p in task.get_trainable_module().named_parameters() if p.grad is None}
    assert without <= {"student.head_dist.weight", "student.head_dist.bias"}
    assert all(p.grad is None for p in task.teacher.parameters()) and not task.teacher.net.training
    assert all(torch.equal(before[k], v) for k, v in task.teacher.state_dict().items()), "BatchNorm does not move"
    assert list(task.get_checkpoint_state()["state_dict"]) == keys
    task.begin_stage_two()
    assert list(task.get_checkpoint_state()["state_dict"]) == keys
    fresh = student(name)
    fresh.load_state_dict(task.get_eval_model().state_dict(), strict=True)


def test_what_the_task_computes_with_follows_it_to_another_device():
    task = DearKDTask(student(), teacher(), distillation=PAIR)
    assert [name for name, value in vars(task).items() if isinstance(value, torch.Tensor)] == []
    moved = copy.deepcopy(task).to("meta")
    assert {t.device.type for t in (*moved.parameters(), *moved.buffers())} == {"meta"} == {moved.device.type}
    low = task.to(torch.bfloat16).train()
    images, targets = batch()
    assert low(images.bfloat16(), targets)["loss"].isfinite()


def test_optimiser_groups_and_clipping_are_the_students():
    task = DearKDTask(student(), teacher(), distillation=PAIR)
    trainee = task.get_trainable_module()
    built = timm.optim.create_optimizer_v2(trainee, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    group = {id(p): g for g in built.param_groups for p in g["params"]}
    assert len(group) == len(list(trainee.parameters()))
    decayed = {n for n, p in trainee.named_parameters() if group[id(p)]["weight_decay"]}
    assert not {n for n in decayed if ".rpe." in n or n.endswith(("pos_embed", "cls_token", "bias"))}
    assert {"student.blocks.0.attn.qkv.weight", "auxiliary.pooled_head.weight"} <= decayed
    scale = {n: group[id(p)]["lr_scale"] for n, p in trainee.named_parameters()}
    assert scale["auxiliary.pooled_head.weight"] == scale["student.head.weight"] == 1
    assert scale["student.patch_embed.proj.weight"] < scale["student.blocks.1.norm1.weight"]
    assert [id(p) for p in task.get_clip_parameters()] == [id(p) for p in trainee.parameters()]
    assert len(task.get_clip_parameters(exclude_head=True)) == len(list(trainee.parameters())) - 2


# ------------------------------------------------------------------------------------------ timm's machinery


def steps(task, optimiser, seeds):
    task.get_trainable_module().train()
    for seed in seeds:
        task(*batch(seed))["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        task.update_ema(seed)
    return task.get_eval_model().state_dict()


def made(stage1_updates=3):
    torch.manual_seed(7)
    task = DearKDTask(student(), teacher(), distillation=PAIR, stage1_updates=stage1_updates)
    optimiser = timm.optim.create_optimizer_v2(task.get_trainable_module(), "adamw", lr=1e-3)
    task.setup_ema(decay=0.5)
    return task, optimiser


@pytest.mark.parametrize("stop", [2, 4], ids=["in stage I", "in stage II"])
def test_timms_checkpoints_resume_with_the_same_bits(stop, tmp_path):
    task, optimiser = made()
    expected = steps(task, optimiser, range(1, 7))
    assert task.stage == 2
    task, optimiser = made()
    steps(task, optimiser, range(1, stop + 1))
    saver = CheckpointSaver(task.get_trainable_module(), optimiser, checkpoint_dir=tmp_path, task=task)
    saver._save(tmp_path / "last.pth.tar", epoch=0)
    resumed, optimiser = made()
    resume_task_checkpoint(resumed, tmp_path / "last.pth.tar", optimiser, log_info=False)
    load_task_ema_checkpoint(resumed, tmp_path / "last.pth.tar")
    assert resumed.stage == task.stage
    got = steps(resumed, optimiser, range(stop + 1, 7))
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert resumed.get_eval_model(ema=True)(batch()[0]).shape == (6, 5)
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    assert list(saved["state_dict"]) == list(saved["state_dict_ema"]) == list(student().state_dict())
    plain = student()
    plain.load_state_dict(saved["state_dict"])


def test_weights_alone_are_taken_over_too():
    task, _ = made()
    task.load_checkpoint_state(student().state_dict())
    assert task.stage == 1


@pytest.mark.slow
def test_compiled_it_gives_the_same_loss(traceable):
    torch.compiler.reset()
    plain, compiled = made()[0], made()[0]
    assert compiled.compile(backend="eager") is compiled.get_eval_model()
    assert list(compiled.get_checkpoint_state()["state_dict"]) == list(student().state_dict())
    assert plain(*batch())["loss"].item() == pytest.approx(compiled(*batch())["loss"].item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of a 1 x 1 depth-wise convolution, harmless
def test_distributed_it_goes_through_both_stages(tmp_path):
    """One process with DistributedDataParallel: the loss of a task without, also once aligner and head lie idle."""
    plain, optimiser = made()
    expected = steps(plain, optimiser, range(1, 6))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        task, optimiser = made()
        task.prepare_distributed()
        with task.no_sync():
            task(*batch(9))["loss"].backward()
        optimiser.zero_grad()
        task.scale.passes, task.scale.known = 0, False
        task.scale.squares.zero_()
        got = steps(task, optimiser, range(1, 6))
        assert task.stage == 2
    finally:
        dist.destroy_process_group()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)


def test_frozen_position_encodings_in_stage_two():
    task = DearKDTask(student(), teacher(), distillation={**PAIR, "freeze_rpe": True}).train()
    task.begin_stage_two()
    task(*batch())["loss"].backward()
    assert {n for n, p in task.get_eval_model().named_parameters() if p.grad is None} == {
        f"blocks.0.attn.rpe.{n}" for n in ("alpha", "delta")
    }


@pytest.mark.parametrize(
    "made, said",
    [
        (lambda: DearKDTask(teacher(), teacher()), "student_model: ByobNet is no VisionTransformer"),
        (lambda: DearKDTask(student(), nn.Linear(3, 5)), "teacher_model: Linear has no forward_intermediates"),
        (lambda: DearKDTask(student(), teacher(num_classes=4)), "teacher_model has 4 classes, and the student has 5"),
        (
            lambda: DearKDTask(student(), teacher(), distillation={"pairs": [[3, 1]]}),
            r"\(3, 1\) does not exist",
        ),
        (
            lambda: DearKDTask(student(), teacher(), distillation={"pairs": [[1, 9]]}),
            r"stage of the teacher from 0",
        ),
        (lambda: DearKDTask(student(), timm.create_model("vit_tiny_patch16_224", num_classes=5)), "cannot take the"),
        (lambda: DearKDTask(student(), teacher(), stage1_updates=-1), "stage1_updates is -1; write 0 or more"),
        (lambda: DearKDTask(student(), teacher(), distillation={"alhpa": 1}), "did you mean 'alpha'"),
        (lambda: DearKDTask(student(), teacher(), losses={"lgoit": 1.0}), "did you mean 'logit'"),
        (lambda: DearKDTask(student(), teacher(), losses={"token": 1.0}), "token needs a distillation token"),
    ],
)
def test_what_does_not_fit_is_named(made, said):
    with pytest.raises(InputError, match=said) as error:
        made()
    assert "\n" not in str(error.value)


def test_a_teacher_by_name_without_its_weights_is_one_sentence(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    hub.reachable.cache_clear()
    with pytest.raises(
        InputError, match=r"weights of resnet10t\.c3_in1k are not on this machine, and its hub does not"
    ):
        DearKDTask(student(), "resnet10t.c3_in1k", distillation=PAIR)
    assert capfd.readouterr() == ("", "")
    hub.reachable.cache_clear()


def test_a_loop_that_never_says_that_it_has_updated_is_warned_once(monkeypatch):
    monkeypatch.setattr(shared_scale, "MOST_PASSES", 3)
    task = DearKDTask(student(), teacher(), stage1_updates=1, distillation=PAIR).train()
    with pytest.warns(UserWarning, match=r"forward passes without task.update_ema\(updates\)") as warned:
        for _ in range(5):
            task(*batch())
    assert len(warned) == 1 and task.stage == 1
    again = DearKDTask(student(), teacher(), distillation=PAIR).train()
    for update in range(5):  # a warning would fail
        again(*batch())
        again.update_ema(update + 1)


def test_a_teacher_by_name_must_know_the_students_classes(tmp_path):
    """timm would give the weights a new classifier, and the student would learn noise from it."""
    torch.manual_seed(0)
    for classes in (5, 7):
        net = timm.create_model("resnet10t", num_classes=classes)
        timm.models.save_for_hf(net, tmp_path / str(classes), safe_serialization=True)
    task = DearKDTask(student(), f"local-dir:{tmp_path / '5'}", distillation=PAIR)
    saved = load_file(tmp_path / "5" / "model.safetensors")
    assert torch.equal(task.teacher.net.state_dict()["fc.weight"], saved["fc.weight"])
    with pytest.raises(InputError, match="know 7 classes, and the student has 5; train it on the student's classes"):
        DearKDTask(student(), f"local-dir:{tmp_path / '7'}", distillation=PAIR)
