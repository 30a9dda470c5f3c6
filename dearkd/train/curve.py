"""A line of a run's curve: what a stage measures at the end of an epoch."""

from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dearkd.data.loader import evaluation_loader
from dearkd.plan.stage import Stage
from dearkd.train.evaluate import accuracy, attended, attention_distance, predict
from dearkd.train.inputs import Inputs
from dearkd.train.processes import Processes
from dearkd.train.state import State


def end_epoch(stage: Stage, state: State, inputs: Inputs, processes: Processes, steps_per_epoch: int) -> dict[str, Any]:
    """Add a line to the curve, start the sums of the next epoch, and return the line.

    The line has the epoch, counted from 1, the learning rate and the mean of each term. Every `validate_every` epochs
    and at the end it also has `validation_top1` in percent, and for each layer `attention_distance` in patches.
    """
    epoch = state.step // steps_per_epoch
    means = processes.mean(state.meters.total / steps_per_epoch).tolist()
    entry: dict[str, Any] = {
        "epoch": epoch,
        "lr": state.optimiser.param_groups[0]["lr"],
        **{name: round(mean, 6) for name, mean in zip(state.meters.names, means, strict=True)},
    }
    if epoch % stage.training.validate_every == 0 or epoch == stage.last_epoch:
        entry["validation_top1"] = round(_top1(stage, state, inputs, processes), 3)
        if stage.attention_images:
            distance = _attention_distance(stage, state, inputs, processes)
            entry["attention_distance"] = [round(d, 4) for d in distance.mean(1).tolist()]
            if epoch == stage.last_epoch:
                state.heads = [[round(d, 4) for d in layer] for layer in distance.tolist()]
    state.curve.append(entry)
    state.meters.start(state.step)
    return entry


def text(entry: dict[str, Any]) -> str:
    """A line of the curve as text for a log: epoch, learning rate, terms, accuracy."""
    left_out = ("epoch", "lr", "validation_top1", "attention_distance")
    terms = [f"{name} {value:.4f}" for name, value in entry.items() if name not in left_out]
    top1 = [f"top-1 {entry['validation_top1']:.1f} %"] if "validation_top1" in entry else []
    return "  ".join([f"epoch {entry['epoch']}", f"lr {entry['lr']:.1e}", *terms, *top1])


def _top1(stage: Stage, state: State, inputs: Inputs, processes: Processes) -> float:
    """Validation top-1 in percent. The processes that share the batch share the images."""
    recipe, device = stage.training, processes.device
    images, count = processes.share(inputs.validation, len(inputs.validation)), torch.zeros(2, dtype=torch.float64)
    if len(images):
        batches = evaluation_loader(images, stage.data, max(recipe.micro_batch, 64), inputs.workers)
        logits, labels = predict(state.student, batches, device, recipe.precision)
        count += torch.tensor([accuracy(logits, labels) * len(labels), len(labels)])
    right, seen = processes.sum(count).tolist()
    return right / seen


def _attention_distance(
    stage: Stage, state: State, inputs: Inputs, processes: Processes
) -> Float[Tensor, "layers heads"]:
    """In patches, mean over the first validation images. The processes that share the batch share the images."""
    student, wanted = state.student, stage.attention_images
    assert isinstance(student, VisionTransformer), "the plan sets attention_images to 0 for a CNN"
    images = processes.share(inputs.validation, wanted)
    attention = [layer for _, layer in attended(student)]
    total = torch.zeros(len(attention), attention[0].num_heads, dtype=torch.float64)
    if len(images):
        pixels, _ = next(evaluation_loader(images, stage.data, wanted))
        total += attention_distance(student, pixels.to(processes.device)).cpu().double() * len(images)
    return processes.sum(total) / min(wanted, len(inputs.validation))
