"""The job that describes a set of images, real or synthetic, by LPIPS, latent codes and a sample."""

import csv
import dataclasses
import io
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from dearkd import record
from dearkd.data import subsets
from dearkd.data.images import Images
from dearkd.data.loader import evaluation_loader
from dearkd.fingerprint import fingerprint
from dearkd.jobs import diversity
from dearkd.jobs.inputs import available_device, data_record, synthetic, teacher_weights
from dearkd.model import lpips_trunks, teachers
from dearkd.plan.data import REAL
from dearkd.plan.plan import Plan
from dearkd.plan.stage import Data
from dearkd.schema import to_json

CLASSES = 10
"""Number of classes that are shown: the first ones of a set."""
SHOWN = 8
"""Number of images of a class in the sample of a set."""
CODES = 20
"""Number of images of a class whose latent codes are kept for Figure 6."""


def describe(plan: Plan, name: str, seed: int) -> None:
    """Write the record of a set of images: LPIPS within classes (Table 6), latent codes and a sample.

    name: of a source of synthetic images, or `real` for all training images.
    Raises InputError when an image, a record or the teacher's weights are missing or damaged.
    """
    scale = plan.scale
    main = scale.data["main"]
    torch.set_num_threads(plan.resources("diversity").threads)
    if name == REAL:
        train = subsets.splits(plan, "main")["train"]
        images, images_sha256 = subsets.read(train, plan.paths.subsets("main"), "train-100", plan.argument)
    else:
        images, images_sha256 = synthetic(plan, name, seed)
    device = available_device()
    perceptual = _lpips(images, plan, seed, device, name == REAL) if scale.diversity.pairs else {"metrics": {}}
    found, weights = teacher_weights(plan, scale.synthesis.teacher)
    teacher = teachers.build(scale.teachers[scale.synthesis.teacher], main, weights).to(device)
    codes, verdict = _codes(teacher, images, plan, device)
    top1 = 100 * float((verdict == images.labels).mean())
    record.write(
        plan.paths.diversity(name, seed),
        {
            "kind": "diversity",
            "scale": scale.name,
            "source": name,
            "seed": seed,
            "spec": to_json(scale.diversity),
            "source_fingerprint": fingerprint(plan.sources[name]) if name != REAL else "",
            "images": len(images),
            "images_sha256": images_sha256,
            "data_sha256": data_record(plan, "main")["sha256"]["train"] if name == REAL else "",
            "teacher": {k: found[k] for k in ("teacher", "top1", "weights_sha256")},
            **perceptual,
            "metrics": {
                **perceptual["metrics"],
                "teacher_top1": top1,
                "easy_positive": _easy_positive(codes, images.labels),
            },
            **record.provenance(),
        },
        {"latents.csv": _latents(images, codes), "sample.png": _sample(images, main)},
    )


def _lpips(images: Images, plan: Plan, seed: int, device: torch.device, controls: bool) -> dict[str, Any]:
    """LPIPS within classes for the record: plain and blurred, by each net, and of the controls if `controls`."""
    spec, data = plan.scale.diversity, plan.scale.data["main"]
    pairs = diversity.pairs(images.labels, spec.pairs, seed)
    used, places = np.unique(pairs, return_inverse=True)
    pixels = _unit_pixels(images.take(used), data)
    within, classes = places.reshape(pairs.shape), images.labels[pairs[:, 0]]

    def measured(by: diversity.Lpips, pixels: Tensor, blurred: bool = False) -> dict[str, Any]:
        return diversity.summary(diversity.distances(by, pixels, within, device=device, blurred=blurred), classes)

    lpips, *others = (diversity.Lpips(spec, net).to(device) for net in (spec.net, *spec.also))
    plain, low = measured(lpips, pixels), measured(lpips, pixels, blurred=True)

    def beside(pixels: Tensor) -> dict[str, float]:
        return {f"lpips_{net}": measured(other, pixels)["mean"] for net, other in zip(spec.also, others, strict=True)}

    return {
        "lpips": {
            "package": "lpips 0.1",
            "net": spec.net,
            "trunk": spec.trunk or lpips_trunks.PACKAGE,
            "trunk_sha256": lpips.trunk_sha256,
            "also": {net: other.trunk_sha256 for net, other in zip(spec.also, others, strict=True)},
            "colour": "RGB" if data.channels == 3 else "grey, the same in R, G and B",
            "size": spec.size,
            "interpolation": diversity.INTERPOLATION,
        },
        "metrics": {
            "lpips": plain["mean"],
            "lpips_se": plain["se"],
            "lpips_blurred": low["mean"],
            "lpips_blurred_se": low["se"],
            **beside(pixels),
        },
        "pairs": plain["n"],
        "per_class": plain["per_class"],
        "controls": {
            name: {"lpips": found["mean"], "lpips_se": found["se"], **beside(changed)}
            for name, changed in (diversity.controls(pixels, spec, seed).items() if controls else ())
            for found in [measured(lpips, changed)]
        },
    }


