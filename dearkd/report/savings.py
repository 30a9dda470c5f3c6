"""How many images DearKD saved: the fraction on which it beats each other method of Table 2 on all images.

A difference is taken seed by seed and image by image, as claims are, and has the interval of claims (inference.py). A
difference whose interval contains 0 is called none. Below the sentences a table has the difference to each method at
each share.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dearkd import disk
from dearkd.errors import InputError
from dearkd.plan import verify
from dearkd.plan.plan import Plan
from dearkd.report import decimals, escaping, schedules, tables, unfinished
from dearkd.report.inference import PERCENT, images_error, interval

TABLE = "table2"
FEW = 5
"""Number of wrong test images below which an accuracy is too close to 100 % to compare."""


class Difference(NamedTuple):
    """Points of top-1 by which DearKD is above another method, with the interval, which one seed has not."""

    mean: float
    low: float
    high: float
    seeds: int
    """Number of seeds that both have."""

    @property
    def numbers(self) -> str:
        """The difference and its interval, where it has one, without a unit."""
        mean, low, high = (decimals.signed(value, 1) for value in self[:3])
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        return f"{self.numbers} points"


def write(plan: Plan) -> str:
    """Write results/<scale>/savings.md; returns its text. InputError where Table 2 is missing or has no record."""
    if TABLE not in plan.tables:
        raise InputError(f"scale {plan.scale.name}: savings come from {TABLE}, which its `only` leaves out")
    unfinished.refuse_nothing(plan, "savings", TABLE)
    values = tables.values_of(plan, TABLE)
    lines = [*describe(plan, values), *_teacher(plan)]
    if not lines:
        lines = ["Nothing is compared yet: DearKD and another method on all images have no record."]
    text = "\n".join([*(f"- {line}" for line in lines), *gaps(plan, values)]) + "\n"
    disk.write(plan.paths.results / "savings.md", text)
    return text


def describe(plan: Plan, values: pd.DataFrame) -> list[str]:
    """A sentence of Markdown for each method beside DearKD; `values` is what `tables.values_of` gives."""
    classes, by_row = plan.scale.data["main"].classes, _by_row(plan, values)
    ours = plan.tables[TABLE].gap_to
    student = by_row.pop(ours)
    if 100 not in student:
        return ["No row has all images: put 100 among the scale's fractions to see what was saved."]
    me = escaping.markdown(ours)
    lines = []
    for label, others in by_row.items():
        whole = others[100]
        seeds = len(student[100].index.intersection(whole.index))
        if not seeds:  # only the paper's number, or no record yet
            continue
        it = escaping.markdown(label)
        tested = len(whole["right"].iloc[0])
        why = _incomparable(float(student[100]["top1"].mean()), float(whole["top1"].mean()), classes, tested)
        said, least = _sentence(student, whole, me, it)
        if why:
            said, least = f"Nothing can be said of {me} and {it}: {why}", seeds
        lines.append(f"{said} ({_made_of(least, tested)}).")
    return lines


def gaps(plan: Plan, values: pd.DataFrame) -> list[str]:
    """Lines of a Markdown table: DearKD less each other method on the same share of images; none without records."""
    by_row, ours = _by_row(plan, values), plan.tables[TABLE].gap_to
    student = by_row.pop(ours)
    rows = [
        [escaping.markdown(label), *(_gap(student[share], others[share]) for share in student)]
        for label, others in by_row.items()
        if any(len(found) for found in others.values())
    ]
    if not rows:
        return []
    heads = ["against", *(f"{share} % of the images" for share in student)]
    lines = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
    return [
        "",
        f"{escaping.markdown(ours)} less each other method, points of top-1 [95 % interval] (seeds):",
        "",
        *lines,
        "",
        schedules.sentence(plan, plan.tables[TABLE]),
    ]


def _gap(ours: pd.DataFrame, others: pd.DataFrame) -> str:
    found = difference(ours, others)
    return f"{found.numbers} ({found.seeds})" if found.seeds else ""


def _by_row(plan: Plan, values: pd.DataFrame) -> dict[str, dict[int, pd.DataFrame]]:
    """For each row and share: top1 and right, by seed."""
    return {
        row.label: {
            dict(cell.keys)["fraction"]: values[values["run"] == cell.run].set_index("seed") for cell in row.cells
        }
        for row in plan.tables[TABLE].rows
    }


def _sentence(student: dict[int, pd.DataFrame], whole: pd.DataFrame, ours: str, other: str) -> tuple[str, int]:
    """The sentence, and the least number of seeds of the differences in it.

    The fraction that is named is the smallest one that is enough with all fractions above it.
    """
    found = {fraction: difference(student[fraction], whole) for fraction in sorted(student)}
    both, seeds = f"both on all images: {found[100]}", found[100].seeds
    if seeds == 1:
        return f"{ours} and {other}, {both}, and one seed is no verdict", 1
    enough = [*itertools.takewhile(lambda fraction: found[fraction].low > 0, reversed(found))]
    if not enough:
        if found[100].high < 0:
            return f"{ours} does not reach {other}, {both}", seeds
        return f"{ours} and {other} cannot be told apart, {both}", seeds
    least = enough[-1]
    said = f"{ours} on {least} % of the images beats {other} on all of them: {found[least]}"
    unclear = [fraction for fraction, one in found.items() if fraction < least and one.low <= 0 <= one.high]
    if unclear:
        said += f"; on {' and '.join(f'{fraction} %' for fraction in unclear)} the two cannot be told apart"
    accuracies = [float(student[fraction]["top1"].mean()) for fraction in found]
    equal = share(accuracies, [*found], float(whole["top1"].mean()))
    if equal > min(found):
        said += f"; straight lines between the means make them equal at {decimals.plain(equal, 0)} %"
    return said, min(found[fraction].seeds for fraction in (*enough, *unclear))


def difference(ours: pd.DataFrame, others: pd.DataFrame) -> Difference:
    """Mean of ours - others over the seeds that both have, and its interval; both have top1 and right, by seed."""
    seeds = ours.index.intersection(others.index)
    if seeds.empty:
        return Difference(math.nan, math.nan, math.nan, 0)
    rights = [np.stack(one.loc[seeds, "right"]).astype(float) for one in (ours, others)]
    error = images_error(PERCENT * (rights[0] - rights[1]))
    found = interval(ours.loc[seeds, "top1"] - others.loc[seeds, "top1"], error)
    return Difference(found.mean, found.mean - found.half, found.mean + found.half, len(seeds))


def near_chance(top1: float, classes: int) -> bool:
    """Whether an accuracy in percent is below three times chance, and below a fifth of the way from chance to 100."""
    chance = 100 / classes
    return top1 < chance + min(2 * chance, (100 - chance) / 5)


def _incomparable(ours: float, other: float, classes: int, tested: int) -> str:
    """The reason why two accuracies cannot be compared; empty if they can."""
    low = min(ours, other)
    both = f"with {decimals.plain(ours, 1)} and {decimals.plain(other, 1)} % both"
    if near_chance(max(ours, other), classes):
        return f"{both} are close to chance, {decimals.plain(100 / classes, 1)} %; train longer"
    if (100 - low) / 100 * tested < FEW:
        return f"{both} get nearly every test image right; take harder ones"
    return ""


def share(accuracies: Sequence[float], fractions: Sequence[int], wanted: float) -> float:
    """Percent of the images at which the accuracy first reaches `wanted`; straight lines between logarithms of shares.

    The least fraction where its accuracy is enough; nan where no accuracy is, or where the one just below is missing.
    """
    if accuracies[0] >= wanted:
        return float(fractions[0])
    for i, (below, above) in enumerate(itertools.pairwise(accuracies)):
        if above >= wanted:
            part = (wanted - below) / (above - below)
            return fractions[i] ** (1 - part) * fractions[i + 1] ** part
    return math.nan


def _made_of(seeds: int, tested: int) -> str:
    return f"{'one seed' if seeds == 1 else f'{seeds} seeds'}, {tested} test images"


def _teacher(plan: Plan) -> list[str]:
    """A warning if the teacher's own accuracy is close to chance."""
    name = plan.scale.distillation.teacher
    if not plan.paths.teacher(name).is_file():
        return []
    top1, classes = verify.teacher(plan, name)["top1"], plan.scale.data["main"].classes
    if not near_chance(top1, classes):
        return []
    right, chance = decimals.plain(top1, 1), decimals.plain(100 / classes, 1)
    return [f"The teacher is right on {right} % of its images, close to chance ({chance} %)."]
