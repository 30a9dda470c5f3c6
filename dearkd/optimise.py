"""Optimiser, learning rate and mixing of images, as DeiT has them, from torch and timm. Run layer."""

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from dearkd.models import Trainee
from dearkd.spec import Augment, Stage, Training


def optimiser(trainee: Trainee, recipe: Training) -> torch.optim.Optimizer:
    """AdamW or SGD; biases, norms, positions, tokens, alpha and Delta are out of weight decay."""
    keep = getattr(trainee.student, "no_weight_decay", set)()
    groups = [
        *param_groups_weight_decay(trainee.student, recipe.weight_decay, no_weight_decay_list=keep),
        *param_groups_weight_decay(trainee.auxiliary, recipe.weight_decay),
    ]
    groups = [g for g in groups if g["params"]]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, eps=1e-8, fused=True)


def learning_rate(optimiser: torch.optim.Optimizer, stage: Stage) -> "LearningRate":
    recipe = stage.training
    if stage.first_epoch and recipe.stage2_lr == "restart":
        return LearningRate(optimiser, recipe, stage.first_epoch, recipe.epochs - stage.first_epoch, recipe.stage2_peak)
    return LearningRate(optimiser, recipe, 0, recipe.epochs, 1.0)


class LearningRate:
    """timm's cosine with warm-up, DeiT's schedule: per epoch, from warmup_lr over the peak to min_lr.

    Epoch e has lr(e). DeiT's own script sets lr(e) after epoch e, so its epoch 1 still runs at the warm-up's start.
    """

    def __init__(
        self, optimiser: torch.optim.Optimizer, recipe: Training, start: int, length: int, peak: float
    ) -> None:
        self.start = start
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] = recipe.peak_lr * peak
        self.cosine = CosineLRScheduler(
            optimiser,
            t_initial=length,
            lr_min=recipe.min_lr,
            warmup_t=recipe.warmup_epochs,
            warmup_lr_init=recipe.warmup_lr,
        )

    def step(self, epoch: int) -> None:
        self.cosine.step(epoch - self.start)


def mix(mixup: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(images, soft targets) after mixup or cutmix and label smoothing."""
    if mixup.mixup_alpha or mixup.cutmix_alpha:
        return mixup(images, labels)
    return images, mixup_target(labels, mixup.num_classes, smoothing=mixup.label_smoothing)


def mixing(a: Augment, classes: int) -> Mixup:
    """timm's mixup and cutmix over a micro-batch, one ratio for all of it, as DeiT."""
    return Mixup(
        mixup_alpha=a.mixup,
        cutmix_alpha=a.cutmix,
        prob=a.mix,
        switch_prob=a.switch,
        mode="batch",
        label_smoothing=a.smoothing,
        num_classes=classes,
    )