def _unit_pixels(images: Images, data: Data) -> Float[Tensor, "n channels height width"]:
    """Pixels in [0, 1] as at evaluation."""
    plain = dataclasses.replace(data, mean=(0.0,) * data.channels, std=(1.0,) * data.channels)
    return torch.cat([batch for batch, _ in evaluation_loader(images, plain, 64)])


@torch.no_grad()
def _codes(
    teacher: teachers.TeacherNetwork, images: Images, plan: Plan, device: torch.device
) -> tuple[Float[np.ndarray, "n dim"], Int[np.ndarray, " n"]]:
    """(normalised latent code, class that the teacher predicts) of each image."""
    codes, verdict = [], []
    for batch, _ in evaluation_loader(images, plan.scale.data["main"], 128, plan.scale.loader_workers):
        code, logits = teacher.codes_and_logits(batch.to(device))
        codes.append(F.normalize(code.float(), dim=1).cpu())
        verdict.append(logits.argmax(1).cpu())
    return torch.cat(codes).numpy(), torch.cat(verdict).numpy()


def _easy_positive(codes: Float[np.ndarray, "n dim"], labels: Int[np.ndarray, " n"]) -> float | None:
    """Mean distance from a code to the nearest other code of its class; None where no class has two images."""
    nearest = []
    for label in np.unique(labels):
        mine = torch.from_numpy(codes[labels == label])
        if len(mine) > 1:
            nearest.append(torch.cdist(mine, mine).fill_diagonal_(torch.inf).amin(1))
    return torch.cat(nearest).mean().item() if nearest else None


def _latents(images: Images, codes: Float[np.ndarray, "n dim"]) -> str:
    """CSV of the codes of the first `CODES` images of the first `CLASSES` classes: image, label, f0, f1, ..."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["image", "label", *(f"f{i}" for i in range(codes.shape[1]))])
    for label in np.unique(images.labels)[:CLASSES]:
        for i in np.flatnonzero(images.labels == label)[:CODES]:
            table.writerow([images.names[i], label, *(f"{v:.5f}" for v in codes[i])])
    return out.getvalue()


def _sample(images: Images, data: Data) -> memoryview:
    """PNG of the first images of the first `CLASSES` classes, a row for each class; white where there are fewer."""
    shown = [np.flatnonzero(images.labels == label)[:SHOWN] for label in np.unique(images.labels)[:CLASSES]]
    side, channels = data.image_size, data.channels
    sheet = np.full((len(shown) * side, max(map(len, shown)) * side, channels), 255, dtype=np.uint8)
    for row, indices in enumerate(shown):
        pixels = (_unit_pixels(images.take(indices), data) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for column, tile in enumerate(pixels):
            sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
    out = io.BytesIO()
    Image.fromarray(sheet.squeeze()).save(out, "PNG")
    return out.getbuffer()
