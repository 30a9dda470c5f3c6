"""DearKD as a training task of timm, for timm's own train.py or any other loop (docs/model.md).

    task = DearKDTask(student, teacher, stage1_updates=1000)
    optimiser = timm.optim.create_optimizer_v2(task.get_trainable_module(), "adamw", lr=1e-3)
    for step, (images, labels) in enumerate(loader):
        task(images, labels)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        task.update_ema(step + 1)

The losses are the same as in `train.loop`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from timm.task import TrainingTask, resolve_classification_loss
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dearkd.errors import InputError, unknown
from dearkd.model import hub
from dearkd.model.networks import freeze_positions
from dearkd.model.objective import TERMS, objective
from dearkd.model.teachers import FeatureShape, Moments, TeacherNetwork
from dearkd.model.trainee import Trainee
from dearkd.plan.stage import LOSSES, Distillation
from dearkd.schema import build
from dearkd.train.shared_scale import SharedScale


class DearKDTask(TrainingTask):
    """Two-stage distillation (Sec. 3) of a CNN into a vision transformer: stage I is Eq. 6, stage II is Eq. 7.

    The student's state dict has the student alone. Aligner and pooled head belong to the task, are saved in timm's task
    state, and are unused in stage II.

    Args:
        student_model: a DearKD, DeiT or other timm VisionTransformer.
        teacher_model: a timm CNN, or the name of one with published weights. It stays in evaluation mode and gets no
            gradient. Its pixels are normalised as its `pretrained_cfg` says.
        criterion, criterion_kwargs: loss on the labels, as in timm's tasks; cross-entropy where neither is given.
        distillation: alpha, beta, pairs and the other knobs, as `stage.Distillation` or a mapping of its fields.
        losses: weights of the terms of `objective.TERMS` in stage I. None is Eq. 6 with alpha and beta. DeiT
            distilled is {"ce": 0.5, "token": 0.5}.
        stage1_updates: updates of the optimiser after which `update_ema` begins stage II; 0: only `begin_stage_two`
            does.
        probe: images that tell the shape and sign of the teacher's features; None: noise.
        device, dtype, verbose: as in timm's tasks.

    Raises InputError that names the argument when student, teacher and pairs do not fit each other.
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
        if stage1_updates < 0:
            raise InputError(f"stage1_updates is {stage1_updates}; write 0 or more")
        student = _transformer(student_model)
        self.losses = _weights(losses, distillation, student)
        self.stage, self.stage1_updates, self.knobs = 1, stage1_updates, distillation
        self.criterion = resolve_classification_loss(criterion, self.device, criterion_kwargs=criterion_kwargs)
        pairs = distillation.pairs if any(LOSSES[name].aligner for name in self.losses) else ()
        teacher = _teacher(teacher_model, student, tuple(stage for _, stage in pairs))
        self.teacher = teacher.to(self.device, self.dtype)
        probe = _noise(student) if probe is None else probe
        features = _features(self.teacher, student, pairs, probe.to(self.device, self.dtype))
        trainee = Trainee(student, tuple(self.losses), distillation, features)
        self.trainable_module: nn.Module = trainee.to(self.device, self.dtype)
        self.scale = SharedScale(distillation.hidden_norm, len(pairs)).to(self.device)

    def forward(
        self,
        input: Float[Tensor, "batch channels height width"],
        target: Int[Tensor, " batch"] | Float[Tensor, "batch classes"],
    ) -> dict[str, Tensor]:
        """{"loss": a scalar with gradients, "output": logits (batch, classes), and each term of the loss by its name}.

        target: class indices, or soft labels after mixup, as the criterion takes them.
        """
        outputs = self.trainable_module(input)
        ce = self.criterion(outputs.logits.float(), target)
        others = {name: weight for name, weight in self.losses.items() if name != "ce"}
        if self.stage == 2 or not others:
            return {"loss": ce, "output": outputs.logits, "ce": ce}
        seen = self.teacher(input)
        if self.trainable_module.training:
            self.scale.observe(seen.features)
        soft = F.one_hot(target, outputs.logits.shape[1]).float() if target.ndim == 1 else target
        parts = objective(others, outputs, soft, seen, self.scale, self.knobs)
        loss = self.losses.get("ce", 0.0) * ce + parts["loss"]
        return {**parts, "loss": loss, "output": outputs.logits, "ce": ce}

    def begin_stage_two(self) -> None:
        """Let the student learn from the labels alone (Eq. 7) from now on. The optimiser stays the same."""
        trainee = self._trainee()
        self.stage, trainee.wants_token, trainee.wants_pooled, trainee.wants_hidden = 2, False, False, False
        if self.knobs.freeze_rpe:
            freeze_positions(trainee.student)

    def update_ema(self, step: int | None = None) -> None:
        """Update the EMA, if there is one, and the scale of the teacher's features; begin stage II when it is due.

        Call it after each update of the optimiser, as timm's train.py does. step: number of updates so far.
        """
        super().update_ema(step)
        self.scale.move()
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
        """The state that a checkpoint has beside the student: stage, aligner, pooled head, scale of the features."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            return {}
        auxiliary = unwrap_model(module).auxiliary.state_dict()
        return {"stage": self.stage, "auxiliary": auxiliary, "scale": self.scale.state_dict()}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Restore what `get_task_state` returned. Without a state (weights alone) the task stays as it is."""
        if not state:
            return
        trainee = self._trainee(ema) if module is None else unwrap_model(module)
        trainee.auxiliary.load_state_dict(state["auxiliary"], strict=strict)
        if not ema:
            self.scale.load_state_dict(state["scale"])
            if state["stage"] == 2:
                self.begin_stage_two()

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> "DearKDTask":
        """Wrap the trained module in DistributedDataParallel. In stage II some parameters get no gradient."""
        ddp_kwargs = {"find_unused_parameters": True, **ddp_kwargs}
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(  # type: ignore[override]  # the signature is timm's, which differs from that of nn.Module
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        """Compile student, teacher and the parts that stage I adds; returns the compiled student."""
        how = {"backend": backend, "mode": mode, **compile_kwargs}
        parts = (self._trainee().student, self.trainable_module, self.teacher)
        compiled: list[Any] = [torch.compile(part, **how) for part in parts]
        self.eval_model, self.trainable_module, self.teacher = compiled
        return self.eval_model


def _transformer(student: nn.Module) -> VisionTransformer:
    if not isinstance(student, VisionTransformer):
        raise InputError(
            f"student_model: {type(student).__name__} is no VisionTransformer of timm; take a dearkd_* or deit_* model"
        )
    return student


def _weights(losses: Mapping[str, float] | None, knobs: Distillation, student: nn.Module) -> dict[str, float]:
    """The weight of each term in stage I: those given, or Eq. 6."""
    weights = dict(losses or {"ce": knobs.alpha, "logit": 1 - knobs.alpha, "hidden": knobs.beta})
    for name in weights:
        if name not in TERMS:
            raise InputError(unknown(name, TERMS, "loss", "losses"))
        if "token" in name and not hasattr(student, "head_dist"):
            raise InputError(f"losses: {name} needs a distillation token; take a deit_*_distilled_* student")
    return weights


def _teacher(model: nn.Module | str, student: VisionTransformer, stages: tuple[int, ...]) -> TeacherNetwork:
    """The CNN, frozen, with the normalisation that its pretrained configuration names."""
    classes, channels = student.num_classes, student.in_chans
    net = _named(model, classes, channels) if isinstance(model, str) else model
    if not hasattr(net, "forward_intermediates"):
        raise InputError(f"teacher_model: {type(net).__name__} has no forward_intermediates; take a CNN of timm")
    known = (getattr(net, "pretrained_cfg", None) or {}).get("num_classes", classes)
    if isinstance(model, str) and known != classes:  # timm gives it a new classifier, which knows nothing
        raise InputError(
            f"teacher_model: the weights of {model} know {known} classes, and the student has {classes}; train it on "
            f"the student's classes and give the network"
        )
    if net.num_classes != classes:
        raise InputError(
            f"teacher_model has {net.num_classes} classes, and the student has {classes}; give both the same number"
        )
    return TeacherNetwork(net, stages, _moments(student, channels), _moments(net, channels))


def _named(model: str, classes: int, channels: int) -> nn.Module:
    """A CNN of timm with its published weights."""
    try:
        with hub.asked_once():
            return timm.create_model(model, pretrained=True, num_classes=classes, in_chans=channels)
    except OSError as error:
        why = " ".join(str(error).split())[:200] if hub.reachable() else "and its hub does not answer"
        raise InputError(
            f"teacher_model: the weights of {model} are not on this machine, {why}; give a network with weights, or "
            f"load them where there is internet and copy the folder HF_HOME here"
        ) from None


def _moments(net: nn.Module, channels: int) -> Moments | None:
    """(mean, std) of the pixels that a network expects, one number for each channel; None where it does not say."""
    config = getattr(net, "pretrained_cfg", None) or {}
    if "mean" not in config or "std" not in config:
        return None
    mean, std = (
        tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
        for values in (config["mean"], config["std"])
    )
    return mean, std


def _noise(student: VisionTransformer) -> Float[Tensor, "batch channels height width"]:
    """Two images of noise at the student's size."""
    size = (2, student.in_chans, *student.patch_embed.img_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _features(
    teacher: TeacherNetwork,
    student: VisionTransformer,
    pairs: tuple[tuple[int, int], ...],
    images: Float[Tensor, "batch channels height width"],
) -> tuple[FeatureShape, ...]:
    """Shape and sign of the teacher's features in each pair of (student block, teacher stage), seen on `images`."""
    try:
        shapes, depth = teacher.feature_shapes(images) if pairs else [], len(student.blocks)
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"teacher_model: cannot take the student's images of {tuple(images.shape[1:])} ({error}); build it for them"
        ) from None
    for block, stage in pairs:
        if not (0 < block <= depth and 0 <= stage < len(shapes)):
            raise InputError(
                f"pairs: {block, stage} does not exist; take a block of the student from 1 to {depth} and a stage of "
                f"the teacher from 0 to {len(shapes) - 1}"
            )
    return tuple(shapes[stage] for _, stage in pairs)
