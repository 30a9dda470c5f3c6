"""The jobs of the workflow: each gathers what a plan names, runs it, and writes its record last."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dearkd import disk, record
from dearkd.data import datasets, folder, subsets
from dearkd.data.loader import evaluation_loader
from dearkd.jobs import gate, labels, throughput
from dearkd.jobs.inputs import (
    available_device,
    data_record,
    real_images,
    synthetic,
    teacher_weights,
    trained_student,
    trained_weights,
)
from dearkd.jobs.preflight import preflight
from dearkd.model import hub, students, teachers
from dearkd.plan import files, verify
from dearkd.plan.plan import Plan, Run
from dearkd.plan.stage import IN_FILES, Stage, Teacher
from dearkd.schema import InputError, to_json
from dearkd.train import loop as training
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.evaluate import accuracy, hits, predict
from dearkd.train.lease import Lease
from dearkd.train.session import Work, export, packed, precision

KEPT = 4_000_000
"""Bytes up to which the weights of a teacher that the workflow trains are kept beside its record."""


def subset(plan: Plan, name: str) -> None:
    """List the files of data set `name`, its test images, validation split and every fraction; write what they are.

    Says in one line what of a folder is left out. Raises one InputError that lists every file which cannot be used.
    """
    spec, place = plan.scale.data[name], plan.paths.subsets(name)
    if name == "main":
        preflight(plan)  # of every workflow the first job
    sets = datasets.read(dataclasses.replace(spec, label_noise=0.0))
    named = [s.fraction for run in plan.runs.values() for s in run.stages if s.data_name == name]
    fractions = (*(plan.scale.fractions if name == "main" else ()), *sorted(named), 100)
    draws = plan.scale.seeds if plan.scale.subset_draw == "seed" else ()
    train = sets["train"]
    classes = folder.class_names(train) if spec.kind == "folder" else {}
    chosen = subsets.choose(train.labels, spec, fractions, plan.scale.subset_seed, draws, classes)
    lists = {"test.txt": "".join(f"{name}\n" for name in sets["test"].names)}
    described = {"sha256": {k: v.sha256() for k, v in {**sets, "train": datasets.noisy(train, spec)}.items()}}
    if spec.kind in IN_FILES:
        lists[files.LIST], described = subsets.list_files(plan, name, sets)
        print(described["survey"])
    subsets.write(train, chosen, place, lists)
    record.write(
        place / "data.json",
        {
            "data": name,
            "spec": to_json(spec),
            "subset_seed": plan.scale.subset_seed,
            "images": {**{k: len(v) for k, v in sets.items()}, **{k: len(v) for k, v in chosen.items()}},
            **described,
            **record.provenance(),
        },
    )


def teacher(plan: Plan, name: str) -> None:
    """Bring a teacher's weights to where jobs read them, and write its record once it has passed the accuracy gate.

    Raises InputError when its top-1 lies further than the tolerance from what the scale expects.
    """
    spec, scale_data = plan.scale.teachers[name], plan.scale.data["main"]
    torch.set_num_threads(plan.resources("teacher").threads)
    own_run = plan.teacher_run(name)
    weights = trained_weights(plan, own_run, 0)[0] if own_run else None
    loaded = teachers.build(spec, scale_data, weights)
    state_sha256 = teachers.weights_sha256(loaded.net)
    splits = subsets.splits(plan, "main")
    classes = gate.classes_of(splits["test"], scale_data.classes)
    if spec.outputs:
        gate.reorder(loaded.net, gate.in_order(spec.outputs, classes))
    device = available_device()
    split = splits[spec.gate]
    top1, warning = gate.measure(name, spec, scale_data, loaded, split, classes, device, plan.scale.loader_workers)
    if warning:
        print(f"Warning: {warning}", flush=True)
    images, _ = next(evaluation_loader(split, scale_data, 8))
    shapes = loaded.feature_shapes(images.to(device))
    target = plan.paths.teacher_weights(name)
    export({"student": {k: v.cpu() for k, v in loaded.net.state_dict().items()}}, target)
    if own_run is not None and target.stat().st_size <= KEPT:
        disk.write(plan.paths.kept_weights(name), target.read_bytes())
    record.write(
        plan.paths.teacher(name),
        {
            "teacher": name,
            "spec": to_json(spec),
            "top1": round(top1, 4),
            "gate": spec.gate,
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


def train(
    plan: Plan,
    run: Run,
    seed: int,
    stage_name: str,
    save_seconds: float | None = None,
    wait: bool = False,
    tensorboard: Path | None = None,
) -> None:
    """Train a stage of a run, from its newest checkpoint or from the end of the stage before, and write its record.

    save_seconds: longest time between two checkpoints; None: the scale's. wait: where another job holds the run, wait
    for it instead of refusing. tensorboard: folder for event files, one of its folders for each run and seed.
    """
    stage = run.stage(stage_name)
    device, rank, processes = training.device_and_rank()
    torch.set_num_threads(max(plan.resources("train").threads // processes, 1))
    torch.set_flush_denormal(True)
    folder = plan.paths.state(run.name, seed, stage_name)
    with Lease(folder, run.fingerprint(stage_name), wait, active=rank == 0) as lease:
        training.meet(processes)
        work, inputs = _gather(plan, run, seed, stage)
        work.checkpoints = Checkpoints(folder, lease)
        work.save_seconds = plan.scale.save_seconds if save_seconds is None else save_seconds
        work.tensorboard = tensorboard and tensorboard / run.name / f"seed{seed}"
        work.device, work.rank, work.processes = device, rank, processes
        state = training.train(stage, seed, work)
        if rank:
            return
        weights, costs = export(state, folder / "student.safetensors"), lease.costs()
        record.write(
            plan.paths.stage(run.name, seed, stage_name),
            {
                "scale": plan.scale.name,
                "run": run.name,
                "seed": seed,
                "stage": stage_name,
                "specs": [to_json(s) for s in run.stages[: run.stages.index(stage) + 1]],
                "fingerprint": run.fingerprint(stage_name),
                **inputs,
                "weights_sha256": disk.sha256(weights),
                "steps": state["step"],
                "seconds": round(state["seconds"], 2),
                **costs,
                "gpu_seconds": round(costs["seconds_all"] * processes, 2) if device.type == "cuda" else 0.0,
                "processes": processes,
                "threads": torch.get_num_threads(),
                "attention_distance_heads": state["heads"],
                **record.provenance(),
                "curve": state["curve"],
            },
        )


def _gather(plan: Plan, run: Run, seed: int, stage: Stage) -> tuple[Work, dict[str, Any]]:
    """(what a stage works on, what its record says of that)."""
    splits = subsets.splits(plan, stage.data_name)
    images, images_sha, everything = real_images(plan, stage, seed, splits["train"])
    if stage.source is not None:
        images, images_sha = synthetic(plan, stage.source.name, seed, stage.shards)
    draws = everything if stage.training.subset_schedule == "iterations" else len(images)
    taught_by, features, teacher_record = _teacher(plan, stage)
    initial, initial_record = None, None
    if run.initial:
        pretrained, initial_record = trained_student(plan, plan.run(run.initial), seed)
        initial = pretrained.state_dict()
    elif stage.model.start:
        initial = teachers.start(stage.model)
        initial_record = {"run": stage.model.start, "weights_sha256": teachers.state_sha256(initial)}
    previous, previous_record = _previous(plan, run, seed, stage)
    decisions, decisions_record = labels.read(plan, stage, seed, images_sha)
    found = (teacher_record, initial_record, previous_record)
    work = Work(
        train=images,
        validation=splits["validation"],
        draws=draws,
        teacher=taught_by,
        features=features,
        checkpoints=Checkpoints(plan.paths.state(run.name, seed, stage.name)),
        fingerprint=run.fingerprint(stage.name),
        made_from="-".join([images_sha, *(r["weights_sha256"] for r in found if r is not None)]),
        previous=previous,
        initial=initial,
        decisions=decisions,
        workers=plan.scale.loader_workers,
        title=f"{run.name} seed {seed} stage {stage.name}",
    )
    return work, {
        "data": {
            "name": stage.data_name,
            "fraction": stage.fraction,
            "source": stage.source.name if stage.source else "",
            "images": len(images),
            "draws_per_epoch": draws,
            "images_sha256": images_sha,
            "sha256": data_record(plan, stage.data_name)["sha256"],
        },
        "teacher": teacher_record and {k: teacher_record[k] for k in ("teacher", "top1", "weights_sha256")},
        "initial": initial_record and {k: initial_record[k] for k in ("run", "weights_sha256")},
        "labels": decisions_record,
        "previous_sha256": previous_record and previous_record["weights_sha256"],
    }


def _previous(plan: Plan, run: Run, seed: int, stage: Stage) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(final state, record) of the stage before; Nones for the first one.

    Raises InputError unless a checkpoint holds exactly the state that the record describes.
    """
    if stage == run.stages[0]:
        return None, None
    before = run.stages[run.stages.index(stage) - 1]
    made, folder = verify.stages(plan, run, seed, before.name)[-1], plan.paths.state(run.name, seed, before.name)
    wanted = (run.fingerprint(before.name), made["steps"])
    for state in Checkpoints(folder).states():
        if (state["fingerprint"], state["step"]) == wanted and disk.sha256_of(packed(state)) == made["weights_sha256"]:
            return state, made
    raise InputError(
        f"{folder}: stage {stage.name} starts from the final state of stage {before.name}, which is missing, damaged "
        f"or not what {plan.paths.stage(run.name, seed, before.name)} describes; run `python -m dearkd train "
        f"{shlex.quote(run.name)} --scale {plan.scale.name} --seed {seed} --stage {before.name}` first"
    )


