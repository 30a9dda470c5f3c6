"""The job that evaluates weights of other authors on the scale's test images, for a row of Table 3."""

import dataclasses

import torch

from dearkd import record
from dearkd.data import subsets
from dearkd.data.loader import evaluation_loader
from dearkd.jobs.inputs import available_device, data_record
from dearkd.model import hub, teachers
from dearkd.model.weights import weights_sha256
from dearkd.plan.plan import Plan
from dearkd.plan.stage import Teacher
from dearkd.schema import to_json
from dearkd.train.evaluate import accuracy, predict


def evaluate_pretrained(plan: Plan, label: str) -> None:
    """Evaluate weights of other authors on the scale's test images, at the network's own size and crop.

    Raises InputError when weights or images are missing or damaged.
    """
    peer = plan.pretrained[label]
    torch.set_num_threads(plan.resources("evaluate").threads)
    main, config = plan.scale.data["main"], hub.pretrained_cfg(peer.model)
    spec = dataclasses.replace(
        main,
        image_size=config.input_size[-1],
        crop=config.crop_pct,
        interpolation=config.interpolation,
    )
    given = Teacher(model=peer.model, args=peer.args, top1=0.0, weights=peer.weights, sha256=peer.sha256)
    model = teachers.build(given, spec)
    device = available_device()
    split = subsets.splits(plan, "main")["test"]
    batches = evaluation_loader(split, spec, 64, plan.scale.loader_workers)
    logits, labels = predict(teachers.Classifier(model).to(device), batches, device)
    record.write(
        plan.paths.pretrained(label),
        {
            "kind": "pretrained",
            "scale": plan.scale.name,
            "label": label,
            "spec": to_json(peer),
            "state_sha256": weights_sha256(model.net),
            "input": {"image_size": spec.image_size, "crop": spec.crop, "interpolation": spec.interpolation},
            "images": len(labels),
            "data_sha256": data_record(plan, "main")["sha256"]["test"],
            "metrics": {"top1": accuracy(logits, labels), "top5": accuracy(logits, labels, 5)},
            **record.provenance(),
        },
    )
