"""DearKD as a training task of timm's, for timm's own train.py or anyone's loop (docs/model.md).

    task = DearKDTask(student, teacher, stage1_updates=1000)
    optimiser = timm.optim.create_optimizer_v2(task.get_trainable_module(), "adamw", lr=1e-3)
    for step, (images, labels) in enumerate(loader):
        task(images, labels)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        task.update_ema(step + 1)

The losses are those of this repository's own loop.
"""

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from timm.task import TrainingTask, resolve_classification_loss
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dearkd.model.objective import TERMS, FeatureScale, mean_squares, objective
from dearkd.model.teachers import Moments, Teacher
from dearkd.model.trainee import Trainee
from dearkd.plan.stage import LOSSES, Distillation
from dearkd.schema import InputError, build, unknown


class DearKDTask(TrainingTask):
    """Two-stage distillation (Sec. 3) of a CNN into a vision transformer: stage I is Eq. 6, stage II is Eq. 7.

    The student's state dict stays that of the student: aligner and pooled head belong to the task, which keeps them in
    timm's task state, and fall away in stage II.

    Args:
        student_model: a DearKD, DeiT or other timm VisionTransformer.
        teacher_model: a timm CNN, or the name of one with published weights. It stays in evaluation mode, gets no
            gradient, and sees pixels normalised as its `pretrained_cfg` says.
        criterion, criterion_kwargs: loss on the labels, as in timm's tasks; cross-entropy where neither is given.
        distillation: alpha, beta, pairs and the other knobs, as `stage.Distillation` or a mapping of its fields.
        losses: weights of the terms of `objective.TERMS` in stage I; None: Eq. 6 with alpha and beta. DeiT
            distilled is {"ce": 0.5, "token": 0.5}.
        stage1_updates: updates of the optimiser after which `update_ema` begins stage II; 0: only `begin_stage_two`
            does.
        probe: images (batch, channels, height, width) that tell the shape and sign of the teacher's features; None:
            noise.
        device, dtype, verbose: as in timm's tasks.

    Raises InputError naming the argument when student, teacher and pairs do not fit each other.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: nn.Module | str,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        criterion_kwargs: dict[str, Any] | None = None,
        *,
        distillation: Distillation | Mapping[str, Any] = Distillation(),
        losses: Mapping[str, float] | None = None,
        stage1_updates: int = 0,
        probe: Float[Tensor, "batch channels height width"] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if not isinstance(distillation, Distillation):
            distillation = build(Distillation, dict(distillation), "distillation")
        alpha, beta = distillation.alpha, distillation.beta
        self.losses = dict(losses or {"ce": alpha, "logit": 1 - alpha, "hidden": beta})
        for name in self.losses:
            if name not in TERMS:
                raise InputError(unknown(name, TERMS, "loss", "losses"))
            if "token" in name and not hasattr(student_model, "head_dist"):
                raise InputError(f"losses: {name} needs a distillation token; take a deit_*_distilled_* student")
        self.stage, self.stage1_updates, self.knobs = 1, stage1_updates, distillation
        self.criterion = resolve_classification_loss(criterion, self.device, criterion_kwargs=criterion_kwargs)
        pairs = distillation.pairs if any(LOSSES[name].aligner for name in self.losses) else ()
        teacher = _teacher(teacher_model, student_model, tuple(stage for _, stage in pairs))
        self.teacher = teacher.to(self.device, self.dtype)
        if probe is None:
            size = (2, student_model.in_chans, *student_model.patch_embed.img_size)
            probe = torch.randn(size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            shapes = self.teacher.feature_shapes(probe.to(self.device, self.dtype)) if pairs else []
        for block, stage in pairs:
            if not (0 < block <= len(student_model.blocks) and 0 <= stage < len(shapes)):
                raise InputError(
                    f"pairs: {block, stage} is not a block of 1 to {len(student_model.blocks)} of the student and a "
                    f"stage of 0 to {len(shapes) - 1} of the teacher"
                )
        features = tuple(shapes[stage] for _, stage in pairs)
        trainee = Trainee(student_model, tuple(self.losses), distillation, features)
        self.trainable_module: nn.Module = trainee.to(self.device, self.dtype)
        self.scale = FeatureScale(distillation.hidden_norm, len(pairs)).to(self.device)
        self.passes = 0
        self.register_buffer("squares", torch.zeros(len(pairs), device=self.device), persistent=False)

    def forward(
        self,
        input: Float[Tensor, "batch channels height width"],
        target: Int[Tensor, " batch"] | Float[Tensor, "batch classes"],
    ) -> dict[str, Tensor]:
        """{"loss": to go backward from, "output": logits (batch, classes), and each term of the loss by its name}.

        target: class indices, or soft labels after mixup, whatever the criterion takes.
        """
        outputs = self.trainable_module(input)
        ce = self.criterion(outputs.logits.float(), target)
        others = {name: weight for name, weight in self.losses.items() if name != "ce"}
        if self.stage == 2 or not others:
            return {"loss": ce, "output": outputs.logits, "ce": ce}
        seen = self.teacher(input)
        self._observe(seen.features)
        soft = F.one_hot(target, outputs.logits.shape[1]).float() if target.ndim == 1 else target
        parts = objective(others, outputs, soft, seen, self.scale, self.knobs)
        loss = self.losses.get("ce", 0.0) * ce + parts["loss"]
        return {**parts, "loss": loss, "output": outputs.logits, "ce": ce}

    def _observe(self, features: tuple[Tensor, ...]) -> None:
        """Collect the scale of the teacher's features for `update_ema`; the very first batch sets it for all."""
        if not features or not self.trainable_module.training:
            return
        squares = mean_squares(features)
        self.squares, self.passes = self.squares + squares, self.passes + 1
        if not self.scale.known:
            if dist.is_initialized():
                dist.broadcast(squares, 0)
            self.scale.update(squares)

    def begin_stage_two(self) -> None:
        """From here on the student learns from the labels alone (Eq. 7); the same optimiser goes on."""
        trainee = self._trainee()
        self.stage, trainee.wants_token, trainee.wants_pooled, trainee.wants_hidden = 2, False, False, False
        if self.knobs.freeze_rpe:
            for name, parameter in trainee.student.named_parameters():
                parameter.requires_grad_(".rpe." not in name)

    def update_ema(self, step: int | None = None) -> None:
        """To be called after each update of the optimiser, as timm's train.py does, whether there is an EMA or not.

        Moves the scale of the teacher's features and, after `stage1_updates` of them, begins stage II.
        """
        super().update_ema(step)
        if self.passes:
            squares = self.squares / self.passes
            if dist.is_initialized():
                dist.all_reduce(squares)
                squares /= dist.get_world_size()
            self.scale.update(squares)
            self.passes, self.squares = 0, torch.zeros_like(squares)
        if self.stage == 1 and step is not None and 0 < self.stage1_updates <= step:
            self.begin_stage_two()

    def _trainee(self, ema: bool = False) -> Trainee:
        return unwrap_model(self.get_trainable_module(ema=ema))

    # ------------------------------------------------------------------------------ timm's interface

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student alone, for validation and checkpoints."""
        resolved = super().get_eval_model(module, ema)
        inner = resolved if resolved is None else unwrap_model(resolved)
        return inner.student if isinstance(inner, Trainee) else resolved

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters of the student, without its classifier if `exclude_head`, and of the parts that stage I adds."""
        trainee = self._trainee()
        student = list(trainee.student.parameters())
        return [*(student[:-2] if exclude_head else student), *trainee.auxiliary.parameters()]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What a checkpoint holds beside the student: the stage, aligner and pooled head, the features' scale."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            return {}
        auxiliary = unwrap_model(module).auxiliary.state_dict()
        return {"stage": self.stage, "auxiliary": auxiliary, "scale": self.scale.state_dict()}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Go on where `get_task_state` was called; without a state (weights alone) the task stays as it is."""
        if not state:
            return
        trainee = self._trainee(ema) if module is None else unwrap_model(module)
        trainee.auxiliary.load_state_dict(state["auxiliary"], strict=strict)
        if not ema:
            self.scale.load_state_dict(state["scale"])
            if state["stage"] == 2:
                self.begin_stage_two()

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> "DearKDTask":
        """Wrap what is trained in DistributedDataParallel; in stage II some of it gets no gradient."""
        ddp_kwargs = {"find_unused_parameters": True, **ddp_kwargs}
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile student, teacher and what stage I adds; returns the compiled student."""
        how = {"backend": backend, "mode": mode, **compile_kwargs}
        self.eval_model = torch.compile(self._trainee().student, **how)
        self.trainable_module = torch.compile(self.trainable_module, **how)
        self.teacher = torch.compile(self.teacher, **how)
        return self.eval_model


