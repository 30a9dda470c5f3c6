"""Making synthetic images: the job for a shard of a source, and the inversion of a user's own CNN. Run layer."""

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dearkd import archive, recipes, record, synthesize, teachers
from dearkd.artifacts import available_device, teacher_weights, trained_student
from dearkd.checkpoint import Checkpoints
from dearkd.lease import Lease
from dearkd.plan import Plan
from dearkd.progress import Progress
from dearkd.schema import InputError, fingerprint, to_json, unknown
from dearkd.spec import Data, Phase, Source, Synthesis, Teacher
from dearkd.stop import Interrupted, stop_requests


def shard(plan: Plan, name: str, seed: int, index: int, save_seconds: float | None = None, wait: bool = False) -> None:
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
    path = plan.paths.archive(name, seed, index)
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
    )
    target = plan.paths.shard(name, seed, index)
    record.write_text(target.with_suffix(".csv"), made.pop("manifest"))
    record.write(
        target,
        {
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
        },
    )
    Checkpoints(path.with_suffix("")).discard()


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

    Checkpoints lie in the folder of the archive's name. `identity`: what they must have been made with. `folders`: a
    name for each class inside the archive, its number where there are none.
    """
    device = available_device()
    folder = path.with_suffix("")
    with Lease(folder, identity, wait) as lease, stop_requests() as stop:
        checkpoints = Checkpoints(folder, lease)
        state = checkpoints.load()
        if state is None or state["identity"] != identity:
            checkpoints.discard()
            state = {"identity": identity, "pixels": [], "terms": [], "seconds": 0.0, "count": 0}
        before, started = state["seconds"], time.monotonic()
        groups = list(synthesize.groups(source, index))
        steps = sum(phase.iterations for phase in source.recipe.phases)
        saved = started
        with Progress(title, steps * len(groups), state["count"]) as progress:
            for group in groups[len(state["pixels"]) :]:
                labels = torch.tensor([synthesize.classes_of(b, source.recipe, classes, seed) for b in group])
                inversion = synthesize.Inversion(source, seed, group, labels, teacher, student, device)
                if "inversion" in state:
                    inversion.load(state.pop("inversion"))
                while inversion.step < inversion.total:
                    if inversion.step == 1 and not state["terms"]:
                        note = synthesize.advice(source.recipe, inversion.first)
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
        batches = [b for group in groups for b in group]
        labels = torch.tensor([synthesize.classes_of(b, source.recipe, classes, seed) for b in batches]).flatten()
        names = [
            f"{folders[label] if folders else f'{label:04d}'}/{index:04d}-{i:05d}.png"
            for i, label in enumerate(labels.tolist())
        ]
        verdict, sure = _verdict(teacher.to(device), pixels, source, device)
        archive_sha256 = archive.write(path, pixels.permute(0, 2, 3, 1).numpy(), names)
        seconds, costs = before + time.monotonic() - started, lease.costs()
    rows = zip(names, labels.tolist(), verdict.tolist(), sure.tolist(), strict=True)
    manifest = "image,label,teacher_top1,teacher_probability\n" + "".join(
        f"{n},{t},{v},{p:.4f}\n" for n, t, v, p in rows
    )
    cuda = device.type == "cuda"
    return {
        "manifest": manifest,
        "images": len(labels),
        "iterations": steps,
        "teacher_accuracy": round(100 * (verdict == labels).float().mean().item(), 4),
        "advice": synthesize.advice(source.recipe, {"r_bn": [t["first_r_bn"] for t in state["terms"]]}),
        "archive_sha256": archive_sha256,
        "seconds": round(seconds, 2),
        **costs,
        "gpu_seconds": costs["seconds_all"] if cuda else 0.0,
        **record.provenance(torch.cuda.get_device_name() if cuda else ""),
        "terms": state["terms"],
    }


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


def invert(
    model: str,
    weights: str,
    classes: Sequence[str],
    picked: Sequence[str],
    out: Path,
    method: str = "df_dearkd",
    recipe: Synthesis | None = None,
    images: int = 42,
    seed: int = 0,
    save_seconds: float = 300.0,
) -> Path:
    """Images of a timm CNN's classes in `out`/images.zip, a folder of PNG a class, with a record beside it.

    Args:
        model: timm tag. weights: a local file, or empty for timm's hub. classes: a name for each output, or none.
        picked: names or numbers of the classes wanted; none: all. recipe: knobs; the paper's, at the CNN's own image
        size, where None.

    Raises InputError when the CNN has no BatchNorm, or the names do not fit it.
    """
    data = _data_of(model, len(classes), weights)
    names = [_folder_name(name) for name in classes] or [f"{i:04d}" for i in range(data.classes)]
    if len(names) != data.classes:
        raise InputError(f"--classes names {len(names)} classes, but {model} has {data.classes} outputs")
    indices = [_index(name, classes, data.classes) for name in picked] or list(range(data.classes))
    half = data.image_size // 2
    recipe = recipe or Synthesis(
        phases=(Phase(size=half, iterations=2000, lr=0.5), Phase(size=data.image_size, iterations=2000, lr=0.01))
    )
    recipe = dataclasses.replace(
        recipe, images=images, batch_classes=min(recipe.batch_classes, len(indices)), shard_batches=images
    )
    spec = Teacher(model=model, weights=weights, top1=0.0)
    source = Source(
        name=method,
        terms=recipes.terms(recipe, method),
        recipe=recipe,
        data=data,
        teacher_name=model,
        teacher=spec,
    )
    teacher = teachers.build(spec, data)
    path = out / "images.zip"
    identity = f"{fingerprint((source, tuple(indices), seed))}-{teachers.weights_sha256(teacher.net)}"
    made = make(
        source, seed, 0, indices, teacher, None, path, identity, f"{method} from {model}", save_seconds, folders=names
    )
    record.write_text(out / "images.csv", made.pop("manifest"))
    record.write(out / "images.json", {"spec": to_json(source), "seed": seed, "classes": names, **made})
    Checkpoints(path.with_suffix("")).discard()
    return path


def _data_of(model: str, named: int, weights: str) -> Data:
    """Image size, channels, pixel statistics and number of classes of a timm CNN."""
    if not timm.is_model(model):
        raise InputError(unknown(model, timm.list_models(), "timm model", "--teacher"))
    config = teachers.pretrained_cfg(model)
    channels, side, _ = config.input_size
    return Data(
        kind="folder",
        classes=named if named and weights else config.num_classes,
        image_size=side,
        channels=channels,
        mean=tuple(config.mean),
        std=tuple(config.std),
    )


def _index(name: str, classes: Sequence[str], count: int) -> int:
    if name in classes:
        return list(classes).index(name)
    if name.isdigit() and int(name) < count:
        return int(name)
    raise InputError(unknown(name, classes or [f"0 to {count - 1}"], "class", "--pick"))


def _folder_name(name: str) -> str:
    """A class name as the name of a folder inside the archive, without anything that could point elsewhere."""
    return re.sub(r"[^\w .-]+", "_", name.strip()).strip(". ") or "_"
