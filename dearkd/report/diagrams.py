"""Figures 2, 3 and 5 as vector diagrams, drawn from the runs' own specs: shapes, weights and epochs of the scale."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from dearkd.plan.plan import Run
from dearkd.plan.stage import SIZES, Model, Source, Stage, Synthesis
from dearkd.report.drawing import Box, Line, Number, Part, Text, arrow, chain, draw, key, rule, title

STUDENT, TEACHER, TRAINING, LOSS, PLAIN = "#dbe7f0", "#f3ddd9", "#e9efdc", "#f6ecd4", "#ffffff"
"""Fill colours: of the student, the teacher, parts of stage I only, losses, and data."""


def width_and_depth(model: Model) -> tuple[int, int]:
    """Token width and number of blocks of a student, from its arguments or the paper's size in its name."""
    args = {**SIZES[model.name.split("_")[1]], **dict(model.args)}
    return args["embed_dim"], args["depth"]


def grid(model: Model) -> tuple[int, int]:
    """Patches per column and row of a student."""
    args = dict(model.args)
    side = args["img_size"] // args.get("patch_size", 16)
    return side, side


def uniform_distance(size: tuple[int, int]) -> float:
    """Mean distance in patches between a query and a uniformly drawn key: 7.281 on a 14 x 14 grid."""
    cells = list(itertools.product(range(size[0]), range(size[1])))
    return sum(math.dist(a, b) for a in cells for b in cells) / len(cells) ** 2


def pipeline(ax: Axes, run: Run, teacher: dict[str, Any]) -> Axes:
    """Draw Figure 2: (a) stage I, the losses of Eq. 6 with their weights; (b) stage II, Eq. 7 and the student alone."""
    return draw(ax, 104, 62, [*_stage_one(run, teacher), *(_stage_two(run) if len(run.stages) > 1 else ())])


def _image(stage: Stage, y: Number) -> Box:
    data = stage.data
    return Box(0, y, 10, 8, f"image\n{data.channels} × {data.image_size} × {data.image_size}", PLAIN)


def _patches(stage: Stage) -> str:
    rows, columns = grid(stage.model)
    return f"patches, [CLS]\n{rows * columns + 1} × {width_and_depth(stage.model)[0]}"


def _stage_one(run: Run, teacher: dict[str, Any]) -> list[Part]:
    first, weights = run.stages[0], dict(run.stages[0].losses)
    args, depth = dict(first.model.args), width_and_depth(first.model)[1]
    assert first.distillation is not None and first.teacher is not None
    block, stage = first.distillation.pairs[0]
    feature, n_mhca = teacher["features"][stage], args["n_mhca"]
    name = first.teacher.model.split(".")[0]
    answer = "answer\n$q$" if "soft_logit" in weights else "decision\n$y_t$"
    rest = [f"MHCA × {n_mhca - block}"] * (n_mhca > block) + [f"MHSA × {depth - n_mhca}"]
    shape = f"{feature['channels']} × {feature['size'][0]} × {feature['size'][1]}"

    image = _image(first, 34)
    early = Box(16, 46, 20, 9, f"teacher {name}\nstem to stage {feature['stage']}", TEACHER)
    late = Box(56, 46, 15, 9, "teacher\nlater stages", TEACHER)
    decision = Box(78, 46, 11, 9, answer, TEACHER)
    embed = Box(16, 23, 12, 9, _patches(first), STUDENT)
    mhca = Box(32, 23, 13, 9, f"MHCA × {block}\n{args['num_heads']} heads", STUDENT)
    mhsa = Box(56, 23, 15, 9, "\n".join(rest), STUDENT)
    align = Box(35, 34.5, 13, 7, "aligner (Fig. 3)", TRAINING)
    hidden = Box(53, 34.5, 15, 7, f"$L_{{hidden}}$ × {weights.get('hidden', 0):g}\n{shape}", LOSS)
    pooled = Box(76, 27.5, 15, 6, "mean of patches\n→ pooled head", TRAINING)
    cls = Box(76, 20, 15, 6, "[CLS] → head", STUDENT)
    logit = Box(95, 35, 9, 7, f"$L_{{logit}}$\n× {weights.get('logit', weights.get('soft_logit', 0)):g}", LOSS)
    ce = Box(95, 19.5, 9, 7, f"$L_{{CE}}$\n× {weights['ce']:g}", LOSS)
    arrows = [
        arrow(image.right(0.8), early.left()),
        arrow(image.right(0.2), embed.left()),
        *chain((early, late, decision)),
        *chain((embed, mhca, mhsa)),
        arrow(mhca.top(0.7), (mhca.top(0.7)[0], align.y)),
        *chain((align, hidden)),
        Line(((50, 50.5), (50, 44), (60.5, 44)), head=False),
        arrow((60.5, 44.1), hidden.top()),
        arrow(mhsa.right(0.7), pooled.left()),
        arrow(mhsa.right(0.3), cls.left()),
        arrow(pooled.right(), logit.left(0.2)),
        arrow(decision.right(), logit.top()),
        *chain((cls, ce)),
        arrow((99.5, 28.3), ce.top()),
    ]
    texts: list[Part] = [
        title(0, 60, f"(a) stage I: epochs 0 to {first.last_epoch}"),
        *key(104, 58.4, {"student": STUDENT, "teacher": TEACHER, "in stage I only": TRAINING, "loss × weight": LOSS}),
        Text(99.5, 29, "label $y$", align=("center", "baseline")),
    ]
    boxes = [image, early, late, decision, embed, mhca, mhsa, align, hidden, pooled, cls, logit, ce]
    return [*boxes, *arrows, *texts]


