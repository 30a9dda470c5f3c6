"""Methods as data: a row of a table becomes a tuple of stages, which one training loop runs.

A function here is a method. Its keyword arguments after `fraction` are the method's switches. A row of
`workflow/experiments.yaml` may set them, and any dotted field of the scale (`rpe.drop: 0.2`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from dearkd.errors import InputError, unknown
from dearkd.fingerprint import deviations
from dearkd.plan.data import REAL
from dearkd.plan.scale import Scale
from dearkd.plan.stage import Distillation, Model, Source, Stage, Training, geometry
from dearkd.plan.synthesis import competes, recipe_of, terms
from dearkd.schema import freeze

Stages = tuple[Stage, ...]
TRANSFER = "transfer"
"""Name of the stage of fine-tuning."""
UNSWITCHED: dict[str, Any] = {"stage1_epochs": 0, "stage2_lr": "continue", "stage2_peak": 1.0}


def deit(scale: Scale, student: str, fraction: int = 100, images: str = REAL, *, long: bool = False) -> Stages:
    """DeiT: one stage, cross-entropy only."""
    scale = _scheduled(scale, student, long)
    return (_stage(scale, "I", _student(scale, student, "deit"), fraction, images, losses=(("ce", 1.0),)),)


def deit_distilled(
    scale: Scale, student: str, fraction: int = 100, images: str = REAL, *, long: bool = False
) -> Stages:
    """DeiT with a distillation token that learns the teacher's hard decision, both losses at weight 1/2.

    `distillation.kind: soft` has the weights alpha and 1 - alpha.
    """
    scale, knobs = _scheduled(scale, student, long), scale.distillation
    model = _student(scale, student, "deit_distilled")
    soft = (("ce", knobs.alpha), ("soft_token", 1 - knobs.alpha)) if knobs.kind == "soft" else ()
    stage = _stage(scale, "I", model, fraction, images, losses=soft or (("ce", 0.5), ("token", 0.5)))
    return (_taught(scale, stage, knobs if soft else None),)


def dearkd(
    scale: Scale,
    student: str,
    fraction: int = 100,
    images: str = REAL,
    *,
    mhca: bool = True,
    hidden: bool = True,
    distill: bool = True,
    two_stage: bool = True,
    taught_by: str = "distillation",
    long: bool = False,
) -> Stages:
    """DearKD (Sec. 3): stage I with Eq. 6, stage II with Eq. 7; the switches are the columns of Table 1.

    `distill` is the logit loss of Eq. 5. Without it the class token's loss has weight 1 instead of alpha. `taught_by:
    synthesis` chooses the teacher that synthetic images are made from; on synthetic images this is always the teacher.
    `long` is the schedule of 1000 epochs.
    """
    scale = _scheduled(scale, student, long)
    if taught_by not in ("distillation", "synthesis"):
        raise InputError(unknown(taught_by, ("distillation", "synthesis"), "value", "taught_by"))
    if images != REAL or taught_by == "synthesis":
        teacher = scale.synthesis.teacher
        scale = dataclasses.replace(scale, distillation=dataclasses.replace(scale.distillation, teacher=teacher))
    if two_stage and not (hidden or distill):
        raise InputError(
            "two_stage: true needs hidden or distill, else both stages are the same; set one, or two_stage: false"
        )
    knobs, training = scale.distillation, scale.training
    model = _student(scale, student, "dearkd", mhca)
    losses = [("ce", knobs.alpha if distill else 1.0)]
    if distill:
        losses.append(("logit" if knobs.kind == "hard" else "soft_logit", 1.0 - knobs.alpha))
    if hidden:
        losses.append(("hidden", knobs.beta))
    stage = _stage(scale, "I", model, fraction, images, losses=tuple(losses))
    if hidden or distill:
        # A setting that only stage II reads must not change the fingerprint of stage I.
        stage = _taught(scale, stage, dataclasses.replace(knobs, freeze_rpe=False))
    if not two_stage:
        return (stage,)
    switch = training.stage1_epochs
    second = _stage(scale, "II", model, fraction, images, losses=(("ce", 1.0),))
    return (
        dataclasses.replace(stage, last_epoch=switch),
        dataclasses.replace(second, first_epoch=switch, training=training, freeze_rpe=knobs.freeze_rpe),
    )


def deit3(scale: Scale, student: str, fraction: int = 100, images: str = REAL, *, long: bool = False) -> Stages:
    """DeiT III (Touvron et al., ECCV 2022) without a teacher: LayerScale, binary cross-entropy, 3-Augment.

    Optimiser, schedule and drop path are those of the scale's other rows; images in memory keep its augmentation.
    """
    (stage,) = deit(scale, student, fraction, images, long=long)
    args = {**dict(stage.model.args), "init_values": 1e-4, "no_embed_class": True}
    augment = dataclasses.replace(stage.training.augment, auto="3a", erasing=0.0, smoothing=0.0)
    model, training = stage.model, dataclasses.replace(stage.training, augment=augment)
    model = dataclasses.replace(model, args=freeze(args))
    return (dataclasses.replace(stage, model=model, losses=(("bce", 1.0),), training=training),)


def locality_guidance(
    scale: Scale, student: str, fraction: int = 100, images: str = REAL, *, weight: float = 2.5, long: bool = False
) -> Stages:
    """Locality guidance (Li et al., ECCV 2022): first, middle and last block match the CNN's last three stages.

    `weight` is the weight of the sum over the three blocks. The loss stays until the end of training.
    """
    (stage,) = deit(scale, student, fraction, images, long=long)
    depth = _depth(stage.model)
    pairs = tuple(zip(sorted({1, depth // 2 + 1, depth}), (-3, -2, -1)[-depth:], strict=True))
    stage = dataclasses.replace(stage, losses=(("ce", 1.0), ("guidance", weight)))
    return (_taught(scale, stage, dataclasses.replace(scale.distillation, pairs=pairs)),)


def _depth(model: Model) -> int:
    """Blocks of a student; InputError for a model that is none of the paper's."""
    shape = geometry(model)
    if shape is None:
        raise InputError(f"model: {model.name} has an unknown number of blocks; take one of the paper's students")
    return shape["depth"]


def vkd(scale: Scale, student: str, fraction: int = 100, images: str = REAL, *, long: bool = False) -> Stages:
    """VkD (Miles et al., CVPR 2024): a distilled DeiT whose projected mean token matches the CNN's last features.

    All weights are 1 and the distillation token learns soft labels at temperature 1, as in the authors' code.
    """
    (stage,) = deit_distilled(scale, student, fraction, images, long=long)
    last = ((_depth(stage.model), -1),)
    knobs = dataclasses.replace(scale.distillation, kind="soft", temperature=1.0, pairs=last, hidden_ln=True)
    stage = dataclasses.replace(stage, losses=(("ce", 1.0), ("soft_token", 1.0), ("orthogonal", 1.0)))
    return (_taught(scale, stage, knobs),)


def peer(scale: Scale, student: str) -> Stages:
    """Another system of Table 3, `student` being its label, by plain training on real images."""
    system = scale.peers[student]
    data = scale.data["main"]
    args = {**dict(system.args), "in_chans": data.channels, "num_classes": data.classes}
    model = Model(name=system.model, args=freeze(args), init=system.init, stem_stride=system.stem_stride)
    stage = _stage(scale, "I", model, 100, REAL, losses=(("ce", 1.0),), training=system.training)
    return (dataclasses.replace(stage, attention_images=0),)


def transfer(
    scale: Scale, student: str, *, target: str = "", pretraining: str = "dearkd", long: bool = False
) -> Stages:
    """Fine-tuning of a finished student on other data (Table 4): no teacher, a new head, positions interpolated.

    The distilled student has two heads, which are averaged at test; both learn the true labels. `long` is the schedule
    of its pretraining.
    """
    if pretraining not in ("deit", "deit_distilled", "dearkd"):
        raise InputError(unknown(pretraining, ("deit", "deit_distilled", "dearkd"), "value", "pretraining"))
    if target not in scale.transfer.targets:
        raise InputError(unknown(target, scale.transfer.targets, "value", "target"))
    before = METHODS[pretraining](scale, student, long=long)
    data, training = scale.data[target], scale.transfer.recipes[scale.transfer.recipe]
    model = before[-1].model
    changed = {"img_size": data.image_size, "num_classes": data.classes, "drop_path_rate": training.drop_path}
    stage = Stage(
        name=TRANSFER,
        model=dataclasses.replace(model, args=freeze({**dict(model.args), **changed})),
        data=data,
        data_name=target,
        subset_seed=scale.subset_seed,
        losses=(("ce", 0.5), ("token_label", 0.5)) if pretraining == "deit_distilled" else (("ce", 1.0),),
        initial=before,
        training=dataclasses.replace(training, **UNSWITCHED),
        first_epoch=0,
        last_epoch=training.epochs,
    )
    return (stage,)


METHODS: dict[str, Callable[..., Stages]] = {
    method.__name__: method for method in (deit, deit_distilled, dearkd, deit3, locality_guidance, vkd, peer, transfer)
}


def source(scale: Scale, name: str) -> Source:
    """The set of synthetic images that a method of `SYNTHESIS` makes at a scale."""
    recipe = recipe_of(scale.synthesis, name, scale.data["main"].image_size)
    return Source(
        name=name,
        terms=terms(recipe, name),
        recipe=recipe,
        data=scale.data["main"],
        teacher_name=recipe.teacher,
        teacher=scale.teachers[recipe.teacher],
        student=dearkd(scale, recipe.student, images="deepinversion") if competes(name) and not recipe.verifier else (),
        verifier=scale.teachers[recipe.verifier] if competes(name) and recipe.verifier else None,
    )


def competitor(scale: Scale, name: str, round: int) -> Stages:
    """ADI's student of a round: trained on DeepInversion's images in the first round, on earlier rounds later."""
    images = source(scale, name)
    if not round:
        return images.student
    shards = -(-round * images.recipe.shards // images.recipe.rounds)
    return tuple(dataclasses.replace(stage, source=images, shards=shards) for stage in images.student)


def teacher(scale: Scale, name: str) -> Stages:
    """Return the stages of a CNN that the workflow trains, on all training images, at its own image size."""
    cnn, data = scale.teachers[name], scale.data["main"]
    data = dataclasses.replace(data, image_size=cnn.image_size or data.image_size)
    args = {**dict(cnn.args), "in_chans": data.channels, "num_classes": data.classes}
    stage = _stage(
        scale,
        "I",
        Model(name=cnn.model, args=freeze(args), init="timm", start=cnn.start),
        100,
        REAL,
        losses=(("ce", 1.0),),
        training=cnn.training,
    )
    return (dataclasses.replace(stage, data=data, attention_images=0),)


def _stage(
    scale: Scale,
    name: str,
    model: Model,
    fraction: int,
    images: str,
    losses: tuple[tuple[str, float], ...],
    training: Training | None = None,
) -> Stage:
    """A stage without a teacher that covers all epochs."""
    if images != REAL and fraction != 100:
        raise InputError(
            f"fraction: {fraction} is a share of the real images, but the row has images: {images}; leave one out"
        )
    # first_epoch and last_epoch have the switch, so a run without one does not depend on it.
    training = dataclasses.replace(training or scale.training, **UNSWITCHED)
    return Stage(
        name=name,
        model=model,
        data=scale.data["main"],
        fraction=fraction,
        subset_seed=scale.subset_seed,
        subset_draw=scale.subset_draw if fraction < 100 else "once",
        losses=losses,
        source=None if images == REAL else source(scale, images),
        training=training,
        first_epoch=0,
        last_epoch=training.epochs,
        attention_images=scale.attention_images,
    )


def _scheduled(scale: Scale, student: str, long: bool) -> Scale:
    """The scale with the learning rate of a student's size, and with the long schedule where it is asked for."""
    training = scale.training
    if student in scale.students:
        training = dataclasses.replace(training, lr=training.lr * scale.students[student].lr_factor)
    if long:
        epochs, switch = scale.long
        training = dataclasses.replace(training, epochs=epochs, stage1_epochs=switch)
    return dataclasses.replace(scale, training=training)


def _taught(scale: Scale, stage: Stage, knobs: Distillation | None = None) -> Stage:
    name = scale.distillation.teacher
    return dataclasses.replace(stage, teacher_name=name, teacher=scale.teachers[name], distillation=knobs)


def _student(scale: Scale, name: str, family: str, mhca: bool = False) -> Model:
    """The timm model of the paper's size `name` in a family: deit, deit_distilled or dearkd."""
    if name not in scale.students:
        raise InputError(unknown(name, scale.students, "student", f"scale {scale.name}"))
    student, data = scale.students[name], scale.data["main"]
    args = {
        **dict(student.args),
        "drop_path_rate": scale.training.drop_path,
        "img_size": data.image_size,
        "in_chans": data.channels,
        "num_classes": data.classes,
    }
    if family == "dearkd":
        args |= {"num_heads": student.dearkd_heads, "n_mhca": student.n_mhca if mhca else 0}
        if mhca:
            args["rpe"] = freeze(deviations(scale.rpe))
        model = f"dearkd_{student.size}_patch16_224"
    else:
        args["num_heads"] = student.deit_heads
        model = f"{family.replace('deit', f'deit_{student.size}')}_patch16_224"
    return Model(name=model, args=freeze(args), init=student.init)
