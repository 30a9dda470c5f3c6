"""The search that chooses the recipe of a scale: train rows with several settings and write their validation accuracy.

    python -m benchmarks.search workflow/search/epochs.yaml --processes 2 --minutes 60 --out results/converged/search

The YAML file (`Search`) lists trials in order of importance. A trial trains every row with every seed, with its
settings merged over the scale. No test image is read, and no seed that the scale reports. Each training adds a line to
OUT/<name of the YAML file>.csv when it ends; OUT/<name>.md has the means over seeds. A training that has its line is
not repeated, so the same command continues where the time ran out, on another machine too. Unfinished trainings leave
their checkpoints in checkpoints/search. The teacher is the one that is committed with the scale's records.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.workers import leave_with_parent
from dearkd import arithmetic, disk, record, strict_yaml
from dearkd.data import datasets, image_archive, subsets
from dearkd.errors import InputError, unknown
from dearkd.fingerprint import fingerprint
from dearkd.jobs.inputs import available_device
from dearkd.jobs.synthesis import Shard, make
from dearkd.model import teachers
from dearkd.model.teachers import FeatureShape
from dearkd.plan import experiments, methods
from dearkd.plan.paths import Paths
from dearkd.plan.scale import Scale
from dearkd.plan.stage import Data, Source, Stage, subset_name
from dearkd.schema import build, spec
from dearkd.stop import Interrupted
from dearkd.train.attempt import Attempt
from dearkd.train.inputs import Inputs
from dearkd.train.loop import train
from dearkd.train.processes import Processes

COLUMNS = ("trial", "row", "fraction", "seed", "epochs", "warmup_epochs", "lr", "validation_top1", "train_ce", "steps")
COLUMNS += ("seconds", "cpu", "torch", "fingerprint", "attention_distance", "image_seconds")
CHECKPOINTS = Path("checkpoints/search")


@spec
class Search:
    """A file of `workflow/search`."""

    scale: str
    """What every trial starts from."""
    seeds: tuple[int, ...]
    """None of them may be a seed that the scale reports."""
    rows: dict[str, Any]
    """By label: a method, its student and its switches, as a row of `workflow/experiments.yaml`."""
    trials: tuple[dict, ...]
    """Each with a `name`, its `rows`, what it would `set` in the scale, and `seeds` where they are not the search's."""


@spec
class Task:
    """One training of a search, perhaps after the training that it starts from."""

    trial: str
    row: str
    seed: int
    teachers: str
    """The scale whose committed teachers it learns from."""
    stages: tuple[Stage, ...]


def read(path: Path) -> list[Task]:
    """The trainings that a file asks for, in its order; InputError naming what does not fit."""
    search = build(Search, strict_yaml.read(path), str(path))
    tasks = []
    for i, trial in enumerate(search.trials, 1):
        where = f"{path}: trials, item {i}"
        for key in trial:
            if key not in ("name", "rows", "set", "seeds"):
                raise InputError(unknown(str(key), ("name", "rows", "set", "seeds"), "key", where))
        scale = experiments.load_scale(search.scale, trial.get("set", {}))
        seeds = trial.get("seeds", search.seeds)
        if reported := sorted({*seeds} & {*scale.seeds}):
            raise InputError(f"{where}: seeds {reported} are reported by scale {search.scale}; choose with others")
        for seed in seeds:
            for label in trial["rows"]:
                stages = _stages(scale, search.rows, label, where)
                tasks.append(Task(trial=trial["name"], row=label, seed=seed, teachers=search.scale, stages=stages))
    return tasks


def _stages(scale: Scale, rows: dict[str, Any], label: str, where: str) -> methods.Stages:
    if label not in rows:
        raise InputError(unknown(label, rows, "row", where))
    row = dict(rows[label])
    try:
        return methods.METHODS[row.pop("method")](scale, row.pop("student"), **row)
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: row {label}: {error}") from None


