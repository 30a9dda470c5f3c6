"""A teacher's hard labels, computed once for all runs that see the same pixels.

Order, augmentation and mixing are keyed (`keys.py`), so the decision on an image is a pure function of recipe, seed,
epoch and position. With RegNetY-16GF it is 81 % of a step of stage I; here it costs two bytes.
"""

import io
import time

import numpy as np
import torch

from dearkd import disk, record
from dearkd.data.loader import Schedule, training_loader
from dearkd.jobs import gpus
from dearkd.jobs.inputs import available_device, real_images, teacher_weights
from dearkd.keys import seed_all
from dearkd.model import teachers
from dearkd.plan.plan import Plan
from dearkd.progress import Progress
from dearkd.schema import InputError, fingerprint, to_json
from dearkd.stop import Interrupted, stop_requests
from dearkd.train import optimise
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.lease import Lease
from dearkd.train.session import precision

LARGEST = np.iinfo(np.uint16).max + 1


def label_shard(
    plan: Plan, name: str, seed: int, index: int, save_seconds: float | None = None, wait: bool = False
) -> None:
    """Compute the labels of `label_epochs` epochs, from the newest checkpoint if there is one, and write their record.

    The same loader, mixing and precision as the loop's. Arguments as those of `train.train_stage`.
    Raises Interrupted when asked to stop.
    """
    spec, epochs = plan.labels[name], plan.scale.label_epochs
    readers = [s for run in plan.runs.values() for s in run.stages if plan.labels_of(s) == spec]
    if index not in (wanted := {shard for stage in readers for shard in plan.label_shards(stage)}):
        raise InputError(f"{name} has shards {min(wanted)} to {max(wanted)}, not {index}")
    if spec.data.classes > LARGEST:
        raise InputError(f"label_epochs: two bytes hold {LARGEST:,} classes, not {spec.data.classes:,}; set it to 0")
    torch.set_num_threads(plan.resources("labels").threads)
    torch.set_flush_denormal(True)
    device = available_device()
    found, weights = teacher_weights(plan, spec.teacher_name)
    teacher = teachers.build(spec.teacher, spec.data, weights).fold().to(device)
    images, images_sha256, everything = real_images(plan, spec, seed)
    draws = everything if spec.subset_schedule == "iterations" else len(images)
    schedule = Schedule(len(images), draws, spec.batch, spec.micro_batch, spec.augment.repeats, seed)
    path, title = plan.paths.label_file(name, seed, index), f"labels {name} seed {seed} shard {index}"
    target = plan.paths.labels(name, seed, index)
    identity = "-".join([fingerprint(spec), str(epochs), found["weights_sha256"], images_sha256])
    with Lease(path.with_suffix(""), identity, wait) as lease, stop_requests() as stop:
        checkpoints = Checkpoints(path.with_suffix(""), lease)
        made = checkpoints.kept(identity, path)
        if made is not None:
            print(f"{title}: made already, only its record is written", flush=True)
            record.write(target, made)
            return
        state = checkpoints.load()
        if state is None or state["identity"] != identity:
            checkpoints.discard()
            empty = torch.zeros(epochs, draws, dtype=torch.int32)
            state = {"identity": identity, "step": 0, "labels": empty, "right": 0, "seconds": 0.0}
        before, started = state["seconds"], time.monotonic()
        saved, interval = started, plan.scale.save_seconds if save_seconds is None else save_seconds
        first, steps = index * epochs * schedule.steps_per_epoch, epochs * schedule.steps_per_epoch
        mixup, dtype = optimise.mixing(spec.augment, spec.data.classes), precision(spec.precision, device)
        batches = training_loader(
            images,
            spec.data,
            spec.augment,
            schedule,
            first + state["step"],
            first + steps,
            plan.scale.loader_workers,
            device,
        )
        with Progress(title, steps, state["step"]) as progress:
            for batch, pixels, truth in batches:
                seed_all(seed, "forward", batch.step, batch.group)
                pixels, _ = optimise.mix(mixup, pixels.to(device), truth.to(device))
                with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                    decisions = teacher(pixels).decisions.cpu()
                state["labels"][batch.epoch - index * epochs, list(batch.positions)] = decisions.int()
                state["right"] += int((decisions == truth.cpu()).sum())
                if batch.group + 1 < schedule.groups:
                    continue
                state["step"] = batch.step + 1 - first
                progress.advance(state["step"])
                if stop or time.monotonic() - saved >= interval:
                    state["seconds"] = before + time.monotonic() - started
                    checkpoints.save(state["step"], state)
                    saved = time.monotonic()
                    if stop:
                        raise Interrupted(f"{title}: stopped at step {state['step']} of {steps}, everything is saved")
        buffer = io.BytesIO()
        np.save(buffer, state["labels"].numpy().astype(np.uint16))
        disk.write(path, buffer.getbuffer())
        seconds, costs = before + time.monotonic() - started, lease.costs()
        made = {
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
            "agreement": round(100 * state["right"] / (steps * spec.batch), 3),
            "seconds": round(seconds, 2),
            **costs,
            "gpu_seconds": gpus.spent(device.type, costs["seconds_all"]),
            **record.provenance(),
        }
        checkpoints.keep(identity, path, made)
        record.write(target, made)
