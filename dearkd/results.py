"""Records on disk to one tidy frame; a record that does not fit the plan is refused, never shown.

Read layer: pandas; never torch.
"""

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from dearkd import record
from dearkd.plan import Plan, Run
from dearkd.scale import Diversity, Peer, Throughput
from dearkd.schema import InputError, build, fingerprint, to_json
from dearkd.spec import Stage, Teacher

REFERENCE = re.compile(r"deit_(tiny|small|base)_patch16_224")
"""The models to whose throughput others are compared."""


def load(plan: Plan, runs: list[Run]) -> pd.DataFrame:
    """One line per run and seed that has been evaluated: run, seed, dirty, tested (number of images), and each metric.

    Raises InputError, naming the run and the command that mends it, when a record differs from today's plan, or when
    evaluation, stages and teacher do not belong together. A run that has no record is left out.
    """
    lines = []
    for run in runs:
        for seed in run.seeds:
            path = plan.paths.metrics(run.name, seed)
            if not path.is_file():
                continue
            stages = check(plan, run, seed)
            metrics = record.read(path)
            if metrics["weights_sha256"] != stages[-1]["weights_sha256"]:
                raise _stale(plan, path, "it measured other weights than its last stage made")
            if metrics["data"]["sha256"] != stages[-1]["data"]["sha256"]["test"]:
                raise _stale(plan, path, "it measured other test images than today's")
            dirty = any(r["git"]["dirty"] for r in (*stages, metrics))
            tested = metrics["data"]["images"]
            lines.append({"run": run.name, "seed": seed, "dirty": dirty, "tested": tested, **metrics["metrics"]})
    return pd.DataFrame(lines, columns=None if lines else ["run", "seed", "dirty"])


def pretrained(plan: Plan, labels: list[str]) -> pd.DataFrame:
    """One line per evaluated system whose weights others have trained: run (its label), seed 0, dirty, metrics."""
    lines = []
    for label in labels:
        path = plan.paths.pretrained(label)
        if path.is_file():
            values = record.read(path)
            changed = _changes(Peer, values["spec"], plan.pretrained[label])
            if values["data_sha256"] != data_sha256(plan, "main", {"test": values["data_sha256"]})["test"]:
                changed.append("it measured other test images than today's")
            if changed:
                raise _stale(plan, path, "; ".join(changed[:3]))
            lines.append(
                {"run": label, "seed": 0, "dirty": values["git"]["dirty"], "source": "pretrained", **values["metrics"]}
            )
    return pd.DataFrame(lines, columns=None if lines else ["run", "seed", "dirty"])


def architectures(plan: Plan, names: list[str]) -> pd.DataFrame:
    """One line per architecture: run (its name), seed 0, dirty, parameters, gmacs, input_size, throughput and ratio.

    throughput: images/s, median of the timed passes, bf16 on a GPU and fp32 elsewhere. ratio: to that of the DeiT
    nearest in parameters; `_dense`: DearKD's with the bias stored as a matrix.
    """
    path = plan.paths.throughput
    if not names or not path.is_file():
        return pd.DataFrame(columns=["run", "seed", "dirty"])
    values = record.read(path)
    measured = values["architectures"]
    if changed := _changes(Throughput, values["spec"], plan.scale.throughput):
        raise _stale(plan, path, "; ".join(changed[:3]))
    if missing := [n for n in names if n not in measured]:
        raise _stale(plan, path, f"it lacks {', '.join(missing[:3])}")
    lines = []
    references = [n for n in names if REFERENCE.fullmatch(n.partition(".")[0])]
    for name in names:
        one = measured[name]
        line = {"run": name, "seed": 0, "dirty": values["git"]["dirty"], "parameters": one["parameters"] / 1e6}
        line |= {k: one[k] for k in ("gmacs", "input_size")}
        nearest = min(references, key=lambda r: abs(math.log(measured[r]["parameters"] / one["parameters"])))
        precision = next((p for p in ("bf16", "fp32") if p in one), None)
        if precision is not None:
            base = measured[nearest][precision]["median"]
            line |= {"throughput": one[precision]["median"], "ratio": one[precision]["median"] / base}
            if f"{precision}_dense" in one:
                line["ratio_dense"] = one[f"{precision}_dense"]["median"] / base
        lines.append(line)
    return pd.DataFrame(lines)


