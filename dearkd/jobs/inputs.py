"""What earlier jobs left, verified against its record before use: weights, synthetic images, splits."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dearkd import disk, record
from dearkd.data import image_archive, presize, subsets
from dearkd.data.images import Images
from dearkd.model import students, teachers
from dearkd.plan import commands, verify
from dearkd.plan.plan import Labels, Plan, Run
from dearkd.plan.stage import Stage, subset_name
from dearkd.schema import InputError


def teacher_weights(plan: Plan, name: str) -> tuple[dict[str, Any], Path]:
    """(record, file) of a teacher that has passed its gate; InputError when the file is not what the record says.

    A file that is missing or damaged is taken anew from the weights kept beside the record, if those are right.
    """
    found, weights = verify.teacher(plan, name), plan.paths.teacher_weights(name)
    kept = plan.paths.kept_weights(name)
    if not _is(weights, found["weights_sha256"]) and _is(kept, found["weights_sha256"]):
        disk.write(weights, kept.read_bytes())
    if not _is(weights, found["weights_sha256"]):
        raise InputError(
            f"{weights}: missing or not what {plan.paths.teacher(name)} describes; run "
            f"`{' && '.join(commands.teacher(plan, name))}`"
        )
    return found, weights


def trained_student(plan: Plan, run: Run, seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """(student of a finished run, its last record); InputError as `trained_weights`."""
    weights, trained = trained_weights(plan, run, seed)
    model = students.create(run.stages[-1].model, seed)
    teachers.load_weights(model, weights)
    return model, trained


def trained_weights(plan: Plan, run: Run, seed: int) -> tuple[Path, dict[str, Any]]:
    """(weights of a finished run, its last record).

    Raises InputError when a record is stale, or when weights and record do not belong together.
    """
    trained, stage = verify.stages(plan, run, seed)[-1], run.stages[-1]
    weights = plan.paths.state(run.name, seed, stage.name) / "student.safetensors"
    if not _is(weights, trained["weights_sha256"]):
        what = f"is not the file that {plan.paths.stage(run.name, seed, stage.name)} describes"
        if not weights.is_file():
            what = "missing, though its record is there (weights are not committed)"
        raise InputError(f"{weights}: {what}; make it again: {' && '.join(commands.run(plan, run, seed))}")
    return weights, trained


def synthetic(plan: Plan, name: str, seed: int, shards: int = 0) -> tuple[Images, str]:
    """(images of the first so many shards of a source, 0 being all; sha256 over their archives).

    Raises InputError naming an archive, or a CSV of its labels, that is missing or not the one its record describes.
    """
    source = plan.sources[name]
    paths, names, labels, sums = [], [], [], []
    for shard in range(shards or source.recipe.shards):
        path = plan.paths.archive(name, seed, shard)
        made, lines = verify.shard(plan, name, seed, shard)
        if not _is(path, made["archive_sha256"]):
            raise InputError(
                f"{path}: missing or not what {plan.paths.shard(name, seed, shard)} describes; make it again: "
                f"{commands.shard(plan, name, seed, shard)}"
            )
        paths.append(path)
        names += [f"{path.name}/{line['image']}" for line in lines]
        labels += [int(line["label"]) for line in lines]
        sums.append(made["archive_sha256"])
    images = image_archive.read(paths, names, np.array(labels, dtype=np.int64), source.data.channels)
    return images, verify.over(sums)


def real_images(plan: Plan, of: Stage | Labels, seed: int, train: Images | None = None) -> tuple[Images, str, int]:
    """(the fraction of the training images that a stage sees, or labels are of; their sha256; size of the whole).

    train: the training images, where they have been read already.
    """
    if train is None:
        train = subsets.splits(plan, of.data_name)["train"]
    images, images_sha256 = subsets.read(train, plan.paths.subsets(of.data_name), of.subset(seed))
    described = data_record(plan, of.data_name)
    if of.data.root:  # the list has names alone; of what a package ships, contents follow from the recipe
        images_sha256 = disk.sha256_of(images_sha256 + described["sha256"]["train"])
    if of.data.presize and not getattr(of, "source", None):
        images = presize.copy(plan, of.data_name, images)
    return images, images_sha256, described["images"][subset_name(100)]


def data_record(plan: Plan, name: str) -> dict[str, Any]:
    return record.read(plan.paths.subsets(name) / "data.json")


def available_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _is(path: Path, digest: str) -> bool:
    """Whether a file is there and has this sha256."""
    return path.is_file() and disk.sha256(path) == digest
