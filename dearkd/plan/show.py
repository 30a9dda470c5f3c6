"""A run, a teacher or a set of synthetic images as a page of YAML: each value with a comment that says where it comes
from.

The keys at the margin are those of `Stage`, with the values of the first stage that has a teacher. `training` is shown
as optimiser, schedule and augmentation, and `model.args.rpe` as rpe. An entry of `stages` has only what differs; a
dotted key there changes one value of the stage. A spec that has a page of its own is named only.
"""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from dearkd.errors import InputError, unknown
from dearkd.plan import cost, rates, verify
from dearkd.plan.lines import Line, fields, scalar
from dearkd.plan.methods import UNSWITCHED
from dearkd.plan.origins import Origins, Path
from dearkd.plan.plan import Plan, Run
from dearkd.plan.scale_file import written
from dearkd.plan.stage import LOSSES, Rpe, Source, Stage, Teacher, Training, geometry
from dearkd.plan.synthesis import PRIORS
from dearkd.plan.tables import Figure, Table
from dearkd.schema import build

OPTIMISER: tuple[str, ...] = (
    "batch",
    "micro_batch",
    "optimiser",
    "lr",
    "lr_scaling",
    "weight_decay",
    "betas",
    "momentum",
    "clip",
    "ema",
)
OPTIMISER += ("drop_path", "precision", "compile")
"""Fields of `Training` under the heading optimiser. Those of `UNSWITCHED` are shown at the stages, the rest is
schedule."""
OWN = ("name", "first_epoch", "last_epoch", "losses", "teacher_name", "initial", "source")
"""Fields of `Stage` that each stage has in its own entry."""


def show(plan: Plan, name: str, file: object = None) -> str:
    """The page of a run, of a set of synthetic images or of a teacher.

    file: of the scale, where its name alone does not find it.
    Raises InputError with the nearest name where the plan has none of it.
    """
    origins = Origins(scale=plan.scale, written=written(file or plan.scale.name), method=name)
    if name in plan.runs:
        lines = _run(plan, plan.runs[name], origins)
    elif name in plan.sources:
        lines = _source(plan.sources[name], origins)
    elif name in plan.scale.teachers:
        lines = _teacher(name, plan.scale.teachers[name], origins)
    else:
        known = [*plan.runs, *plan.sources, *plan.scale.teachers]
        raise InputError(unknown(name, known, "run, teacher or set of images", f"scale {plan.scale.name}"))
    return "".join(f"{line}\n" for line in lines)


# ---------------------------------------------------------------------------------------------- a run


def _run(plan: Plan, run: Run, origins: Origins) -> Iterator[Line]:
    origins = dataclasses.replace(origins, method=run.method, student=run.student, settings=dict(run.settings))
    first = next((stage for stage in run.stages if stage.teacher), run.stages[0])
    recipe = _recipe(plan, run)
    yield Line("", f"{run.name}, scale {plan.scale.name}: {plan.scale.summary}")
    for place in _places(plan, run):
        yield Line("", place)
    yield Line(f"run: {scalar(run.name)}")
    yield Line(f"method: {scalar(run.method)}", f"methods.{run.method} of dearkd/plan/methods.py")
    yield Line(f"student: {scalar(run.student)}")
    yield Line(f"seeds: {scalar(run.seeds)}", origins.of(("seeds",), run.seeds))
    yield Line("")
    yield Line(f"data_name: {scalar(first.data_name)}")
    yield Line("data:")
    yield from fields(first.data, ("data", first.data_name), origins)
    yield Line(f"fraction: {first.fraction}", "percent of the training images" + _from(origins, first.fraction))
    for name in ("subset_seed", "subset_draw", "shards", "attention_images"):
        value = getattr(first, name)
        yield Line(f"{name}: {scalar(value)}", origins.of((name,), value) if name != "shards" else "0: all")
    yield from _model(first, run, origins)
    yield Line("")
    yield Line("stages:")
    for stage in run.stages:
        yield from _stage(plan, run, stage, first, origins)
    if first.teacher:
        yield Line("")
        yield Line("teacher:", f"{first.teacher_name} of the scale's teachers")
        yield from fields(first.teacher, ("teachers", first.teacher_name), origins)
    if first.distillation:
        yield Line("distillation:", "Eq. 6")
        yield from fields(first.distillation, ("distillation",), origins)
    yield Line("")
    others = tuple(f.name for f in dataclasses.fields(Training) if f.name not in (*OPTIMISER, *UNSWITCHED, "augment"))
    yield Line("optimiser:", f"learning rate {first.training.peak_lr:g} after warm-up")
    yield from fields(first.training, recipe, origins, OPTIMISER)
    yield Line("schedule:", "linear warm-up, then one cosine")
    yield from fields(first.training, recipe, origins, others)
    yield Line("augmentation:")
    yield from fields(first.training.augment, (*recipe, "augment"), origins)
    yield Line("")
    yield Line("cost:", "of one seed, without what the run waits for")
    yield from _cost(plan, run)


