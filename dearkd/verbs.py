"""What each verb of the command line does, as a function of its arguments. Torch is imported where a verb needs it."""

import os
import shutil
from argparse import Namespace
from pathlib import Path

from dearkd.jobs import forkserver
from dearkd.jobs.gpus import become_processes
from dearkd.plan import experiments
from dearkd.plan.plan import Plan
from dearkd.schema import InputError


def _load(args: Namespace) -> Plan:
    return experiments.load(args.scale)


def do_init(args: Namespace) -> None:
    from dearkd.jobs import study

    scale = study.init(Path(args.folder).expanduser(), args.images and args.images.expanduser())
    print(f"{scale} says on what and how long is trained; {scale.with_name('README.md')} says how to start")


def do_plan(args: Namespace) -> None:
    if args.gpus < 1:
        raise InputError(f"--gpus {args.gpus}: at least one shares the work")
    plan = _load(args)
    if args.card:
        from dearkd.plan.rates import rates

        rates(plan, args.card.lower())  # an unknown one is refused before anything is printed, at every scale
    for run in plan.runs_of(*args.targets) if args.targets else plan.runs.values():
        for stage in run.stages:
            print(
                f"{run.name}  stage {stage.name}  epochs {stage.first_epoch} to {stage.last_epoch}  "
                f"seeds {', '.join(map(str, run.seeds))}  {run.fingerprint(stage.name)}"
            )
    _cost(plan, args.targets or [*plan.tables, *plan.figures], args.gpus, args.card.lower())


def do_show(args: Namespace) -> None:
    from dearkd.plan.show import show

    print(show(_load(args), args.name, args.scale), end="")


def _cost(plan: Plan, targets: list[str], gpus: int, gpu: str) -> None:
    from dearkd.plan import cost
    from dearkd.plan.rates import rates

    if not cost.papers(plan):
        print("\nNo estimate: throughputs are known of the paper's architectures, and this scale's are smaller.")
        return
    sources = [name for name in plan.images_of(*targets) if name in plan.sources]
    speed, runs = rates(plan, gpu), plan.runs_of(*targets)
    given = (plan, runs, speed.figures, cost.images_of(plan), cost.paper_parameters(), sources)
    found, fed = cost.estimate(*given), cost.estimate(*given, fed=True)
    print(f"\n{cost.describe(found, gpus, speed.origin, cost.loading(plan, runs, speed.figures), fed)}")
    if gpu:
        print(f"\nforward images/s\n{speed.describe(cost.models(plan, runs, sources))}")


def do_status(args: Namespace) -> None:
    from dearkd.report import status
    from dearkd.train import lease

    plan = _load(args)
    runs = plan.runs_of(*args.targets) if args.targets else list(plan.runs.values())
    folders = {plan.paths.state(run.name, seed, s.name) for run in runs for seed in run.seeds for s in run.stages}
    names = [] if args.targets else [*plan.tables, *plan.figures]
    shown = {name: {run.name for run in plan.runs_of(name)} for name in names if plan.runs_of(name)}
    print(status.describe(status.standings(plan, runs, {folder for folder in folders if lease.held(folder)}), shown))


def do_fetch(args: Namespace) -> None:
    from dearkd.jobs import fetch

    fetch.fetch(_load(args), args.check)


def do_subset(args: Namespace) -> None:
    plan = _load(args)
    plan.data(args.data)
    from dearkd.jobs.subset import list_subsets

    list_subsets(plan, args.data)


def do_presize(args: Namespace) -> None:
    plan = _load(args)
    plan.data(args.data)
    from dearkd.data import presize

    presize.presize(plan, args.data)


def do_teacher(args: Namespace) -> None:
    plan = _load(args)
    plan.teacher(args.name)
    from dearkd.jobs.teacher import admit_teacher

    admit_teacher(plan, args.name)


def do_train(args: Namespace) -> None:
    if args.gpu > 1 and "RANK" not in os.environ:
        become_processes(int(args.gpu), args.arguments)
    from dearkd.jobs.train import train_stage

    plan = _load(args)
    run = plan.run(args.run)
    _unchanged(args.fingerprint, run.fingerprint(run.stage(args.stage).name), args.run)
    train_stage(plan, run, args.seed, args.stage, args.save_seconds, args.wait, args.track)


def do_labels(args: Namespace) -> None:
    plan = _load(args)
    plan.label_set(args.name)
    from dearkd.jobs import labels

    labels.label_shard(plan, args.name, args.seed, args.shard, args.save_seconds, args.wait)


def do_evaluate(args: Namespace) -> None:
    from dearkd.jobs.evaluate import evaluate_run

    plan = _load(args)
    run = plan.run(args.run)
    _unchanged(args.fingerprint, run.fingerprint(run.stages[-1].name), args.run)
    evaluate_run(plan, run, args.seed)


def do_keep(args: Namespace) -> None:
    from dearkd.jobs.inputs import keep_weights

    plan = _load(args)
    print(f"Weights: {keep_weights(plan, plan.run(args.run), args.seed)}")