def _stage_two(run: Run) -> list[Part]:
    second, n_mhca = run.stages[1], dict(run.stages[0].model.args)["n_mhca"]
    rpe = "RPE frozen" if second.freeze_rpe else "RPE kept, learning"
    boxes = [
        _image(run.stages[0], 2),
        Box(16, 2, 12, 8, _patches(run.stages[0]), STUDENT),
        Box(32, 2, 17, 8, f"MHCA × {n_mhca}\n{rpe}", STUDENT),
        Box(56, 2, 15, 8, f"MHSA × {width_and_depth(run.stages[0].model)[1] - n_mhca}", STUDENT),
        Box(76, 2, 15, 8, "[CLS] → head", STUDENT),
        Box(95, 2, 9, 8, "$L_{CE}$\n× 1", LOSS),
    ]
    name = title(0, 13, f"(b) stage II: epochs {second.first_epoch} to {second.last_epoch}")
    return [rule(104, 15.5), name, *boxes, *chain(boxes)]


def aligner(ax: Axes, run: Run, teacher: dict[str, Any]) -> Axes:
    """Draw Figure 3: the layers of `aligner.Aligner`, each with the shape of its output."""
    stage = run.stages[0]
    dim, (rows, columns) = width_and_depth(stage.model)[0], grid(stage.model)
    assert stage.distillation is not None
    block, index = stage.distillation.pairs[0]
    feature = teacher["features"][index]
    channels, (height, width) = feature["channels"], feature["size"]
    resize = "average\npool" if height < rows else "bilinear\ninterpolation"
    layers = [
        (f"tokens of\nblock {block}", f"{rows * columns} × {dim}", STUDENT),
        ("reshape", f"{dim} × {rows} × {columns}", TRAINING),
        ("depth-wise\nconv 3 × 3", "", TRAINING),
        ("LayerNorm", "", TRAINING),
        ("ReLU", f"{dim} × {rows} × {columns}", TRAINING),
        ("conv 1 × 1", f"{channels} × {rows} × {columns}", TRAINING),
        (
            "keep size" if (height, width) == (rows, columns) else resize,
            f"{channels} × {height} × {width}",
            TRAINING,
        ),
        ("depth-wise\nconv 3 × 3", "", TRAINING),
        ("LayerNorm", "", TRAINING),
        ("ReLU" if feature["nonnegative"] else "no ReLU", f"{channels} × {height} × {width}", TRAINING),
    ]
    boxes = [Box(11.9 * i, 14, 10.2, 8, name, fill, size=6.3) for i, (name, _, fill) in enumerate(layers)]
    shapes = [Text(11.9 * i + 5.1, 12.6, shape, 6.3, align=("center", "top")) for i, (_, shape, _) in enumerate(layers)]
    target = Box(76, 0, 25, 6, f"teacher stage {index}: {channels} × {height} × {width}", TEACHER, size=6.3)
    loss = Box(108.1, 0, 8.2, 6, "$L_{hidden}$", LOSS)
    note = Text(0, 3, "Used in stage I only, never exported.\nShapes: channels × rows × columns.")
    arrows = [*chain(boxes), *chain((target, loss)), arrow((112.2, 9.4), loss.top())]
    return draw(ax, 118, 25, [*boxes, *shapes, target, loss, *arrows, note])


