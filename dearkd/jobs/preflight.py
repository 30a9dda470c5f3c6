"""A check before anything is trained: every network of a plan is built once, without memory.

The plan has only names and arguments. Only timm can say whether it can build them. Without this check a width that the
heads do not divide, a missing teacher stage or a mistyped model would be found only after the teacher is trained.
"""

from dearkd.errors import InputError
from dearkd.model import networks, teachers
from dearkd.plan.plan import Plan
from dearkd.plan.stage import Model, Stage
from dearkd.schema import freeze


def preflight(plan: Plan) -> None:
    """Build every model of the plan's runs on torch's `meta` device.

    Raises InputError naming the run, and the model or the pair, when timm does not know a model or refuses its
    arguments, when a teacher needs larger images, or when `distillation.pairs` names a stage that it does not have.
    """
    built: set[Model] = set()
    shapes: dict[str, list[tuple[int, int, int]]] = {}
    for run in plan.runs.values():
        for stage in run.stages:
            try:
                if stage.model not in built:
                    networks.sketch(stage.model)
                    built.add(stage.model)
                _pairs(stage, plan, shapes)
            except InputError as error:
                raise InputError(f"run {run.name}: {error}") from None


def _pairs(stage: Stage, plan: Plan, shapes: dict[str, list[tuple[int, int, int]]]) -> None:
    """Check that a teacher takes the scale's images and has the stages that the hidden loss compares with."""
    name, main = stage.teacher_name, plan.scale.data["main"]
    if stage.teacher is None or not stage.pairs:
        return
    if name not in shapes:
        given = plan.scale.teachers[name]
        channels = given.channels or main.channels
        args = {**dict(given.args), "in_chans": channels, "num_classes": main.classes}
        model = Model(name=given.model, args=freeze(args), init="timm")
        shapes[name] = teachers.probe(model, given.image_size or main.image_size, channels)
    count = len(shapes[name])
    for block, index in stage.pairs:
        if not -count <= index < count:
            raise InputError(
                f"distillation.pairs: [{block}, {index}] names teacher stage {index}, but {stage.teacher.model} has "
                f"stages 0 to {count - 1}; name one of them"
            )
