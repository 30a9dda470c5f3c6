"""Figures 2, 3 and 5 as vector diagrams, drawn from the runs' own specs: shapes, weights and epochs of the scale."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from dearkd.plan.plan import Run
from dearkd.plan.stage import SIZES, Model, Source, Stage, Synthesis

Number = float | int
Point = tuple[Number, Number]
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


def box(
    ax: Axes, x: Number, y: Number, width: Number, height: Number, text: str, fill: str, size: Number = 7.0
) -> tuple:
    """A rounded box with its lower left corner at (x, y); returns (x, y, width, height)."""
    ax.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.8",
            facecolor=fill,
            edgecolor="0.25",
            linewidth=0.8,
        )
    )
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, linespacing=1.35)
    return x, y, width, height


def arrow(ax: Axes, start: Point, end: Point, dashed: bool = False) -> None:
    ax.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "-|>",
            "linewidth": 0.9,
            "color": "0.2",
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 8,
            "linestyle": "--" if dashed else "-",
        },
    )


def elbow(ax: Axes, *points: Point) -> None:
    """An arrow with corners."""
    ax.plot(*zip(*points[:-1], strict=True), color="0.2", linewidth=0.9, linestyle="-", marker="")
    arrow(ax, points[-2], points[-1])


def right(b: tuple, at: Number = 0.5) -> Point:
    return b[0] + b[2], b[1] + at * b[3]


def left(b: tuple, at: Number = 0.5) -> Point:
    return b[0], b[1] + at * b[3]


def top(b: tuple, at: Number = 0.5) -> Point:
    return b[0] + at * b[2], b[1] + b[3]


def bottom(b: tuple, at: Number = 0.5) -> Point:
    return b[0] + at * b[2], b[1]


def _canvas(ax: Axes, width: Number, height: Number) -> None:
    ax.set_xlim(-0.5, width + 0.5)
    ax.set_ylim(-0.5, height + 0.5)
    ax.set_aspect("equal")
    ax.axis("off")


def pipeline(ax: Axes, run: Run, teacher: dict[str, Any]) -> Axes:
    """Draw Figure 2: (a) stage I, the losses of Eq. 6 with their weights; (b) stage II, Eq. 7 and the student alone."""
    _canvas(ax, 104, 62)
    first, weights = run.stages[0], dict(run.stages[0].losses)
    args, data = dict(first.model.args), first.data
    dim, depth = width_and_depth(first.model)
    rows, columns = grid(first.model)
    tokens = rows * columns + 1
    block, stage = first.distillation.pairs[0]
    feature = teacher["features"][stage]
    shape = f"{feature['channels']} × {feature['size'][0]} × {feature['size'][1]}"
    image_text = f"image\n{data.channels} × {data.image_size} × {data.image_size}"

    ax.text(0, 60, f"(a) stage I: epochs 0 to {first.last_epoch}", fontsize=9, weight="bold", va="center")
    image = box(ax, 0, 34, 10, 8, image_text, PLAIN)
    early = box(
        ax, 16, 46, 20, 9, f"teacher {first.teacher.model.split('.')[0]}\nstem to stage {feature['stage']}", TEACHER
    )
    late = box(ax, 56, 46, 15, 9, "teacher\nlater stages", TEACHER)
    decision = box(ax, 78, 46, 11, 9, "answer\n$q$" if "soft_logit" in weights else "decision\n$y_t$", TEACHER)
    embed = box(ax, 16, 23, 12, 9, f"patches, [CLS]\n{tokens} × {dim}", STUDENT)
    front, n_mhca = f"MHCA × {block}", args["n_mhca"]
    mhca = box(ax, 32, 23, 13, 9, f"{front}\n{args['num_heads']} heads", STUDENT)
    rest = [f"MHCA × {n_mhca - block}"] * (n_mhca > block) + [f"MHSA × {depth - n_mhca}"]
    mhsa = box(ax, 56, 23, 15, 9, "\n".join(rest), STUDENT)
    align = box(ax, 35, 34.5, 13, 7, "aligner (Fig. 3)", TRAINING)
    hidden = box(ax, 53, 34.5, 15, 7, f"$L_{{hidden}}$ × {weights.get('hidden', 0):g}\n{shape}", LOSS)
    pooled = box(ax, 76, 27.5, 15, 6, "mean of patches\n→ pooled head", TRAINING)
    cls = box(ax, 76, 20, 15, 6, "[CLS] → head", STUDENT)
    logit = box(ax, 95, 35, 9, 7, f"$L_{{logit}}$\n× {weights.get('logit', weights.get('soft_logit', 0)):g}", LOSS)
    ce = box(ax, 95, 19.5, 9, 7, f"$L_{{CE}}$\n× {weights['ce']:g}", LOSS)
    arrow(ax, right(image, 0.8), left(early))
    arrow(ax, right(image, 0.2), left(embed))
    arrow(ax, right(early), left(late))
    arrow(ax, right(late), left(decision))
    arrow(ax, right(embed), left(mhca))
    arrow(ax, right(mhca), left(mhsa))
    arrow(ax, top(mhca, 0.7), (mhca[0] + 0.7 * mhca[2], align[1]))
    arrow(ax, right(align), left(hidden))
    ax.plot([50, 50, 60.5], [50.5, 44, 44], color="0.2", linewidth=0.9, linestyle="-", marker="")
    arrow(ax, (60.5, 44.1), top(hidden))
    arrow(ax, right(mhsa, 0.7), left(pooled))
    arrow(ax, right(mhsa, 0.3), left(cls))
    arrow(ax, right(pooled), left(logit, 0.2))
    arrow(ax, right(decision), top(logit))
    arrow(ax, right(cls), left(ce))
    ax.text(99.5, 29, "label $y$", fontsize=7, ha="center")
    arrow(ax, (99.5, 28.3), top(ce))

    second = run.stages[1] if len(run.stages) > 1 else None
    if second is None:
        return ax
    ax.plot([0, 104], [15.5, 15.5], color="0.7", linewidth=0.8, linestyle=":", marker="")
    ax.text(
        0,
        13,
        f"(b) stage II: epochs {second.first_epoch} to {second.last_epoch}",
        fontsize=9,
        weight="bold",
        va="center",
    )
    chain = [
        box(ax, 0, 2, 10, 8, image_text, PLAIN),
        box(ax, 16, 2, 12, 8, f"patches, [CLS]\n{tokens} × {dim}", STUDENT),
        box(
            ax,
            32,
            2,
            17,
            8,
            f"MHCA × {n_mhca}\nRPE kept, learning" if not second.freeze_rpe else f"MHCA × {n_mhca}\nRPE frozen",
            STUDENT,
        ),
        box(ax, 56, 2, 15, 8, f"MHSA × {depth - n_mhca}", STUDENT),
        box(ax, 76, 2, 15, 8, "[CLS] → head", STUDENT),
        box(ax, 95, 2, 9, 8, "$L_{CE}$\n× 1", LOSS),
    ]
    for a, b in itertools.pairwise(chain):
        arrow(ax, right(a), left(b))
    return ax


def aligner(ax: Axes, run: Run, teacher: dict[str, Any]) -> Axes:
    """Draw Figure 3: the layers of `aligner.Aligner`, each with the shape of its output."""
    _canvas(ax, 118, 25)
    stage = run.stages[0]
    dim, _ = width_and_depth(stage.model)
    rows, columns = grid(stage.model)
    block, index = stage.distillation.pairs[0]
    feature = teacher["features"][index]
    channels, (height, width) = feature["channels"], feature["size"]
    resize = (
        "keep size"
        if (height, width) == (rows, columns)
        else ("average\npool" if height < rows else "bilinear\ninterpolation")
    )
    layers = [
        (f"tokens of\nblock {block}", f"{rows * columns} × {dim}", STUDENT),
        ("reshape", f"{dim} × {rows} × {columns}", TRAINING),
        ("depth-wise\nconv 3 × 3", "", TRAINING),
        ("LayerNorm", "", TRAINING),
        ("ReLU", f"{dim} × {rows} × {columns}", TRAINING),
        ("conv 1 × 1", f"{channels} × {rows} × {columns}", TRAINING),
        (resize, f"{channels} × {height} × {width}", TRAINING),
        ("depth-wise\nconv 3 × 3", "", TRAINING),
        ("LayerNorm", "", TRAINING),
        ("ReLU" if feature["nonnegative"] else "no ReLU", f"{channels} × {height} × {width}", TRAINING),
    ]
    boxes = []
    for i, (name, shape, fill) in enumerate(layers):
        boxes.append(box(ax, 11.9 * i, 14, 10.2, 8, name, fill, size=6.3))
        ax.text(11.9 * i + 5.1, 12.6, shape, ha="center", va="top", fontsize=6.3)
    for a, b in itertools.pairwise(boxes):
        arrow(ax, right(a), left(b))
    target = box(ax, 76, 0, 25, 6, f"teacher stage {index}: {channels} × {height} × {width}", TEACHER, size=6.3)
    loss = box(ax, 108.1, 0, 8.2, 6, "$L_{hidden}$", LOSS)
    arrow(ax, right(target), left(loss))
    arrow(ax, (112.2, 9.4), top(loss))
    ax.text(0, 3, "stage I only; none of it is exported", fontsize=7, style="italic", va="center")
    return ax


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
    _canvas(ax, 106, 72)
    recipe, data = source.recipe, source.data
    weights = {term: dict(source.terms)[term] for term in TERMS if dict(source.terms).get(term)}
    name = source.teacher.model.split(".")[0]
    code = "code" if recipe.feature == "pooled" else "logits"
    sent = {
        "r_bn": "$\\mu, \\sigma^2$",
        "ce": "logits",
        "easy_positive": code,
        "triplet": code,
        "competition": "logits",
    }

    ax.text(0, 70, "(a) synthesis, each batch by itself", fontsize=9, weight="bold", va="center")
    # The competing student is drawn below the teacher, so its loss takes two rows.
    pitch = 35 / (len(weights) + ("competition" in weights))
    height = min(pitch - 0.9, 6)
    losses, level = {}, {}
    for i, (term, weight) in enumerate(weights.items()):
        symbol, meaning = TERMS[term]
        text = f"{symbol} × {_number(weight)}\n{meaning.format(margin=recipe.margin)}"
        level[term] = 66 - pitch * (i + 0.5)
        below = pitch * (term == "competition")
        losses[term] = box(ax, 83, level[term] - height / 2 - below, 20, height + below, text, LOSS)

    top_level, low_level = (pick(y for term, y in level.items() if term in sent) for pick in (max, min))
    teacher = box(
        ax,
        57,
        low_level - height / 2,
        17,
        top_level - low_level + height,
        f"teacher\n{name}\nfrozen, running\nBatchNorm $\\mu, \\sigma^2$",
        TEACHER,
    )
    middle = (top_level + low_level) / 2
    steps = [text for text in (_views(recipe), _pooling(source)) if text]
    shape = f"{recipe.batch} × {data.channels} × {data.image_size} × {data.image_size}"
    text = f"images $x$\n{recipe.batch_classes} classes × {recipe.per_class}\n{shape}"
    images = box(ax, 0, middle - 5, 17, 10, text, PLAIN)
    chain = [images, *(box(ax, 21 + 17 * i, middle - 5, 13, 10, text, TRAINING) for i, text in enumerate(steps))]
    start = "noise\n$N(0, 1)$" if recipe.start == "noise" else "faint noise\non black"
    arrow(ax, bottom(box(ax, 2.5, middle + 9, 12, 6, start, PLAIN)), top(images))
    for a, b in itertools.pairwise(chain):
        arrow(ax, right(a), left(b))
    seen = chain[-1]
    arrow(ax, right(seen), (teacher[0], middle))
    for term, y in level.items():
        if term in sent:
            arrow(ax, (74, y), (83, y))
            ax.text(78, y + 0.4, sent[term], fontsize=7, ha="center", va="bottom")
        else:
            elbow(ax, top(seen), (top(seen)[0], y), (83, y))
    if "competition" in weights:
        y = level["competition"] - pitch
        rounds = f"one per round ({recipe.rounds})" if recipe.rounds > 1 else "frozen"
        student = box(ax, 57, y - height / 2, 17, height, f"DearKD-{recipe.student} student\n{rounds}", STUDENT)
        elbow(ax, bottom(seen), (bottom(seen)[0], y), left(student))
        arrow(ax, right(student), (83, y))
        ax.text(78, y + 0.4, "logits", fontsize=7, ha="center", va="bottom")

    total = box(ax, 79, 18, 20, 9, "weighted sum,\nits gradient\nback to the pixels", LOSS)
    phases = "\n".join(f"{p.size} px: {p.iterations} it., lr {_number(p.lr)}" for p in recipe.phases)
    adam = box(ax, 42, 18, 29, 9, f"Adam, new in each phase\n{phases}", TRAINING)
    clamp = box(ax, 21, 18, 13, 9, "clamp to\nvalid pixels", TRAINING)
    for b in losses.values():
        ax.plot([103, 105], [right(b)[1]] * 2, color="0.2", linewidth=0.9, linestyle="-", marker="")
    elbow(ax, (105, level[next(iter(weights))]), (105, 22.5), right(total))
    arrow(ax, left(total), right(adam))
    arrow(ax, left(adam), right(clamp))
    elbow(ax, left(clamp), (8.5, 22.5), bottom(images))

    ax.plot([0, 106], [15.5, 15.5], color="0.7", linewidth=0.8, linestyle=":", marker="")
    ax.text(0, 13, "(b) DearKD on synthetic images (Fig. 2)", fontsize=9, weight="bold", va="center")
    kept = "last iterate" if recipe.keep == "last" else "lowest loss of\nthe last phase"
    trained = [
        f"stage {s.name}, epochs {s.first_epoch} to {s.last_epoch}\n"
        + f"teacher {name}\n" * bool(s.teacher_name)
        + " + ".join(f"{_number(weight)} {LOSSES[term]}" for term, weight in s.losses)
        for s in stages
    ] or [f"stage I\nteacher {name}", "stage II\nclasses alone"]
    count = f"{recipe.batch * recipe.batches:,} images"
    row = [
        box(ax, 0, 2, 15, 8, f"images $x$\n{kept}", PLAIN),
        box(ax, 21, 2, 18, 8, f"8-bit PNG archive\n{count}", PLAIN),
        box(ax, 45, 2, 32, 8, trained[0], TRAINING),
        *(box(ax, 83, 2, 22, 8, text, STUDENT) for text in trained[1:]),
    ]
    for a, b in itertools.pairwise(row):
        arrow(ax, right(a), left(b))
    return ax


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