def _teacher(model: nn.Module | str, student: nn.Module, stages: tuple[int, ...]) -> Teacher:
    """The CNN, frozen, with the normalisation that its pretrained configuration asks for."""
    if not isinstance(student, VisionTransformer):
        raise InputError(f"student_model: {type(student).__name__} is no VisionTransformer of timm's")
    classes, channels = student.num_classes, student.in_chans
    if isinstance(model, str):
        model = timm.create_model(model, pretrained=True, num_classes=classes, in_chans=channels)
    if not hasattr(model, "forward_intermediates"):
        raise InputError(f"teacher_model: {type(model).__name__} has no forward_intermediates; take a CNN of timm's")
    if model.num_classes != classes:
        raise InputError(f"teacher_model has {model.num_classes} classes, the student {classes}; give both the same")
    given, own = (_moments(net, channels) for net in (student, model))
    return Teacher(model, stages, given, own)


def _moments(net: nn.Module, channels: int) -> Moments | None:
    """(mean, std) of the pixels that a network expects, one number a channel; None where it does not say."""
    config = getattr(net, "pretrained_cfg", None) or {}
    if "mean" not in config or "std" not in config:
        return None
    moments = (tuple(config["mean"]), tuple(config["std"]))
    return tuple(m if len(m) == channels else (sum(m) / len(m),) * channels for m in moments)