def do_export(args: Namespace) -> None:
    from dearkd.jobs import export, publish

    plan, repository = _load(args), args.push and publish.checked(args.push)
    if args.dry_run and not repository:
        raise InputError("--dry-run says what --push ORG/NAME would send: name the repository")
    source = f"hf-hub:{repository}" if repository else f"local-dir:{args.out}"
    names = export.export(plan, plan.run(args.run), args.seed, args.out, args.onnx, source)
    if args.dry_run:
        print(publish.listed(args.out, names, repository))
    elif repository:
        print(publish.push(args.out, names, repository, f"{args.run}, seed {args.seed}, scale {plan.scale.name}"))
    print(f'timm.create_model("{source}", pretrained=True)')


def do_synthesize(args: Namespace) -> None:
    from dearkd.fingerprint import fingerprint
    from dearkd.jobs import synthesis

    if args.teacher:
        return _invert(args)
    own = ("weights", "classes", "pick", "recipe", "quick", "image_size", "mean", "std")
    for name in (name for name in own if getattr(args, name)):
        raise InputError(f"--{name.replace('_', '-')} is about a CNN of your own: name it with --teacher")
    if args.source is None:
        raise InputError("name a method of the matrix (deepinversion, adi, df_dearkd), or a CNN with --teacher")
    plan = _load(args)
    _unchanged(args.fingerprint, fingerprint(plan.source(args.source)), args.source)
    synthesis.synthesise_shard(plan, args.source, args.seed, args.shard, args.save_seconds, args.wait)


def _invert(args: Namespace) -> None:
    from dearkd import strict_yaml
    from dearkd.jobs import invert
    from dearkd.plan.stage import Synthesis, Teacher
    from dearkd.schema import build

    recipe = None
    if args.recipe:
        path = Path(args.recipe).expanduser()
        recipe = build(Synthesis, invert.read_recipe(strict_yaml.read(path), args.recipe), args.recipe)
    if args.images < 1 or args.image_size < 0:
        raise InputError(
            f"--images {args.images}, --image-size {args.image_size}: at least one image, of at least one pixel"
        )
    weights = str(Path(args.weights).expanduser()) if args.weights else ""
    print(
        invert.invert(
            Teacher(
                model=args.teacher, weights=weights, top1=0.0, mean=_numbers("mean", args), std=_numbers("std", args)
            ),
            invert.class_names(args.classes),
            [name.strip() for name in args.pick.split(",") if name.strip()],
            Path(args.out).expanduser(),
            args.source or "df_dearkd",
            recipe,
            args.images,
            args.seed,
            args.image_size,
            args.quick,
            300.0 if args.save_seconds is None else args.save_seconds,
        )
    )


def do_distil(args: Namespace) -> None:
    from dearkd.jobs import distil

    folder = distil.distil(
        args.images.expanduser(),
        args.teacher,
        args.weights,
        args.student,
        args.out.expanduser(),
        args.epochs,
        args.seed,
    )
    print(f'timm.create_model("local-dir:{folder}", pretrained=True)')


def _numbers(name: str, args: Namespace) -> tuple[float, ...]:
    """The values of a comma-separated argument."""
    try:
        return tuple(float(value) for value in getattr(args, name).split(",") if value.strip())
    except ValueError:
        raise InputError(
            f"--{name} {getattr(args, name)}: give numbers separated by commas, as in 0.5,0.5,0.5"
        ) from None


def do_pretrained(args: Namespace) -> None:
    from dearkd.jobs.pretrained import evaluate_pretrained

    plan = _load(args)
    plan.system(args.label)
    evaluate_pretrained(plan, args.label)


def do_throughput(args: Namespace) -> None:
    from dearkd.jobs.architectures import measure_architectures

    measure_architectures(_load(args))


def do_diversity(args: Namespace) -> None:
    from dearkd.jobs import image_sets

    plan = _load(args)
    plan.images(args.images)
    image_sets.describe(plan, args.images, args.seed)


def do_warm(args: Namespace) -> int:
    if not args.command or shutil.which(args.command[0]) is None:
        raise InputError(
            f"{' '.join(args.command[:1]) or 'no command'}: name a command to run, as in `warm snakemake -c2 all`"
        )
    return forkserver.run(args.command, args.main)


def do_table(args: Namespace) -> None:
    from dearkd.report import tables

    plan = _load(args)
    plan.table(args.name)
    tables.write(plan, args.name)


def do_figure(args: Namespace) -> None:
    from dearkd.report import figures

    plan = _load(args)
    plan.figure(args.name)
    figures.write(plan, args.name)


def do_compare(args: Namespace) -> None:
    from dearkd.plan import experiments
    from dearkd.report import compare

    print(compare.write(_load(args), experiments.load(args.to)), end="")


def do_savings(args: Namespace) -> None:
    from dearkd.report import savings

    print(savings.write(_load(args)), end="")


def do_curves(args: Namespace) -> None:
    from dearkd.report import curves

    print(f"Curves: {curves.write(_load(args), args.run)}")


def do_claims(args: Namespace) -> None:
    from dearkd.report.claims import judge, verdicts

    plan = _load(args)
    verdicts.write(plan, judge.frame(plan))


def do_scales(args: Namespace) -> None:
    from dearkd.report.claims import scales

    print(scales.write(args.names))


def do_report(args: Namespace) -> None:
    from dearkd.report import page

    print(f"Report: {page.write(_load(args))}")


def do_crate(args: Namespace) -> None:
    from dearkd.report import crate

    print(crate.write(args.out))


def _unchanged(planned: str, current: str, run: str) -> None:
    if planned and planned != current:
        raise InputError(
            f"run {run}: the matrix or the scale has changed since this job was planned; start snakemake again"
        )
