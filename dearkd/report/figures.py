"""Figures of the paper: a function per kind, from tidy frames or specs to axes; only `write` touches files.

Fonts, sizes and colours are in paper.mplstyle.
"""

import io
import itertools
from collections.abc import Collection
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dearkd import disk
from dearkd.errors import InputError, unknown
from dearkd.plan import commands, plan, verify
from dearkd.report import decimals, diagrams, records, schedules, tables, unfinished
from dearkd.report import latent_space as latent
from dearkd.report.lines import lines_against_data

STYLE = Path(__file__).with_name("paper.mplstyle")
PLAIN = {"text.parse_math": False}
"""Settings for figures with text that people supply: a `$` is a dollar."""


def write(whole: plan.Plan, name: str) -> None:
    """Draw figures/<scale>/<name>.pdf and .png, and <name>.csv with the numbers in it where there are some."""
    figure = whole.figures[name]
    if figure.kind not in KINDS:
        raise InputError(unknown(figure.kind, KINDS, "kind", f"figures.{name}"))
    with plt.style.context(STYLE if figure.kind in FORMULAS else [STYLE, PLAIN]):
        save(whole, name, *KINDS[figure.kind](whole, figure))


def save(whole: plan.Plan, name: str, drawn: Figure, numbers: pd.DataFrame | None) -> None:
    """Write a drawn figure, without times and versions, and a CSV of its numbers."""
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        drawn.savefig(buffer := io.BytesIO(), format=suffix, metadata=metadata)
        disk.write(whole.paths.figures / f"{name}.{suffix}", buffer.getbuffer())
    plt.close(drawn)
    if numbers is not None:
        disk.write(whole.paths.figures / f"{name}.csv", numbers.to_csv(index=False, float_format=decimals.in_csv))


# ---------------------------------------------------------------------------------------------- Figure 1


def accuracy_against_data(whole: plan.Plan, figure: plan.Figure) -> tuple[Figure, pd.DataFrame]:
    """Draw Figure 1: top-1 against the fraction of real training images, ours and the paper's."""
    unfinished.refuse_nothing(whole, figure.name, figure.table)
    table = whole.tables[figure.table]
    frame = tables.tidy(table, tables.values_of(whole, figure.table))
    frame = frame[frame["metric"] == table.metric]
    known = frame[["mean", "paper"]].notna().any(axis=1).groupby(frame["row"]).transform("any")
    frame = frame[known]  # a row that nobody has measured is no line
    drawn, (left, right) = plt.subplots(1, 2)
    lines_against_data(left, frame, "mean", "sd")
    left.set_ylabel("test top-1 (%), mean" + " ± sd" * bool(frame["sd"].notna().any()))
    twice = any(schedules.LONG in cell.run for row in table.rows if row.label in {*frame["row"]} for cell in row.cells)
    hollow = f"\nhollow: {whole.scale.long[0]} epochs instead of {whole.scale.training.epochs}" * twice
    left.set_title(f"ours: {whole.scale.name}, {counted_seeds(frame)}{hollow}")
    lines_against_data(right, frame, "paper", None)
    right.set_title("paper: ImageNet")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=frame["row"].nunique())
    return drawn, frame


def counted_seeds(frame: pd.DataFrame) -> str:
    """How many seeds the means have: `3 seeds`, or `2 to 3 seeds` where some wait for more."""
    return _seeds({int(n) for n in frame.loc[frame["mean"].notna(), "n"]} or {0})


def _seeds(counts: Collection[int]) -> str:
    counts = sorted(counts)
    return f"{' to '.join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))} seed{'s' * (counts[-1] != 1)}"


# ---------------------------------------------------------------------------------------------- Figure 4


