"""The paper's claims, judged on our records at a scale and on the paper's own numbers.

A claim is one or more comparisons (language.py), each with a margin: by how much it holds. On our records the margin is
taken seed by seed, since methods with the same seed share images, order and start, and has a 95 % interval
(inference.py): Student's t over the seeds, and the error that a finite set of test images leaves. A comparison holds
when the interval is above 0, fails when it is below, and is within noise otherwise. A number that has no seeds
decides by its sign. One seed has no interval, and so no verdict. A claim fails when one of its comparisons fails and
holds when all hold. Otherwise it is not measured where a comparison could not be made, or else of one seed where one
has no verdict, or else within noise.
"Within t" is written as a chain, -t <= d <= t: its weaker margin is t - |d|, and its halves are the usual test of
equivalence.

Each comparison is judged by itself. Each claim also has a p-value, corrected by Holm over all claims that have one, and
a bootstrap over the seeds, which assumes no distribution.
"""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from dearkd.errors import InputError, unknown
from dearkd.places import shipped
from dearkd.plan import experiments
from dearkd.plan.plan import Plan
from dearkd.report import tables
from dearkd.report.claims import language
from dearkd.report.claims.language import Comparison, Comparisons, Numbers, Reference
from dearkd.report.claims.numbers import NO_ANSWERS, Answers, our_answers, our_numbers, papers_numbers
from dearkd.report.inference import PERCENT, bootstrap, holm, images_error, interval
from dearkd.schema import build, spec

CLAIMS = experiments.PAPER / "claims.csv"
FAILS, NOT_MEASURED, ONE_SEED, NOISE, HOLDS = VERDICTS = ("fails", "not measured", "one seed", "within noise", "holds")
"""Verdicts, the worst first. The worst verdict of a conjunction decides, as in Kleene's logic."""
T = TypeVar("T")
UNITS = {"table6": "LPIPS", "parameters": "M", "throughput": "images/s"}
"""Unit of a table's own number or of another number of its rows. All others are points: percent of the test images."""


@spec
class Claim:
    """A line of paper/claims.csv."""

    id: str
    source: str
    """Tables with the claim's numbers, as T1/T3."""
    statement: str
    predicate: str
    """The claim in words; `comparisons` says the same in the language that is judged."""
    holds_on_paper_numbers: str
    note: str
    comparisons: str


@spec
class Judgement:
    """A verdict and the comparison that decides it: the one with the smallest margin among those with the verdict."""

    verdict: str = NOT_MEASURED
    margin: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    """Number of seeds; 0 for numbers without seeds."""
    fewest: int = 0
    """Number of seeds of the comparison that has the fewest; 0 where none has seeds."""
    unit: str = ""
    decided_by: str = ""
    measured: int = 0
    """Number of comparisons that could be made."""
    comparisons: int = 1
    boot_low: float = math.nan
    boot_high: float = math.nan
    """95 % percentile interval of the margin when seeds are drawn again with replacement, and images by their error."""
    p: float = math.nan
    """Two-sided p-value: how rarely margins as large, of either sign, occur by chance. Not a number without seeds."""


def read_claims(papers: Numbers, path: Path = CLAIMS) -> list[tuple[Claim, Comparisons]]:
    """The claims. Raises InputError naming file and claim for one that is unreadable or names no paper number."""
    found: dict[str, tuple[Claim, Comparisons]] = {}
    for claim in read_lines(path, Claim):
        where = f"{path}: {claim.id}"
        if claim.id in found:
            raise InputError(f"{where} is there twice; keep one")
        try:
            compared = language.read(claim.comparisons)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        for cell in dict.fromkeys(c for pair in spelt_out(compared, papers, where) for c in pair.references()):
            if cell not in papers:
                raise InputError(unknown(str(cell), [*map(str, papers)], "number of the paper", where))
        found[claim.id] = (claim, compared)
    return list(found.values())


