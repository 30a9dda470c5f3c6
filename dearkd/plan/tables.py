"""Tables and figures, with each row and cell resolved to its run."""

from typing import Literal

from dearkd.schema import Pairs, spec

Metric = Literal[
    "top1",
    "top5",
    "lpips",
    "lpips_se",
    "lpips_vgg",
    "lpips_alex",
    "lpips_blurred",
    "lpips_blurred_se",
    "easy_positive",
    "teacher_top1",
    "parameters",
    "gmacs",
    "input_size",
    "throughput",
    "ratio",
    "ratio_dense",
    "images",
    "image_seconds",
    "per_minute",
]
"""Metrics that records have and tables show."""
Kind = Literal[
    "accuracy_against_data",
    "attention_distance",
    "pipeline",
    "aligner",
    "data_free_pipeline",
    "latent_space",
    "image_grid",
]
"""Functions of `figures.py`."""


@spec
class Cell:
    """One place in a table: the keys that name it, the run that fills it, the paper's number for it."""

    keys: Pairs
    run: str
    """A run, a pretrained peer or, in a table that reads `diversity`, a set of images. Empty: only the paper's number
    is quoted."""
    paper: float | None


@spec
class Row:
    """A row of a table or figure: what describes it, and its cells."""

    label: str
    method: str
    student: str
    columns: Pairs
    """Values of the table's own columns, for example the switches of Table 1."""
    architecture: str = ""
    """timm name of the true architecture, whose size and throughput are in the row; empty: none."""
    cells: tuple[Cell, ...]


@spec
class Table:
    """A table: its rows, and which numbers of their records it prints."""

    name: str
    title: str
    metric: Metric
    columns: tuple[str, ...]
    across: str
    """Key that runs over the columns of numbers, for example fraction; empty: one column."""
    titles: Pairs = ()
    """What is printed for a value of `across`, where that is not the value itself."""
    gap_to: str
    """Label of the row from which the others are subtracted, for the metric `gap`; empty: none."""
    delta_to: str
    """Label of the row that is subtracted from the others, for the metric `delta`; empty: none."""
    also: tuple[Metric, ...]
    """Further metrics, without a number in the paper."""
    note: str
    """A sentence under the table; {net}, {trunk}, {pairs}, {colour} and {size} are LPIPS's, {images} is the size of a
    synthetic set."""
    reads: Literal["metrics", "diversity"]
    """Which records fill it: evaluations of runs, or diversity of sets of images."""
    rows: tuple[Row, ...]


@spec
class Figure:
    """A figure: the rows whose records it draws, and how."""

    name: str
    title: str
    kind: Kind
    """The function of `figures.py` that draws it."""
    reads: Literal["metrics", "curves", "teachers", "diversity"]
    """Which records it needs."""
    rows: tuple[Row, ...]
    table: str
    """The table whose cells it draws; empty: none."""
