"""Checks of records against the plan, their path, the records before them and the files beside them.

Every reader of a record calls these checks. A stale, forged, copied or damaged record is refused with the way out.
"""

import csv
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dearkd import disk, record
from dearkd.errors import InputError, Stale
from dearkd.fingerprint import fingerprint
from dearkd.plan import commands
from dearkd.plan.plan import Labels, Plan, Run
from dearkd.plan.scale import Diversity, Peer, Throughput
from dearkd.plan.stage import Data, Source, Stage, Teacher
from dearkd.schema import build, to_json

ROUNDING = 1e-3
"""Percent by which an accuracy in single precision may differ from its exact value; one image of 50,000 is twice
that."""


def stages(plan: Plan, run: Run, seed: int, until: str = "") -> list[dict[str, Any]]:
    """The records of a run's stages, or of those up to the stage `until`.

    Raises InputError when one differs from today's plan, belongs to another place, data set, teacher, set of images or
    start than today's, or does not continue the one before it.
    """
    found: list[dict[str, Any]] = []
    for position, stage in enumerate(run.stages):
        path = plan.paths.stage(run.name, seed, stage.name)
        values = _read(plan, path, plan.paths.stage(run.name, seed, until or run.stages[-1].name))
        with record.whole(path):
            _at_home(plan, path, values, run=run.name, seed=seed, stage=stage.name)
            _as_planned(plan, path, values["specs"], run.stages[: position + 1])
            _joined(plan, run, seed, stage, values, found[-1] if found else None)
        found.append(values)
        if stage.name == until:
            break
    return found


def _joined(
    plan: Plan, run: Run, seed: int, stage: Stage, values: dict[str, Any], before: dict[str, Any] | None
) -> None:
    """Refuse a stage's record whose inputs are not those of today."""
    path = plan.paths.stage(run.name, seed, stage.name)
    _same_data(plan, path, stage, seed, values["data"])
    if before and values["previous_sha256"] != before["weights_sha256"]:
        raise stale(plan, path, f"its training continued from other weights than {before['stage']}.json describes")
    if stage.teacher_name:
        taught_by = teacher(plan, stage.teacher_name)["weights_sha256"]
        if values["teacher"]["weights_sha256"] != taught_by:
            raise stale(plan, path, f"its teacher {stage.teacher_name} has other weights now")
    if run.initial:
        start = plan.run(run.initial)
        if values["initial"]["weights_sha256"] != stages(plan, start, seed)[-1]["weights_sha256"]:
            raise stale(plan, path, f"{start.name}, from which it starts, has other weights now")
    if stage.source and values["data"]["images_sha256"] != images_sha256(plan, stage, seed):
        raise stale(plan, path, f"the images of {stage.source.name} have changed")


def _same_data(plan: Plan, path: Path, stage: Stage, seed: int, seen: dict[str, Any]) -> None:
    """Refuse a stage's record whose data set or list of images is not the one that is recorded now."""
    listed = plan.paths.subsets(stage.data_name) / f"{stage.subset(seed)}.txt"
    _seen(plan, path, stage.data_name, seen["sha256"])
    if stage.source or not listed.is_file():
        return
    digest = disk.sha256(listed)
    if seen["images_sha256"] not in (digest, disk.sha256_of(digest + seen["sha256"]["train"])):
        raise stale(plan, path, f"the images of {stage.data_name} have changed")


def _seen(plan: Plan, path: Path, name: str, sha256: dict[str, str] | None) -> None:
    """Refuse a record of other images of data set `name` than are listed now. None: the record has no such field."""
    listed = plan.paths.subsets(name) / "data.json"
    if not sha256 or not listed.is_file():
        return
    now = record.read(listed)["sha256"]
    if any(now[split] != digest for split, digest in sha256.items()):
        raise stale(plan, path, f"the images of {name} have changed")