def evaluate(plan: Plan, run: Run, seed: int) -> None:
    """Top-1 and top-5 of a finished run on the test images, each image's prediction kept beside the record."""
    stage = run.stages[-1]
    model, trained = trained_student(plan, run, seed)
    torch.set_num_threads(plan.resources("evaluate").threads)
    device = available_device()
    split = subsets.splits(plan, stage.data_name)["test"]
    logits, labels = predict(
        model.to(device),
        evaluation_loader(split, stage.data, 256, plan.scale.loader_workers),
        device,
        precision(stage.training.precision, device),
    )
    record.write(
        plan.paths.metrics(run.name, seed),
        {
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


def _predictions(names: Sequence[str], logits: torch.Tensor, labels: torch.Tensor) -> str:
    """CSV from which anyone can count the accuracies: image, label, the class predicted, label among the best five."""
    columns = (labels.tolist(), logits.argmax(1).tolist(), hits(logits, labels, 5).int().tolist())
    return files.table(("image", "label", "top1", "in_top5"), zip(names, *columns, strict=True))


def pretrained(plan: Plan, label: str) -> None:
    """Evaluate weights that others have trained on the scale's test images, at the network's own size and crop."""
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
            "scale": plan.scale.name,
            "label": label,
            "spec": to_json(peer),
            "state_sha256": teachers.weights_sha256(model.net),
            "input": {"image_size": spec.image_size, "crop": spec.crop, "interpolation": spec.interpolation},
            "images": len(labels),
            "data_sha256": data_record(plan, "main")["sha256"]["test"],
            "metrics": {"top1": accuracy(logits, labels), "top5": accuracy(logits, labels, 5)},
            **record.provenance(),
        },
    )


def architectures(plan: Plan) -> None:
    """Size and throughput of every architecture that a table names, one after the other on this machine."""
    device = available_device()
    torch.set_num_threads(plan.resources("throughput").threads)
    names = plan.architectures_of(*plan.tables)
    rates = throughput.measure(names, plan.scale.throughput, device) if plan.scale.throughput.repeats else {}
    record.write(
        plan.paths.throughput,
        {
            "scale": plan.scale.name,
            "spec": to_json(plan.scale.throughput),
            "threads": torch.get_num_threads(),
            "architectures": {name: {**throughput.size(name), **rates.get(name, {})} for name in names},
            **record.provenance(),
        },
    )


def _teacher(plan: Plan, stage: Stage) -> tuple[teachers.Teacher | None, tuple, dict[str, Any] | None]:
    """(teacher, shapes of the features its pairs want, its record); Nones for a stage without one."""
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
        shapes.append(students.FeatureShape(f["channels"], tuple(f["size"]), f["nonnegative"]))
    wanted = tuple(index % count for _, index in stage.pairs)
    return teachers.build(stage.teacher, stage.data, weights, wanted).fold(), tuple(shapes), found
