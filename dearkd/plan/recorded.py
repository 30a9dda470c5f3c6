"""An estimate of the time of a plan's jobs, from the records of finished jobs at this scale and others of this folder.

A job without a record is taken to need as long an epoch, or an image, as the most similar recorded jobs.
"""

import os
import statistics
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dearkd import record
from dearkd.errors import InputError
from dearkd.plan.needs import needed
from dearkd.plan.plan import Plan, Run
from dearkd.plan.stage import Source
from dearkd.schema import to_json

DONE = "by their own records"
LIKE = (
    "by records of the same network and losses",
    "by records of the same network with other losses",
    "by records of a network of the same width and depth",
)
"""Kinds of similarity between a recorded job and another, the nearest first."""
SHAPE = ("embed_dim", "depth", "patch_size")


class Job(NamedTuple):
    """A stage of a run and seed, or a shard of images."""

    place: tuple[Hashable, ...]
    name: str
    amount: float
    """Epochs of a stage; images of a shard."""
    likes: tuple[Hashable, ...]
    """The features that similar jobs share, one for each entry of `LIKE` that applies."""
    seconds: float = 0.0
    """Its seconds, times its cores on a CPU."""
    hardware: str = ""
    on_gpu: bool = False


class Estimate(NamedTuple):
    """Seconds of one core, or of one GPU."""

    jobs: int
    done: int
    seconds: float
    left: float
    """Seconds of the jobs that are not done."""
    by: dict[str, dict[str, int]]
    """Number of jobs, by the hardware of the records that are used and by the kind of similarity."""
    unlike: list[str]
    """Names of runs and sets of images for which no similar job has a record."""


def estimate(plan: Plan, runs: Iterable[Run], sources: Iterable[str] = ()) -> Estimate:
    """Return the time of runs and sets of images, with all that they need."""
    own = {job.place: job for job in _recorded()}
    paces: dict[Hashable, dict[str, list[float]]] = {}
    for job in (job for job in own.values() if job.on_gpu == _on_gpu(plan)):
        for like in job.likes:
            paces.setdefault(like, {}).setdefault(job.hardware, []).append(job.seconds / job.amount)
    by: dict[str, dict[str, int]] = {}
    jobs, done, seconds, left, unlike = 0, 0, 0.0, 0.0, []
    for job in _planned(plan, needed(plan, runs, sources)):
        jobs += 1
        if (mine := own.get(job.place)) is not None:
            done, how, hardware = done + 1, DONE, mine.hardware
            spent = mine.seconds if mine.on_gpu == _on_gpu(plan) else 0.0
        else:
            how, hardware, spent = _pace(job, paces)
            left += spent
        seconds += spent
        if how:
            counts = by.setdefault(hardware, dict.fromkeys((DONE, *LIKE), 0))
            counts[how] += 1
        else:
            unlike.append(job.name)
    return Estimate(jobs, done, seconds, left, by, list(dict.fromkeys(unlike)))


def _pace(job: Job, paces: dict[Hashable, dict[str, list[float]]]) -> tuple[str, str, float]:
    """(how, whose hardware, seconds) by the records nearest to a job; on this machine's CPU where it has some."""
    for how, like in zip(LIKE, job.likes, strict=False):
        if like in paces:
            known = paces[like]
            here = record.cpu_name()
            hardware = here if here in known else max(known, key=lambda name: len(known[name]))
            return how, hardware, job.amount * statistics.median(known[hardware])
    return "", "", 0.0


def _planned(plan: Plan, each: Iterable[Run | Source]) -> Iterator[Job]:
    scale = plan.scale.name
    for one in each:
        if isinstance(one, Source):
            likes, amount = _likes_of_images(to_json(one)), one.recipe.made(1)
            for seed in plan.scale.seeds:
                places = ((scale, one.name, seed, i, likes[0]) for i in range(one.recipe.shards))
                yield from (Job(place, one.name, amount, likes) for place in places)
        else:
            for stage in one.stages:
                likes, amount = _likes_of_stage(to_json(stage)), stage.last_epoch - stage.first_epoch
                rest = (stage.name, one.fingerprint(stage.name))
                yield from (Job((scale, one.name, seed, *rest), one.name, amount, likes) for seed in one.seeds)


def _on_gpu(plan: Plan) -> bool:
    return plan.resources("train").gpu > 0


