"""The job that evaluates a finished run on the test images."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dearkd import record
from dearkd.data import subsets
from dearkd.data.loader import evaluation_loader
from dearkd.jobs.inputs import available_device, data_record, trained_student
from dearkd.plan import files
from dearkd.plan.plan import Plan, Run
from dearkd.train.evaluate import accuracy, hits, predict


def evaluate_run(plan: Plan, run: Run, seed: int) -> None:
    """Write the record of a finished run's top-1 and top-5 on the test images, and the prediction of each image.

    Raises InputError when a record of the run is stale, or its weights are missing or damaged.
    """
    stage = run.stages[-1]
    model, trained = trained_student(plan, run, seed)
    torch.set_num_threads(plan.resources("evaluate").threads)
    device = available_device()
    split = subsets.splits(plan, stage.data_name)["test"]
    logits, labels = predict(
        model.to(device),
        evaluation_loader(split, stage.data, 256, plan.scale.loader_workers),
        device,
        stage.training.precision,
    )
    record.write(
        plan.paths.metrics(run.name, seed),
        {
            "kind": "evaluation",
            "scale": plan.scale.name,
            "run": run.name,
            "seed": seed,
            "fingerprint": run.fingerprint(stage.name),
            "weights_sha256": trained["weights_sha256"],
            "data": {
                "name": stage.data_name,
                "split": "test",
                "images": len(labels),
                "sha256": data_record(plan, stage.data_name)["sha256"]["test"],
            },
            "metrics": {"top1": accuracy(logits, labels), "top5": accuracy(logits, labels, 5)},
            "parameters": sum(p.numel() for p in model.parameters()),
            **record.provenance(),
        },
        {"predictions.csv": _predictions(split.names, logits, labels)},
    )


def _predictions(names: Sequence[str], logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> str:
    """CSV from which the accuracies can be counted: image, label, predicted class, label among the best five."""
    columns = (labels.tolist(), logits.argmax(1).tolist(), hits(logits, labels, 5).int().tolist())
    return files.table(("image", "label", "top1", "in_top5"), zip(names, *columns, strict=True))
