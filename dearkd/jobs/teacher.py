"""The job that measures a teacher at its gate, before any student learns from it."""

import torch

from dearkd import disk, record
from dearkd.data import subsets
from dearkd.data.loader import evaluation_loader
from dearkd.jobs import gate
from dearkd.jobs.inputs import available_device, data_record, trained_weights
from dearkd.model import teachers
from dearkd.model.weights import weights_sha256
from dearkd.plan.plan import Plan
from dearkd.schema import to_json
from dearkd.train.checkpoint import packed

KEPT = 4_000_000
"""Largest size in bytes of a trained teacher's weights that are kept beside its record."""


def admit_teacher(plan: Plan, name: str) -> None:
    """Write a teacher's weights where jobs read them, and its record, once the teacher has passed its gate.

    Raises InputError where `gate.measure` does, or when the weights are missing or damaged.
    """
    teacher, data = plan.scale.teachers[name], plan.scale.data["main"]
    torch.set_num_threads(plan.resources("teacher").threads)
    own_run = plan.teacher_run(name)
    weights = trained_weights(plan, own_run, 0)[0] if own_run else None
    loaded = teachers.build(teacher, data, weights)
    state_sha256 = weights_sha256(loaded.net)
    splits = subsets.splits(plan, "main")
    classes = gate.classes_of(splits["test"], data.classes)
    if teacher.outputs:
        gate.reorder(loaded.net, gate.in_order(teacher.outputs, classes))
    device = available_device()
    split = splits[teacher.gate]
    top1, warning = gate.measure(name, teacher, data, loaded, split, classes, device, plan.scale.loader_workers)
    if warning:
        print(f"Warning: {warning}", flush=True)
    images, _ = next(evaluation_loader(split, data, 8))
    shapes = loaded.feature_shapes(images.to(device))
    target = plan.paths.teacher_weights(name)
    disk.write(target, packed({k: v.cpu() for k, v in loaded.net.state_dict().items()}))
    if own_run is not None and target.stat().st_size <= KEPT:
        disk.write(plan.paths.kept_weights(name), target.read_bytes())
    record.write(
        plan.paths.teacher(name),
        {
            "kind": "teacher",
            "teacher": name,
            "spec": to_json(teacher),
            "top1": round(top1, 4),
            "gate": teacher.gate,
            "images": len(split),
            "data_sha256": data_record(plan, "main")["sha256"],
            "warning": warning,
            "classes": classes,
            "parameters": sum(p.numel() for p in loaded.net.parameters()),
            "weights_sha256": disk.sha256(target),
            "state_sha256": state_sha256,
            "features": [
                {"stage": i, "channels": s.channels, "size": list(s.size), "nonnegative": s.nonnegative}
                for i, s in enumerate(shapes)
            ],
            **record.provenance(),
        },
    )
