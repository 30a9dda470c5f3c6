"""The numbers that claims compare: ours, from the records of a scale, and the paper's own."""

import csv
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from dearkd.places import shipped
from dearkd.plan import experiments
from dearkd.plan.plan import Cell, Plan
from dearkd.report import tables
from dearkd.report.claims.language import Numbers, Reference, Value

PAPERS_SCALE = "imagenet"
"""The scale at which the matrix has all the paper's rows and columns."""


class Answers(NamedTuple):
    """Which images of a test set a run has right."""

    data: str
    """Name of the data set."""
    right: pd.Series
    """By seed: an array with True for each image that is right."""


NO_ANSWERS: Mapping[Reference, Answers] = MappingProxyType({})


def our_numbers(plan: Plan, values: dict[str, pd.DataFrame]) -> Numbers:
    """The numbers that the records of a scale have. values: of each table, as `tables.values_of` reads them.

    Pretrained peers have one number without seeds, and so do size and speed of an architecture. A cell that the scale
    trains and that has no record yet is not a number, so that `each` and `others` wait for it.
    """
    found: dict[Reference, Value] = {}
    for name, table in plan.tables.items():
        for row in table.rows:
            for cell in row.cells:
                ours = tables.by_seed(values[name], cell.run, table.metric)
                if len(ours):
                    found[Reference(name, "", row.label, _column(cell))] = (
                        float(ours.iloc[0]) if cell.run in plan.pretrained else ours
                    )
                elif cell.run:
                    found[Reference(name, "", row.label, _column(cell))] = math.nan
            for metric in ("parameters", "throughput"):
                measured = tables.by_seed(values[name], row.architecture, metric)
                if len(measured):
                    found[Reference(name, metric, row.label)] = float(measured.iloc[0])
    return found


def our_answers(plan: Plan, values: dict[str, pd.DataFrame]) -> dict[Reference, Answers]:
    """The test images that are right, for each number that is a percentage of them. values: as for `our_numbers`."""
    found = {}
    for name, table in plan.tables.items():
        for row in table.rows:
            for cell in row.cells:
                right = tables.by_seed(values[name], cell.run, "right")
                if len(right) and table.metric == "top1":
                    data = plan.run(cell.run).stages[-1].data_name
                    found[Reference(name, "", row.label, _column(cell))] = Answers(data, right)
    return found


def papers_numbers() -> Numbers:
    """The paper's own numbers: its tables, and sizes and images/s of Table 3."""
    found: dict[Reference, Value] = {
        Reference(name, "", row.label, _column(cell)): cell.paper
        for name, table in experiments.load(PAPERS_SCALE).tables.items()
        for row in table.rows
        for cell in row.cells
        if cell.paper is not None
    }
    with shipped(experiments.PAPER / "table3.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if line["params_exact"]:
                found[Reference("table3", "parameters", line["method"])] = int(line["params_exact"]) / 1e6
            found[Reference("table3", "throughput", line["method"])] = float(line["throughput_img_s_v100"])
    return found


def _column(cell: Cell) -> str | int | None:
    return next((value for _, value in cell.keys), None)