def attention_distance(whole: plan.Plan, figure: plan.Figure) -> tuple[Figure, pd.DataFrame]:
    """Draw Figure 4: average attention distance of each layer over the epochs, one panel a model, mean over seeds."""
    drawn, axes = plt.subplots(1, len(figure.rows), sharey=True, squeeze=False)
    curves = {row: records.curves(whole, [whole.runs[row.cells[0].run]]) for row in figure.rows}
    frames = {r: c[c["name"] == "attention_distance"].assign(row=r.label) for r, c in curves.items()}
    if all(frame.empty for frame in frames.values()):
        raise InputError(f"figure {figure.name}: no attention distance is recorded; {_way_out(whole, figure)}")
    for ax, (row, frame) in zip(axes[0], frames.items(), strict=True):
        if frame.empty:
            ax.text(0.5, 0.5, "not measured yet", transform=ax.transAxes, ha="center")
        else:
            distance_per_layer(ax, frame, whole.runs[row.cells[0].run])
        ax.set_title(f"{row.label}, mean of {_seeds([frame['seed'].nunique()])}")
    axes[0][0].set_ylabel("attention distance (patches)")
    return drawn, pd.concat(frames.values())[["row", "run", "seed", "epoch", "layer", "value"]]


def _way_out(whole: plan.Plan, figure: plan.Figure) -> str:
    return f"make it with `{commands.target(whole, figure.name)}`"