def run(task: Task, until: float, checkpoints: Path) -> dict[str, Any] | None:
    """Train one task in this process; its line of the CSV, or None where `until` (seconds since 1970) came first."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    state, seconds, image_seconds, distances = {}, 0.0, 0.0, []
    curve: list[dict[str, Any]] = []
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), _alarm(until):
            for chain in filter(None, (task.stages[0].initial, task.stages)):
                for i, stage in enumerate(chain):
                    if time.time() > until:
                        return None
                    identity = fingerprint(chain[: i + 1])
                    inputs = _inputs(task, stage, identity, state if i else None)
                    inputs = dataclasses.replace(inputs, initial=state["student"] if stage.initial else None)
                    if stage.source:
                        images, image_seconds = _synthetic(task, stage.source, checkpoints)
                        inputs = dataclasses.replace(inputs, train=images)
                    folder = checkpoints / identity / f"seed{task.seed}"
                    title = f"{task.trial}: {task.row}, seed {task.seed}"
                    with Attempt(folder, title, identity, save_seconds=300.0) as attempt:
                        state = train(stage, task.seed, inputs, attempt, Processes(available_device()))
                        seconds += attempt.seconds
                    curve += state["curve"]  # empty where the switch is at the last epoch
                    distances.append(" ".join(map(str, curve[-1].get("attention_distance", ()))))
    except Interrupted:
        return None
    recipe, last = task.stages[-1].training, curve[-1]
    return {
        "trial": task.trial,
        "row": task.row,
        "fraction": task.stages[-1].fraction,
        "seed": task.seed,
        "epochs": recipe.epochs,
        "warmup_epochs": recipe.warmup_epochs,
        "lr": recipe.lr,
        "validation_top1": last["validation_top1"],
        "train_ce": last["ce"],
        "steps": state["step"],
        "seconds": round(seconds, 1),
        "cpu": torch.cuda.get_device_name() if torch.cuda.is_available() else record.provenance()["hardware"]["cpu"],
        "torch": torch.__version__,
        "fingerprint": fingerprint(task.stages),
        "attention_distance": "; ".join(distances),
        "image_seconds": round(image_seconds, 1),
    }


@contextlib.contextmanager
def _alarm(until: float) -> Iterator[None]:
    """At `until`, the signal on which the loop saves and leaves; outside the loop this signal does nothing."""
    timer = threading.Timer(max(until - time.time(), 0), os.kill, (os.getpid(), signal.SIGURG))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _inputs(task: Task, stage: Stage, identity: str, previous: dict[str, Any] | None) -> Inputs:
    """What a stage works on, as `inputs.gather` gathers it, but without any record of this scale."""
    images = _read(stage.data)
    clean = _read(dataclasses.replace(stage.data, label_noise=0.0))
    lists = subsets.choose(clean.labels, stage.data, (stage.fraction, 100), stage.subset_seed, (task.seed,))
    chosen, everything = images.take(lists[stage.subset(task.seed)]), len(lists[subset_name(100)])
    taught_by, features = _teacher(task, stage)
    return Inputs(
        train=chosen,
        validation=clean.take(lists["validation"]),
        draws=everything if stage.training.subset_schedule == "iterations" else len(chosen),
        teacher=taught_by,
        features=features,
        fingerprint=identity,
        previous=previous,
    )


def _synthetic(task: Task, source: Source, checkpoints: Path) -> tuple[datasets.Images, float]:
    """(the images of a set, seconds that they took). ADI's need a student, which a search has not."""
    if source.student or source.verifier:
        raise InputError(f"row {task.row}: a search cannot make images of {source.name}, which compete with a student")
    folder, seconds, paths, names, labels = checkpoints / "images" / fingerprint(source), 0.0, [], [], []
    built = teachers.build(source.teacher, source.data, Paths(task.teachers).kept_weights(source.teacher_name))
    for index in range(source.recipe.shards):
        shard = Shard(source, task.seed, index, source.recipe.classes or range(source.data.classes))
        path = folder / f"seed{task.seed}" / f"shard-{index:04d}.zip"
        made = make(shard, built, None, path, Attempt(path.with_suffix(""), source.name, fingerprint(source), 300.0))
        lines = list(csv.DictReader(made["manifest"].splitlines()))
        names += [f"{path.name}/{line['image']}" for line in lines]
        labels += [int(line["label"]) for line in lines]
        seconds, paths = seconds + made["seconds"], [*paths, path]
    return image_archive.read(paths, names, np.array(labels), source.data.channels), seconds


