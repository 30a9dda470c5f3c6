"""Optimiser, learning rate, precision and mixing of images, as in DeiT, from torch and timm."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.data.mixup import Mixup, mixup_target
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from dearkd.model.trainee import Trainee
from dearkd.plan.stage import Augment, Stage, Training


def optimiser(trainee: Trainee, recipe: Training) -> torch.optim.Optimizer:
    """AdamW or SGD, without weight decay for biases, norms, positions, tokens, alpha and Delta."""
    keep = trainee.no_weight_decay()
    groups = [
        group
        for name, part in (("student.", trainee.student), ("auxiliary.", trainee.auxiliary))
        for group in param_groups_weight_decay(
            part, recipe.weight_decay, no_weight_decay_list=[n.removeprefix(name) for n in keep if n.startswith(name)]
        )
    ]
    groups = [g for g in groups if g["params"]]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    on_gpu = groups[0]["params"][0].device.type == "cuda"  # there a CUDA graph may hold the step (replay.py)
    # torch warns in the first steps, because they are launched without a graph
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True", UserWarning)
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, eps=1e-8, fused=True, capturable=on_gpu)


def restore_moments(
    optimiser: torch.optim.Optimizer, trainee: Trainee, moments: Mapping[str, Mapping[str, Any]]
) -> None:
    """Restore the moments of each parameter that learns, by name.

    torch's own `load_state_dict` chooses their devices. A fused AdamW needs even its count of steps on the parameter's.
    """
    names = {parameter: name for name, parameter in trainee.named_parameters()}
    order = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {i: dict(moments[names[p]]) for i, p in enumerate(order) if p.requires_grad and names[p] in moments}
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def learning_rate(optimiser: torch.optim.Optimizer, stage: Stage) -> "LearningRate":
    """The schedule of a stage: that of the whole run, or one of its own if `stage2_lr` is `restart`."""
    recipe = stage.training
    if stage.first_epoch and recipe.stage2_lr == "restart":
        return LearningRate(optimiser, recipe, stage.first_epoch, recipe.epochs - stage.first_epoch, recipe.stage2_peak)
    return LearningRate(optimiser, recipe, 0, recipe.epochs, 1.0)


class LearningRate:
    """DeiT's schedule, which is timm's cosine with warm-up: it rises from warmup_lr to the peak and falls to min_lr.

    The rate changes once an epoch, and epoch e has lr(e). DeiT's own script sets lr(e) after epoch e, so that its epoch
    1 still has the first rate of the warm-up.
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
        """Set the rate of an epoch, counted from 0 over the whole run."""
        self.cosine.step(epoch - self.start)

    @property
    def now(self) -> float:
        """The rate of the current epoch."""
        return self.cosine.optimizer.param_groups[0]["lr"]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Within, a GPU computes in `precision`, which is bf16, fp16 or fp32. A CPU always computes in fp32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision) if device.type == "cuda" else None
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def mix(
    mixup: Mixup, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch classes"]]:
    """(images, soft targets) after mixup or cutmix and label smoothing."""
    if mixup.mixup_alpha or mixup.cutmix_alpha:
        return mixup(images, labels)
    return images, mixup_target(labels, mixup.num_classes, smoothing=mixup.label_smoothing)


def mixing(a: Augment, classes: int) -> Mixup:
    """timm's mixup and cutmix, with one ratio for all images of a micro-batch, as in DeiT."""
    return Mixup(
        mixup_alpha=a.mixup,
        cutmix_alpha=a.cutmix,
        prob=a.mix,
        switch_prob=a.switch,
        mode="batch",
        label_smoothing=a.smoothing,
        num_classes=classes,
    )