def distance_per_layer(ax: Axes, frame: pd.DataFrame, run: plan.Run) -> Axes:
    """Draw a line per layer, from dark (first) to light (last), named at its end, and a line at the stage switch."""
    model = run.stages[0].model
    means = frame.groupby(["layer", "epoch"])["value"].mean().unstack("layer")
    last = means.iloc[-1]
    n_mhca = dict(model.args).get("n_mhca", 0)
    apart = 0.055 * means.max().max()
    places = _apart(last.to_list(), apart)
    for i, layer in enumerate(means.columns):
        ax.plot(
            means.index,
            means[layer],
            color=plt.cm.viridis(0.85 * i / max(len(means.columns) - 1, 1)),
            linestyle="-" if layer <= n_mhca else "--",
            marker="",
        )
        kind = "MHCA" if layer <= n_mhca else "MHSA"
        ax.annotate(
            f"{layer} {kind}",
            (means.index[-1], places[i]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    ax.annotate(
        "layer",
        (means.index[-1], min(places) - 1.1 * apart),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        color="0.35",
    )
    uniform = diagrams.uniform_distance(diagrams.grid(model))
    ax.axhline(uniform, color="0.5", linewidth=0.8, linestyle=":")
    ax.annotate(
        "uniform attention",
        (0.02, uniform),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=7,
        color="0.35",
    )
    if len(run.stages) > 1:
        ax.axvline(run.stages[0].last_epoch, color="0.35", linewidth=0.8)
        ax.annotate(
            "stage II",
            (run.stages[0].last_epoch, 0),
            xytext=(2, 2),
            textcoords="offset points",
            fontsize=7,
            color="0.35",
        )
    ax.set_ylim(0, 1.15 * max(uniform, means.max().max()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    return ax


def _apart(values: list[float], distance: float) -> list[float]:
    """The values moved as little as possible until they are `distance` apart, in the same order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    placed = list(values)
    for before, after in itertools.pairwise(order):
        placed[after] = max(placed[after], placed[before] + distance)
    shift = (sum(placed) - sum(values)) / len(values)
    return [p - shift for p in placed]


# ---------------------------------------------------------------------------------------------- Figures 2 and 3


def pipeline(whole: plan.Plan, figure: plan.Figure) -> tuple[Figure, None]:
    """Draw Figure 2: both stages of DearKD with this scale's shapes, weights and epochs."""
    drawn, ax = plt.subplots(figsize=(7.2, 4.2))
    run = whole.runs[figure.rows[0].cells[0].run]
    diagrams.pipeline(ax, run, verify.teacher(whole, run.stages[0].teacher_name))
    return drawn, None


def aligner(whole: plan.Plan, figure: plan.Figure) -> tuple[Figure, None]:
    """Draw Figure 3: the aligner's layers with this scale's shapes."""
    drawn, ax = plt.subplots(figsize=(7.2, 1.6))
    run = whole.runs[figure.rows[0].cells[0].run]
    diagrams.aligner(ax, run, verify.teacher(whole, run.stages[0].teacher_name))
    return drawn, None


# ---------------------------------------------------------------------------------------------- Figures 5 and 6


def data_free_pipeline(whole: plan.Plan, figure: plan.Figure) -> tuple[Figure, None]:
    """Draw Figure 5: how DF-DearKD makes its images, with this scale's terms, weights and schedule."""
    drawn, ax = plt.subplots(figsize=(7.2, 5.0))
    run = whole.runs[figure.rows[0].cells[0].run]
    source = run.stages[0].source
    assert source is not None, "a row on real images has no such figure"
    diagrams.data_free_pipeline(ax, source, run.stages)
    return drawn, None


def latent_space(whole: plan.Plan, figure: plan.Figure) -> tuple[Figure, pd.DataFrame]:
    """Draw Figure 6: latent codes of the first seed's real and synthetic images in a plane, with easiest positives."""
    records.diversity(whole, whole.images_of(figure.name))
    shown = _shown(whole, figure)
    frames = {label: latent.read_codes(_beside(whole, name, "latents.csv")) for label, name in shown}
    classes = latent.shown_classes(frames)
    embedded = latent.embed(frames, classes)
    rows = -(-len(frames) // 2)
    drawn, axes = plt.subplots(rows, 2, figsize=(6.6, 3.1 * rows + 0.4), squeeze=False)
    for ax in axes.flat[len(frames) :]:
        ax.remove()
    latent.latent_space(axes.flat[: len(frames)], embedded, classes, records.class_names(whole))
    title = (
        f"One t-SNE of the teacher's latent codes, seed {whole.scale.seeds[0]}. A line joins an image to its easiest "
        f"positive,\nthe nearest other image of its class in latent space, among those shown. Classes:"
    )
    drawn.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(classes), title=title)
    return drawn, pd.concat([frame.assign(row=label) for label, frame in embedded.items()])


def image_grid(whole: plan.Plan, figure: plan.Figure) -> tuple[Figure, None]:
    """Draw synthetic images beside real ones, one class a row, of the first seed."""
    records.diversity(whole, whole.images_of(figure.name))
    shown = _shown(whole, figure)
    sheets = {label: latent.read_sheet(_beside(whole, name, "sample.png")) for label, name in shown}
    classes = {tuple(latent.read_codes(_beside(whole, n, "latents.csv"))["label"].unique()) for _, n in shown}
    if len(classes) > 1:
        raise InputError(f"figure {figure.name}: the sets of images show different classes")
    height, side = next(iter(sheets.values())).shape[0], whole.scale.data["main"].image_size
    tile, gap = latent.tiling(sheets, side)
    widths = [sheet.shape[1] // side * (tile + gap) - gap for sheet in sheets.values()]  # so all tiles have one size
    columns = sum(sheet.shape[1] for sheet in sheets.values()) / side
    inches = min(7.2, 0.5 * columns)
    size = (inches, inches * height / side / columns + 0.35)
    drawn, axes = plt.subplots(1, len(sheets), squeeze=False, figsize=size, width_ratios=widths)
    names = records.class_names(whole)
    latent.image_grid(axes[0], sheets, side, [names.get(label, label) for label in next(iter(classes))])
    return drawn, None


def _shown(whole: plan.Plan, figure: plan.Figure) -> list[tuple[str, str]]:
    """(label, name) of each set of images that a figure shows and that the first seed has described.

    Raises InputError where there is none.
    """
    sets = [(row.label, row.cells[0].run) for row in figure.rows]
    found = [(label, name) for label, name in sets if whole.paths.diversity(name, whole.scale.seeds[0]).is_file()]
    if not found:
        raise InputError(f"figure {figure.name}: no set of images is described; {_way_out(whole, figure)}")
    return found


def _beside(whole: plan.Plan, name: str, file: str) -> Path:
    """The path of a file beside the first seed's description of a set of images."""
    path = whole.paths.images(name, whole.scale.seeds[0]) / file
    if not path.is_file():
        raise InputError(
            f"{path}: missing; make it again with `python -m dearkd diversity {name} "
            f"--scale {whole.argument} --seed {whole.scale.seeds[0]}`"
        )
    return path


KINDS = {
    kind.__name__: kind
    for kind in (
        accuracy_against_data,
        attention_distance,
        pipeline,
        aligner,
        data_free_pipeline,
        latent_space,
        image_grid,
    )
}
FORMULAS = ("pipeline", "aligner", "data_free_pipeline")
"""Kinds of figures with formulas. All their text is ours or a name of timm."""
