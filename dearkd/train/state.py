"""The state of a stage under way: what a step changes, and what a checkpoint holds of it."""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3

from dearkd.keys import key_of
from dearkd.model import networks
from dearkd.model.attention_cpu import unfuse_few_tokens
from dearkd.model.objective import FeatureScale
from dearkd.model.trainee import Trainee
from dearkd.plan.stage import Stage
from dearkd.train import optimise
from dearkd.train.inputs import Inputs
from dearkd.train.meters import Meters


class State:
    """Weights, their average, the optimiser's moments, the features' scale, meters, curve and the step, from 0.

    Args:
        first_step: of the stage. saved: its newest checkpoint, or None: it then starts from the end of the stage
            before, or anew.
    """

    def __init__(
        self,
        stage: Stage,
        seed: int,
        inputs: Inputs,
        device: torch.device,
        first_step: int,
        saved: dict[str, Any] | None = None,
    ) -> None:
        recipe, self.seed = stage.training, seed
        student = networks.create(stage.model, seed)
        if inputs.initial is not None:
            networks.adopt(student, inputs.initial)
        if device.type == "cpu" and isinstance(student, VisionTransformer):
            unfuse_few_tokens(student)
        if stage.freeze_rpe:
            for name, parameter in student.named_parameters():
                parameter.requires_grad_(".rpe." not in name)
        torch.manual_seed(key_of(seed, "auxiliary"))
        trainee = Trainee(student, tuple(n for n, _ in stage.losses), stage.distillation, inputs.features)
        self.trainee = trainee.to(device).train()
        self.scale = (
            FeatureScale(stage.distillation.hidden_norm, len(stage.pairs)).to(device)
            if self.trainee.wants_hidden
            else None
        )
        self.optimiser = optimise.optimiser(self.trainee, recipe)
        self.ema = ModelEmaV3(student, decay=recipe.ema) if recipe.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16" and device.type == "cuda")
        self.meters = Meters(("loss", *dict(stage.losses)), device)
        self.step = first_step
        self.curve: list[dict[str, Any]] = []
        self.heads: list[list[float]] = []
        self._load(saved, inputs.previous)

    @property
    def student(self) -> torch.nn.Module:
        """What is trained, without what a stage adds to it."""
        return self.trainee.student

    def values(self) -> dict[str, Any]:
        """Everything that the rest of the stage and the next stage depend on; moments are kept by parameter name."""
        names = {p: n for n, p in self.trainee.named_parameters()}
        moments = {names[p]: dict(self.optimiser.state[p]) for p in names if p in self.optimiser.state}
        return {
            "seed": self.seed,
            "step": self.step,
            "student": self.student.state_dict(),
            "auxiliary": self.trainee.auxiliary.state_dict(),
            "scale": self.scale.state_dict() if self.scale else {},
            "moments": moments,
            "ema": self.ema.module.state_dict() if self.ema else {},
            "scaler": self.scaler.state_dict(),
            "sums": self.meters.sums(),
            "curve": self.curve,
            "heads": self.heads,
        }

    def _load(self, saved: dict[str, Any] | None, previous: dict[str, Any] | None) -> None:
        if saved is not None:
            self.trainee.auxiliary.load_state_dict(saved["auxiliary"])
            self.scaler.load_state_dict(saved["scaler"])
            if self.scale:
                self.scale.load_state_dict(saved["scale"])
            self.step, self.curve, self.heads = (saved[k] for k in ("step", "curve", "heads"))
        self.meters.start(self.step, saved and saved["sums"])
        source = saved or previous
        if source is None:
            return
        self.student.load_state_dict(source["student"])
        if self.ema and source["ema"]:
            self.ema.module.load_state_dict(source["ema"])
        optimise.restore_moments(self.optimiser, self.trainee, source["moments"])
