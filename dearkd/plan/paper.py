"""The paper's own numbers, which are in the CSV files of `paper/`."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dearkd.errors import InputError, unknown
from dearkd.places import all_shipped, shipped
from dearkd.plan.matrix import Numbers

PAPER = Path("paper")
STUDENTS = ("Ti", "S", "B")
"""The paper's sizes. A scale that lacks one leaves its rows to the paper's numbers."""


class PaperNumbers:
    """The numbers of tables; each file is read once."""

    def __init__(self) -> None:
        self.lines: dict[str, list[dict[str, str]]] = {}

    def find(self, paper: Numbers | None, selector: Mapping[str, Any], where: str) -> float | None:
        """The paper's value in its CSV for the one line that matches; None where the paper leaves the cell blank."""
        if paper is None or not selector:
            return None
        if paper.file not in self.lines:
            path, known = shipped(PAPER / paper.file), [p.name for p in all_shipped(PAPER, "*.csv")]
            if paper.file not in known:
                raise InputError(unknown(paper.file, known, "file", f"{where}: paper"))
            with path.open(newline="", encoding="utf-8") as file:
                self.lines[paper.file] = list(csv.DictReader(file))
        lines = self.lines[paper.file]
        for key in (*selector, paper.value):
            if key not in lines[0]:
                raise InputError(unknown(key, lines[0], "column", f"{where}: {paper.file}"))
        found = [line for line in lines if all(line[k] == str(v) for k, v in selector.items())]
        if len(found) > 1:
            raise InputError(
                f"{where}: {len(found)} lines of {PAPER / paper.file} match {dict(selector)}; name more of its columns"
            )
        text = found[0][paper.value] if found else ""
        try:
            return float(text) if text else None
        except ValueError:
            raise InputError(
                f"{where}: {PAPER / paper.file} has {text!r} in the column {paper.value}; write a number or nothing"
            ) from None
