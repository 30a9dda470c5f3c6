"""Verbs that show what will be trained and what it costs."""

from argparse import Namespace
from pathlib import Path

from dearkd.errors import InputError
from dearkd.plan import experiments
from dearkd.plan.plan import Plan


def do_init(args: Namespace) -> None:
    from dearkd.jobs import study

    scale = study.init(Path(args.folder).expanduser(), args.images and args.images.expanduser())
    print(f"{scale} says on which data and how long to train; {scale.with_name('README.md')} says how to start")


def do_plan(args: Namespace) -> None:
    if args.gpus < 1:
        raise InputError(f"--gpus {args.gpus}: at least one shares the work")
    plan = experiments.load(args.scale)
    if args.card:
        from dearkd.plan.rates import rates

        rates(plan, args.card.lower())  # an unknown one is refused before anything is printed, at every scale
    for run in plan.runs_of(*args.targets) if args.targets else plan.runs.values():
        for stage in run.stages:
            print(
                f"{run.name}  stage {stage.name}  epochs {stage.first_epoch} to {stage.last_epoch}  "
                f"seeds {', '.join(map(str, run.seeds))}"
                + (f"  {run.fingerprint(stage.name)}" if args.fingerprints else "")
            )
    if lacking := plan.lacking:
        print(f"not trained: rows of {' and '.join(lacking)}, which are missing under `students` of {plan.scale.name}")
    _cost(plan, args.targets or [*plan.tables, *plan.figures], args.gpus, args.card.lower())


def do_show(args: Namespace) -> None:
    from dearkd.plan.show import show

    print(show(experiments.load(args.scale), args.name, args.scale), end="")


def _cost(plan: Plan, targets: list[str], gpus: int, gpu: str) -> None:
    """Print an estimate of the cost: from rates of GPUs for the paper's architectures, from records for others."""
    from dearkd.plan import cost, recorded
    from dearkd.plan.rates import rates

    sources = [name for name in plan.images_of(*targets) if name in plan.sources]
    runs = plan.runs_of(*targets)
    if not cost.papers(plan):
        print(f"\n{recorded.describe(plan, recorded.estimate(plan, runs, sources), gpus)}")
        return
    speed = rates(plan, gpu)
    given = (plan, runs, speed.figures, cost.images_of(plan), cost.paper_parameters(), sources)
    found, fed = cost.estimate(*given), cost.estimate(*given, fed=True)
    print(f"\n{cost.describe(found, gpus, speed.origin, cost.loading(plan, runs, speed.figures), fed)}")
    if gpu:
        print(f"\nforward images/s\n{speed.describe(cost.models(plan, runs, sources))}")
