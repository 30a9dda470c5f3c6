"""The commands that make missing or stale files again. Error messages print them as the way out.

They do not use Snakemake, because Snakemake deletes a job's outputs before the job runs, and does not repeat jobs whose
committed records exist.
"""

import itertools
import shlex
from pathlib import Path

from dearkd.places import snakemake
from dearkd.plan.plan import Plan, Run
from dearkd.plan.stage import Stage


def run(plan: Plan, run: Run, seed: int) -> list[str]:
    """Return the commands that make a run's weights, its evaluation and their missing inputs, in order."""
    found = []
    for stage in run.stages:
        found += _needed(plan, run, seed, stage)
        found.append(_command(plan, "train", run.name, seed=seed, stage=stage.name))
    if run.method != "teacher":
        found.append(_command(plan, "evaluate", run.name, seed=seed))
    return list(dict.fromkeys(found))


def teacher(plan: Plan, name: str) -> list[str]:
    """Return the commands that put a teacher's weights where jobs read them."""
    own = plan.teacher_run(name)
    return [*(_weights(plan, own, 0) if own else []), _command(plan, "teacher", name)]


def shard(plan: Plan, name: str, seed: int, index: int) -> str:
    """Return the commands that make a shard of a source's images."""
    return _command(plan, "synthesize", name, seed=seed, shard=index)


def labels(plan: Plan, name: str, seed: int, index: int) -> str:
    """Return the commands that make a shard of a teacher's labels."""
    return _command(plan, "labels", name, seed=seed, shard=index)


def target(plan: Plan, *targets: Path | str) -> str:
    """Return the Snakemake command that makes missing records, tables or figures."""
    return f"{snakemake()} --config scale={plan.argument} -- {shlex.join(map(str, targets))}"


def again(plan: Plan, path: Path) -> list[str]:
    """Return the commands that make the record at `path` again. Its path tells which job it is of."""
    paths, seeds = plan.paths, plan.scale.seeds
    for of in plan.runs.values():
        for seed in of.seeds:
            if path in [paths.stage(of.name, seed, stage.name) for stage in of.stages]:
                return run(plan, of, seed)
            if path == paths.metrics(of.name, seed):
                return [*_weights(plan, of, seed), _command(plan, "evaluate", of.name, seed=seed)]
    for name in plan.scale.teachers:
        if path == paths.teacher(name):
            own = plan.teacher_run(name)
            return [*(run(plan, own, 0) if own else []), _command(plan, "teacher", name)]
    for name, seed in itertools.product(["real", *plan.sources], seeds):
        if path == paths.diversity(name, seed):
            return [_command(plan, "diversity", name, seed=seed)]
    for (name, source), seed in itertools.product(plan.sources.items(), seeds):
        for i in range(source.recipe.shards):
            if path == paths.shard(name, seed, i):
                return [shard(plan, name, seed, i)]
    for label in plan.pretrained:
        if path == paths.pretrained(label):
            return [_command(plan, "pretrained", label)]
    if path == paths.throughput:
        return [f"python -m dearkd throughput --scale {plan.argument}"]
    return [labels(plan, path.parts[-3], int(path.parts[-2].removeprefix("seed")), int(path.stem))]


def _needed(plan: Plan, run: Run, seed: int, stage: Stage) -> list[str]:
    """Return the commands that make the missing inputs of a stage."""
    found = []
    if not (plan.paths.subsets(stage.data_name) / "data.json").is_file():
        found.append(_command(plan, "subset", stage.data_name))
    if stage.data.presize and not stage.source and not plan.paths.presized(stage.data_name).is_file():
        found.append(_command(plan, "presize", stage.data_name))
    if stage.teacher_name:
        found += _teacher(plan, stage.teacher_name)
    if run.initial:
        found += _weights(plan, plan.run(run.initial), seed)
    if stage.source:
        shards = range(stage.shards or stage.source.recipe.shards)
        found += [c for i in shards for c in _shard(plan, stage.source.name, seed, i)]
    if of := plan.labels_of(stage):
        missing = [i for i in plan.label_shards(stage) if not plan.paths.label_file(of.name, seed, i).is_file()]
        found += [labels(plan, of.name, seed, i) for i in missing]
    return found


def _shard(plan: Plan, name: str, seed: int, index: int) -> list[str]:
    if plan.paths.archive(name, seed, index).is_file():
        return []
    source, rival = plan.sources[name], plan.competitor(name, index)
    found = _teacher(plan, source.teacher_name)
    found += _weights(plan, rival, seed) if rival else []
    found += _teacher(plan, source.recipe.verifier) if source.verifier else []
    return [*found, shard(plan, name, seed, index)]


def _teacher(plan: Plan, name: str) -> list[str]:
    kept = (plan.paths.teacher_weights(name), plan.paths.kept_weights(name))
    return [] if any(path.is_file() for path in kept) else teacher(plan, name)


def _weights(plan: Plan, of: Run, seed: int) -> list[str]:
    weights = plan.paths.state(of.name, seed, of.stages[-1].name) / "student.safetensors"
    return [] if weights.is_file() else run(plan, of, seed)


def _command(plan: Plan, verb: str, name: str, **options: object) -> str:
    rest = "".join(f" --{key} {value}" for key, value in options.items())
    return f"python -m dearkd {verb} {shlex.quote(name)} --scale {plan.argument}{rest}"