def _from(origins: Origins, fraction: int) -> str:
    return f"; {origins.of(('fraction',), fraction)}" if fraction != 100 else ""


def _recipe(plan: Plan, run: Run) -> Path:
    """The keys from the scale to the `Training` of a run."""
    places: dict[str, Path] = {
        "teacher": ("teachers", run.name.removeprefix("teacher-"), "training"),
        "peer": ("peers", run.student, "training"),
        "transfer": ("transfer", "recipes", plan.scale.transfer.recipe),
    }
    return places.get(run.method, ("training",))


def _places(plan: Plan, run: Run) -> Iterator[str]:
    """The rows of tables and figures that show a run, in lines."""
    both: tuple[Table | Figure, ...] = (*plan.tables.values(), *plan.figures.values())
    places = [(each.name, row.label) for each in both for row in each.rows if run.name in [c.run for c in row.cells]]
    yield from textwrap.wrap(", ".join(f"{name} ({label})" for name, label in places), 100, initial_indent="shown in ")


def _model(stage: Stage, run: Run, origins: Origins) -> Iterator[Line]:
    args, shape = dict(stage.model.args), geometry(stage.model)
    rpe = args.pop("rpe", None)
    size = f"{shape['depth']} blocks of width {shape['embed_dim']}, {shape['n_mhca']} of them MHCA" if shape else ""
    yield Line("")
    yield Line("model:", size)
    yield Line(f"  name: {stage.model.name}")
    yield Line(f"  args:{'' if args else ' {}'}")
    for name, value in args.items():
        yield Line(f"    {name}: {scalar(value)}", origins.of(_argument(stage, run, name), value))
    names = ("init", "stem_stride", "start")
    yield from fields(stage.model, ("peers" if run.method == "peer" else "students", run.student), origins, names)
    if rpe is not None:
        yield Line("rpe:", "Eq. 2 and 3")
        yield from fields(build(Rpe, dict(rpe), "rpe"), ("rpe",), origins)


def _argument(stage: Stage, run: Run, name: str) -> Path:
    """The keys from the scale to a keyword argument of the model."""
    data = ("data", stage.data_name)
    if name in ("img_size", "in_chans", "num_classes"):
        return (*data, {"img_size": "image_size", "in_chans": "channels"}.get(name, "classes"))
    if run.method == "teacher":
        return ("teachers", run.name.removeprefix("teacher-"), "args", name)
    if run.method == "peer":
        return ("peers", run.student, "args", name)
    student = ("students", run.student)
    heads = "dearkd_heads" if stage.model.name.startswith("dearkd") else "deit_heads"
    places: dict[str, Path] = {"num_heads": (*student, heads), "n_mhca": (*student, "n_mhca")}
    return places.get(name, ("training", "drop_path") if name == "drop_path_rate" else (*student, "args", name))


def _stage(plan: Plan, run: Run, stage: Stage, first: Stage, origins: Origins) -> Iterator[Line]:
    yield Line(f"- name: {scalar(stage.name)}")
    yield Line(f"  first_epoch: {stage.first_epoch}")
    yield Line(f"  last_epoch: {stage.last_epoch}", "not itself")
    yield Line("  losses:", f"weights of the sum; method {run.method}")
    for name, weight in stage.losses:
        yield Line(f"    {name}: {scalar(weight)}", f"{LOSSES[name].what}: {LOSSES[name].formula}")
    yield Line(f"  teacher_name: {scalar(stage.teacher_name)}", "" if stage.teacher else "no teacher")
    if stage.initial:
        yield Line(f"  initial: {scalar(run.initial)}", "the run whose weights it starts from, with a new classifier")
    if stage.source:
        yield Line(f"  source: {scalar(stage.source.name)}", "synthetic training images; `show` has a page of them")
    if any(getattr(stage.training, name) != value for name, value in UNSWITCHED.items()):
        for name in UNSWITCHED:
            value = getattr(stage.training, name)
            yield Line(f"  training.{name}: {scalar(value)}", origins.of((*_recipe(plan, run), name), value))
    usual = dataclasses.replace(first, training=dataclasses.replace(first.training, **UNSWITCHED))
    own = dataclasses.replace(stage, training=dataclasses.replace(stage.training, **UNSWITCHED))
    for place, value in _differences(own, usual):
        yield Line(f"  {place}: {scalar(value)}", f"method {run.method}")


