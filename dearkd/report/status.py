"""The state of a scale's runs: done, running, stopped, stale or missing, how far, and the time left."""

import collections
import contextlib
import functools
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dearkd import record
from dearkd.errors import InputError
from dearkd.plan import files, verify
from dearkd.plan.plan import Plan, Run

CHECKPOINT = re.compile(r"step-(\d+)-[0-9a-f]+\.pt")


class Standing(NamedTuple):
    """A stage of a run and seed."""

    run: str
    seed: int
    stage: str
    state: str
    """done, stale, running, stopped (a checkpoint exists and no job runs) or missing."""
    step: int = 0
    steps: int = 0
    """Steps of the whole run; 0 before the subsets are written."""
    seconds_left: float | None = None
    """Seconds left; None where the stage does not run, or the pace is not known yet."""
    note: str = ""


def standings(plan: Plan, runs: list[Run], held: set[Path]) -> list[Standing]:
    """Every stage of every seed of the runs. held: folders of checkpoints on which a job works now.

    A stage is stale when some of its images were added, removed or changed on this machine.
    """
    data = dict.fromkeys(s.data_name for run in runs for s in run.stages)
    changed = {name: files.changes(plan, name) for name in data if files.here(plan, name)}
    return [_stage(plan, run, seed, name, held, changed) for run in runs for seed in run.seeds for name in _names(run)]


def describe(found: list[Standing], shown: Mapping[str, set[str]] | None = None) -> str:
    """A line for each stage that is not done, one for all seeds that miss it, then the counts.

    shown: names of runs by table or figure. With it a line for each table or figure counts the missing stages,
    instead of a line for each missing stage.
    """
    missing: dict[tuple[str, str], list[int]] = {}
    for s in found:
        if s.state == "missing":
            missing.setdefault((s.run, s.stage), []).append(s.seed)
    lines = [
        f"{s.state:<9}{s.run} {_seeds(missing[s.run, s.stage] if s.state == 'missing' else [s.seed])} stage {s.stage}"
        + (f"  step {s.step:,} of {s.steps:,} ({100 * s.step // s.steps} %)" if s.step and s.steps else "")
        + (f"  {_duration(s.seconds_left)} left" if s.seconds_left is not None else "")
        + (f"  {s.note}" if s.note else "")
        for s in found
        if s.state != "done"
        and (s.state != "missing" or (s.seed == missing[s.run, s.stage][0] and (s.note or not shown)))
    ]
    lines += [f"{name:<9}{_counts([s for s in found if s.run in runs])}" for name, runs in (shown or {}).items()]
    return "\n".join([*lines, f"{'all':<9}{_counts(found)}" if shown else _counts(found)])


def images(plan: Plan, names: Iterable[str]) -> list[str]:
    """A line for each of these sets of images: how many of its shards, for all seeds, are done."""
    lines = []
    for name in names:
        places = [(seed, i) for seed in plan.scale.seeds for i in range(plan.sources[name].recipe.shards)]
        made = [place for place in places if plan.paths.shard(name, *place).is_file()]
        stale = sum(verify.is_stale(functools.partial(verify.shard, plan, name, *place)) for place in made)
        said = f"{name}: {len(made) - stale} of {len(places)} shards of images done"
        lines.append(said + f", {stale} stale" * bool(stale))
    return lines


def _counts(found: list[Standing]) -> str:
    counts = collections.Counter(s.state for s in found)
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no runs"


def _names(run: Run) -> list[str]:
    return [stage.name for stage in run.stages]


def _stage(plan: Plan, run: Run, seed: int, name: str, held: set[Path], changed: dict[str, str]) -> Standing:
    path, folder = plan.paths.stage(run.name, seed, name), plan.paths.state(run.name, seed, name)
    steps = _steps(plan, run, name)
    saved = _saved(folder, run.fingerprint(name), steps)
    if folder in held:
        left = _left(saved, steps)
        return Standing(run.name, seed, name, "running", saved[-1][0] if saved else 0, steps, left)
    if path.is_file():
        try:
            verify.stages(plan, run, seed, name)
            data = run.stage(name).data_name
            if changed.get(data):
                raise InputError(f"images of {data}: {changed[data]} since; put them back, or run `subset {data}`")
        except InputError as error:
            return Standing(run.name, seed, name, "stale", steps, steps, note=str(error))
        return Standing(run.name, seed, name, "done", steps, steps)
    if saved:
        return Standing(run.name, seed, name, "stopped", saved[-1][0], steps)
    note = "its checkpoints are of another recipe" if any(folder.glob("step-*.pt")) else ""
    return Standing(run.name, seed, name, "missing", 0, steps, note=note)


def _steps(plan: Plan, run: Run, name: str) -> int:
    """Number of steps at the end of a stage; 0 where the size of its data is not known yet."""
    stage, listed = run.stage(name), plan.paths.subsets(run.stage(name).data_name) / "data.json"
    if not listed.is_file():
        return 0
    images = record.read(listed)["images"]
    draws = images["train-100"]
    if stage.training.subset_schedule == "epochs":
        draws = stage.source.recipe.made(stage.shards) if stage.source else images[f"train-{stage.fraction}"]
    return stage.last_epoch * (draws // stage.training.batch)


def _saved(folder: Path, fingerprint: str, steps: int) -> list[tuple[int, float]]:
    """(step, time) of the checkpoints of this recipe, oldest first.

    A checkpoint belongs to the last attempt that began before it. One beyond the last step is of other data.
    """
    attempts = sorted(_attempts(folder))
    found = []
    for path in folder.glob("*.pt"):
        if (match := CHECKPOINT.fullmatch(path.name)) and (not steps or int(match[1]) <= steps):
            written = path.stat().st_mtime
            of = [of for began, of in attempts if began <= written]
            if not attempts or of[-1:] == [fingerprint]:
                found.append((int(match[1]), written))
    return sorted(found)


def _attempts(folder: Path) -> Iterator[tuple[float, str]]:
    """(begin, fingerprint) of each attempt at a stage, as its lease notes them."""
    for path in folder.glob("attempt-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads(path.read_text())
            yield float(values["began"]), str(values["of"])


def _left(saved: list[tuple[int, float]], steps: int) -> float | None:
    """Seconds to the end at the pace of the last two checkpoints."""
    if len(saved) < 2 or saved[-1][1] <= saved[-2][1] or not steps:
        return None
    pace = (saved[-1][0] - saved[-2][0]) / (saved[-1][1] - saved[-2][1])
    return max((steps - saved[-1][0]) / pace - (time.time() - saved[-1][1]), 0.0) if pace > 0 else None


def _seeds(seeds: list[int]) -> str:
    """Seeds as text: `seed 3`, or `seeds 1 to 3, 7` for 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    words = ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans)
    return f"seed{'s' * (len(seeds) > 1)} {words}"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"
