"""A teacher's hard labels, computed once for all runs that see the same pixels.

Order, augmentation and mixing are keyed (`keys.py`), so the decision on an image is a pure function of recipe, seed,
epoch and position. With RegNetY-16GF it takes 81 % of a step of stage I; computed ahead it takes two bytes.
"""

import io
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dearkd import disk, record
from dearkd.data.images import Images
from dearkd.data.loader import training_loader
from dearkd.data.order import Schedule
from dearkd.errors import InputError
from dearkd.fingerprint import fingerprint
from dearkd.jobs import gpus
from dearkd.jobs.inputs import available_device, real_images, teacher_weights
from dearkd.keys import seed_all
from dearkd.model import teachers
from dearkd.plan.plan import Labels, Plan
from dearkd.progress import Progress
from dearkd.schema import to_json
from dearkd.train import optimise
from dearkd.train.attempt import Attempt

LARGEST = np.iinfo(np.uint16).max + 1


def label_shard(
    plan: Plan, name: str, seed: int, index: int, save_seconds: float | None = None, wait: bool = False
) -> None:
    """Compute the labels of `label_epochs` epochs, from the newest checkpoint if there is one, and write their record.

    Loader, mixing and precision are those of the training loop. Arguments are those of `train.train_stage`.
    Raises Interrupted when asked to stop, and InputError when there is no such shard or there are too many classes.
    """
    spec, epochs = plan.labels[name], plan.scale.label_epochs
    readers = [s for run in plan.runs.values() for s in run.stages if plan.labels_of(s) == spec]
    if index not in (wanted := {shard for stage in readers for shard in plan.label_shards(stage)}):
        raise InputError(f"--shard {index}: {name} has the shards {min(wanted)} to {max(wanted)}; name one of them")
    if spec.data.classes > LARGEST:
        raise InputError(
            f"label_epochs: labels of two bytes hold {LARGEST:,} classes, not {spec.data.classes:,}; set it to 0"
        )
    torch.set_num_threads(plan.resources("labels").threads)
    torch.set_flush_denormal(True)
    device = available_device()
    found, weights = teacher_weights(plan, spec.teacher_name)
    teacher = teachers.build(spec.teacher, spec.data, weights).fold().to(device)
    images, images_sha256, everything = real_images(plan, spec, seed)
    draws = everything if spec.subset_schedule == "iterations" else len(images)
    schedule = Schedule(len(images), draws, spec.batch, spec.micro_batch, spec.augment.repeats, seed)
    path, target = plan.paths.label_file(name, seed, index), plan.paths.labels(name, seed, index)
    identity = "-".join([fingerprint(spec), str(epochs), found["weights_sha256"], images_sha256])
    with Attempt(
        path.with_suffix(""),
        title=f"labels {name} seed {seed} shard {index}",
        recipe=identity,
        save_seconds=plan.scale.save_seconds if save_seconds is None else save_seconds,
        wait=wait,
    ) as attempt:
        made = attempt.made(path)
        if made is None:
            labels, right = _decide(
                spec, images, schedule, teacher, (index * epochs, epochs), attempt, plan.scale.loader_workers, device
            )
            buffer = io.BytesIO()
            np.save(buffer, labels.numpy().astype(np.uint16))
            disk.write(path, buffer.getbuffer())
            made = {
                "kind": "labels",
                "scale": plan.scale.name,
                "labels": name,
                "seed": seed,
                "shard": index,
                "epochs": [index * epochs, (index + 1) * epochs],
                "spec": to_json(spec),
                "fingerprint": fingerprint(spec),
                "teacher": {k: found[k] for k in ("teacher", "top1", "weights_sha256")},
                "images_sha256": images_sha256,
                "sha256": disk.sha256(path),
                "agreement": round(100 * right / (epochs * schedule.steps_per_epoch * spec.batch), 3),
                **(costs := attempt.costs()),
                "gpu_seconds": gpus.spent(device.type, costs["seconds_all"]),
                **record.provenance(),
            }
            attempt.keep(path, made)
        record.write(target, made)


def _decide(
    spec: Labels,
    images: Images,
    schedule: Schedule,
    teacher: teachers.TeacherNetwork,
    span: tuple[int, int],
    attempt: Attempt,
    workers: int,
    device: torch.device,
) -> tuple[Int[Tensor, "epochs draws"], int]:
    """(the teacher's class at each position of each epoch, how often it is the true one).

    span: (first epoch, number of epochs).
    """
    first_epoch, epochs = span
    first, steps = first_epoch * schedule.steps_per_epoch, epochs * schedule.steps_per_epoch
    empty: dict[str, Any] = {"step": 0, "labels": torch.zeros(epochs, schedule.draws, dtype=torch.int32), "right": 0}
    state = attempt.resume() or empty
    mixup = optimise.mixing(spec.augment, spec.data.classes)
    start = first + state["step"]
    batches = training_loader(images, spec.data, spec.augment, schedule, start, first + steps, workers, device)
    with Progress(attempt.title, steps, state["step"]) as progress:
        for batch, pixels, truth in batches:
            seed_all(schedule.seed, "forward", batch.step, batch.group)
            pixels, _ = optimise.mix(mixup, pixels.to(device), truth.to(device))
            with optimise.autocast(spec.precision, device):
                decisions = teacher(pixels).decisions.cpu()
            state["labels"][batch.epoch - first_epoch, list(batch.positions)] = decisions.int()
            state["right"] += int((decisions == truth.cpu()).sum())
            if batch.group + 1 == schedule.groups:
                state["step"] = batch.step + 1 - first
                progress.advance(state["step"])
                attempt.checkpoint(state["step"], steps, lambda: state)
    return state["labels"], state["right"]
