"""Verbs that read records: what is done, and what results."""

from argparse import Namespace

from dearkd.plan import experiments


def do_status(args: Namespace) -> None:
    from dearkd.report import status
    from dearkd.train import lease

    plan = experiments.load(args.scale)
    runs = plan.runs_of(*args.targets) if args.targets else list(plan.runs.values())
    folders = {plan.paths.state(run.name, seed, s.name) for run in runs for seed in run.seeds for s in run.stages}
    names = [] if args.targets else [*plan.tables, *plan.figures]
    shown = {name: {run.name for run in plan.runs_of(name)} for name in names if plan.runs_of(name)}
    print(status.describe(status.standings(plan, runs, {folder for folder in folders if lease.held(folder)}), shown))


def do_table(args: Namespace) -> None:
    from dearkd.report import tables

    plan = experiments.load(args.scale)
    plan.table(args.name)
    tables.write(plan, args.name)


def do_figure(args: Namespace) -> None:
    from dearkd.report import figures

    plan = experiments.load(args.scale)
    plan.figure(args.name)
    figures.write(plan, args.name)


def do_compare(args: Namespace) -> None:
    from dearkd.report import compare

    print(compare.write(experiments.load(args.scale), experiments.load(args.to)), end="")


def do_savings(args: Namespace) -> None:
    from dearkd.report import savings

    print(savings.write(experiments.load(args.scale)), end="")


def do_curves(args: Namespace) -> None:
    from dearkd.report import curves

    print(f"Curves: {curves.write(experiments.load(args.scale), args.run)}")


def do_claims(args: Namespace) -> None:
    from dearkd.report.claims import judge, verdicts

    plan = experiments.load(args.scale)
    verdicts.write(plan, judge.frame(plan))


def do_scales(args: Namespace) -> None:
    from dearkd.report.claims import scales

    print(scales.write(args.names))


def do_report(args: Namespace) -> None:
    from dearkd.report import page

    print(f"Report: {page.write(experiments.load(args.scale))}")


def do_crate(args: Namespace) -> None:
    from dearkd.report import crate

    print(crate.write(args.out))
