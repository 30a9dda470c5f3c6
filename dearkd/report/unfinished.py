"""What a table or figure waits for: the results of its rows that are not there, and the command that makes them.

A result is a record of one run, or set of images, or teacher, and one seed.
"""

from collections.abc import Callable
from pathlib import Path

from dearkd.errors import InputError
from dearkd.plan import commands
from dearkd.plan.plan import Plan
from dearkd.plan.tables import Row, Table


def counts(plan: Plan, name: str) -> dict[str, tuple[int, int]]:
    """By the label of each row of a table or figure: how many results it lacks, and of how many.

    A row that is only the paper's is left out.
    """
    shown = plan.shown(name)
    results = {row.label: _results(plan, shown.reads, row) for row in shown.rows}
    return {label: (sum(not path.is_file() for path in of), len(of)) for label, of in results.items() if of}


def lacks(plan: Plan, name: str) -> bool:
    """Whether a table or figure lacks a result."""
    return any(lacking for lacking, _ in counts(plan, name).values()) or _lacks_sizes(plan, name)


def begun(plan: Plan, name: str) -> bool:
    """Whether a table or figure has a result."""
    return any(lacking < planned for lacking, planned in counts(plan, name).values())


def refuse_nothing(plan: Plan, target: str, *tables: str) -> None:
    """Raise InputError with the command that makes `target` where nothing that these tables show has a record.

    A table that quotes the paper alone needs none.
    """
    paths = [plan.paths.metrics(run.name, seed) for run in plan.runs_of(*tables) for seed in run.seeds]
    paths += [plan.paths.diversity(name, seed) for name in plan.images_of(*tables) for seed in plan.scale.seeds]
    paths += [plan.paths.pretrained(label) for label in plan.pretrained_of(*tables)]
    paths += [plan.paths.throughput] if plan.architectures_of(*tables) else []
    if paths and not any(path.is_file() for path in paths):
        raise InputError(
            f"scale {plan.scale.name} has no record to show in {target} yet; train and write it with "
            f"`{commands.target(plan, target)}`"
        )


def sentence(plan: Plan, name: str, escape: Callable[[str], str] = str) -> str:
    """What a table or figure lacks, and the command that makes it; empty where it lacks nothing.

    escape: makes a label safe for where the sentence is printed.
    """
    alike: dict[tuple[int, int], list[str]] = {}
    for label, of in counts(plan, name).items():
        alike.setdefault(of, []).append(f'"{escape(label)}"')
    parts = [
        f"{lacking} of {planned} results {'each ' * (len(labels) > 1)}of {', '.join(labels)}"
        for (lacking, planned), labels in alike.items()
        if lacking
    ]
    if _lacks_sizes(plan, name):
        parts.append("sizes and images/s of the architectures")
    return f"Missing: {'; '.join(parts)}. {_way(plan, name)}" if parts else ""


def tables(plan: Plan) -> str:
    """How many results each table with numbers of the paper lacks, for claims; empty where none does."""
    parts = []
    for name, table in plan.tables.items():
        lacking, planned = (sum(of) for of in zip((0, 0), *counts(plan, name).values(), strict=True))
        if lacking and any(cell.paper is not None for row in table.rows for cell in row.cells):
            parts.append(f"{lacking} of {planned} results of {name}")
    return f"Missing: {'; '.join(parts)}. {_way(plan, 'all')}" if parts else ""


def _way(plan: Plan, target: str) -> str:
    return f"`{commands.target(plan, target)}` makes them."


def _lacks_sizes(plan: Plan, name: str) -> bool:
    """Whether a table waits for the size and speed of architectures."""
    shown = plan.shown(name)
    return isinstance(shown, Table) and bool(plan.architectures_of(name)) and not plan.paths.throughput.is_file()


def _results(plan: Plan, reads: str, row: Row) -> list[Path]:
    """The records that fill a row, whether they are there or not."""
    paths = plan.paths
    found: list[Path] = []
    for name in dict.fromkeys(cell.run for cell in row.cells if cell.run):
        if reads == "diversity":
            found += [paths.diversity(name, seed) for seed in plan.scale.seeds]
        elif name in plan.pretrained:
            found.append(paths.pretrained(name))
        elif reads == "teachers":
            found += [paths.teacher(teacher) for teacher in plan.runs[name].teachers]
        elif reads == "curves":
            run = plan.runs[name]
            found += [paths.stage(name, seed, run.stages[-1].name) for seed in run.seeds]
        else:
            found += [paths.metrics(name, seed) for seed in plan.runs[name].seeds]
    return found
