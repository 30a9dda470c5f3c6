"""The state of a stage in training: what a step changes and a checkpoint saves."""

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
        first_step: of the stage.
        saved: newest checkpoint of the stage. Where it is None, the stage starts from the end of the stage before if
            there is one, and from fresh weights otherwise.
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
        recipe, knobs, self.seed = stage.training, stage.distillation, seed
        student = networks.create(stage.model, seed)
        if inputs.initial is not None:
            networks.adopt(student, inputs.initial)
        if device.type == "cpu" and isinstance(student, VisionTransformer):
            unfuse_few_tokens(student)
        if stage.freeze_rpe:
            networks.freeze_positions(student)
        torch.manual_seed(key_of(seed, "auxiliary"))
        trainee = Trainee(student, tuple(n for n, _ in stage.losses), knobs, inputs.features)
        self.trainee = trainee.to(device).train()
        self.scale: FeatureScale | None = None
        if knobs is not None and self.trainee.wants_hidden:
            self.scale = FeatureScale(knobs.hidden_norm, len(stage.pairs)).to(device)
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
        """The model that is trained, without the parts that a stage adds."""
        return self.trainee.student

    def values(self) -> dict[str, Any]:
        """All that the rest of the stage and the next stage depend on. Moments are kept by parameter name."""
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
