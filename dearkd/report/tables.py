"""The paper's tables from the tidy frame, as CSV, Markdown and LaTeX.

Every number of ours comes from a record. The paper's numbers have their own column.
"""

import dataclasses
import math
import re
from typing import Any

import pandas as pd

from dearkd import disk
from dearkd.plan.data import REAL
from dearkd.plan.plan import Cell, Plan, Row, Table
from dearkd.report import decimals, escaping, records, schedules, unfinished

UNITS = {"top1": "top-1 on test images (%)", "top5": "top-5 on test images (%)", "lpips": "LPIPS"}
HEADS = {
    "mhca": "MHCA",
    "two_stage": "two stages",
    "top5": "top-5",
    "lpips_se": "standard error",
    "lpips_alex": "AlexNet",
    "lpips_vgg": "VGG-16",
    "lpips_blurred": "blurred",
    "teacher_top1": "teacher's top-1",
    "easy_positive": "easy positive",
    "parameters": "parameters (M)",
    "gmacs": "GMACs",
    "input_size": "input",
    "throughput": "images/s",
    "ratio": "of DeiT's",
    "ratio_dense": "dense",
    "images": "images",
    "image_seconds": "seconds per image",
    "per_minute": "points per minute",
}
"""Column heads of a table's switches and of metrics without a number in the paper, where a head is not the name."""
PLACES = {
    **dict.fromkeys(
        ("lpips", "lpips_se", "lpips_alex", "lpips_vgg", "lpips_blurred", "easy_positive", "image_seconds"), 3
    ),
    **dict.fromkeys(("gmacs", "ratio", "ratio_dense"), 2),
    **dict.fromkeys(("input_size", "images"), 0),
}
"""Decimal places of a metric in a printed table; all others have one."""


CONTROLS = {"blurred": "real images, blurred", "noisy": "real images, noisy"}
"""Rows of Table 6 below those of the matrix, where the records have them: LPIPS of blurred and of noisy images."""


def write(plan: Plan, name: str) -> None:
    """Write results/<scale>/tables/<name>.{csv,md,tex} from the records; InputError where it has none."""
    unfinished.refuse_nothing(plan, name, name)
    for suffix, text in rendered(plan, name).items():
        disk.write(plan.paths.results / "tables" / f"{name}.{suffix}", text)


def rendered(plan: Plan, name: str) -> dict[str, str]:
    """The text of a table's files, by suffix: csv, md and tex."""
    values = values_of(plan, name)
    table = with_controls(plan.tables[name], values)
    frame = tidy(table, values)
    shown = arrange(table, frame)
    dirty = bool(values.get("dirty", pd.Series(dtype=bool)).any())
    return {
        "csv": frame.to_csv(index=False, float_format=decimals.in_csv),
        "md": to_markdown(plan, table, shown, dirty),
        "tex": to_latex(table, shown),
    }


def values_of(plan: Plan, name: str) -> pd.DataFrame:
    """The records that a table shows, one line per run (or architecture, or set of images) and seed."""
    if plan.tables[name].reads == "diversity":
        return records.diversity(plan, plan.images_of(name))
    frames = [
        records.load(plan, plan.runs_of(name)),
        *([records.synthesis(plan, plan.runs_of(name))] if "image_seconds" in plan.tables[name].also else []),
        records.pretrained(plan, plan.pretrained_of(name)),
        records.architectures(plan, plan.architectures_of(name)),
    ]
    return pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)


def with_controls(table: Table, values: pd.DataFrame) -> Table:
    """The table with a row for each control that the records have."""
    rows = [
        Row(label=label, method=run, student="", columns=(), cells=(Cell(keys=(), run=run, paper=None),))
        for control, label in CONTROLS.items()
        for run in [f"{REAL}~{control}"]
        if table.reads == "diversity" and (values["run"] == run).any()
    ]
    return dataclasses.replace(table, rows=(*table.rows, *rows))


