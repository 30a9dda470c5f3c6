"""Synthetic images from the user's own CNN, without a scale and without any image."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from jaxtyping import Int
from timm.data import ImageNetInfo
from torch import Tensor

from dearkd import disk, record
from dearkd.data.image_archive import folders_of
from dearkd.errors import InputError, unknown
from dearkd.fingerprint import fingerprint
from dearkd.jobs import fast, inversion
from dearkd.jobs.inputs import available_device
from dearkd.jobs.synthesis import Shard, make
from dearkd.model import efficientnet_lite0, hub, teachers
from dearkd.model.weights import read_weights, weights_sha256
from dearkd.plan import files
from dearkd.plan.stage import Data, Phase, Source, Synthesis, Teacher
from dearkd.plan.synthesis import competes, recipe_of, terms
from dearkd.schema import to_json
from dearkd.train.attempt import Attempt
from dearkd.train.checkpoint import Checkpoints

QUICK = 10
"""Factor by which `--quick` reduces the iterations."""


def invert(
    teacher: Teacher,
    classes: Sequence[str],
    picked: Sequence[str],
    out: Path,
    method: str = "df_dearkd",
    recipe: Synthesis | None = None,
    images: int = 42,
    seed: int = 0,
    image_size: int = 0,
    quick: bool = False,
    save_seconds: float = 300.0,
) -> Path:
    """Make images of a timm CNN's classes in `out`/images.zip, a folder of PNG for each class, with a record beside it.

    Args:
        teacher: the CNN, its weights and pixels. classes: a name for each output, or none.
        picked: names or numbers of the classes of the images; none: all.
        recipe: knobs; None: the paper's, at the CNN's own image size.
        image_size: side in pixels; 0: the largest of the recipe's phases, or without a recipe that of the tag.
        quick: make a tenth of the iterations.

    Raises InputError when the CNN has no BatchNorm, the names do not fit it, the method needs a student, or `out` has
    other images.
    """
    if competes(method):
        raise InputError(
            f"{method}: its images compete with a student in training, which only a scale has (docs/data-free.md). "
            f"Take df_dearkd or deepinversion for a CNN alone"
        )
    largest = max(phase.size for phase in recipe.phases) if recipe else 0
    data = _data_of(teacher, len(classes), image_size or largest)
    names = [*classes] or _names_of(teacher, data.classes)
    indices = list(dict.fromkeys(_index(name, names, data.classes) for name in picked)) or list(range(data.classes))
    recipe = _recipe(method, recipe, data.image_size, images, len(indices), quick)
    source = Source(
        name=method,
        terms=terms(recipe, method),
        recipe=recipe,
        data=data,
        teacher_name=teacher.model,
        teacher=teacher,
    )
    loaded = teachers.build(teacher, data)
    state_sha256 = weights_sha256(loaded.net)
    identity = f"{fingerprint((source, tuple(indices), seed))}-{state_sha256}"
    path, folders = out / "images.zip", folders_of(names)
    if _is_made(out, identity):
        print(f"{path}: already made with this recipe")
        return path
    if len(set(names)) < len(names):
        print("Some classes have the same name, so each folder begins with the number of its output.", flush=True)
    _announce(source, seed, indices, loaded, quick)
    attempt = Attempt(path.with_suffix(""), f"{method} from {teacher.model}", identity, save_seconds)
    made = make(Shard(source, seed, 0, indices, folders), loaded, None, path, attempt)
    said = {"kind": "images", "spec": to_json(source), "identity": identity, "seed": seed, "classes": folders}
    said |= {"names": names, "state_sha256": state_sha256, **made}
    record.write(out / "images.json", said, {"images.csv": said.pop("manifest")})
    return path


def _data_of(teacher: Teacher, named: int, side: int) -> Data:
    """Side, channels, mean, std and number of classes of a CNN, from the file of its weights or else from its tag."""
    if not timm.is_model(teacher.model):
        raise InputError(unknown(teacher.model, timm.list_models(), "timm model", "--teacher"))
    config = hub.pretrained_cfg(teacher.model)
    outputs, channels = config.num_classes, config.input_size[0]
    if teacher.weights and not teacher.weights.startswith("package:"):
        state = read_weights(Path(teacher.weights))
        classifier, first = (state.get(f"{name}.weight") for name in (config.classifier, config.first_conv))
        outputs = (named or outputs) if classifier is None else classifier.shape[0]
        channels = channels if first is None else first.shape[1]
    if named not in (0, outputs):
        raise InputError(
            f"--classes names {named} classes, but {teacher.weights or teacher.model} has {outputs} outputs; name each"
        )
    mean, std = teacher.mean or config.mean, teacher.std or config.std
    if len(mean) != channels and not teacher.mean:
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    if len(mean) != channels:
        raise InputError(
            f"--mean has {len(mean)} values, but {teacher.model} takes {channels} channels; give one value a channel"
        )
    return Data(
        kind="folder",
        classes=outputs,
        image_size=side or config.input_size[-1],
        channels=channels,
        mean=tuple(mean),
        std=tuple(std),
    )


def _names_of(teacher: Teacher, count: int) -> list[str]:
    """The names of the outputs: ImageNet's names if the outputs are ImageNet's classes, else their numbers."""
    if count == 1000 and (not teacher.weights or teacher.weights == efficientnet_lite0.WEIGHTS):
        return [text.split(",")[0] for text in ImageNetInfo("imagenet-1k").label_descriptions()]
    return [f"{i:04d}" for i in range(count)]


def _index(name: str, names: Sequence[str], count: int) -> int:
    """The output that `--pick` means by a name or a number."""
    places = [i for i, other in enumerate(names) if other == name]
    if len(places) > 1:
        raise InputError(
            f"--pick: {name!r} is the name of outputs {', '.join(map(str, places))}; pick one by its number"
        )
    if places:
        return places[0]
    if name.isdecimal() and int(name) < count:
        return int(name)
    raise InputError(unknown(name, [*names, f"0 to {count - 1}"], "class", "--pick"))


def _recipe(method: str, recipe: Synthesis | None, side: int, images: int, classes: int, quick: bool) -> Synthesis:
    """The recipe given, or the paper's schedule at this side, for so many images and classes."""
    halves = (Phase(size=max(side // 2, 1), iterations=2000, lr=0.5), Phase(size=side, iterations=2000, lr=0.01))
    recipe = recipe or Synthesis(phases=halves, jitter=max(round(30 * side / 224), 1))
    if any(phase.size > side for phase in recipe.phases):
        raise InputError(
            f"phases: {max(p.size for p in recipe.phases)} pixels are more than --image-size {side}; raise it"
        )
    recipe = recipe_of(recipe, method, side)
    if quick and recipe.fast:
        recipe = dataclasses.replace(
            recipe, fast=dataclasses.replace(recipe.fast, rehearsals=recipe.fast.rehearsals // QUICK)
        )
    elif quick:
        phases = tuple(dataclasses.replace(p, iterations=max(p.iterations // QUICK, 1)) for p in recipe.phases)
        recipe = dataclasses.replace(recipe, phases=phases, warmup=recipe.warmup // QUICK)
    return dataclasses.replace(
        recipe, images=images, batch_classes=min(recipe.batch_classes, classes), shard_batches=max(images, 1)
    )


def _is_made(out: Path, identity: str) -> bool:
    """Whether `out` has these images. Raises InputError when it has other images, finished or half made."""
    path, said = out / "images.zip", out / "images.json"
    checkpoints = Checkpoints(path.with_suffix(""))
    half, made = checkpoints.load(), record.read(said) if said.is_file() else {}
    if made:
        there = made.get("identity")
    elif half is not None:
        there = half["identity"]
    else:  # an earlier call was killed before it wrote the record, or another program made the file
        there = identity if not path.is_file() or checkpoints.kept(identity, path) else "another"
        if own := next((p for p in sorted(out.glob("*/*")) if p.suffix.lower() in files.EXTENSIONS), None):
            raise InputError(f"{out}: has images that this command did not make ({own}); name a new folder with --out")
    if there != identity:
        raise InputError(
            f"{out}: has images of another CNN, recipe or seed; name another folder with --out, or delete this one"
        )
    return path.is_file() and disk.sha256(path) == made.get("archive_sha256")


def _announce(source: Source, seed: int, indices: Sequence[int], teacher: teachers.TeacherNetwork, quick: bool) -> None:
    """Print before a long job what is made and about how long it takes on this machine."""
    recipe, device = source.recipe, available_device()
    groups = list(inversion.groups(source, 0))
    labels = torch.tensor([inversion.classes_of(batch, recipe, indices, seed) for batch in groups[0]])
    rehearsed = len(fast.rehearsals(source)) / len(groups[0])
    seconds = (len(groups) + rehearsed) * _expected_seconds(source, seed, labels, teacher, device)
    drawn = {c for group in groups for batch in group for c in inversion.classes_of(batch, recipe, indices, seed)}
    about = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    hint = "" if quick or seconds < 100 else "; --quick takes a tenth of that, for a first look"
    print(
        f"{recipe.made()} images ({recipe.batches} x {recipe.batch}) of {len(drawn)} of {len(indices)} classes, "
        f"{source.data.image_size} pixels, {sum(p.iterations for p in recipe.phases)} iterations: about {about} on "
        f"this {'GPU' if device.type == 'cuda' else 'CPU'}{hint}",
        flush=True,
    )


def _expected_seconds(
    source: Source,
    seed: int,
    labels: Int[Tensor, "groups batch"],
    teacher: teachers.TeacherNetwork,
    device: torch.device,
) -> float:
    """Seconds that a group of batches takes, from one timed iteration of each phase, after one that is not timed."""
    phases = source.recipe.phases
    once = tuple(dataclasses.replace(phase, iterations=1) for phase in (phases[0], *phases))
    trial = dataclasses.replace(source, recipe=dataclasses.replace(source.recipe, phases=once))
    start = fast.Start(source, knobs, seed, device) if (knobs := source.recipe.fast) else None
    group = fast.begin(trial, seed, range(len(labels)), labels, teacher, None, start, device)
    group.advance()
    seconds = 0.0
    for phase in phases:
        started = time.monotonic()
        group.advance()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds += phase.iterations * (time.monotonic() - started)
    return seconds
