"""Judged claims as CSV, as a Markdown page, and as a figure with a row for each claim."""

import itertools
import math
import re
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dearkd import disk
from dearkd.plan import experiments
from dearkd.plan.plan import Plan
from dearkd.report import decimals, escaping, figures, unfinished
from dearkd.report.claims.judge import FAILS, HOLDS, NOISE, NOT_MEASURED, ONE_SEED, read_lines
from dearkd.report.inference import LEVEL
from dearkd.report.records import entries
from dearkd.schema import spec

INCONSISTENCIES = experiments.PAPER / "inconsistencies.csv"
PLACES = {"LPIPS": 4}
"""Decimal places of a margin; all others have two."""
PAPERS = ("paper_verdict", "paper_margin", "paper_unit")
COUNTED = {
    HOLDS: ("holds", "hold"),
    FAILS: ("fails", "fail"),
    NOISE: ("is within noise", "are within noise"),
    ONE_SEED: ("has one seed", "have one seed"),
    NOT_MEASURED: ("is not measured", "are not measured"),
}
"""What one claim does and what several do."""
MARKS = {
    HOLDS: ("C0", "o", "black"),
    NOISE: ("C3", "s", "black"),
    FAILS: ("C1", "X", "C1"),
    ONE_SEED: ("C4", "v", "0.35"),
    NOT_MEASURED: ("0.5", "", "0.5"),
}
"""A verdict's colour and marker, which differ in grey print too, and the colour of its words."""
EXPLAINED = (
    "A claim makes one or more comparisons. *margin* says by how much its weakest comparison holds, beyond the "
    "threshold where there is one. It is in points of top-1 unless it names another unit. Its 95 % interval is paired "
    "by seed and by test image. In brackets is its number of seeds, and *elsewhere* the least number of another "
    "comparison of the claim. A comparison holds when the interval is above 0, fails when it is below 0, and is "
    "within noise otherwise. A number without seeds decides by its sign. *one seed* is no verdict, because one seed "
    "has no spread. A claim holds when all its comparisons hold, and fails when one fails. Each comparison is judged "
    "by itself, so one of many may fail by chance. *not measured* means that this scale has not trained all that the "
    "claim needs. Thresholds are the paper's, in points of ImageNet's top-1. The column `comparisons` of "
    "`paper/claims.csv` has the comparisons, and `claims.csv` beside this page says which one decided."
)
STATISTICS = (
    "*The interval* adds two errors as squares. One is Student's t over the seeds. The other is the error that all "
    "seeds share because their test images are the same, and it is never below one image. A margin in LPIPS has only "
    "the first. The sum assumes that seeds and test images are independent draws whose effects add up. One teacher "
    "taught all seeds, so the interval does not say what another teacher would change. Student's t also assumes that "
    "margins are normally distributed over the seeds, which {seeds} seeds can neither show nor refute. A bootstrap "
    "checks this. It draws the seeds again and assumes no distribution. Its interval (in `claims.csv`) gives the same "
    "verdict on {same} of the {claims} deciding comparisons{others}. With few seeds it is too narrow, because it never "
    "leaves the range of the seeds.\n\n"
    "*p (Holm)* says how rarely chance gives a margin of that size, of either sign. It is corrected for the {claims} "
    "claims that have an interval. At 0.05, {firm}."
)
HEADS = ["", "tables", "the paper says", "here", "margin (seeds)", "p (Holm)", "paper's margin", "on its numbers"]
DIRTY = " † Some records were made from sources that differ from their commit."


@spec
class Inconsistency:
    """A line of paper/inconsistencies.csv: where the paper contradicts itself or is silent."""

    id: str
    where: str
    statement: str
    evidence: str
    severity: str
    handling: str


def write(plan: Plan, judged: pd.DataFrame) -> None:
    """Write results/<scale>/claims.{csv,md} and figures/<scale>/claims.{pdf,png,csv}; `judged`: from claims.frame."""
    last = ["boot_low", "boot_high", "p", "holm"]
    numbers = judged.drop(columns=["table", "dirty", *last]).join(judged[last])
    disk.write(plan.paths.results / "claims.csv", numbers.to_csv(index=False, float_format=decimals.in_csv))
    disk.write(plan.paths.results / "claims.md", to_markdown(plan, judged))
    shown = ["id", "verdict", "margin", "low", "high", "seeds", "unit", *PAPERS]
    with plt.style.context([figures.STYLE, figures.PLAIN]):
        figures.save(plan, "claims", draw(judged, plan.scale.name), judged[shown])


# ---------------------------------------------------------------------------------------------- the page


