"""One tidy frame from the records on disk. A record that does not match the plan is refused."""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from dearkd import record
from dearkd.plan import verify
from dearkd.plan.plan import Plan, Run

REFERENCE = re.compile(r"deit_(tiny|small|base)_patch16_224")
"""The models to whose throughput others are compared."""


def load(plan: Plan, runs: list[Run]) -> pd.DataFrame:
    """One line per run and seed that has been evaluated: run, seed, dirty, right, and each metric.

    right: for each test image whether the run has it right (boolean array), in the order of the data set. Raises
    InputError as `verify.evaluation` does. A run without a record is left out.
    """
    lines = []
    for run in runs:
        for seed in run.seeds:
            if plan.paths.metrics(run.name, seed).is_file():
                trained, tested = verify.evaluation(plan, run, seed)
                line = {"run": run.name, "seed": seed, "dirty": any(r["git"]["dirty"] for r in (*trained, tested))}
                lines.append({**line, "right": _right(plan, run, seed), **tested["metrics"]})
    return pd.DataFrame(lines, columns=None if lines else ["run", "seed", "dirty"])


def _right(plan: Plan, run: Run, seed: int) -> np.ndarray:
    predicted = pd.read_csv(plan.paths.metrics(run.name, seed).with_name("predictions.csv"), usecols=["label", "top1"])
    return (predicted["label"] == predicted["top1"]).to_numpy()


def pretrained(plan: Plan, labels: list[str]) -> pd.DataFrame:
    """One line per evaluated pretrained peer: run (its label), seed 0, dirty, metrics."""
    lines = []
    for label in labels:
        if plan.paths.pretrained(label).is_file():
            values = verify.pretrained(plan, label)
            lines.append(
                {"run": label, "seed": 0, "dirty": values["git"]["dirty"], "source": "pretrained", **values["metrics"]}
            )
    return pd.DataFrame(lines, columns=None if lines else ["run", "seed", "dirty"])


def architectures(plan: Plan, names: list[str]) -> pd.DataFrame:
    """One line per architecture: run (its name), seed 0, dirty, parameters, gmacs, input_size, throughput and ratio.

    throughput: images/s, median of the timed passes, bf16 on a GPU and fp32 elsewhere. ratio: throughput divided by
    that of the DeiT nearest in parameters. ratio_dense: the same for DearKD with the bias stored as a matrix.
    """
    if not names or not plan.paths.throughput.is_file():
        return pd.DataFrame(columns=["run", "seed", "dirty"])
    values = verify.architectures(plan, names)
    measured = values["architectures"]
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


def synthesis(plan: Plan, runs: list[Run]) -> pd.DataFrame:
    """One line per evaluated run on synthetic images and seed: run, seed, dirty, and what its images cost.

    images: how many. image_seconds: wall-clock time from the teacher to the images, by image. per_minute: the run's
    accuracy by minutes that all images took.
    """
    lines = []
    for run in runs:
        source = run.stages[-1].source
        for seed in run.seeds:
            if source and plan.paths.metrics(run.name, seed).is_file():
                top1 = verify.evaluation(plan, run, seed)[1]["metrics"]["top1"]
                seconds = _making(plan, source.name, seed)
                line = {"run": run.name, "seed": seed, "dirty": False, "per_minute": top1 / (seconds / 60)}
                lines.append({**line, "images": source.recipe.made(), "image_seconds": seconds / source.recipe.made()})
    return pd.DataFrame(lines, columns=None if lines else ["run", "seed", "dirty"])


def _making(plan: Plan, name: str, seed: int) -> float:
    """Seconds of all jobs from the teacher to a set of images; ADI's students, and the images they began with, too."""
    shards = [verify.shard(plan, name, seed, i)[0] for i in range(plan.sources[name].recipe.shards)]
    students = [plan.runs[run] for run in plan.competitors[name]]
    trained = [record for run in students for record in verify.stages(plan, run, seed)]
    before = {stage.source.name for run in students for stage in run.stages if stage.source} - {name}
    return sum(r["seconds"] for r in (*shards, *trained)) + sum(_making(plan, each, seed) for each in before)


def diversity(plan: Plan, names: list[str]) -> pd.DataFrame:
    """One line per set of images and seed that has been described: run (the set), seed, dirty, and each metric.

    A control of a set, which is LPIPS of the blurred or noisy images, has a line of its own: run `set~control`. A set
    without a record is left out. Raises InputError as `verify.diversity` does.
    """
    lines = []
    for name in names:
        for seed in plan.scale.seeds:
            if plan.paths.diversity(name, seed).is_file():
                values = verify.diversity(plan, name, seed)
                line = {"run": name, "seed": seed, "dirty": values["git"]["dirty"]}
                lines.append({**line, **values["metrics"]})
                # older records have no controls
                lines += [{**line, "run": f"{name}~{k}", **v} for k, v in values.get("controls", {}).items()]
    return pd.DataFrame(lines, columns=None if lines else ["run", "seed", "dirty"])


def class_names(plan: Plan) -> dict[int, str]:
    """The names of the main data set's classes by label, from the record of its lists.

    Empty where there is no record, where classes have no names, and for records that are older than this field.
    """
    path = plan.paths.subsets("main") / "data.json"
    if not path.is_file():
        return {}
    values = verify.described(plan, "main", path, "subset")
    with record.whole(path):
        return {int(label): str(name) for label, name in values.get("class_names", {}).items()}


def curves(plan: Plan, runs: list[Run]) -> pd.DataFrame:
    """Training curves: one line per run, seed, epoch and quantity (columns run, seed, epoch, name, layer, value)."""
    lines = []
    for run in runs:
        for seed in run.seeds:
            if not plan.paths.stage(run.name, seed, run.stages[-1].name).is_file():
                continue
            for values in verify.stages(plan, run, seed):
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


def entries(frame: pd.DataFrame) -> Iterator[Any]:
    """The lines of a frame in order; each has the value of a column, of whatever type, as an attribute."""
    return iter(frame.itertuples())