TERMS = {
    "tv": ("$R_{TV}$", "total variation"),
    "l2": ("$R_{l_2}$", "norm of the pixels"),
    "r_bn": ("$R_{BN}$", "against running $\\mu, \\sigma^2$"),
    "ce": ("$L_{CE}$", "class wanted"),
    "easy_positive": ("$L_{ep}$", "easiest positive away"),
    "triplet": ("$L_{triplet}$", "margin {margin:g}"),
    "competition": ("$R_{compete}$", "1 − JS divergence"),
}
"""Symbol and meaning of each term that synthetic images minimise, in the order of Figure 5."""
LOSSES = {"ce": "$L_{CE}$", "logit": "$L_{logit}$", "soft_logit": "$L_{KL}$", "hidden": "$L_{hidden}$"}


def data_free_pipeline(ax: Axes, source: Source, stages: Sequence[Stage] = ()) -> Axes:
    """Draw Figure 5. (a) The source's terms make a batch of images from the teacher. (b) A student learns from them.

    Args:
        stages: the student's stages; without them the figure only names the two stages.
    """
    return draw(ax, 106, 72, [*_making(source), *_learning(source, stages)])


def _making(source: Source) -> list[Part]:
    """Part (a). Each loss is at the level at which the teacher says what it compares."""
    recipe, weights = source.recipe, {term: dict(source.terms)[term] for term in TERMS if dict(source.terms).get(term)}
    # The competing student is drawn below the teacher, so its loss takes two rows.
    pitch = 35 / (len(weights) + ("competition" in weights))
    height = min(pitch - 0.9, 6)
    level = {term: 66 - pitch * (i + 0.5) for i, term in enumerate(weights)}
    losses = []
    for term, weight in weights.items():
        symbol, meaning = TERMS[term]
        below = pitch * (term == "competition")
        text = f"{symbol} × {_number(weight)}\n{meaning.format(margin=recipe.margin)}"
        losses.append(Box(83, level[term] - height / 2 - below, 20, height + below, text, LOSS))
    code = "code" if recipe.feature == "pooled" else "logits"
    sent = {
        "r_bn": "$\\mu, \\sigma^2$",
        "ce": "logits",
        "easy_positive": code,
        "triplet": code,
        "competition": "logits",
    }
    top, low = (pick(y for term, y in level.items() if term in sent) for pick in (max, min))
    name = source.teacher.model.split(".")[0]
    said = f"teacher\n{name}\nfrozen, running\nBatchNorm $\\mu, \\sigma^2$"
    teacher = Box(57, low - height / 2, 17, top - low + height, said, TEACHER)
    views = _seen(source, (top + low) / 2)
    seen = views[-1]
    parts: list[Part] = [title(0, 70, "(a) synthesis, each batch by itself"), *losses, teacher, *views]
    parts += key(105, 68.4, {"step": TRAINING, "teacher": TEACHER, "student": STUDENT, "loss × weight": LOSS})
    start = "noise\n$N(0, 1)$" if recipe.start == "noise" else "faint noise\non black"
    if recipe.fast:
        start = "codes $N(0, 1)$,\na generator"
    noise = Box(2.5, (top + low) / 2 + 9, 12, 6, start, PLAIN)
    parts += [noise, arrow(noise.bottom(), views[0].top()), *chain(views)]
    parts.append(arrow(seen.right(), (teacher.x, (top + low) / 2)))
    for term, y in level.items():
        if term in sent:
            parts += [arrow((74, y), (83, y)), Text(78, y + 0.4, sent[term], align=("center", "bottom"))]
        else:
            parts.append(arrow(seen.top(), (seen.top()[0], y), (83, y)))
    if "competition" in weights:
        y = level["competition"] - pitch
        rounds = f"one per round ({recipe.rounds})" if recipe.rounds > 1 else "frozen"
        student = Box(57, y - height / 2, 17, height, f"DearKD-{recipe.student} student\n{rounds}", STUDENT)
        parts += [student, arrow(seen.bottom(), (seen.bottom()[0], y), student.left()), arrow(student.right(), (83, y))]
        parts.append(Text(78, y + 0.4, "logits", align=("center", "bottom")))
    return [*parts, *_descent(source, losses, level[next(iter(weights))], views[0])]


