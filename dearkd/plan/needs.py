"""What runs need first: teachers, runs that they start from, images and competing students."""

from collections.abc import Iterable

from dearkd.plan.plan import Plan, Run
from dearkd.plan.stage import Source


def before(plan: Plan, each: Run | Source) -> list[Run | Source]:
    """Return what a run or a set of images needs directly."""
    if isinstance(each, Source):
        rivals = [plan.competitor(each.name, i) for i in range(each.recipe.shards)]
        return [r for r in (plan.teacher_run(each.teacher_name), *rivals) if r]
    first = [plan.run(each.initial)] if each.initial else []
    taught = [r for r in map(plan.teacher_run, each.teachers) if r]
    return [*first, *taught, *(plan.sources[s.source.name] for s in each.stages if s.source)]


def needed(plan: Plan, runs: Iterable[Run], sources: Iterable[str] = ()) -> list[Run | Source]:
    """Return runs and sets of images with all that they need, each once."""
    found: dict[str, Run | Source] = {}
    waiting: list[Run | Source] = [*runs, *(plan.sources[name] for name in sources)]
    while waiting:
        each = waiting.pop()
        waiting += [] if each.name in found else before(plan, each)
        found[each.name] = each
    return list(found.values())
