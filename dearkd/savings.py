"""What DearKD saved: the share of the images on which it equals each other method of Table 2 on all of them.

Read layer: pandas; never torch.
"""

import itertools
import math
from collections.abc import Sequence

import pandas as pd

from dearkd import tables
from dearkd.plan import Plan
from dearkd.record import write_text
from dearkd.schema import InputError

TABLE = "table2"


def write(plan: Plan) -> str:
    """Write results/<scale>/savings.md; returns its text. InputError where the scale has no Table 2."""
    if TABLE not in plan.tables:
        raise InputError(f"scale {plan.scale.name}: savings are read off {TABLE}, which its `only` leaves out")
    text = "".join(f"{line}\n" for line in describe(plan, tables.values_of(plan, TABLE)))
    write_text(plan.paths.results / "savings.md", text)
    return text


def describe(plan: Plan, values: pd.DataFrame) -> list[str]:
    """A sentence for each method beside DearKD; `values` is what `tables.values_of` gives."""
    table = plan.tables[TABLE]
    by_row = {
        row.label: {dict(cell.keys)["fraction"]: tables.by_seed(values, cell.run, table.metric) for cell in row.cells}
        for row in table.rows
    }
    student = by_row.pop(table.gap_to)
    fractions = sorted(student)
    if fractions[-1] != 100:
        return ["No row has all images: put 100 among the scale's fractions to see what was saved."]
    means = [float(student[f].mean()) for f in fractions]
    lines = []
    for label, others in by_row.items():
        whole = others[100]
        if whole.empty:  # only the paper's number, or no record yet
            continue
        shares = [
            share([float(student[f].get(seed, math.nan)) for f in fractions], fractions, float(whole[seed]))
            for seed in whole.index
        ]
        found = share(means, fractions, float(whole.mean()))
        lines.append(f"{_sentence(table.gap_to, label, found, fractions)}{_spread(shares, fractions)}.")
    return lines


def share(accuracies: Sequence[float], fractions: Sequence[int], wanted: float) -> float:
    """Percent of the images at which the accuracy first reaches `wanted`; straight lines between logarithms of shares.

    The least fraction where that one is enough, nan where none is, or where the accuracy just below is missing.
    """
    if accuracies[0] >= wanted:
        return float(fractions[0])
    for i, (below, above) in enumerate(itertools.pairwise(accuracies)):
        if above >= wanted:
            part = (wanted - below) / (above - below)
            return fractions[i] ** (1 - part) * fractions[i + 1] ** part
    return math.nan


def _sentence(student: str, other: str, found: float, fractions: Sequence[int]) -> str:
    if math.isnan(found):
        return f"{student} does not reach {other}, both on all images"
    return f"{student} on {_percent(found, fractions)} of the images equals {other} on all of them"


def _percent(found: float, fractions: Sequence[int]) -> str:
    return f"{found:.0f} %" if found > fractions[0] else f"{fractions[0]} % or fewer"


def _spread(shares: Sequence[float], fractions: Sequence[int]) -> str:
    """What the seeds say one by one, where they differ."""
    if len(shares) < 2:
        return " (one seed)"
    reached = sorted(s for s in shares if not math.isnan(s))
    if not reached:
        return f" ({len(shares)} seeds)"
    words = list(dict.fromkeys(_percent(s, fractions) for s in (reached[0], reached[-1])))
    never = len(shares) - len(reached)
    missing = f", {never} not at all" if never else ""
    return f" (its {len(shares)} seeds: {' to '.join(words)}{missing})"