def to_markdown(plan: Plan, judged: pd.DataFrame) -> str:
    """The page: claims with both verdicts, the meaning of the words, the paper's inconsistencies with our choices."""
    here, there = (judged[column].value_counts() for column in ("verdict", "paper_verdict"))
    failing = ", ".join(judged.loc[judged["paper_verdict"] == FAILS, "id"])
    text = escaping.markdown
    rows = [
        [
            text(c.id),
            text(c.source),
            text(c.statement),
            spoken(c),
            ours(c),
            chance(c.holm),
            number(c.paper_margin, c.paper_unit),
            c.paper_verdict,
        ]
        for c in entries(judged)
    ]
    found = [
        [text(part) for part in (i.id, i.where, i.statement, i.evidence, i.handling)]
        for i in read_lines(INCONSISTENCIES, Inconsistency)
    ]
    lines = [
        f"# The paper's claims at the scale `{plan.scale.name}`",
        "",
        f"The data here are {text(plan.scale.summary)}. Of {len(judged)} claims {counted(here)}. On the paper's own "
        f"numbers, of ImageNet, {counted(there)} ({text(failing)}).",
        "",
        *_table(
            ["", "tables", "the paper says", "here", "margin (seeds)", "p (Holm)", "paper's margin", "on its numbers"],
            rows,
        ),
        "",
        EXPLAINED + (DIRTY if judged["dirty"].any() else ""),
        "",
        *([waits, ""] if (waits := unfinished.tables(plan)) else []),
        *statistics(judged),
        "## Where the paper contradicts itself or leaves something open",
        "",
        *_table(["", "where", "it says", "but", "what we did"], found),
    ]
    return "\n".join(lines) + "\n"


def counted(verdicts: pd.Series) -> str:
    """The number of claims with each verdict, in words. verdicts: counts by verdict."""
    return ", ".join(with_verdict(verdicts[verdict], verdict) for verdict in COUNTED if verdict in verdicts)


def with_verdict(number: int, verdict: str) -> str:
    """A number of claims with their verdict: "1 holds", "2 hold"."""
    one, more = COUNTED[verdict]
    return f"{number} {one if number == 1 else more}"


def statistics(judged: pd.DataFrame) -> list[str]:
    """A paragraph on the corrected p-values and the bootstrap; empty where no claim has an interval."""
    tested = judged.dropna(subset=["p"])
    if tested.empty:
        return []
    drawn = (NOISE, HOLDS, FAILS)
    by_bootstrap = [drawn[(c.boot_low > 0) + 2 * (c.boot_high < 0)] for c in entries(tested)]
    other = tested.loc[tested["verdict"] != by_bootstrap, "id"]
    firm = tested[tested["holm"] < 1 - LEVEL]["verdict"].value_counts()
    low, high = tested["fewest"].min(), tested["seeds"].max()
    return [
        STATISTICS.format(
            claims=len(tested),
            firm=" and ".join(with_verdict(firm.get(v, 0), v) for v in (HOLDS, FAILS)),
            seeds=low if low == high else f"{low} to {high}",
            same=len(tested) - len(other),
            others=f" (not on {', '.join(map(escaping.markdown, other))})" if len(other) else "",
        ),
        "",
    ]


