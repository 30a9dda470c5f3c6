"""One DearKD from a scale that a command writes: its jobs one after the other, without Snakemake."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dearkd import disk, record
from dearkd.errors import InputError
from dearkd.plan import methods
from dearkd.plan.plan import Paths, Plan, Run
from dearkd.plan.runs import Runs
from dearkd.plan.scale import Scale
from dearkd.plan.scale_file import load_scale

HEADER = "# Written by `python -m dearkd {verb}`: a scale like any other (docs/own-data.md).\n"


def outside(out: Path, images: Path) -> None:
    """Refuse a folder for the student inside the folder of images, where it would be taken for a class."""
    if out.resolve().is_relative_to(images.resolve()):
        raise InputError(f"--out {out}: is inside the folder of images, {images}; name a folder outside it")


def with_settings(values: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Return the keys of a scale with each `key=value` of --set in its place.

    Raises InputError for a setting without a key or a value, or whose value is no YAML.
    """
    values = copy.deepcopy(values)
    for setting in settings:
        _set(values, setting)
    return values


def listed(names: Sequence[str]) -> str:
    """Return names for a sentence: all, or the first four and how many more."""
    shown, more = ", ".join(names[:4]), len(names) - 4
    return f"{shown} and {more} more" if more > 0 else shown


def written(out: Path, values: dict[str, Any], verb: str) -> Scale:
    """Write the scale of these keys as `out`/scale.yaml and return it.

    Raises InputError where a key does not fit, before anything is written, and where `out`, or the folder of results of
    that name, has trained with other settings.
    """
    own = {key: value for key, value in values.items() if key != "extends"}
    load_scale(values["extends"], own, "the scale that this would write")
    path, text = out / "scale.yaml", HEADER.format(verb=verb) + yaml.safe_dump(values, sort_keys=False)
    results, there = Paths(values["name"]).results, path.read_text() if path.is_file() else ""
    begun = (results / "runs").exists() or any(out.glob("checkpoints/**/*.lock"))
    if begun and there != text:
        raise InputError(
            f"{path if there else results}: belongs to a student with other settings{_changed(there, values)}; name "
            f"another folder with --out, or delete {out} and {results}"
        )
    disk.write(path, text)
    return load_scale(path.as_posix())


def _changed(text: str, values: dict[str, Any]) -> str:
    """How the scale that is there differs from the one to write, in brackets; empty where it cannot be read."""
    try:
        there = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    changed = record.differences(there, values) if isinstance(there, dict) else []
    return f" ({'; '.join(changed[:3])})" if changed else ""


def _set(values: dict[str, Any], setting: str) -> None:
    """Put one `key=value` of --set into the keys of a scale."""
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"--set {setting}: write a key of the scale and its value, as in training.lr=5e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(
            f"--set {setting}: {text!r} is no YAML; write a number, a word or a list as in [1, 2]"
        ) from None
    below: Any = values
    for key in keys[:-1]:
        below = below.setdefault(key, {})
        if not isinstance(below, dict):
            raise InputError(f"--set {setting}: {key} has no keys below it; set {key} itself")
    below[keys[-1]] = value


def trained(scale: Scale, file: str, student: str, seed: int, folder: Path) -> Mapping[str, Any]:
    """Train the scale's teacher where it has a training, then a DearKD, and export it into `folder`.

    file: of the scale. Returns the record of its evaluation on the test images.
    """
    from dearkd.jobs import export  # torch, whose import takes seconds: mistakes are found before
    from dearkd.jobs.evaluate import evaluate_run
    from dearkd.jobs.subset import list_subsets
    from dearkd.jobs.teacher import admit_teacher
    from dearkd.jobs.train import train_stage

    stages = methods.dearkd(scale, student)
    run = Run(name=f"dearkd-{student}", method="dearkd", student=student, fraction=100, stages=stages, seeds=(seed,))
    runs = {name: each for name, each in Runs(scale).runs.items() if name == "teacher-main"} | {run.name: run}
    plan = Plan(scale=scale, runs=runs, sources={}, competitors={}, pretrained={}, tables={}, figures={}, file=file)
    list_subsets(plan, "main")
    if teacher := plan.teacher_run("main"):
        for stage in teacher.stages:
            train_stage(plan, teacher, 0, stage.name)
    admit_teacher(plan, "main")
    for stage in stages:
        train_stage(plan, run, seed, stage.name)
    evaluate_run(plan, run, seed)
    export.export(plan, run, seed, folder)
    return record.read(plan.paths.metrics(run.name, seed))