def tidy(table: Table, values: pd.DataFrame) -> pd.DataFrame:
    """One line per cell: row, method, student, the table's keys, metric, mean, sd, n, paper, source.

    source: measured (from our records), pretrained (weights of others, evaluated by us), quoted (only the paper's
    number) or empty (no number). A metric of `also` that no record has is left out. Every row but the reference also
    has the metric `gap` (how much it falls short of `gap_to`) or `delta` (how much it is above `delta_to`), paired by
    seed.
    """
    lines = []
    measured = [metric for metric in table.also if metric in values and values[metric].notna().any()]
    for row in table.rows:
        for i, cell in enumerate(row.cells):
            ours = by_seed(values, cell.run, table.metric)
            line = _line(table, row, i, table.metric, ours, cell.paper)
            if len(ours) and _is_pretrained(values, cell.run):
                line["source"] = "pretrained"
            lines.append(line)
            for metric in measured:
                found = by_seed(values, row.architecture or cell.run, metric)
                lines.append(_line(table, row, i, metric, found, None))
            for beside, sign, label in (("gap", 1, table.gap_to), ("delta", -1, table.delta_to)):
                reference = next((r for r in table.rows if r.label == label), row)
                if reference is row:
                    continue
                other = reference.cells[i]
                difference = sign * (by_seed(values, other.run, table.metric) - ours).dropna()
                paper = None
                if other.paper is not None and cell.paper is not None:
                    paper = round(sign * (other.paper - cell.paper), 4)
                lines.append(_line(table, row, i, beside, difference, paper))
    return pd.DataFrame(lines)


def by_seed(values: pd.DataFrame, run: str, metric: str) -> pd.Series:
    chosen = values[values["run"] == run]
    return chosen.set_index("seed")[metric].dropna() if metric in values else pd.Series(dtype=float)


def _is_pretrained(values: pd.DataFrame, run: str) -> bool:
    return "source" in values and "pretrained" in values.loc[values["run"] == run, "source"].tolist()


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
        "source": "measured" if len(ours) else "" if paper is None else "quoted",
    }