def chance(p: float) -> str:
    """A p-value; blank where there is none."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else decimals.plain(p, 3)


def spoken(claim: Any) -> str:
    """The verdict, with how much was measured."""
    if claim.verdict == NOT_MEASURED and claim.measured:
        return f"{NOT_MEASURED} ({claim.measured} of {claim.comparisons} comparisons are)"
    return str(claim.verdict)


def ours(claim: Any) -> str:
    """margin [low, high] unit (seeds); blank where nothing was measured."""
    if math.isnan(claim.margin):
        return ""
    others = f"; elsewhere {claim.fewest}" if claim.fewest < claim.seeds else ""
    seeds = f" ({claim.seeds}{others})" if claim.seeds else ""
    if math.isnan(claim.low):
        return number(claim.margin, claim.unit) + seeds
    margin, low, high = (decimals.signed(v, PLACES.get(claim.unit, 2)) for v in (claim.margin, claim.low, claim.high))
    return f"{margin} [{low}, {high}]{_suffix(claim.unit)}{seeds}"


def number(margin: float, unit: str) -> str:
    """A margin with its sign, and with its unit where the unit is not a point."""
    return decimals.signed(margin, PLACES.get(unit, 2)) + _suffix(unit)


def _suffix(unit: str) -> str:
    return "" if unit == "points" else f" {unit}"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


# ---------------------------------------------------------------------------------------------- the figure

WIDTH, ROW = 7.4, 0.185
"""Inches: the figure's width, a row's height."""
STATEMENT, INSIDE, HERE, PAPER = (0, -225), (0, 6), (1, 6), (1, 78)
"""Where the texts beside the axes start: left or right edge, and points from it."""


def draw(judged: pd.DataFrame, scale: str) -> Figure:
    """Draw a row for each claim: our margin with its interval, coloured by verdict, and the paper's."""
    small = judged["paper_unit"] == "LPIPS"
    panels = [rows for rows in (judged[~small], judged[small]) if len(rows)]
    heights = [len(rows) + rows["table"].nunique() for rows in panels]
    drawn, axes = plt.subplots(
        len(panels),
        squeeze=False,
        height_ratios=heights,
        figsize=(WIDTH, ROW * sum(heights) + 0.55 * len(panels) + 0.6),
    )
    for ax, rows in zip(axes[:, 0], panels, strict=True):
        _panel(ax, rows)
    _aside(axes[0, 0], -1, HERE, scale, fontweight="bold")
    _aside(axes[0, 0], -1, PAPER, "paper", fontweight="bold")
    known = {*judged["verdict"]}
    marks = [Line2D([], [], color=c, marker=m, label=v) for v, (c, m, _) in MARKS.items() if m and v in known]
    paper = Line2D([], [], color="0.35", marker="D", markerfacecolor="none", linestyle="", label="the paper, ImageNet")
    drawn.legend(handles=[*marks, paper], loc="outside lower center", ncols=len(marks) + 1)
    return drawn


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    """Claims of one unit, grouped by table, from top to bottom."""
    lpips = rows["paper_unit"].iloc[0] == "LPIPS"
    if not lpips:
        ax.set_xscale("symlog", linthresh=1, linscale=0.7)
    y = itertools.count()
    for table, claims in rows.groupby("table", sort=False):
        _aside(ax, next(y), STATEMENT, str(table).replace("table", "Table "), fontweight="bold")
        for claim in entries(claims):
            _row(ax, next(y), claim)
    ax.set_ylim(next(y) - 0.4, -0.5)
    ax.set_yticks([])
    ax.axvline(0, color="0.35", linewidth=0.8)
    if lpips:
        ax.locator_params(axis="x", nbins=5)
    else:
        low, high = ax.get_xlim()
        ax.set_xticks([t for t in (-100, -10, -1, 0, 1, 10, 100) if low <= t <= high])
        ax.xaxis.set_major_formatter("{x:g}")
    ratios = ", ".join(rows.loc[rows["paper_unit"] == "%", "id"])
    unit = "LPIPS" if lpips else f"points of top-1{f' ({ratios} in %)' if ratios else ''}"
    axis = "" if lpips else "; linear up to 1, logarithmic beyond"
    ax.set_xlabel(f"margin and its 95 % interval in {unit}\nright of 0 the claim holds{axis}", fontsize=7)
    ax.spines["left"].set_visible(False)


def _row(ax: Axes, y: int, claim: Any) -> None:
    """A claim's statement, margins and verdicts; our margin is a text where it is in another unit than the paper's."""
    colour, marker, words = MARKS[claim.verdict]
    statement = re.sub(r" \([^()]*\)$", "", claim.statement)  # the paper's number is in the row
    ax.axhline(y, color=plt.rcParams["grid.color"], linewidth=plt.rcParams["grid.linewidth"])
    if claim.unit == claim.paper_unit and claim.verdict != NOT_MEASURED:
        bar = None if not math.isfinite(claim.low) else [[claim.margin - claim.low], [claim.high - claim.margin]]
        ax.errorbar(claim.margin, y, xerr=bar, color=colour, marker=marker, markersize=4.5, linewidth=1.2)
    elif claim.verdict != NOT_MEASURED:
        _aside(ax, y, INSIDE, number(claim.margin, claim.unit), color=words)
    ax.plot(
        claim.paper_margin, y, color="0.35", marker="D", markersize=4, markerfacecolor="none", linestyle="", zorder=3
    )
    _aside(ax, y, STATEMENT, f"{claim.id}  {statement}", color=words)
    _aside(ax, y, HERE, claim.verdict, color=words)
    _aside(ax, y, PAPER, claim.paper_verdict, color=MARKS[claim.paper_verdict][2])


def _aside(ax: Axes, y: int, place: tuple[int, int], text: str, **how: Any) -> None:
    """Text in row y beside the axes."""
    edge, points = place
    ax.annotate(
        text,
        (edge, y),
        xycoords=("axes fraction", "data"),
        xytext=(points, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        annotation_clip=False,
        **how,
    )
