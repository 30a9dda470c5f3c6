"""Every network that a plan will train, built once without memory before anything is trained. Run layer.

The plan knows names and arguments; what timm makes of them, timm alone knows. A width that heads do not divide, a
teacher stage that does not exist or a mistyped model would otherwise be found after the teacher has been trained.
"""

import torch
from torch import nn

from dearkd import models
from dearkd.plan import Plan
from dearkd.schema import InputError
from dearkd.spec import Model, Stage


def preflight(plan: Plan) -> None:
    """Build every model of the plan's runs on torch's `meta` device.

    Raises InputError naming the run, and the model or the pair, when timm does not know a model or refuses its
    arguments, or when `distillation.pairs` names a stage that the teacher does not have.
    """
    built: dict[Model, nn.Module] = {}
    for run in plan.runs.values():
        for stage in run.stages:
            try:
                if stage.model not in built:
                    built[stage.model] = models.sketch(stage.model)
                _pairs(stage, plan, built)
            except InputError as error:
                raise InputError(f"run {run.name}: {error}") from None


def _pairs(stage: Stage, plan: Plan, built: dict[Model, nn.Module]) -> None:
    """The teacher's stages that the hidden loss compares with must exist, where the workflow trains the teacher."""
    trained = plan.teacher_run(stage.teacher_name) if "hidden" in dict(stage.losses) else None
    if trained is None:
        return
    first = trained.stages[0]
    net = built.setdefault(first.model, models.sketch(first.model))
    image = torch.empty(2, first.data.channels, first.data.image_size, first.data.image_size, device="meta")
    features = net.eval().forward_intermediates(image, intermediates_only=True)
    for block, index in stage.distillation.pairs:
        if index >= len(features):
            raise InputError(
                f"distillation.pairs: [{block}, {index}] names teacher stage {index}, but {first.model.name} has "
                f"stages 0 to {len(features) - 1}"
            )
