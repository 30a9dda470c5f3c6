"""The inputs of a job: files of earlier jobs, each verified against its record before use."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dearkd import disk, record
from dearkd.data import image_archive, presize, subsets
from dearkd.data.images import Images
from dearkd.data.order import Decisions
from dearkd.errors import InputError
from dearkd.model import networks, teachers
from dearkd.model.teachers import FeatureShape
from dearkd.model.weights import load_weights, state_sha256
from dearkd.plan import commands, verify
from dearkd.plan.plan import Labels, Plan, Run
from dearkd.plan.stage import Stage, subset_name
from dearkd.train.checkpoint import Checkpoints, packed
from dearkd.train.inputs import Inputs


def gather(plan: Plan, run: Run, seed: int, stage: Stage) -> tuple[Inputs, dict[str, Any]]:
    """(the inputs of a stage, the fields of its record that describe them).

    Raises InputError naming an input that is missing, damaged or stale, and the command that makes it.
    """
    splits = subsets.splits(plan, stage.data_name)
    images, images_sha256, everything = real_images(plan, stage, seed, splits["train"])
    if stage.source is not None:
        images, images_sha256 = synthetic(plan, stage.source.name, seed, stage.shards)
    draws = everything if stage.training.subset_schedule == "iterations" else len(images)
    teacher, features, teacher_record = teacher_of(plan, stage)
    initial, initial_record = None, None
    if run.initial:
        student, initial_record = trained_student(plan, plan.run(run.initial), seed)
        initial = student.state_dict()
    elif stage.model.start:
        initial = teachers.start(stage.model)
        initial_record = {"run": stage.model.start, "weights_sha256": state_sha256(initial)}
    previous, previous_record = _previous(plan, run, seed, stage)
    labels, labels_record = decisions(plan, stage, seed, images_sha256)
    records = (teacher_record, initial_record, previous_record)
    inputs = Inputs(
        train=images,
        validation=splits["validation"],
        draws=draws,
        teacher=teacher,
        features=features,
        fingerprint=run.fingerprint(stage.name),
        made_from="-".join([images_sha256, *(r["weights_sha256"] for r in records if r is not None)]),
        previous=previous,
        initial=initial,
        decisions=labels,
        workers=plan.scale.loader_workers,
    )
    return inputs, {
        "data": {
            "name": stage.data_name,
            "fraction": stage.fraction,
            "source": stage.source.name if stage.source else "",
            "images": len(images),
            "draws_per_epoch": draws,
            "images_sha256": images_sha256,
            "sha256": data_record(plan, stage.data_name)["sha256"],
        },
        "teacher": teacher_record and {k: teacher_record[k] for k in ("teacher", "top1", "weights_sha256")},
        "initial": initial_record and {k: initial_record[k] for k in ("run", "weights_sha256")},
        "labels": labels_record,
        "previous_sha256": previous_record and previous_record["weights_sha256"],
    }


def _previous(plan: Plan, run: Run, seed: int, stage: Stage) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(final state, record) of the stage before; Nones for the first stage.

    Raises InputError unless a checkpoint holds exactly the state that the record describes.
    """
    if stage == run.stages[0]:
        return None, None
    before = run.stages[run.stages.index(stage) - 1]
    made, folder = verify.stages(plan, run, seed, before.name)[-1], plan.paths.state(run.name, seed, before.name)
    wanted = (run.fingerprint(before.name), made["steps"], made["weights_sha256"])
    for state in Checkpoints(folder).states():
        if (state["fingerprint"], state["step"], disk.sha256_of(packed(state["student"]))) == wanted:
            return state, made
    raise InputError(
        f"{folder}: stage {stage.name} starts from the final state of stage {before.name}, which is missing, damaged "
        f"or not what {plan.paths.stage(run.name, seed, before.name)} describes; run `python -m dearkd train "
        f"{shlex.quote(run.name)} --scale {plan.argument} --seed {seed} --stage {before.name}` first"
    )


def teacher_of(
    plan: Plan, stage: Stage
) -> tuple[teachers.TeacherNetwork | None, tuple[teachers.FeatureShape, ...], dict[str, Any] | None]:
    """(teacher, shape of its features in each pair, its record); empty for a stage without a teacher.

    Raises InputError when the teacher's weights are missing or damaged, or lack a stage of `distillation.pairs`.
    """
    if stage.teacher is None:
        return None, (), None
    found, weights = teacher_weights(plan, stage.teacher_name)
    count, shapes = len(found["features"]), []
    for _, index in stage.pairs:
        if not -count <= index < count:
            raise InputError(
                f"distillation.pairs names teacher stage {index}, but {stage.teacher.model} has stages 0 to {count - 1}"
            )
        f = found["features"][index]
        shapes.append(FeatureShape(f["channels"], tuple(f["size"]), f["nonnegative"]))
    wanted = tuple(index % count for _, index in stage.pairs)
    return teachers.build(stage.teacher, stage.data, weights, wanted).fold(), tuple(shapes), found