def read_lines(path: Path, cls: type[T]) -> list[T]:
    """The lines of a CSV file as `cls`. Raises InputError naming file and line for one that cannot be read."""
    try:
        with shipped(path).open(newline="", encoding="utf-8") as file:
            return [build(cls, line, f"{path}, line {i}") for i, line in enumerate(csv.DictReader(file), 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None


def spelt_out(compared: Comparisons, papers: Numbers, where: str) -> list[Comparison]:
    """Every comparison, on the paper's numbers. Raises InputError where `each` or `others` finds none."""
    groups = compared.groups(papers)
    if not all(groups):
        raise InputError(f"{where}: the paper has no numbers for `each` or `others`")
    return [pair for group in groups for pair in group]


# ---------------------------------------------------------------------------------------------- judging


def judge(compared: Comparisons, numbers: Numbers, answers: Mapping[Reference, Answers] = NO_ANSWERS) -> Judgement:
    """The verdict on a claim. It is that of the weakest comparison, or of the weakest in the best `at_least` columns.

    Where a conjunction mixes units, a margin in the first unit is shown before others.
    """
    units = list(dict.fromkeys(_unit(pair) for pair in compared.general))

    def weakest_first(one: Judgement) -> tuple[int, int, float]:
        return VERDICTS.index(one.verdict), units.index(one.unit), one.margin

    nothing = Judgement(unit=units[0])
    groups = [[judge_one(pair, numbers, answers) for pair in group] for group in compared.groups(numbers)]
    columns = sorted((min(group, key=weakest_first, default=nothing) for group in groups), key=weakest_first)
    position = len(columns) - (compared.at_least or len(columns))
    made = [one for group in groups for one in group]
    decided = columns[position] if position >= 0 else nothing
    return dataclasses.replace(
        decided,
        fewest=min((one.seeds for one in made if one.seeds), default=0),
        measured=sum(one.verdict != NOT_MEASURED for one in made),
        comparisons=max(len(made), 1),
        p=math.nan if decided.verdict == NOT_MEASURED else of_claim(groups, compared.at_least or len(groups)),
    )


def judge_one(pair: Comparison, numbers: Numbers, answers: Mapping[Reference, Answers] = NO_ANSWERS) -> Judgement:
    """The verdict on one comparison, with the 95 % interval of its margin and its p-value where there are seeds."""
    margin = pair.margin(numbers)
    unit, decided_by = _unit(pair), str(pair)
    if not isinstance(margin, pd.Series) or len(margin) < 2:
        values, seeds = ([*margin], len(margin)) if isinstance(margin, pd.Series) else ([margin], 0)
        mean = round(float(values[0]), 9)  # 72.2 - 71.2 is not 1.0 in binary
        verdict = ONE_SEED if seeds else _verdict(mean, mean, pair.inclusive)
        return Judgement(verdict=verdict, margin=mean, seeds=seeds, unit=unit, decided_by=decided_by)
    error = _images_error(pair, numbers, answers, margin.index)
    found = interval(margin, error)
    low, high = found.mean - found.half, found.mean + found.half
    boot_low, boot_high = bootstrap(margin, error)
    return Judgement(
        verdict=_verdict(low, high, pair.inclusive),
        margin=found.mean,
        low=low,
        high=high,
        seeds=len(margin),
        unit=unit,
        decided_by=decided_by,
        boot_low=boot_low,
        boot_high=boot_high,
        p=found.p,
    )


def _images_error(pair: Comparison, numbers: Numbers, answers: Mapping[Reference, Answers], seeds: pd.Index) -> float:
    """Standard error of a margin from its test images, over these seeds; 0 where no cell is a percentage of images."""
    margins: dict[str, np.ndarray] = {}
    for cell, slope in pair.slopes(numbers).items():
        if cell in answers:
            data, right = answers[cell]
            margins[data] = margins.get(data, 0.0) + PERCENT * slope * np.stack([right[seed] for seed in seeds])
    return math.hypot(*map(images_error, margins.values()))


# ---------------------------------------------------------------------------------------------- p-values


def of_claim(groups: Sequence[Sequence[Judgement]], at_least: int) -> float:
    """The two-sided p-value of a claim that needs `at_least` of its groups of comparisons to hold.

    A group holds with the p-value of its least sure comparison. It fails with the p-value of its surest comparison
    times the number of comparisons (Bonferroni). At least k of n groups hold with n - k + 1 times the k-th smallest
    p-value (Benjamini, Heller).
    """
    every = [one for group in groups for one in group]
    if not any(one.seeds > 1 for one in every) or any(one.seeds == 1 for one in every):
        return math.nan
    holding = [max(map(_holds_by_chance, group), default=1.0) for group in groups]
    failing = [min((len(group) * _fails_by_chance(one) for one in group), default=1.0) for group in groups]
    against = len(groups) - at_least + 1
    holds = against * sorted(holding)[at_least - 1]
    fails = at_least * sorted(failing)[against - 1]
    return min(1.0, 2 * min(holds, fails))


def _holds_by_chance(one: Judgement) -> float:
    """One-sided p-value of a comparison that holds. Numbers without seeds give 0 or 1: they have no chance."""
    if one.seeds > 1 and one.low < one.high:
        return one.p / 2 if one.margin > 0 else 1 - one.p / 2
    return 0.0 if one.verdict == HOLDS else 1.0


def _fails_by_chance(one: Judgement) -> float:
    if one.seeds > 1 and one.low < one.high:
        return 1 - _holds_by_chance(one)
    return 0.0 if one.verdict == FAILS else 1.0


def _verdict(low: float, high: float, inclusive: bool) -> str:
    if math.isnan(low):
        return NOT_MEASURED
    if low > 0 or (inclusive and low == 0):
        return HOLDS
    return FAILS if high < 0 or (not inclusive and high == 0) else NOISE


def _unit(pair: Comparison) -> str:
    if pair.relative:
        return "%"
    first = next(iter(pair.references()))
    return UNITS.get(first.metric or first.table, "points")


def frame(plan: Plan) -> pd.DataFrame:
    """One line per claim: id, source, the table that it names first, statement, the judgement on our records, that on
    the paper's numbers (paper_*), the p-value corrected by Holm (holm), and whether a record was made from sources that
    differ from its commit (dirty)."""
    values = {name: tables.values_of(plan, name) for name in plan.tables}
    ours, answers, papers = our_numbers(plan, values), our_answers(plan, values), papers_numbers()
    lines = []
    for claim, compared in read_claims(papers):
        here, there = judge(compared, ours, answers), judge(compared, papers)
        lines.append(
            {
                "id": claim.id,
                "source": claim.source,
                "table": next(iter(compared.general[0].references())).table,
                "statement": claim.statement,
                **dataclasses.asdict(here),
                "paper_verdict": there.verdict,
                "paper_margin": there.margin,
                "paper_unit": there.unit,
                "paper_decided_by": there.decided_by,
                "note": claim.note,
            }
        )
    dirty = any(bool(v["dirty"].any()) for v in values.values() if "dirty" in v)
    judged = pd.DataFrame(lines)
    return judged.assign(holm=holm(judged["p"]), dirty=dirty)