def _differences(spec: Any, usual: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of each field in which a spec differs from `usual`; no `distillation` without a teacher."""
    for field in dataclasses.fields(spec):
        value, other = getattr(spec, field.name), getattr(usual, field.name)
        if value == other or (not above and field.name in OWN):
            continue
        if not above and not spec.teacher and field.name in ("teacher", "distillation"):
            continue
        if dataclasses.is_dataclass(value) and isinstance(other, type(value)):
            yield from _differences(value, other, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}", value


def _cost(plan: Plan, run: Run) -> Iterator[Line]:
    images = cost.images_of(plan)
    try:
        draws = [int(cost.draws(stage, images)) for stage in run.stages]
        steps = [n // s.training.batch * (s.last_epoch - s.first_epoch) for n, s in zip(draws, run.stages, strict=True)]
        yield Line(f"  images_per_epoch: {draws[0]}")
        yield Line(f"  steps: {sum(steps)}")
        yield Line(f"  images: {sum(n * s.training.batch for n, s in zip(steps, run.stages, strict=True))}")
    except InputError:
        yield Line(
            "  steps: null", f"known when python -m dearkd subset {run.stages[0].data_name} has listed the images"
        )
    try:
        last = run.stages[-1].name
        trained = [seed for seed in run.seeds if plan.paths.stage(run.name, seed, last).is_file()]
        records = [verify.stages(plan, run, seed) for seed in trained]
        if records:
            seconds = [round(sum(r["seconds_all"] for r in stages), 1) for stages in records]
            device, seeds = records[0][0]["hardware"], ", ".join(map(str, trained))
            where = plan.paths.results / "runs" / run.name
            yield Line(f"  seconds: {scalar(seconds)}", f"of seeds {seeds}: records under {where}")
            yield Line(f"  device: {scalar(device['device'])}", device["cpu"])
            return
        yield Line("  seconds: null", "not run")
    except InputError:
        yield Line("  seconds: null", "its records are stale: python -m dearkd status")
    try:
        hours, origin = rates.gpu_hours(plan, run)
        yield Line(f"  gpu_hours: {hours:.1f}", f"estimate; images/s from {origin}")
    except InputError as error:
        yield Line("  gpu_hours: null", str(error))


# ---------------------------------------------------------------------------------------------- images and teachers


def _source(source: Source, origins: Origins) -> Iterator[Line]:
    yield Line("", f"{source.name}, scale {origins.scale.name}: images out of {source.teacher_name}")
    yield Line(f"name: {scalar(source.name)}")
    yield Line(f"teacher_name: {scalar(source.teacher_name)}", "`show` has a page of it")
    if source.student:
        yield Line(f"student: {scalar(source.recipe.student)}", "of method dearkd: competes, learning from the images")
    if source.verifier:
        yield Line(f"verifier: {scalar(source.recipe.verifier)}", "competes in a student's place")
    yield Line("terms:", "weights of the sum; synthesis.SYNTHESIS")
    for name, weight in source.terms:
        yield Line(f"  {name}: {scalar(weight)}", PRIORS[name])
    yield Line("recipe:", f"{source.recipe.made()} images in {source.recipe.shards} jobs")
    yield from fields(source.recipe, ("synthesis",), origins)
    yield Line("data:", "of its pixels; none of its images are used")
    yield from fields(source.data, ("data", "main"), origins)


def _teacher(name: str, teacher: Teacher, origins: Origins) -> Iterator[Line]:
    trained: Mapping[bool, str] = {True: f"trained by the run teacher-{name}", False: "its weights come from elsewhere"}
    yield Line("", f"teacher {name}, scale {origins.scale.name}: {trained[teacher.training is not None]}")
    yield Line(f"teacher_name: {scalar(name)}")
    yield Line("teacher:")
    yield from fields(teacher, ("teachers", name), origins)