def evaluation(plan: Plan, run: Run, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(records of a run's stages, record of its evaluation). The accuracy is computed again from its predictions."""
    path = plan.paths.metrics(run.name, seed)
    values = _read(plan, path, path)
    trained = stages(plan, run, seed)
    with record.whole(path):
        _at_home(plan, path, values, run=run.name, seed=seed)
        if values["weights_sha256"] != trained[-1]["weights_sha256"]:
            raise stale(plan, path, "it measured other weights than its last stage made")
        if values["data"]["sha256"] != trained[-1]["data"]["sha256"]["test"]:
            raise stale(plan, path, "it measured other test images than its stages name")
        _counted(plan, path, values)
    return trained, values


def _counted(plan: Plan, path: Path, values: dict[str, Any]) -> None:
    """Refuse an accuracy that does not follow from its predictions."""
    lines = rows(path.with_name("predictions.csv"))
    if len(lines) != values["data"]["images"]:
        raise stale(plan, path, f"it counts {values['data']['images']} images, but predictions.csv has {len(lines)}")
    counts = {"top1": sum(line["label"] == line["top1"] for line in lines)}
    if "in_top5" in lines[0]:
        counts["top5"] = sum(line["in_top5"] == "1" for line in lines)
    for name, count in counts.items():
        top = 100 * count / len(lines)
        if not _is_near(values["metrics"][name], top):
            raise stale(plan, path, f"its {name} is {values['metrics'][name]:.4f}, but predictions.csv gives {top:.4f}")


def _is_near(said: float, counted: float) -> bool:
    return math.isclose(said, counted, abs_tol=ROUNDING)


def teacher(plan: Plan, name: str) -> dict[str, Any]:
    """The record of a teacher. It is refused if the scale names another teacher now."""
    path = plan.paths.teacher(name)
    values = _read(plan, path, path)
    with record.whole(path):
        _at_home(plan, path, values, teacher=name)
        _unchanged(plan, path, Teacher, values["spec"], plan.scale.teachers[name])
        _seen(plan, path, "main", values.get("data_sha256"))
        if not abs(values["top1"] - plan.scale.teachers[name].top1) <= plan.scale.teachers[name].tolerance:
            raise stale(plan, path, f"its top-1 {values['top1']} is further than `tolerance` from the scale's top1")
    return values


def shard(plan: Plan, name: str, seed: int, index: int) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """(record, lines of its CSV) of a shard of a source's images. They are refused if record, plan and CSV differ."""
    path, source = plan.paths.shard(name, seed, index), plan.sources[name]
    values, manifest = _read(plan, path, path), path.with_suffix(".csv")
    with record.whole(path):
        _at_home(plan, path, values, source=name, seed=seed, shard=index)
        _unchanged(plan, path, Source, values["spec"], source)
    lines = rows(manifest)
    with record.whole(path):
        right = 100 * sum(line["label"] == line["teacher_top1"] for line in lines) / len(lines)
        known = all(line["label"].isdecimal() and int(line["label"]) < source.data.classes for line in lines)
        if "files" not in values:  # a record from before it held the CSV's sha256, and folders had names
            known &= all(line["image"].startswith(f"{int(line['label']):04d}/") for line in lines if known)
        if not known or len(lines) != values["images"] or not _is_near(values["teacher_accuracy"], right):
            raise InputError(
                f"{manifest}: not what {path} describes (an image or a label was changed, or is missing); make it "
                f"again: {commands.shard(plan, name, seed, index)}"
            )
    return values, lines


def labels(plan: Plan, name: str, seed: int, index: int) -> dict[str, Any]:
    """The record of a shard of a teacher's labels. It is refused if its recipe, epochs or teacher are not today's."""
    path, spec, each = plan.paths.labels(name, seed, index), plan.labels[name], plan.scale.label_epochs
    values = _read(plan, path, path)
    with record.whole(path):
        _at_home(plan, path, values, labels=name, seed=seed, shard=index)
        _unchanged(plan, path, Labels, values["spec"], spec)
        if values["epochs"] != [index * each, (index + 1) * each]:
            raise stale(plan, path, f"it covers epochs {values['epochs']}, but label_epochs is {each}")
        if values["teacher"]["weights_sha256"] != teacher(plan, spec.teacher_name)["weights_sha256"]:
            raise stale(plan, path, f"its teacher {spec.teacher_name} has other weights now")
    return values


def images_sha256(plan: Plan, stage: Stage, seed: int) -> str:
    """sha256 over the archives that a stage trains on, from the records of their shards."""
    assert stage.source is not None, "a stage that learns from real images has no archives"
    shards = range(stage.shards or stage.source.recipe.shards)
    return over(shard(plan, stage.source.name, seed, i)[0]["archive_sha256"] for i in shards)


def over(sums: Any) -> str:
    """One sha256 over those of several files, in order."""
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def diversity(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """The record that describes a set of images, `real` or a source's."""
    path = plan.paths.diversity(name, seed)
    values, source = _read(plan, path, path), plan.sources.get(name)
    with record.whole(path):
        _at_home(plan, path, values, source=name, seed=seed)
        _unchanged(plan, path, Diversity, values["spec"], plan.scale.diversity)
        if values["source_fingerprint"] != (fingerprint(source) if source else ""):
            raise stale(plan, path, "the recipe of its images has changed")
        _seen(plan, path, "main", {"train": values["data_sha256"]} if values["data_sha256"] else None)
        if source:
            shards = range(source.recipe.shards)
            if values["images_sha256"] != over(shard(plan, name, seed, i)[0]["archive_sha256"] for i in shards):
                raise stale(plan, path, f"the images of {name} have changed")
    return values


def pretrained(plan: Plan, label: str) -> dict[str, Any]:
    """The record of the evaluation of a pretrained peer."""
    path = plan.paths.pretrained(label)
    values = _read(plan, path, path)
    with record.whole(path):
        _at_home(plan, path, values, label=label)
        _unchanged(plan, path, Peer, values["spec"], plan.pretrained[label])
        _seen(plan, path, "main", {"test": values["data_sha256"]})
    return values


def architectures(plan: Plan, names: list[str]) -> dict[str, Any]:
    """The record of the size and throughput of architectures; InputError when it lacks one of `names`."""
    path = plan.paths.throughput
    values = _read(plan, path, path)
    with record.whole(path):
        _at_home(plan, path, values)
        _unchanged(plan, path, Throughput, values["spec"], plan.scale.throughput)
        if missing := [n for n in names if n not in values["architectures"]]:
            raise stale(plan, path, f"it has no {', '.join(missing[:3])}")
    return values


def described(plan: Plan, name: str, path: Path, verb: str) -> dict[str, Any]:
    """The record of a data set's lists (`subset`), or of their smaller copy (`presize`)."""
    values = _read(plan, path, path)
    with record.whole(path):
        try:
            same = build(Data, values["spec"], "recorded") == plan.scale.data[name]
        except InputError:
            same = False
        if not same:
            again = f"python -m dearkd {verb} {name} --scale {plan.argument}"
            raise Stale(f"{path}: stale record (data.{name} of the scale has changed); make it again: {again}")
    return values


def is_stale(check: Callable[[], Any]) -> bool:
    """Whether one of these functions finds a record of another plan. A record that cannot be read is not stale."""
    try:
        check()
    except Stale:
        return True
    except InputError:
        return False
    return False


def rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file, at least one; InputError naming it when it is missing, cut or not text."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        raise InputError(f"{path}: missing, though its record is there; bring it back, or run its job again") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); bring it back as it was, or run its job again") from None
    if not lines or any(None in line or None in line.values() for line in lines):
        raise InputError(f"{path}: it is empty or ends within a line; bring it back as it was, or run its job again")
    return lines


def _read(plan: Plan, path: Path, wanted: Path) -> dict[str, Any]:
    """A record. If it is missing, the error says how `wanted` and all that it needs are made."""
    if not path.is_file():
        raise InputError(f"{path}: record is missing; make it with `{commands.target(plan, wanted)}`")
    return record.read(path)


def _at_home(plan: Plan, path: Path, values: dict[str, Any], **place: Any) -> None:
    """Refuse a record that was copied here from another run, seed, stage or scale."""
    place = place if "teacher" in place else {"scale": plan.scale.name, **place}
    for key, expected in place.items():
        if values[key] != expected:
            raise stale(plan, path, f"its {key} is {values[key]}, not {expected}")


def _as_planned(plan: Plan, path: Path, recorded: list[Any], planned: tuple[Stage, ...]) -> None:
    if len(recorded) != len(planned):
        raise stale(plan, path, f"it has {len(recorded)} stages, and the plan has {len(planned)}")
    for one, other in zip(recorded, planned, strict=True):
        _unchanged(plan, path, Stage, one, other)


def _unchanged(plan: Plan, path: Path, cls: type, recorded: Any, planned: Any) -> None:
    """Refuse a recorded spec that differs from the planned one. A field that an old record lacks has its default."""
    try:
        known: Any = build(cls, recorded, "recorded")
        changed = record.differences(to_json(known), to_json(planned)) if known != planned else []
    except InputError as error:
        changed = [str(error)]
    if changed:
        raise stale(plan, path, "; ".join(changed[:3]))


def stale(plan: Plan, path: Path, why: str) -> Stale:
    """Return the error for a record, with the commands that make it and all later stages of its run again."""
    return Stale(f"{path}: stale record ({why}); make it again: {' && '.join(commands.again(plan, path))}")
