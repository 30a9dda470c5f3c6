"""Tables of the paper from the tidy frame: CSV for machines, Markdown and LaTeX for readers.

Every number of ours comes from a record; the paper's own stand in their own column. Read layer: pandas; never torch.
"""

import math
from typing import Any

import pandas as pd

from dearkd import results
from dearkd.plan import Plan, Row, Table
from dearkd.record import write_text

UNITS = {"top1": "top-1 (%)"}


def write(plan: Plan, name: str) -> None:
    """Write results/<scale>/tables/<name>.{csv,md,tex} from the records."""
    table = plan.tables[name]
    values = results.load(plan, plan.runs_of(name))
    frame = tidy(table, values)
    folder = plan.paths.results / "tables"
    write_text(folder / f"{name}.csv", frame.to_csv(index=False, float_format="%.4f"))
    shown = arrange(table, frame)
    write_text(
        folder / f"{name}.md", to_markdown(plan, table, shown, bool(values.get("dirty", pd.Series(dtype=bool)).any()))
    )
    write_text(folder / f"{name}.tex", to_latex(table, shown))


def tidy(table: Table, values: pd.DataFrame) -> pd.DataFrame:
    """One line per cell: row, method, student, the table's keys, metric, mean, sd, n, paper, source.

    source: measured (from our records) or quoted (only the paper's number). A table with `gap_to` also has, for every
    other row, the metric `gap`: that row's difference to the reference, paired by seed.
    """
    lines = []
    reference = next((r for r in table.rows if r.label == table.gap_to), None)
    for row in table.rows:
        for i, cell in enumerate(row.cells):
            ours = _by_seed(values, cell.run, table.metric)
            lines.append(_line(table, row, i, table.metric, ours, cell.paper))
            if reference is not None and row is not reference:
                best = reference.cells[i]
                gap = (_by_seed(values, best.run, table.metric) - ours).dropna()
                paper = None if None in (best.paper, cell.paper) else round(best.paper - cell.paper, 4)
                lines.append(_line(table, row, i, "gap", gap, paper))
    return pd.DataFrame(lines)


def _by_seed(values: pd.DataFrame, run: str, metric: str) -> pd.Series:
    chosen = values[values["run"] == run]
    return chosen.set_index("seed")[metric] if metric in values else pd.Series(dtype=float)


def _line(table: Table, row: Row, cell: int, metric: str, ours: pd.Series, paper: float | None) -> dict[str, Any]:
    return {
        "row": row.label,
        "method": row.method,
        "student": row.student,
        **dict(row.columns),
        **dict(row.cells[cell].keys),
        "metric": metric,
        "mean": ours.mean() if len(ours) else math.nan,
        "sd": ours.std(ddof=1) if len(ours) > 1 else math.nan,
        "n": len(ours),
        "paper": math.nan if paper is None else paper,
        "source": "measured" if len(ours) else "quoted",
    }


def arrange(table: Table, frame: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed: a line per row (and its gap), 'ours' beside 'paper' for every cell; all text."""
    lines = []
    for row in table.rows:
        for metric in (table.metric, "gap"):
            cells = frame[(frame["row"] == row.label) & (frame["metric"] == metric)]
            if cells.empty:
                continue
            label = row.label if metric == table.metric else f"gap to {table.gap_to}"
            line = {"": label, **{name: _switch(value) for name, value in dict(row.columns).items()}}
            for _, cell in cells.iterrows():
                head = f"{cell[table.across]} % " if table.across == "fraction" else ""
                line[f"{head}ours"] = ours(cell)
                line[f"{head}paper"] = "" if pd.isna(cell["paper"]) else f"{cell['paper']:.1f}"
            lines.append(line)
    return pd.DataFrame(lines)


def ours(cell: pd.Series) -> str:
    """mean ± sd (n); blank where nothing was measured."""
    if not cell["n"]:
        return ""
    spread = "" if pd.isna(cell["sd"]) else f" ± {cell['sd']:.1f}"
    return f"{cell['mean']:.1f}{spread} ({cell['n']})"


def _switch(value: Any) -> str:
    return {True: "✓", False: ""}.get(value, str(value)) if isinstance(value, bool) else str(value)


def to_markdown(plan: Plan, table: Table, shown: pd.DataFrame, dirty: bool) -> str:
    """Markdown with a caption that says what the numbers are."""
    lines = [
        " | ".join(["", *shown.columns, ""]).strip(),
        " | ".join(["", *("---" for _ in shown.columns), ""]).strip(),
    ]
    lines += [" | ".join(["", *row, ""]).strip() for row in shown.itertuples(index=False)]
    notes = (
        f"{table.title}: {UNITS[table.metric]}. *ours*: mean ± standard deviation (number of seeds) at the scale "
        f"`{plan.scale.name}`, {plan.scale.summary}. *paper*: the paper's own number, on ImageNet."
    )
    if dirty:
        notes += " † Made from sources that differ from the commit in the records."
    return "\n".join(lines) + f"\n\n{notes}\n"


def to_latex(table: Table, shown: pd.DataFrame) -> str:
    """A booktabs tabular."""
    text = shown.map(
        lambda v: v.replace("✓", r"$\checkmark$").replace("±", r"$\pm$").replace("%", r"\%").replace("_", r"\_")
    )
    text.columns = [c.replace("%", r"\%").replace("_", r"\_") for c in text.columns]
    return f"% {table.title}\n" + text.to_latex(index=False, column_format="l" + "r" * (len(text.columns) - 1))
