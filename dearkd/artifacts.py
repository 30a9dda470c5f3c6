"""What earlier jobs left, verified against its record before use: weights, synthetic images, splits. Run layer."""

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dearkd import archive, models, presize, record, subsets, teachers
from dearkd.checkpoint import write_bytes
from dearkd.images import Images
from dearkd.plan import Labels, Plan, Run
from dearkd.schema import InputError
from dearkd.spec import Stage, subset_name


def teacher_weights(plan: Plan, name: str) -> tuple[dict[str, Any], Path]:
    """(record, file) of a teacher that has passed its gate; InputError when the file is not what the record says."""
    found, weights = record.read(plan.paths.teacher(name)), plan.paths.teacher_weights(name)
    kept = plan.paths.kept_weights(name)
    if not weights.is_file() and kept.is_file():
        write_bytes(weights, kept.read_bytes())
    if not weights.is_file() or sha256(weights) != found["weights_sha256"]:
        raise InputError(
            f"{weights}: missing or not what {plan.paths.teacher(name)} describes; run "
            f"`python -m dearkd teacher {name} --scale {plan.scale.name}`"
        )
    same_images(plan, plan.paths.teacher(name), "main", found.get("data_sha256"))
    return found, weights


def trained_student(plan: Plan, run: Run, seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """(student of a finished run, its last record); InputError when weights and record do not belong together."""
    weights, trained = trained_weights(plan, run, seed)
    model = models.create(run.stages[-1].model, seed)
    teachers.load_weights(model, weights)
    return model, trained


def trained_weights(plan: Plan, run: Run, seed: int) -> tuple[Path, dict[str, Any]]:
    """(weights of a finished run, its last record); InputError when they do not belong together."""
    stage = run.stages[-1]
    path = plan.paths.stage(run.name, seed, stage.name)
    trained = record.read(path)
    weights = plan.paths.state(run.name, seed, stage.name) / "student.safetensors"
    if not weights.is_file():
        raise InputError(
            f"{weights}: missing, though its record is there (weights are not committed); train it again: "
            f"snakemake -c2 --config scale={plan.scale.name} --forcerun "
            f"{plan.paths.stage(run.name, seed, run.stages[0].name)} -- all"
        )
    if sha256(weights) != trained["weights_sha256"]:
        raise InputError(f"{weights}: is not the file that {path} describes; train it again")
    same_images(plan, path, stage.data_name, trained["data"]["sha256"])
    return weights, trained


def synthetic(plan: Plan, name: str, seed: int, shards: int = 0) -> tuple[Images, str]:
    """(images of the first so many shards of a source, 0 being all; sha256 over their archives).

    Raises InputError naming an archive that is missing or not the one its record describes.
    """
    source = plan.sources[name]
    paths, names, labels, sums = [], [], [], []
    for shard in range(shards or source.recipe.shards):
        path = plan.paths.archive(name, seed, shard)
        made = record.read(plan.paths.shard(name, seed, shard))
        if not path.is_file() or sha256(path) != made["archive_sha256"]:
            raise InputError(
                f"{path}: missing or not what {plan.paths.shard(name, seed, shard)} describes; make it again: "
                f"python -m dearkd synthesize {name} --scale {plan.scale.name} --seed {seed} --shard {shard}"
            )
        with plan.paths.shard(name, seed, shard).with_suffix(".csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        if not all(line["label"].isdigit() and int(line["label"]) < source.data.classes for line in lines):
            raise InputError(
                f"{plan.paths.shard(name, seed, shard).with_suffix('.csv')}: a label is not one of the "
                f"{source.data.classes} classes; make the shard again"
            )
        paths.append(path)
        names += [f"{path.name}/{line['image']}" for line in lines]
        labels += [int(line["label"]) for line in lines]
        sums.append(made["archive_sha256"])
    images = archive.read(paths, names, np.array(labels, dtype=np.int64), source.data.channels)
    return images, hashlib.sha256("".join(sums).encode()).hexdigest()


def real_images(plan: Plan, of: Stage | Labels, seed: int, train: Images | None = None) -> tuple[Images, str, int]:
    """(the fraction of the training images that a stage sees, or labels are of; their sha256; size of the whole).

    train: the training images, where they have been read already.
    """
    if train is None:
        train = subsets.splits(plan, of.data_name)["train"]
    images, images_sha256 = subsets.read(train, plan.paths.subsets(of.data_name), of.subset(seed))
    described = data_record(plan, of.data_name)
    if of.data.root:  # the list has names alone; of what a package ships, contents follow from the recipe
        images_sha256 = hashlib.sha256((images_sha256 + described["sha256"]["train"]).encode()).hexdigest()
    if of.data.presize and not getattr(of, "source", None):
        images = presize.copy(plan, of.data_name, images)
    return images, images_sha256, described["images"][subset_name(100)]


def data_record(plan: Plan, name: str) -> dict[str, Any]:
    return record.read(plan.paths.subsets(name) / "data.json")


def same_images(plan: Plan, path: Path, name: str, sha256: dict[str, str] | None) -> None:
    """Refuse what was made of other images of data set `name` than are listed today: it may have seen test images.

    path: its record. sha256: what that says of the images; None: it is older than that field. Raises InputError.
    """
    listed = plan.paths.subsets(name) / "data.json"
    if sha256 and listed.is_file() and sha256 != record.read(listed)["sha256"]:
        raise InputError(
            f"{path}: was made of other images than {listed} describes; make it again with "
            f"`snakemake -c2 --config scale={plan.scale.name} --forcerun {path} -- all`"
        )


def available_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
