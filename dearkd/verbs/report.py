"""Verbs that read records: the state of runs, tables, figures, claims and pages."""

from argparse import Namespace

from dearkd.errors import InputError
from dearkd.plan import experiments


def _say(sentence: str) -> None:
    """Print a sentence, if there is one."""
    if sentence:
        print(sentence)


def do_status(args: Namespace) -> None:
    from dearkd.plan.needs import needed
    from dearkd.report import status
    from dearkd.train import lease

    plan = experiments.load(args.scale)
    runs = plan.runs_of(*args.targets) if args.targets else list(plan.runs.values())
    shown = [name for name in plan.images_of(*args.targets) if name in plan.sources] if args.targets else plan.sources
    sets = [each.name for each in needed(plan, runs, shown) if each.name in plan.sources]
    folders = {plan.paths.state(run.name, seed, s.name) for run in runs for seed in run.seeds for s in run.stages}
    names = [] if args.targets else [*plan.tables, *plan.figures]
    tables = {name: {run.name for run in plan.runs_of(name)} for name in names if plan.runs_of(name)}
    found = status.standings(plan, runs, {folder for folder in folders if lease.held(folder)})
    print("\n".join([*status.images(plan, sorted(sets)), *([status.describe(found, tables)] if runs else [])]))


def do_table(args: Namespace) -> None:
    from dearkd.report import tables, unfinished

    plan = experiments.load(args.scale)
    plan.table(args.name)
    tables.write(plan, args.name)
    _say(unfinished.sentence(plan, args.name))


def do_figure(args: Namespace) -> None:
    from dearkd.report import figures, unfinished

    plan = experiments.load(args.scale)
    plan.figure(args.name)
    figures.write(plan, args.name)
    _say(unfinished.sentence(plan, args.name))


def do_compare(args: Namespace) -> None:
    from dearkd.report import compare

    here, committed = experiments.load(args.scale), experiments.load(args.to)
    if here.scale.name == committed.scale.name:
        raise InputError(f"--to {args.to}: this is the scale itself; name another with --scale, as in --scale demo")
    print(compare.write(here, committed), end="")


def do_savings(args: Namespace) -> None:
    from dearkd.report import savings

    print(savings.write(experiments.load(args.scale)), end="")


def do_curves(args: Namespace) -> None:
    from dearkd.report import curves

    print(f"Curves: {curves.write(experiments.load(args.scale), args.run)}")


def do_claims(args: Namespace) -> None:
    from dearkd.report import unfinished
    from dearkd.report.claims import judge, verdicts

    plan = experiments.load(args.scale)
    if not plan.tables:
        raise InputError(
            f"scale {plan.scale.name}: claims compare rows of tables, and its `only` leaves all tables out"
        )
    unfinished.refuse_nothing(plan, "claims", *plan.tables)
    verdicts.write(plan, judge.frame(plan))
    _say(unfinished.tables(plan))


def do_scales(args: Namespace) -> None:
    from dearkd.report.claims import scales

    print(scales.write(args.names))


def do_report(args: Namespace) -> None:
    from dearkd.report import page

    plan = experiments.load(args.scale)
    print(f"Report: {page.write(plan)}")
    _say(page.absent(plan))


def do_crate(args: Namespace) -> None:
    from dearkd.report import crate

    print(crate.write(args.out))
