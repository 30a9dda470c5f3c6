"""The paper's scale against the published recipes: DeiT's code (DeiT, DeiT distilled) and the text of the paper."""

import pytest
import timm
import torch
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import RandomHorizontalFlip, v2

from dearkd.data.augment import Transform
from dearkd.data.loader import _evaluation_transform
from dearkd.model import networks
from dearkd.model.trainee import Trainee
from dearkd.plan import experiments
from dearkd.train.optimise import mixing, optimiser


@pytest.fixture(scope="module")
def plan():
    return experiments.load("imagenet")


def student(plan, run, device="cpu"):
    with torch.device(device):
        return networks.create(plan.runs[run].stages[0].model, seed=0).eval()


@pytest.mark.parametrize(
    "run, published",
    [
        ("deit-Ti", "deit_tiny_patch16_224"),
        ("deit-S", "deit_small_patch16_224"),
        ("deit-B", "deit_base_patch16_224"),
        ("deit_distilled-Ti", "deit_tiny_distilled_patch16_224"),
        ("deit_distilled-B", "deit_base_distilled_patch16_224"),
    ],
)
def test_layers_and_heads_are_the_published_ones(plan, run, published):
    with torch.device("meta"):
        theirs = timm.create_model(published)
    ours = student(plan, run, "meta")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert [b.attn.num_heads for b in ours.blocks] == [b.attn.num_heads for b in theirs.blocks]
    assert [b.drop_path1.drop_prob if i else 0 for i, b in enumerate(ours.blocks)] == pytest.approx(
        [0.1 * i / 11 for i in range(12)]
    ), "drop path grows linearly to 0.1"


@pytest.mark.parametrize("run, heads", [("dearkd-Ti", 12), ("dearkd-S", 12), ("dearkd-B", 16)])
def test_dearkd_adds_alpha_and_delta_to_eight_blocks_and_nothing_else(plan, run, heads):
    size = {"Ti": "tiny", "S": "small", "B": "base"}[run[7:]]
    with torch.device("meta"):
        deit = timm.create_model(f"deit_{size}_patch16_224").state_dict()
    ours = student(plan, run, "meta").state_dict()
    added = {k: tuple(v.shape) for k, v in ours.items() if k not in deit}
    expected = {}
    for block in range(8):
        expected |= {f"blocks.{block}.attn.rpe.alpha": (heads,), f"blocks.{block}.attn.rpe.delta": (heads, 2)}
    assert added == expected and deit.keys() <= ours.keys()


def test_distilled_logits_are_the_mean_of_both_heads_as_timm_has_them(plan):
    ours = student(plan, "deit_distilled-Ti")
    theirs = timm.create_model("deit_tiny_distilled_patch16_224").eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = theirs.forward_features(images)
        mean = (theirs.head(tokens[:, 0]) + theirs.head_dist(tokens[:, 1])) / 2
        assert torch.equal(ours(images), theirs(images))
        torch.testing.assert_close(ours(images), mean)


