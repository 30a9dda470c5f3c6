"""One stage of one run: its inputs are gathered, the loop trains, the record says what came of it."""

from pathlib import Path

import torch

from dearkd import disk, record
from dearkd.jobs import gpus
from dearkd.jobs.inputs import gather
from dearkd.plan.plan import Plan, Run
from dearkd.schema import to_json
from dearkd.train import loop
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.lease import Lease
from dearkd.train.session import export


def train_stage(
    plan: Plan,
    run: Run,
    seed: int,
    stage_name: str,
    save_seconds: float | None = None,
    wait: bool = False,
    tensorboard: Path | None = None,
) -> None:
    """Train a stage of a run, from its newest checkpoint or from the end of the stage before, and write its record.

    save_seconds: longest time between two checkpoints; None: the scale's. wait: where another job holds the run, wait
    for it instead of refusing. tensorboard: folder for event files, one of its folders for each run and seed.
    """
    stage = run.stage(stage_name)
    device, rank, processes = loop.device_and_rank()
    torch.set_num_threads(max(plan.resources("train").threads // processes, 1))
    torch.set_flush_denormal(True)
    folder = plan.paths.state(run.name, seed, stage_name)
    with Lease(folder, run.fingerprint(stage_name), wait, active=rank == 0) as lease:
        loop.meet(processes)
        work, inputs = gather(plan, run, seed, stage)
        work.checkpoints = Checkpoints(folder, lease)
        work.save_seconds = plan.scale.save_seconds if save_seconds is None else save_seconds
        work.tensorboard = tensorboard and tensorboard / run.name / f"seed{seed}"
        work.device, work.rank, work.processes = device, rank, processes
        state = loop.train(stage, seed, work)
        if rank:
            return
        weights, costs = export(state, folder / "student.safetensors"), lease.costs()
        record.write(
            plan.paths.stage(run.name, seed, stage_name),
            {
                "scale": plan.scale.name,
                "run": run.name,
                "seed": seed,
                "stage": stage_name,
                "specs": [to_json(s) for s in run.stages[: run.stages.index(stage) + 1]],
                "fingerprint": run.fingerprint(stage_name),
                **inputs,
                "weights_sha256": disk.sha256(weights),
                "steps": state["step"],
                "seconds": round(state["seconds"], 2),
                **costs,
                "gpu_seconds": gpus.spent(device.type, costs["seconds_all"], processes),
                "processes": processes,
                "threads": torch.get_num_threads(),
                "attention_distance_heads": state["heads"],
                **record.provenance(),
                "curve": state["curve"],
            },
        )
