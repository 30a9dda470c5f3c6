"""How long the rows of a table train: a sentence below the table, so that unequal rows are not compared unawares."""

from collections import Counter

from dearkd.plan.plan import Plan, Run, Table
from dearkd.report import escaping

LONG = "-long~yes"
"""Part of the name of a run with the scale's long schedule."""


def sentence(plan: Plan, table: Table) -> str:
    """The epochs of the rows, the most frequent number first; empty where none of the rows trains."""
    rows = [(row, plan.runs[cell.run]) for row in table.rows for cell in row.cells if cell.run in plan.runs]
    if not rows:
        return ""
    names: dict[str, list[str]] = {}
    for row, run in sorted(rows, key=lambda one: LONG in one[1].name):
        names.setdefault(_epochs(plan, run), []).append(
            "those named *long* or *1000*" if LONG in run.name else escaping.markdown(row.label)
        )
    usual = Counter(_epochs(plan, run) for _, run in rows).most_common(1)[0][0]
    others = [f"{_together([*dict.fromkeys(who)])} for {epochs}" for epochs, who in names.items() if epochs != usual]
    said = f"Rows train for {'; '.join([f'{usual} here', *others])}."
    if any(
        stage.fraction < 100 and stage.training.subset_schedule == "iterations"
        for _, run in rows
        for stage in run.stages
    ):
        said += " A fraction of the images is trained on for as many steps as all of them."
    return said


def _together(names: list[str]) -> str:
    return " and ".join([part for part in (", ".join(names[:-1]), names[-1]) if part])


def _epochs(plan: Plan, run: Run) -> str:
    first = plan.runs[run.initial] if run.initial else run
    epochs = first.stages[-1].last_epoch
    fine = f" and fine-tune for {run.stages[-1].last_epoch}" if run.initial else ""
    return f"{epochs} epoch{'s' * (epochs != 1)}{fine}"
