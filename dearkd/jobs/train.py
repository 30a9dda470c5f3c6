"""The job that trains one stage of one run: it gathers the inputs, trains, and writes the record."""

from pathlib import Path

import torch

from dearkd import disk, record
from dearkd.jobs import gpus
from dearkd.jobs.inputs import gather
from dearkd.plan.plan import Plan, Run
from dearkd.schema import to_json
from dearkd.train import loop
from dearkd.train.attempt import Attempt
from dearkd.train.checkpoint import packed
from dearkd.train.compiled import share_cache
from dearkd.train.processes import Processes
from dearkd.train.track import tracked


def train_stage(
    plan: Plan,
    run: Run,
    seed: int,
    stage_name: str,
    save_seconds: float | None = None,
    wait: bool = False,
    track: str = "",
) -> None:
    """Train a stage of a run, from its newest checkpoint or from the end of the stage before, and write its record.

    save_seconds: longest time between two checkpoints; None: as the scale says. wait: where another job holds the run,
    wait for that job instead of refusing. track: the tracker, as `--track` says.
    Raises Interrupted when asked to stop, and InputError when an input is missing or stale or a loss is not finite.
    """
    stage, folder = run.stage(stage_name), plan.paths.state(run.name, seed, stage_name)
    processes = Processes.join()
    torch.set_num_threads(max(plan.resources("train").threads // processes.count, 1))
    torch.set_flush_denormal(True)
    if stage.training.compile == "blocks":
        share_cache(Path("checkpoints/compiled"))
    with Attempt(
        folder,
        title=f"{run.name} seed {seed} stage {stage_name}",
        recipe=run.fingerprint(stage_name),
        save_seconds=plan.scale.save_seconds if save_seconds is None else save_seconds,
        wait=wait,
        active=processes.rank == 0,
    ) as attempt:
        processes.meet()
        inputs, described = gather(plan, run, seed, stage)
        shown = tracked(track, plan.scale.name, run.name, seed) if track else None
        state = loop.train(stage, seed, inputs, attempt, processes, shown)
        if processes.rank:
            return
        weights = packed(state["student"])
        disk.write(folder / "student.safetensors", weights)
        record.write(
            plan.paths.stage(run.name, seed, stage_name),
            {
                "kind": "stage",
                "scale": plan.scale.name,
                "run": run.name,
                "seed": seed,
                "stage": stage_name,
                "specs": [to_json(s) for s in run.stages[: run.stages.index(stage) + 1]],
                "fingerprint": run.fingerprint(stage_name),
                **described,
                "weights_sha256": disk.sha256_of(weights),
                "steps": state["step"],
                **(costs := attempt.costs()),
                "gpu_seconds": gpus.spent(processes.device.type, costs["seconds_all"], processes.count),
                "processes": processes.count,
                "threads": torch.get_num_threads(),
                "attention_distance_heads": state["heads"],
                **record.provenance(),
                "curve": state["curve"],
            },
        )
