"""Making synthetic images: the job for a shard of a source, and what it shares with `invert`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dearkd import disk, record
from dearkd.data import image_archive
from dearkd.jobs import gpus
from dearkd.jobs.inputs import available_device, teacher_weights, trained_student
from dearkd.jobs.inversion import Inversion, advice, classes_of, doubt, groups
from dearkd.model import teachers
from dearkd.plan.plan import Plan
from dearkd.plan.stage import Source
from dearkd.progress import Progress
from dearkd.schema import InputError, fingerprint, to_json
from dearkd.stop import Interrupted, stop_requests
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.lease import Lease


def synthesise_shard(
    plan: Plan, name: str, seed: int, index: int, save_seconds: float | None = None, wait: bool = False
) -> None:
    """Make a shard of a source's images, from its newest checkpoint if there is one, and write its record.

    save_seconds: longest time between two checkpoints; None: the scale's. wait: where another job makes the shard,
    wait for that one instead of refusing.
    Raises Interrupted when asked to stop, InputError when there is no such shard or a loss is not finite.
    """
    source = plan.sources[name]
    if not 0 <= index < source.recipe.shards:
        raise InputError(f"{name} has shards 0 to {source.recipe.shards - 1}, not {index}")
    torch.set_num_threads(plan.resources("synthesize").threads)
    torch.set_flush_denormal(True)
    found, weights = teacher_weights(plan, source.teacher_name)
    teacher = teachers.build(source.teacher, source.data, weights)
    rival = plan.competitor(name, index)
    student, competing = None, None
    if rival is not None:
        student, found_student = trained_student(plan, rival, seed)
        competing = {"run": rival.name, "weights_sha256": found_student["weights_sha256"]}
    elif source.verifier is not None:
        found_verifier, verifier_weights = teacher_weights(plan, source.recipe.verifier)
        student = teachers.Classifier(teachers.build(source.verifier, source.data, verifier_weights))
        competing = {"verifier": source.recipe.verifier, "weights_sha256": found_verifier["weights_sha256"]}
    path, target = plan.paths.archive(name, seed, index), plan.paths.shard(name, seed, index)
    named = found.get("classes") if source.data.kind == "folder" else None
    made = make(
        source,
        seed,
        index,
        source.recipe.classes or range(source.data.classes),
        teacher,
        student,
        path,
        identity="-".join([fingerprint(source), *(r["weights_sha256"] for r in (found, competing) if r is not None)]),
        title=f"{name} seed {seed} shard {index}",
        save_seconds=plan.scale.save_seconds if save_seconds is None else save_seconds,
        wait=wait,
        folders=image_archive.folders_of(named or ()),
    )
    manifest = made.pop("manifest")
    described = {
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
        print(f"{path}: made again, with the same bits; {target} stays as it is")
    else:
        record.write(target, described, {listed.name: manifest})


def _is_recorded(target: Path, made: dict[str, Any]) -> bool:
    """Whether the record there says the same of the images, so that a committed one is not replaced for nothing."""
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
    except InputError:  # missing or damaged, which is why it is made again
        return False
    return all(before.get(key) == made[key] for key in decides)


def make(
    source: Source,
    seed: int,
    index: int,
    classes: Sequence[int],
    teacher: teachers.Teacher,
    student: nn.Module | None,
    path: Path,
    identity: str,
    title: str,
    save_seconds: float,
    wait: bool = False,
    folders: Sequence[str] = (),
) -> dict[str, Any]:
    """Synthesise a shard into the archive `path`; returns what its record says, and under `manifest` a CSV of images.

    Checkpoints lie in the folder of the archive's name, and in the end what is returned: where the archive is whole and
    of the same `identity`, what it was made with, it is returned again. `folders`: a name for each class inside the
    archive, its number where there are none.
    """
    device = available_device()
    folder = path.with_suffix("")
    with Lease(folder, identity, wait) as lease, stop_requests() as stop:
        checkpoints = Checkpoints(folder, lease)
        made = checkpoints.kept(identity, path)
        if made is not None:
            print(f"{title}: made already, only its record is written", flush=True)
            return made
        state = checkpoints.load()
        if state is None or state["identity"] != identity:
            checkpoints.discard()
            state = {"identity": identity, "pixels": [], "terms": [], "seconds": 0.0, "count": 0}
        before, started = state["seconds"], time.monotonic()
        together = list(groups(source, index))
        steps = sum(phase.iterations for phase in source.recipe.phases)
        saved = started
        with Progress(title, steps * len(together), state["count"]) as progress:
            for group in together[len(state["pixels"]) :]:
                labels = torch.tensor([classes_of(b, source.recipe, classes, seed) for b in group])
                inversion = Inversion(source, seed, group, labels, teacher, student, device)
                if "inversion" in state:
                    inversion.load(state.pop("inversion"))
                while inversion.step < inversion.total:
                    if inversion.step == 1 and not state["terms"]:
                        note = advice(source.recipe, inversion.first)
                        progress.line(note) if note else None
                    inversion.advance()
                    state["count"] += 1
                    progress.advance(state["count"])
                    if stop or time.monotonic() - saved >= save_seconds:
                        state["seconds"] = before + time.monotonic() - started
                        checkpoints.save(state["count"], {**state, "inversion": inversion.state()})
                        saved = time.monotonic()
                        if stop:
                            raise Interrupted(f"{title}: stopped at iteration {state['count']}, everything is saved")
                state["pixels"].append(inversion.result())
                state["terms"] += [
                    {"batch": b, **_column(inversion.first, i, "first"), **_column(inversion.last, i, "last")}
                    for i, b in enumerate(group)
                ]
        pixels = torch.cat([p.flatten(0, 1) for p in state["pixels"]])
        batches = [b for group in together for b in group]
        labels = torch.tensor([classes_of(b, source.recipe, classes, seed) for b in batches]).flatten()
        names = [
            f"{folders[label] if folders else f'{label:04d}'}/{index:04d}-{i:05d}.png"
            for i, label in enumerate(labels.tolist())
        ]
        verdict, sure = _verdict(teacher.to(device), pixels, source, device)
        rows = zip(names, labels.tolist(), verdict.tolist(), sure.tolist(), strict=True)
        archive_sha256 = image_archive.write(path, pixels.permute(0, 2, 3, 1).numpy(), names)
        seconds, costs = before + time.monotonic() - started, lease.costs()
        believed = 100 * (verdict == labels).float().mean().item()
        if warning := doubt(source, believed):
            print(f"{title}: {warning}", flush=True)
        made = {
            "manifest": "image,label,teacher_top1,teacher_probability\n"
            + "".join(f"{n},{t},{v},{p:.4f}\n" for n, t, v, p in rows),
            "images": len(labels),
            "iterations": steps,
            "teacher_accuracy": round(believed, 4),
            "warning": warning,
            "advice": advice(source.recipe, {"r_bn": [t["first_r_bn"] for t in state["terms"]]}),
            "archive_sha256": archive_sha256,
            "seconds": round(seconds, 2),
            **costs,
            "gpu_seconds": gpus.spent(device.type, costs["seconds_all"]),
            **record.provenance(),
            "terms": state["terms"],
        }
        checkpoints.keep(identity, path, made)
    return made


def _column(terms: dict[str, list[float]], i: int, prefix: str) -> dict[str, float]:
    return {f"{prefix}_{name}": values[i] for name, values in terms.items()}


@torch.no_grad()
def _verdict(
    teacher: teachers.Teacher, pixels: UInt8[Tensor, "n channels height width"], source: Source, device: torch.device
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """(class that the teacher sees in each stored image, its probability)."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (source.data.mean, source.data.std))
    sure = [
        teacher.codes_and_logits(((batch.float() / 255 - mean) / std).to(device))[1].float().softmax(1).cpu()
        for batch in pixels.split(128)
    ]
    best = torch.cat(sure).max(1)
    return best.indices, best.values