def _seen(source: Source, middle: Number) -> list[Box]:
    """The images and what happens to them before the teacher sees them."""
    recipe, data = source.recipe, source.data
    shape = f"{recipe.batch} × {data.channels} × {data.image_size} × {data.image_size}"
    text = f"images $x$\n{recipe.batch_classes} classes × {recipe.per_class}\n{shape}"
    steps = [step for step in (_views(recipe), _pooling(source)) if step]
    changed = [Box(21 + 17 * i, middle - 5, 13, 10, step, TRAINING) for i, step in enumerate(steps)]
    return [Box(0, middle - 5, 17, 10, text, PLAIN), *changed]


def _descent(source: Source, losses: Sequence[Box], level: Number, images: Box) -> list[Part]:
    """From the losses, the first of them at `level`, back to the pixels."""
    phases = "\n".join(f"{p.size} px: {p.iterations} iterations, lr {_number(p.lr)}" for p in source.recipe.phases)
    moved, ended = (
        ("generator", "generator\ndraws anew") if source.recipe.fast else ("pixels", "clamp to\nvalid pixels")
    )
    total = Box(79, 18, 20, 9, f"weighted sum,\nits gradient\nback to the {moved}", LOSS)
    adam = Box(42, 18, 29, 9, f"Adam, new in each phase\n{phases}", TRAINING)
    clamp = Box(21, 18, 13, 9, ended, TRAINING)
    return [
        *(total, adam, clamp),
        *(Line(((103, loss.right()[1]), (105, loss.right()[1])), head=False) for loss in losses),
        arrow((105, level), (105, 22.5), total.right()),
        arrow(total.left(), adam.right()),
        arrow(adam.left(), clamp.right()),
        arrow(clamp.left(), (8.5, 22.5), images.bottom()),
    ]


def _learning(source: Source, stages: Sequence[Stage]) -> list[Part]:
    """Part (b)."""
    recipe, name = source.recipe, source.teacher.model.split(".")[0]
    kept = "last iterate" if recipe.keep == "last" else "lowest loss of\nthe last phase"
    trained = [
        f"stage {s.name}, epochs {s.first_epoch} to {s.last_epoch}\n"
        + f"teacher {name}\n" * bool(s.teacher_name)
        + " + ".join(f"{_number(weight)} {LOSSES[term]}" for term, weight in s.losses)
        for s in stages
    ] or [f"stage I\nteacher {name}", "stage II\nclasses alone"]
    row = [
        Box(0, 2, 15, 8, f"images $x$\n{kept}", PLAIN),
        Box(21, 2, 18, 8, f"8-bit PNG archive\n{recipe.batch * recipe.batches:,} images", PLAIN),
        Box(45, 2, 32, 8, trained[0], TRAINING),
        *(Box(83, 2, 22, 8, text, STUDENT) for text in trained[1:]),
    ]
    return [rule(106, 15.5), title(0, 13, "(b) DearKD on synthetic images (Fig. 2)"), *row, *chain(row)]


def _views(recipe: Synthesis) -> str:
    """The steps that change images before the teacher sees them, one a line; empty where there are none."""
    if recipe.augment is None:
        sizes = {"roll ≤ {:g} px": recipe.jitter, "flip, p = {:g}": recipe.flip}
        unit = "each batch"
    else:
        augment = recipe.augment
        sizes = {
            "shift ≤ {:g} px": augment.shift,
            "rotate ≤ {:g}°": augment.rotate,
            "zoom ≤ {:g} %": 100 * augment.zoom,
        }
        unit = "each image"
    lines = [text.format(size) for text, size in sizes.items() if size]
    return "\n".join([*lines, unit]) if lines else ""


def _pooling(source: Source) -> str:
    sizes = [phase.size for phase in source.recipe.phases]
    if set(sizes) == {source.data.image_size}:
        return ""
    return "average pool\n" + ",\n".join(f"{'then' if i else 'to'} {size} px" for i, size in enumerate(sizes))


def _number(value: float) -> str:
    if value >= 1e-3:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