def decisions(
    plan: Plan, stage: Stage, seed: int, images_sha256: str
) -> tuple[Decisions | None, dict[str, Any] | None]:
    """(labels computed ahead for a stage, the fields of its record on them); Nones where its teacher runs in each step.

    Raises InputError naming a shard that is missing, damaged, or of another teacher or other images.
    """
    spec = plan.labels_of(stage)
    if spec is None:
        return None, None
    shards, sums = {}, []
    for index in plan.label_shards(stage):
        path, found = plan.paths.label_file(spec.name, seed, index), verify.labels(plan, spec.name, seed, index)
        right = found["images_sha256"] == images_sha256 and path.is_file() and disk.sha256(path) == found["sha256"]
        if not right:
            raise InputError(
                f"{path}: missing, of other images, or not what {plan.paths.labels(spec.name, seed, index)} describes; "
                f"make it again: {commands.labels(plan, spec.name, seed, index)}"
            )
        shards[index] = np.load(path, mmap_mode="r", allow_pickle=False)
        sums.append(found["sha256"])
    return Decisions(shards, plan.scale.label_epochs), {"name": spec.name, "sha256": sums}


def teacher_weights(plan: Plan, name: str) -> tuple[dict[str, Any], Path]:
    """(record, file of the weights) of a teacher that has passed its gate.

    A file that is missing or damaged is restored from the weights kept beside the record, if those are right.
    Raises InputError when the file is still not the one that the record describes.
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
    """(student of a finished run, its last record). Raises InputError where `trained_weights` does."""
    weights, trained = trained_weights(plan, run, seed)
    model = networks.create(run.stages[-1].model, seed)
    load_weights(model, weights)
    return model, trained


def trained_weights(plan: Plan, run: Run, seed: int) -> tuple[Path, dict[str, Any]]:
    """(weights of a finished run, its last record).

    A file that is missing or damaged is restored from the weights kept beside the record, if those are right.
    Raises InputError when a record is stale, or when weights and record do not belong together.
    """
    trained, stage = verify.stages(plan, run, seed)[-1], run.stages[-1]
    weights = plan.paths.state(run.name, seed, stage.name) / "student.safetensors"
    kept = plan.paths.kept_student(run.name, seed)
    if not _is(weights, trained["weights_sha256"]) and _is(kept, trained["weights_sha256"]):
        disk.write(weights, kept.read_bytes())
    if not _is(weights, trained["weights_sha256"]):
        what = f"is not the file that {plan.paths.stage(run.name, seed, stage.name)} describes"
        if not weights.is_file():
            what = "missing, though its record is there, because its weights are not committed"
        others = sorted(path.parts[-5] for path in kept.parents[4].glob("/".join(("*", *kept.parts[-4:]))))
        here = f"take --scale {' or '.join(others)}, whose weights are here, or " if others else ""
        raise InputError(f"{weights}: {what}; {here}make it again: {' && '.join(commands.run(plan, run, seed))}")
    return weights, trained


def keep_weights(plan: Plan, run: Run, seed: int) -> Path:
    """Copy a finished run's weights beside its record. Raises InputError where `trained_weights` does."""
    kept = plan.paths.kept_student(run.name, seed)
    disk.write(kept, trained_weights(plan, run, seed)[0].read_bytes())
    return kept


def synthetic(plan: Plan, name: str, seed: int, shards: int = 0) -> tuple[Images, str]:
    """(images of a source, sha256 over their archives).

    shards: read only so many; 0: all.
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
    """(the training images of a stage or of labels, their sha256, number of images that the fraction is of).

    train: all training images, if they have been read already.
    Raises InputError when an image or a list is missing or has changed.
    """
    if train is None:
        train = subsets.splits(plan, of.data_name)["train"]
    images, images_sha256 = subsets.read(train, plan.paths.subsets(of.data_name), of.subset(seed), plan.argument)
    described = data_record(plan, of.data_name)
    if of.data.root:  # the list has only names, and files may change; data that a package ships cannot
        images_sha256 = disk.sha256_of(images_sha256 + described["sha256"]["train"])
    if of.data.presize and not getattr(of, "source", None):
        images = presize.copy(plan, of.data_name, images)
    return images, images_sha256, described["images"][subset_name(100)]


def data_record(plan: Plan, name: str) -> dict[str, Any]:
    """The record of a data set. Raises InputError when it is missing or damaged."""
    return record.read(plan.paths.subsets(name) / "data.json")


def available_device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _is(path: Path, digest: str) -> bool:
    """Whether a file is there and has this sha256."""
    return path.is_file() and disk.sha256(path) == digest