@functools.cache
def _read(images: Data) -> datasets.Images:
    return datasets.read(images)["train"]


def _teacher(task: Task, stage: Stage) -> tuple[teachers.TeacherNetwork | None, tuple[FeatureShape, ...]]:
    """The committed teacher, and the shapes of its features that the stage needs."""
    if stage.teacher is None:
        return None, ()
    paths = Paths(task.teachers)
    found = record.read(paths.teacher(stage.teacher_name))["features"]
    wanted = tuple(s % len(found) for _, s in stage.pairs)
    built = teachers.build(stage.teacher, stage.data, paths.kept_weights(stage.teacher_name), wanted)
    shapes = [found[s] for s in wanted]
    return built.fold(), tuple(FeatureShape(f["channels"], tuple(f["size"]), f["nonnegative"]) for f in shapes)


def search(tasks: list[Task], processes: int, until: float, path: Path, checkpoints: Path = CHECKPOINTS) -> int:
    """Train in so many processes what `path` has no line of yet, until a time; returns how many are left."""
    done = {(line["fingerprint"], int(line["seed"])) for line in _lines(path)}
    wanted = {(fingerprint(t.stages), t.seed): t for t in reversed(tasks)}
    wanted = {key: t for key, t in reversed(wanted.items()) if key not in done}
    finished = 0
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), leave_with_parent) as pool:
        running = [pool.submit(run, task, until, checkpoints) for task in wanted.values()]
        for future in as_completed(running):
            if (line := future.result()) is not None:
                finished += 1
                _append(path, line)
                print(f"{line['trial']}: {line['row']}, seed {line['seed']}: {line['validation_top1']} %", flush=True)
    return len(wanted) - finished


def _lines(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = _lines(path)
    columns = [*earlier[0]] if earlier else COLUMNS  # a file that is older than a column continues without it
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        if not earlier:
            writer.writeheader()
        writer.writerow(line)


def table(lines: list[dict[str, str]]) -> str:
    """Markdown: for each row and trial, mean and standard deviation over seeds."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for line in lines:
        groups.setdefault((line["row"], line["trial"], line["epochs"], line["lr"]), []).append(line)
    made = any(float(line.get("image_seconds") or 0) for line in lines)
    heads = ["row", "trial", "epochs", "learning rate", "validation top-1 (%)", "train CE", "seconds"]
    heads += ["seconds of synthesis"] * made
    text = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for key, group in sorted(groups.items(), key=lambda item: (item[0][0], float(item[0][2]), item[0][1])):
        top1, ce, seconds = ([float(line[c]) for line in group] for c in ("validation_top1", "train_ce", "seconds"))
        spread = f" ± {statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
        middle = f"{statistics.mean(top1):.1f}{spread} ({len(top1)})"
        cells = [*key, middle, f"{statistics.mean(ce):.3f}", f"{statistics.mean(seconds):.0f}"]
        cells += [f"{statistics.mean(float(line.get('image_seconds') or 0) for line in group):.0f}"] * made
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="a file of workflow/search")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60, help="after which nothing is started or continued")
    parser.add_argument("--out", type=Path, default=Path("results/converged/search"), help="folder")
    given = parser.parse_args(arguments)
    until = time.time() + 60 * given.minutes
    arithmetic.ask()
    path = given.out / f"{given.file.stem}.csv"
    try:
        left = search(read(given.file), given.processes, until, path)
    except InputError as error:
        print(f"search: {error}", file=sys.stderr)
        return 2
    disk.write(path.with_suffix(".md"), table(_lines(path)))
    print(f"{path}: {left} trainings are left" if left else f"{path}: complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
