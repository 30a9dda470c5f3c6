"""The job that makes a shard of a source's synthetic images, and the functions that it shares with `invert`."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dearkd import disk, record
from dearkd.data import image_archive
from dearkd.errors import InputError
from dearkd.fingerprint import fingerprint
from dearkd.jobs import fast, gpus
from dearkd.jobs.inputs import available_device, teacher_weights, trained_student
from dearkd.jobs.inversion import Inversion, advice, classes_of, doubt, groups
from dearkd.model import teachers
from dearkd.plan.plan import Plan
from dearkd.plan.stage import Source
from dearkd.progress import Progress
from dearkd.schema import to_json
from dearkd.train.attempt import Attempt


def synthesise_shard(
    plan: Plan, name: str, seed: int, index: int, save_seconds: float | None = None, wait: bool = False
) -> None:
    """Make a shard of a source's images, from its newest checkpoint if there is one, and write its record.

    save_seconds: longest time between two checkpoints; None: as the scale says. wait: where another job makes the
    shard, wait for that job instead of refusing.
    Raises Interrupted when asked to stop, and InputError when there is no such shard or a loss is not finite.
    """
    source = plan.sources[name]
    if not 0 <= index < source.recipe.shards:
        raise InputError(f"--shard {index}: {name} has the shards 0 to {source.recipe.shards - 1}; name one of them")
    torch.set_num_threads(plan.resources("synthesize").threads)
    torch.set_flush_denormal(True)
    found, weights = teacher_weights(plan, source.teacher_name)
    teacher = teachers.build(source.teacher, source.data, weights)
    competitor = plan.competitor(name, index)
    student, competing = None, None
    if competitor is not None:
        student, found_student = trained_student(plan, competitor, seed)
        competing = {"run": competitor.name, "weights_sha256": found_student["weights_sha256"]}
    elif source.verifier is not None:
        found_verifier, verifier_weights = teacher_weights(plan, source.recipe.verifier)
        student = teachers.Classifier(teachers.build(source.verifier, source.data, verifier_weights))
        competing = {"verifier": source.recipe.verifier, "weights_sha256": found_verifier["weights_sha256"]}
    path, target = plan.paths.archive(name, seed, index), plan.paths.shard(name, seed, index)
    named = found.get("classes") if source.data.kind == "folder" else None
    classes = source.recipe.classes or range(source.data.classes)
    attempt = Attempt(
        path.with_suffix(""),
        title=f"{name} seed {seed} shard {index}",
        recipe="-".join([fingerprint(source), *(r["weights_sha256"] for r in (found, competing) if r is not None)]),
        save_seconds=plan.scale.save_seconds if save_seconds is None else save_seconds,
        wait=wait,
    )
    shard = Shard(source, seed, index, classes, image_archive.folders_of(named or ()))
    made = make(shard, teacher, student, path, attempt)
    manifest = made.pop("manifest")
    described = {
        "kind": "images",
        "scale": plan.scale.name,
        "source": name,
        "seed": seed,
        "shard": index,
        "round": source.round(index),
        "spec": to_json(source),
        "fingerprint": fingerprint(source),
        "teacher": {k: found[k] for k in ("teacher", "top1", "weights_sha256")},
        "student": competing,
        **made,
    }
    listed = target.with_suffix(".csv")
    if target.is_file():
        disk.write(listed, manifest)  # a damaged one would make the record beside it unreadable
    if _is_recorded(target, described):
        print(f"{path}: the images were made again with the same bits, so {target} is kept")
    else:
        record.write(target, described, {listed.name: manifest})


def _is_recorded(target: Path, made: dict[str, Any]) -> bool:
    """Whether the record at `target` describes the same images. A committed record is then not replaced."""
    decides = (
        "fingerprint",
        "teacher",
        "student",
        "images",
        "iterations",
        "teacher_accuracy",
        "archive_sha256",
        "terms",
    )
    try:
        before = record.read(target)
    except InputError:  # missing or damaged, so it is made again
        return False
    return all(before.get(key) == made[key] for key in decides)


@dataclass(frozen=True)
class Shard:
    """The images that one job makes: shard `index` of a source and seed.

    classes: those of the images. folders: name of each class inside the archive; empty: the number of the class.
    """

    source: Source
    seed: int
    index: int
    classes: Sequence[int]
    folders: Sequence[str] = ()

    @property
    def groups(self) -> list[list[int]]:
        """The batches of the shard, in groups that share a forward pass."""
        return list(groups(self.source, self.index))

    @property
    def iterations(self) -> int:
        """Number of iterations of a group."""
        return sum(phase.iterations for phase in self.source.recipe.phases)

    def labels(self, batches: Sequence[int]) -> Int[Tensor, "batches batch"]:
        """The class of each image of some batches."""
        return torch.tensor([classes_of(b, self.source.recipe, self.classes, self.seed) for b in batches])

    def names(self, labels: Sequence[int]) -> list[str]:
        """The path of each image inside the archive, given its class."""
        folders = [self.folders[label] if self.folders else f"{label:04d}" for label in labels]
        return [f"{folder}/{self.index:04d}-{i:05d}.png" for i, folder in enumerate(folders)]


def make(
    shard: Shard, teacher: teachers.TeacherNetwork, student: nn.Module | None, path: Path, attempt: Attempt
) -> dict[str, Any]:
    """Synthesise a shard into the archive `path`; return fields of its record, and under `manifest` a CSV of images.

    Where an attempt at the same recipe has finished the archive, the fields that it noted are returned.
    """
    device = available_device()
    with attempt:
        made = attempt.made(path)
        if made is None:
            pixels, terms = _invert(shard, teacher, student, attempt, device)
            made = _stored(shard, pixels, teacher.to(device), path, device)
            believed = made["teacher_accuracy"]
            if warning := doubt(shard.source, believed):
                print(f"{attempt.title}: {warning}", flush=True)
            made |= {
                "warning": warning,
                "advice": advice(shard.source.recipe, {"r_bn": [t["first_r_bn"] for t in terms]}),
                **(costs := attempt.costs()),
                "gpu_seconds": gpus.spent(device.type, costs["seconds_all"]),
                **record.provenance(),
                "terms": terms,
            }
            attempt.keep(path, made)
    return made


def _invert(
    shard: Shard, teacher: teachers.TeacherNetwork, student: nn.Module | None, attempt: Attempt, device: torch.device
) -> tuple[UInt8[Tensor, "n channels height width"], list[dict[str, Any]]]:
    """(the images, the terms of the loss of each batch), from the newest checkpoint if there is one."""
    source, state = shard.source, attempt.resume() or {"pixels": [], "terms": [], "count": 0}
    start = fast.Start(source, knobs, shard.seed, device) if (knobs := source.recipe.fast) else None
    if start and "start" in state:
        start.load(state["start"])
    together = [*([batch] for batch in fast.rehearsals(source)), *shard.groups]
    behind, total = len(state["pixels"]) + (start.rehearsed if start else 0), shard.iterations * len(together)
    with Progress(attempt.title, total, state["count"]) as progress:
        for group in together[behind:]:
            labels = shard.labels(group)
            inversion = fast.begin(source, shard.seed, group, labels, teacher, student, start, device)
            if "inversion" in state:
                inversion.load(state.pop("inversion"))
            while inversion.step < inversion.total:
                if state["count"] == 1 and (note := advice(source.recipe, inversion.first)):
                    progress.line(note)
                inversion.advance()
                state["count"] += 1
                progress.advance(state["count"])
                attempt.checkpoint(state["count"], total, functools.partial(_with, state, inversion))
            if start and isinstance(inversion, fast.Drawing) and group[0] < 0:
                start.learn(inversion)
                state["start"] = start.state()
                continue
            state["pixels"].append(inversion.result())
            state["terms"] += [
                {"batch": b, **_column(inversion.first, i, "first"), **_column(inversion.last, i, "last")}
                for i, b in enumerate(group)
            ]
    return torch.cat([p.flatten(0, 1) for p in state["pixels"]]), state["terms"]


def _with(state: dict[str, Any], inversion: Inversion) -> dict[str, Any]:
    """The state that a checkpoint saves: the finished groups, and the one in work."""
    return {**state, "inversion": inversion.state()}


def _stored(
    shard: Shard,
    pixels: UInt8[Tensor, "n channels height width"],
    teacher: teachers.TeacherNetwork,
    path: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Write the archive; return fields of its record, with the class that the teacher predicts for each image."""
    labels = shard.labels([b for group in shard.groups for b in group]).flatten()
    names = shard.names(labels.tolist())
    verdict, sure = _verdict(teacher, pixels, shard.source, device)
    rows = zip(names, labels.tolist(), verdict.tolist(), sure.tolist(), strict=True)
    archive_sha256 = image_archive.write(path, pixels.permute(0, 2, 3, 1).numpy(), names)
    return {
        "manifest": "image,label,teacher_top1,teacher_probability\n"
        + "".join(f"{n},{t},{v},{p:.4f}\n" for n, t, v, p in rows),
        "images": len(labels),
        "iterations": shard.iterations,
        "teacher_accuracy": round(100 * (verdict == labels).float().mean().item(), 4),
        "archive_sha256": archive_sha256,
    }


def _column(terms: dict[str, list[float]], i: int, prefix: str) -> dict[str, float]:
    return {f"{prefix}_{name}": values[i] for name, values in terms.items()}


@torch.no_grad()
def _verdict(
    teacher: teachers.TeacherNetwork,
    pixels: UInt8[Tensor, "n channels height width"],
    source: Source,
    device: torch.device,
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """(class that the teacher predicts for each stored image, its probability)."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (source.data.mean, source.data.std))
    sure = [
        teacher.codes_and_logits(((batch.float() / 255 - mean) / std).to(device))[1].float().softmax(1).cpu()
        for batch in pixels.split(128)
    ]
    best = torch.cat(sure).max(1)
    return best.indices, best.values
