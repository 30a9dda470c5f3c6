"""THE loop: every stage of every method, teachers included. A method is data (`methods.py`); nothing here knows one.

A step is a global batch of `groups` micro-batches. Each micro-batch has its own key for mixing, dropout and drop path,
so the processes that share a batch, gradient accumulation and restarts change nothing but the order of sums.
"""

import itertools
import os
from typing import Any

import torch
import torch.distributed as dist

from dearkd.data.loader import training_loader
from dearkd.keys import seed_all
from dearkd.plan.stage import Stage
from dearkd.progress import Progress
from dearkd.stop import Interrupted, stop_requests
from dearkd.train.session import LOOK, Session, Work


def train(stage: Stage, seed: int, work: Work) -> dict[str, Any]:
    """Train a stage to its end, from its newest checkpoint if there is one; returns its final state.

    Raises Interrupted when asked to stop, InputError when the loss is not finite.
    """
    work.teacher = work.teacher and work.teacher.to(work.device)
    run = Session(stage, seed, work)
    recipe, share = stage.training, run.schedule.groups // work.processes
    with stop_requests() as stop, Progress(work.title, run.last_step, run.step, work.rank == 0) as progress:
        micro_batches = training_loader(
            work.train, stage.data, recipe.augment, run.schedule, run.step, run.last_step, work.workers, work.device
        )
        for step, group in itertools.groupby(micro_batches, key=lambda item: item[0].step):
            epoch, within = divmod(step, run.schedule.steps_per_epoch)
            run.set_epoch(epoch)
            for i, (batch, images, labels) in enumerate(group, 1):
                seed_all(seed, "forward", step, batch.group)
                images, targets = run.mix(
                    images.to(work.device, non_blocking=True), labels.to(work.device, non_blocking=True)
                )
                run.learn(images, targets, run.decided(batch), last=i == share)
            run.step = step + 1
            if run.schedule.steps_per_epoch == within + 1:
                progress.line(run.end_epoch(epoch))
            progress.advance(step + 1)
            if run.step % LOOK == 0:
                run.require_finite()
            asked = run.any_process(bool(stop))
            if asked or run.save_is_due():
                run.save()
            if asked:
                raise Interrupted(
                    f"{work.title}: stopped at step {run.step} of {run.last_step} and saved; "
                    f"the same command goes on from here"
                )
    return run.finish()


def device_and_rank() -> tuple[torch.device, int, int]:
    """(device, rank, processes) of this process; joins the group when torchrun has started several."""
    processes, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device("cuda", local % cards) if cards else torch.device("cpu")
    if cards:
        torch.cuda.set_device(device)
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if processes <= cards else "gloo")  # NCCL wants a card for each process
    return device, rank, processes


def meet(processes: int) -> None:
    """Wait until all processes that share a batch are here: none reads a checkpoint before the run is theirs."""
    if processes > 1:
        dist.barrier()
