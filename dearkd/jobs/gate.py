"""The gate of a teacher checks accuracy, order of classes and normalisation, and says which other values fit."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from dearkd.data.datasets import Images
from dearkd.data.loader import evaluation_loader
from dearkd.errors import InputError, unknown
from dearkd.model import teachers
from dearkd.plan import stage
from dearkd.train.evaluate import accuracy, predict

TRIED = 500
"""Number of images, of all classes, on which other mean and std are tried."""
SURE = 3.0
"""Standard errors by which another reading of the outputs must be better than the one given."""
WEAK = 0.25
"""Share of the way from chance to 100 % below which a teacher is called weak."""
PIXELS: dict[str, teachers.Moments] = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "Inception's": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "pixels from 0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels from 0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""(mean, std) that CNNs are commonly trained with."""


def classes_of(images: Images, count: int) -> list[str]:
    """Name of each of `count` classes: the folder of its images, or its number where they are in no folders."""
    named = {label: str(name).split("/")[0] for label, name in zip(images.labels.tolist(), images.names, strict=True)}
    if images.pixels is not None or len(set(named.values())) < len(named):
        named = {}
    return [named.get(label, str(label)) for label in range(count)]


def in_order(outputs: Sequence[Any], classes: Sequence[str]) -> list[int]:
    """The output of each class.

    outputs: as `stage.Teacher.outputs`. classes: class folders in the order of their labels.
    Raises InputError naming a class that has no output or several.
    """
    named = numeric(classes) if [*outputs] == ["numeric"] else outputs
    named = [unicodedata.normalize("NFC", str(output)) for output in named]
    found = []
    for name in classes:
        places = [i for i, output in enumerate(named) if output == unicodedata.normalize("NFC", name)]
        if not places:
            raise InputError(unknown(name, named, "class folder", "teacher: outputs"))
        if len(places) > 1:
            raise InputError(f"teacher: outputs: {name!r} names the outputs {places}; give each output its own name")
        found += places
    return found


