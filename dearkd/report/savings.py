"""How many images DearKD saved: the share on which it beats each other method of Table 2 on all images.

A difference is taken seed by seed, as claims are, and its 95 % interval has two parts: Student's t over the seeds, and
the error of a test set of finite size. A difference whose interval contains 0 is called none.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from scipy import stats

from dearkd import disk
from dearkd.plan import verify
from dearkd.plan.plan import Plan
from dearkd.report import escaping, tables
from dearkd.report.inference import LEVEL, interval
from dearkd.schema import InputError

TABLE = "table2"
FEW = 5
"""Number of wrong test images below which an accuracy is too close to 100 % to compare."""


class Difference(NamedTuple):
    """Points of top-1 by which DearKD is above another method, with the interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}] points"


def write(plan: Plan) -> str:
    """Write results/<scale>/savings.md; returns its text. Raises InputError where the scale has no Table 2."""
    if TABLE not in plan.tables:
        raise InputError(f"scale {plan.scale.name}: savings are read off {TABLE}, which its `only` leaves out")
    lines = [*describe(plan, tables.values_of(plan, TABLE)), *_teacher(plan)]
    text = "\n".join(f"- {line}" for line in lines) + "\n"
    disk.write(plan.paths.results / "savings.md", text)
    return text


def describe(plan: Plan, values: pd.DataFrame) -> list[str]:
    """A sentence of Markdown for each method beside DearKD; `values` is what `tables.values_of` gives."""
    table, classes = plan.tables[TABLE], plan.scale.data["main"].classes
    by_row = {
        row.label: {dict(cell.keys)["fraction"]: tables.by_seed(values, cell.run, table.metric) for cell in row.cells}
        for row in table.rows
    }
    student = by_row.pop(table.gap_to)
    if 100 not in student:
        return ["No row has all images: put 100 among the scale's fractions to see what was saved."]
    tested = int(values["tested"].max()) if "tested" in values and values["tested"].notna().any() else 0
    me = escaping.markdown(table.gap_to)
    lines = []
    for label, others in by_row.items():
        whole = others[100]
        if whole.empty or student[100].empty:  # only the paper's number, or no record yet
            continue
        it = escaping.markdown(label)
        why = _incomparable(float(student[100].mean()), float(whole.mean()), classes, tested)
        said = f"Nothing can be said of {me} and {it}: {why}" if why else _sentence(student, whole, tested, me, it)
        lines.append(f"{said} ({_made_of(len(whole), tested)}).")
    return lines


def _sentence(student: dict[int, pd.Series], whole: pd.Series, tested: int, ours: str, other: str) -> str:
    found = {fraction: difference(student[fraction], whole, tested) for fraction in sorted(student)}
    better = [fraction for fraction, one in found.items() if one.low > 0]
    if not better:
        if found[100].high < 0:
            return f"{ours} does not reach {other}, both on all images: {found[100]}"
        return f"{ours} and {other} cannot be told apart, both on all images: {found[100]}"
    least = better[0]
    said = f"{ours} on {least} % of the images beats {other} on all of them: {found[least]}"
    unclear = [f"{fraction} %" for fraction, one in found.items() if fraction < least and one.low <= 0 <= one.high]
    if unclear:
        said += f"; on {' and '.join(unclear)} the two cannot be told apart"
    equal = share([float(student[fraction].mean()) for fraction in found], [*found], float(whole.mean()))
    if equal > min(found):
        said += f"; straight lines between the means make them equal at {equal:.0f} %"
    return said


def difference(ours: pd.Series, others: pd.Series, tested: int) -> Difference:
    """Mean of ours - others over the seeds that both have, and its interval.

    All seeds have the same test images, so the error of the test set does not shrink with the number of seeds. It is
    taken as for two independent accuracies, which is more than for two methods on the same images. With one seed the
    interval has only this error. With `tested` 0 the number of test images is unknown, and the interval has only the
    seeds' spread.
    """
    each = (ours - others).dropna()
    if each.empty:
        return Difference(math.nan, math.nan, math.nan)
    seeds = interval(each)
    variance = sum(_variance(float(top1[each.index].mean()), tested) for top1 in (ours, others))
    images = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(variance)
    half = math.hypot(seeds.half if len(each) > 1 else 0, images)
    return Difference(seeds.mean, seeds.mean - half, seeds.mean + half)


def _variance(top1: float, tested: int) -> float:
    """Variance of an accuracy in percent on `tested` images, plus two right and two wrong ones (Agresti, Coull)."""
    if not tested:
        return 0.0
    share = (top1 / 100 * tested + 2) / (tested + 4)
    return 1e4 * share * (1 - share) / (tested + 4)


def near_chance(top1: float, classes: int) -> bool:
    """Whether an accuracy in percent is below three times chance, and below a fifth of the way from chance to 100."""
    chance = 100 / classes
    return top1 < chance + min(2 * chance, (100 - chance) / 5)


def _incomparable(ours: float, other: float, classes: int, tested: int) -> str:
    """Why two accuracies cannot be compared; empty where they can."""
    low = min(ours, other)
    if near_chance(max(ours, other), classes):
        return f"with {ours:.1f} and {other:.1f} % both are close to chance, {100 / classes:.1f} %; train longer"
    if tested and (100 - low) / 100 * tested < FEW:
        return f"with {ours:.1f} and {other:.1f} % both get nearly every test image right; take harder ones"
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
    return f"{seeds} seeds" * (seeds > 1) + "one seed" * (seeds == 1) + f", {tested} test images" * bool(tested)


def _teacher(plan: Plan) -> list[str]:
    """A warning where the teacher itself has learned next to nothing."""
    name = plan.scale.distillation.teacher
    if not plan.paths.teacher(name).is_file():
        return []
    top1, classes = verify.teacher(plan, name)["top1"], plan.scale.data["main"].classes
    if not near_chance(top1, classes):
        return []
    return [f"The teacher is right on {top1:.1f} % of its images, close to chance ({100 / classes:.1f} %)."]