def arrange(table: Table, frame: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed: a line per row (and its gap), 'ours' beside 'paper' for every cell; all text.

    A line without any number is left out.
    """
    lines = []
    quoted, unquoted = _empty(table, "run"), _empty(table, "paper")
    marked = not table.across and len({*frame.loc[frame["metric"] == table.metric, "source"]} - {""}) > 1
    for row in table.rows:
        mine = frame[frame["row"] == row.label]
        for metric, label in (
            (table.metric, row.label),
            ("gap", f"gap to {table.gap_to}"),
            ("delta", f"against {table.delta_to}"),
        ):
            cells = mine[mine["metric"] == metric]
            beside = mine[mine["metric"].isin(table.also)]
            known = [*cells["mean"], *cells["paper"], *beside["mean"]] if len(cells) else []
            if pd.isna(known).all():  # a line without a number; `to_markdown` names rows that wait for theirs
                continue
            line = {"": label, **{HEADS.get(n, n): _switch(v) for n, v in dict(row.columns).items()}}
            for planned, (_, cell) in zip(row.cells, cells.iterrows(), strict=True):
                value = dict(planned.keys).get(table.across)
                title = dict(table.titles).get(str(value), value)
                head = {"": "", "fraction": "{} % "}.get(table.across, "{} ").format(title)
                if dict(planned.keys) not in quoted:
                    line[f"{head}ours"] = ours(cell)
                if dict(planned.keys) not in unquoted:
                    line[f"{head}paper"] = "" if pd.isna(cell["paper"]) else number(cell["paper"], cell["metric"])
            for _, cell in beside.iterrows():
                one = row.architecture and cell["n"]
                line[HEADS[cell["metric"]]] = number(cell["mean"], cell["metric"]) if one else ours(cell)
            if marked:
                line["source"] = "" if metric != table.metric else cells.iloc[0]["source"]
            lines.append(line)
    return pd.DataFrame(lines)


def _empty(table: Table, field: str) -> list[dict[str, Any]]:
    """Keys of the columns that have no number in any row of the matrix."""
    columns = zip(*(row.cells for row in table.rows), strict=True)
    return [dict(cells[0].keys) for cells in columns if not any(getattr(cell, field) for cell in cells)]


def ours(cell: pd.Series) -> str:
    """mean ± sd (n); blank where nothing was measured."""
    if not cell["n"]:
        return ""
    spread = "" if pd.isna(cell["sd"]) else f" ± {number(cell['sd'], cell['metric'])}"
    return f"{number(cell['mean'], cell['metric'])}{spread} ({cell['n']})"


def number(value: float, metric: str) -> str:
    """A value of a metric as it is printed."""
    return decimals.plain(value, PLACES.get(metric, 1))


def _switch(value: Any) -> str:
    return {True: "✓", False: ""}.get(value, str(value)) if isinstance(value, bool) else str(value)


def to_markdown(plan: Plan, table: Table, shown: pd.DataFrame, dirty: bool) -> str:
    """The table as Markdown, with a caption that explains the numbers. Text that people supply is escaped."""
    lines = [[*map(escaping.markdown, shown.columns)], ["---"] * len(shown.columns)] if len(shown) else []
    lines += [[*map(escaping.markdown, row)] for row in shown.itertuples(index=False)]
    notes = (
        f"{escaping.paragraph(table.title)}, {UNITS[table.metric]}. *ours* is the mean ± standard deviation (number of "
        f"seeds) at the scale `{plan.scale.name}`: {escaping.markdown(plan.scale.summary)}."
    )
    if any(cell.paper is not None for row in table.rows for cell in row.cells):
        notes += " *paper* is the paper's own number, on ImageNet."
    differences = [
        f"*{word} {escaping.markdown(label)}*"
        for word, label in (("gap to", table.gap_to), ("against", table.delta_to))
        if label
    ]
    if differences:
        notes += f" {differences[0]} is the difference in points, paired by seed."
    if trained := schedules.sentence(plan, table):
        notes += f" {trained}"
    if table.note:
        notes += " " + _filled(table.note, plan)
    verifier = plan.scale.synthesis.verifier
    if verifier and any(cell.run in plan.sources or "~adi" in cell.run for row in table.rows for cell in row.cells):
        notes += f" ADI competes with the CNN '{verifier}', which learned from real images: its rows are not data-free."
    if dirty:
        notes += " † Some records were made from sources that differ from their commit."
    if waits := unfinished.sentence(plan, table.name, escaping.markdown):
        notes += f"\n\n{waits}"
    return "".join(" | ".join(["", *line, ""]).strip() + "\n" for line in lines) + f"\n{notes}\n"


def _filled(note: str, plan: Plan) -> str:
    """A table's note, which is Markdown, with this scale's values in place of {net} and the like; no HTML."""
    lpips, channels = plan.scale.diversity, plan.scale.data["main"].channels
    values = {
        "net": lpips.net,
        "trunk": lpips.trunk or "those that LPIPS was trained with",
        "size": lpips.size,
        "pairs": lpips.pairs,
        "colour": "in colour" if channels == 3 else "grey in all three channels",
        "images": plan.scale.synthesis.images,
    }
    text = escaping.line(note).replace("<", r"\<")
    return re.sub(r"\{(\w+)\}", lambda name: escaping.markdown(values.get(name[1], name[0])), text)


def to_latex(table: Table, shown: pd.DataFrame) -> str:
    """A booktabs tabular; only its title, as a comment, where no row has a number."""
    if shown.empty:
        return f"% {escaping.line(table.title)}\n"
    text = shown.map(escaping.latex)
    text.columns = [*map(escaping.latex, shown.columns)]
    return f"% {escaping.line(table.title)}\n" + text.to_latex(
        index=False, column_format="l" + "r" * (len(text.columns) - 1)
    )