def numeric(classes: Sequence[str]) -> list[str]:
    """Names in the order of the numbers in them: 2 before 10, c2 before c10."""
    return sorted(classes, key=lambda name: [int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", name))])


def reorder(net: Any, order: Sequence[int]) -> None:
    """Keep the outputs `order` of a network of timm, in that order.

    Raises InputError when the network has no plain classifier.
    """
    classifier = net.get_classifier()
    if not isinstance(classifier, nn.Linear | nn.Conv2d):
        raise InputError(
            f"outputs: the classifier is a {type(classifier).__name__}, which cannot be put in another order; rename "
            f"the class folders so that their sorted order is that of the outputs"
        )
    for name, values in list(classifier.named_parameters()):
        setattr(classifier, name, nn.Parameter(values[list(order)].clone(), requires_grad=False))


def measure(
    name: str,
    teacher: stage.Teacher,
    data: stage.Data,
    loaded: teachers.TeacherNetwork,
    images: Images,
    classes: Sequence[str],
    device: torch.device,
    workers: int = 0,
) -> tuple[float, str]:
    """(top-1 of a teacher on labelled images in percent, a warning or "").

    Raises InputError when top-1 differs by more than the tolerance from what the scale expects, or when the numeric
    order of the classes fits the outputs better. The error says what would fit, if anything does.
    """
    logits, labels = _predict(loaded, images, data, device, workers)
    top1 = accuracy(logits, labels)
    here = f"teacher {name} ({teacher.model}): top-1 {top1:.2f} % on {teacher.gate}"
    elsewhere = teacher.training is None
    chance = 100 / data.classes
    weak = top1 < chance + WEAK * (100 - chance)
    refused = abs(top1 - teacher.top1) > teacher.tolerance
    hint, certain = other_order(logits.argmax(1), labels, classes, bool(teacher.outputs)) if elsewhere else ("", False)
    if elsewhere and not hint and (refused or weak):
        hint = other_pixels(teacher, data, loaded, images, device)
    if certain:
        raise InputError(f"{here}; {hint}")
    if refused:
        usual = "take the right weights, or correct its top1 in the scale"
        shown = teachers.moments(teacher, loaded.net, teacher.channels or data.channels)
        if shown is not None:
            usual = (
                f"it may have other weights, have learned from pixels of another mean and std (now {_text(shown)}) or "
                f"side (now {teacher.image_size or data.image_size}), or have its outputs in another order. Set the "
                f"teacher's mean, std, image_size or outputs in the scale, or correct its top1"
            )
        raise InputError(f"{here}, but the scale expects {teacher.top1} within {teacher.tolerance}; {hint or usual}")
    if weak:
        return top1, f"{here}, where chance is {chance:.1f} %: its students learn its mistakes" + (hint and f"; {hint}")
    return top1, hint and f"{here}; {hint}"


def other_order(
    guesses: Int[Tensor, " n"], labels: Int[Tensor, " n"], classes: Sequence[str], given: bool
) -> tuple[str, bool]:
    """(a sentence when the outputs fit the classes better in another order, else ""; whether that is certain).

    Two orders are tried: the numeric one, unless the order was `given`, and the one that fits the images of even index
    best, which is judged on the images of odd index.
    """
    natural = numeric(classes)
    if not given and natural != [*classes]:
        meant = torch.tensor([classes.index(name) for name in natural])[guesses]
        if _better(meant == labels, guesses == labels):
            share = 100 * (meant == labels).float().mean().item()
            return (
                f"its outputs fit the class folders in numeric order ({share:.2f} %): set its `outputs: [numeric]`",
                True,
            )
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (guesses[::2].numpy(), labels[::2].numpy()), 1)
    meant = torch.from_numpy(linear_sum_assignment(-counts)[1])[guesses[1::2]]
    if _better(meant == labels[1::2], guesses[1::2] == labels[1::2]):
        share = 100 * (meant == labels[1::2]).float().mean().item()
        fits = linear_sum_assignment(-counts)[1].tolist()
        moved = [f"{i}: {classes[c]}" for i, c in enumerate(fits) if i != c][:3]
        return (
            f"another order of its outputs fits better ({share:.2f} %; {', '.join(moved)}): list the class folder of "
            f"each output, in order, as its `outputs`"
        ), False
    return "", False


def other_pixels(
    teacher: stage.Teacher, data: stage.Data, loaded: teachers.TeacherNetwork, images: Images, device: torch.device
) -> str:
    """A sentence when the teacher is clearly better with one of `PIXELS`, or the data's own mean and std; else ''."""
    some = images.take(range(0, len(images), -(-len(images) // TRIED)))
    channels = teacher.channels or data.channels
    now, labels = _predict(loaded, some, data, device)
    best, said = now.argmax(1) == labels, ""
    for whose, moments in {**PIXELS, "the data's": (data.mean, data.std)}.items():
        mean, std = (v if len(v) == channels else (sum(v) / len(v),) * channels for v in moments)
        other = teachers.TeacherNetwork(loaded.net, (), (data.mean, data.std), (mean, std), teacher.image_size)
        right = _predict(other, some, data, device)[0].argmax(1) == labels
        if _better(right, best):
            best, share = right, 100 * right.float().mean().item()
            fits = _text((mean, std))
            said = f"with {whose} mean and std its top-1 is {share:.1f} % of {len(some)} images: set its `{fits}`"
    return said


def _better(one: Tensor, other: Tensor) -> bool:
    """Whether more answers are right than in `other`, by McNemar's test at `SURE` standard errors."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained - lost > SURE * (gained + lost) ** 0.5


def _predict(
    teacher: teachers.TeacherNetwork, images: Images, data: stage.Data, device: torch.device, workers: int = 0
) -> tuple[Float[Tensor, "n classes"], Int[Tensor, " n"]]:
    model = teachers.Classifier(teacher).to(device)
    return predict(model, evaluation_loader(images, data, 128, workers), device)


def _text(moments: teachers.Moments) -> str:
    mean, std = ([round(value, 4) for value in values] for values in moments)
    return f"mean: {mean}, std: {std}"