def test_optimiser_and_what_has_no_weight_decay(plan):
    stage = plan.runs["dearkd-Ti"].stages[1]
    trainee = Trainee(student(plan, "dearkd-Ti"))
    found = optimiser(trainee, stage.training)
    names = {p: n.removeprefix("student.") for n, p in trainee.named_parameters()}
    decay = {names[p]: g["weight_decay"] for g in found.param_groups for p in g["params"]}
    assert type(found) is torch.optim.AdamW
    assert all(g["betas"] == (0.9, 0.999) and g["eps"] == 1e-8 for g in found.param_groups)
    plain = {n for n, d in decay.items() if d == 0}
    weights = {"patch_embed.proj.weight", "head.weight"} | {
        f"blocks.{b}.{layer}.weight" for b in range(12) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert {n for n, d in decay.items() if d == 0.05} == weights and plain == set(decay) - weights
    assert {"cls_token", "pos_embed", "blocks.0.attn.rpe.alpha", "blocks.0.attn.rpe.delta"} <= plain


def test_fine_tuning_is_deits_sgd(plan):
    """timm 0.3.2, which DeiT's code uses, has Nesterov's momentum in its optimiser `sgd`."""
    run = next(run for run in plan.runs.values() if run.method == "transfer")
    trainee = Trainee(student(plan, run.name))
    found = optimiser(trainee, run.stages[0].training)
    assert type(found) is torch.optim.SGD
    assert all((g["nesterov"], g["momentum"], g["lr"]) == (True, 0.9, 0.01) for g in found.param_groups)


def test_both_tokens_are_out_of_weight_decay(plan):
    """docs/decisions.md: timm 0.3.2, and so DeiT's own run, decays `dist_token`."""
    trainee = Trainee(student(plan, "deit_distilled-Ti"))
    found = optimiser(trainee, plan.runs["deit_distilled-Ti"].stages[0].training)
    plain = {id(p) for g in found.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert {id(trainee.student.cls_token), id(trainee.student.dist_token), id(trainee.student.pos_embed)} <= plain


def test_no_position_is_resampled_at_the_papers_scale(plan):
    """timm's resampling of today has antialiasing, DeiT's had none: here neither takes place."""
    assert {stage.data.image_size for run in plan.runs.values() for stage in run.stages} == {224}


def test_even_shifts_before_pooling_are_deepinversions_shifts_after_it():
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pool = torch.nn.AvgPool2d(2)
    assert torch.equal(pool(torch.roll(image, (6, -4), (2, 3))), torch.roll(pool(image), (3, -2), (2, 3)))
    assert not any(torch.allclose(pool(torch.roll(image, (1, 0), (2, 3))), pool(image).roll(k, 2)) for k in range(8))


def test_augmentation_is_deits(plan):
    stage = plan.runs["deit-Ti"].stages[0]
    transform = Transform(stage.data, stage.training.augment)
    parts = (transform.crop, *_flat(transform.colour), *_flat(transform.erase))
    steps = {type(t): t for t in parts}
    crop, erasing = steps[RandomResizedCropAndInterpolation], steps[RandomErasing]
    assert crop.size == (224, 224) and crop.scale == (0.08, 1.0) and crop.interpolation.value == "bicubic"
    assert steps[RandomHorizontalFlip].p == 0.5
    assert (erasing.probability, erasing.per_pixel, erasing.max_count) == (0.25, True, 1)
    assert stage.training.augment.auto == "rand-m9-mstd0.5-inc1" and stage.training.augment.repeats == 3
    mixup = mixing(stage.training.augment, 1000)
    values = (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob, mixup.label_smoothing)
    assert values == (0.8, 1.0, 1.0, 0.5, 0.1) and mixup.mode == "batch"


def _flat(transform):
    for step in getattr(transform, "transforms", [transform]):
        yield from _flat(step) if hasattr(step, "transforms") else [step]


def test_evaluation_resizes_to_256_and_crops_224(plan):
    steps = {type(t): t for t in _flat(_evaluation_transform(plan.scale.data["main"]))}
    resize, crop = steps[v2.Resize], steps[v2.CenterCrop]
    assert list(resize.size) == [256] and resize.interpolation == v2.InterpolationMode.BICUBIC
    assert tuple(crop.size) == (224, 224)


def test_the_papers_schedule_and_teachers(plan):
    first, second = plan.runs["dearkd-Ti"].stages
    assert (first.first_epoch, first.last_epoch, second.last_epoch) == (0, 250, 300)
    assert dict(first.losses) == {"ce": 0.5, "logit": 0.5, "hidden": 1.0} and dict(second.losses) == {"ce": 1.0}
    assert (first.training.batch, first.training.weight_decay, first.training.warmup_epochs) == (2048, 0.05, 5)
    assert (first.teacher.model, first.teacher.top1, first.teacher.tolerance) == ("regnety_160.deit_in1k", 82.9, 0.3)
    taught = plan.runs["dearkd-Ti-images~df_dearkd"].stages[0].teacher
    assert (taught.model, taught.top1) == ("resnet101.tv_in1k", 77.37)


def test_the_papers_synthesis(plan):
    source = plan.sources["df_dearkd"]
    weights = {"ce": 1, "tv": 1e-4, "l2": 1e-5, "r_bn": 0.05, "easy_positive": 50, "triplet": 0.5}
    assert dict(source.terms) == weights and source.recipe.margin == 0.3 and source.recipe.betas == (0.5, 0.9)
    assert [(p.size, p.iterations, p.lr) for p in source.recipe.phases] == [(112, 2000, 0.5), (224, 2000, 0.01)]
    assert (source.recipe.batch_classes, source.recipe.per_class) == (6, 7)
