"""Which seeds a run has, where some tables have fewer than the scale."""

import dataclasses

from dearkd.plan.plan import Plan, Run
from dearkd.plan.tables import Figure, Table


def chosen(plan: Plan) -> dict[str, Run]:
    """The runs of a plan, each with the seeds of the tables and figures that show it.

    A table of `most_seeds` has the first of the scale's seeds. A run has the seeds of
    what starts from it or competes with it.
    """
    seeds, limit = plan.scale.seeds, plan.scale.most_seeds
    most: dict[str, int] = {name: len(seeds) for names in plan.competitors.values() for name in names}
    shows: list[Table | Figure] = [*plan.tables.values(), *plan.figures.values()]
    for shown in shows:
        table = shown.name if shown.name in plan.tables else plan.figures[shown.name].table
        for run in plan.runs_of(shown.name):
            for name in filter(None, (run.name, run.initial)):
                most[name] = max(most.get(name, 0), min(limit.get(table, len(seeds)), len(seeds)))
    return {
        name: dataclasses.replace(run, seeds=seeds[: most[name]]) if name in most and run.seeds == seeds else run
        for name, run in plan.runs.items()
    }