def diversity(plan: Plan, names: list[str]) -> pd.DataFrame:
    """One line per set of images and seed that has been described: run (the set), seed, dirty, and each metric.

    A control of a set, what LPIPS makes of it blurred or noisy, has a line of its own: run `set~control`. A set without
    a record is left out. Raises InputError when a record differs from today's plan.
    """
    lines = []
    for name in names:
        for seed in plan.scale.seeds:
            path = plan.paths.diversity(name, seed)
            if not path.is_file():
                continue
            values = record.read(path)
            changed = _changes(Diversity, values["spec"], plan.scale.diversity)
            if values["source_fingerprint"] != (fingerprint(plan.sources[name]) if name in plan.sources else ""):
                changed.append("the recipe of its images has changed")
            if values["data_sha256"] not in ("", data_sha256(plan, "main", {"train": values["data_sha256"]})["train"]):
                changed.append("the real images are others now")
            if changed:
                raise _stale(plan, path, "; ".join(changed[:3]))
            line = {"run": name, "seed": seed, "dirty": values["git"]["dirty"]}
            lines.append({**line, **values["metrics"]})
            # records made before there were controls have none
            lines += [{**line, "run": f"{name}~{k}", **v} for k, v in values.get("controls", {}).items()]
    return pd.DataFrame(lines, columns=None if lines else ["run", "seed", "dirty"])


def check(plan: Plan, run: Run, seed: int) -> list[dict[str, Any]]:
    """The stage records of a run and seed, each compared with the plan and with the one before it."""
    found: list[dict[str, Any]] = []
    for position, stage in enumerate(run.stages):
        path = plan.paths.stage(run.name, seed, stage.name)
        values = record.read(path)
        for spec, planned in zip(values["specs"], run.stages[: position + 1], strict=True):
            changed = _changes(Stage, spec, planned)
            if changed:
                raise _stale(plan, path, "; ".join(changed[:3]))
        if found and values["previous_sha256"] != found[-1]["weights_sha256"]:
            raise _stale(
                plan, path, f"it went on from other weights than {run.stages[position - 1].name}.json describes"
            )
        if (
            stage.teacher_name
            and values["teacher"]["weights_sha256"] != teacher(plan, stage.teacher_name)["weights_sha256"]
        ):
            raise _stale(plan, path, f"its teacher {stage.teacher_name} has other weights now")
        if run.initial:
            before = plan.run(run.initial)
            last = record.read(plan.paths.stage(before.name, seed, before.stages[-1].name))
            if values["initial"]["weights_sha256"] != last["weights_sha256"]:
                raise _stale(plan, path, f"{before.name}, from which it starts, has other weights now")
        if values["data"]["sha256"] != data_sha256(plan, stage.data_name, values["data"]["sha256"]):
            raise _stale(plan, path, f"the images of {stage.data_name} are others now")
        if stage.source and values["data"]["images_sha256"] != images_sha256(plan, stage, seed):
            raise _stale(plan, path, f"the images of {stage.source.name} are others now")
        found.append(values)
    return found


def data_sha256(plan: Plan, name: str, default: dict[str, str]) -> dict[str, str]:
    """What the record of data set `name` says of its train and test images; `default` where it is not here."""
    path = plan.paths.subsets(name) / "data.json"
    return record.read(path)["sha256"] if path.is_file() else default


def images_sha256(plan: Plan, stage: Stage, seed: int) -> str:
    """sha256 over the archives that a stage trains on, from the records of their shards."""
    name = stage.source.name
    shards = range(stage.shards or stage.source.recipe.shards)
    sums = [record.read(plan.paths.shard(name, seed, i))["archive_sha256"] for i in shards]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def teacher(plan: Plan, name: str) -> dict[str, Any]:
    """The record of a teacher; refused when the scale names another one now."""
    path = plan.paths.teacher(name)
    values = record.read(path)
    changed = _changes(Teacher, values["spec"], plan.scale.teachers[name])
    if changed:
        raise _stale(plan, path, "; ".join(changed[:3]))
    return values


def curves(plan: Plan, runs: list[Run]) -> pd.DataFrame:
    """Training curves: one line per run, seed, epoch and quantity (columns run, seed, epoch, name, layer, value)."""
    lines = []
    for run in runs:
        for seed in run.seeds:
            if not plan.paths.stage(run.name, seed, run.stages[-1].name).is_file():
                continue
            for values in check(plan, run, seed):
                for entry in values["curve"]:
                    for name, value in entry.items():
                        layers = enumerate(value, 1) if isinstance(value, list) else [(0, value)]
                        lines += [
                            {
                                "run": run.name,
                                "seed": seed,
                                "epoch": entry["epoch"],
                                "name": name,
                                "layer": layer,
                                "value": v,
                            }
                            for layer, v in layers
                            if name != "epoch"
                        ]
    return pd.DataFrame(lines, columns=["run", "seed", "epoch", "name", "layer", "value"])


def _changes(cls: type, recorded: dict[str, Any], planned: Any) -> list[str]:
    """How a recorded spec differs from the planned one; a field the record does not know has its default."""
    try:
        return record.differences(to_json(build(cls, recorded, "recorded")), to_json(planned))
    except InputError as error:
        return [str(error)]


def _stale(plan: Plan, path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: stale record ({why}); make it again with "
        f"`snakemake -c2 --config scale={plan.scale.name} --forcerun {path} -- all`"
    )