def _recorded() -> Iterator[Job]:
    """Return the recorded jobs of all scales. A record that cannot be read is ignored."""
    for pattern, read in (("runs/*/seed*/*.json", _stage), ("images/*/seed*/shard-*.json", _shard)):
        for path in sorted(Path("results").glob(f"*/{pattern}")):
            try:
                values = record.read(path)
                on_gpu = values["hardware"]["device"] != "cpu"
                if (job := read(values)) and job.seconds > 0 < job.amount:
                    hardware = values["hardware"]["device" if on_gpu else "cpu"]
                    yield job._replace(hardware=hardware, on_gpu=on_gpu)
            except (InputError, KeyError, TypeError, IndexError, AttributeError, ValueError):
                continue


def _stage(values: dict[str, Any]) -> Job | None:
    if record.kind(values) != "stage":
        return None
    spec, place = values["specs"][-1], tuple(values[key] for key in ("scale", "run", "seed", "stage", "fingerprint"))
    spent = record.seconds(values) * (values.get("threads", 1) if values["hardware"]["device"] == "cpu" else 1)
    return Job(place, values["run"], spec["last_epoch"] - spec["first_epoch"], _likes_of_stage(spec), spent)


def _shard(values: dict[str, Any]) -> Job:
    likes = _likes_of_images(values["spec"])
    place = (values["scale"], values["source"], values["seed"], values["shard"], likes[0])
    return Job(place, values["source"], values["images"], likes, record.seconds(values))


def _likes_of_stage(spec: dict[str, Any]) -> tuple[Hashable, ...]:
    """From a stage's spec as JSON: the settings on which its seconds an epoch depend, from most to fewest."""
    training, source = spec["training"], spec["source"]
    images: list[Any] = ["all"]
    if training["subset_schedule"] == "epochs":
        images = [source["recipe"]["images"], spec["shards"]] if source else [spec["fraction"]]
    data = [spec["data"][key] for key in ("kind", "root", "image_size", "channels", "validation")]
    common = [data, images, training["batch"], training["micro_batch"], training["precision"]]
    args = dict(spec["model"]["args"])
    shape = [args.get(key) for key in SHAPE]
    losses = [[loss for loss, _ in spec["losses"]], (spec["teacher"] or {}).get("model")]
    likes = ([*common, spec["model"], losses], [*common, spec["model"]], [*common, shape])
    return tuple(repr(like) for like in (likes if None not in shape else likes[:2]))


def _likes_of_images(spec: dict[str, Any]) -> tuple[Hashable, ...]:
    """From a source's spec as JSON: the settings on which its seconds an image depend."""
    recipe, teacher, data = spec["recipe"], spec["teacher"], spec["data"]
    phases, pixels = recipe["phases"], [data["image_size"], data["channels"]]
    terms = [name for name, _ in spec["terms"]]
    return (repr([terms, phases, recipe.get("fast"), pixels, teacher["model"], teacher["args"]]),)


def describe(plan: Plan, found: Estimate, gpus: int) -> str:
    """The estimate as aligned lines; how long it takes side by side on this machine's cores, or on `gpus` GPUs."""
    unit, several = ("GPU", gpus) if _on_gpu(plan) else ("core", os.cpu_count() or 1)
    lines = [("jobs", f"{found.jobs:,} trainings and shards of images, {found.done:,} of them done")]
    if found.seconds:
        beside = f", {_time(found.left / several)} on {several} {unit}{'s' * (several > 1)}" if found.left else ""
        lines.append((f"{unit} time", f"{_time(found.seconds)} in all, {_time(found.left)} to come{beside}"))
    for hardware, counts in found.by.items():
        lines.append(("taken from", f"{hardware}: " + ", ".join(f"{n:,} {how}" for how, n in counts.items() if n)))
    if found.unlike:
        some = ", ".join(found.unlike[:3]) + f" and {len(found.unlike) - 3} more" * (len(found.unlike) > 3)
        lines.append(
            (
                "not counted",
                f"{some}: no finished job is like theirs; `plan` counts them after a first job of each kind",
            )
        )
    return "\n".join(f"{name:<15}{value}" for name, value in lines)


def _time(seconds: float) -> str:
    if not seconds:
        return "nothing"
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{max(seconds / 60, 1):,.0f} minutes"
