"""Verbs that make something: lists, teachers, students, images, measurements."""

import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from dearkd.errors import InputError
from dearkd.jobs import forkserver
from dearkd.jobs.gpus import become_processes
from dearkd.plan import experiments, verify
from dearkd.verbs import own_cnn


def do_fetch(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    from dearkd.jobs import fetch

    fetch.fetch(plan, args.check)


def do_subset(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    plan.data(args.data)
    from dearkd.jobs.subset import list_subsets

    list_subsets(plan, args.data)


def do_presize(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    plan.data(args.data)
    from dearkd.data import presize

    presize.presize(plan, args.data)


def do_teacher(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    plan.teacher(args.name)
    from dearkd.jobs.teacher import admit_teacher

    admit_teacher(plan, args.name)


def do_train(args: Namespace) -> None:
    if args.gpu > 1 and "RANK" not in os.environ:
        become_processes(int(args.gpu), args.arguments)
    plan = experiments.load(args.scale)
    run = plan.run(args.run)
    _unchanged(args.fingerprint, run.fingerprint(run.stage(args.stage).name), args.run)
    from dearkd.jobs.train import train_stage

    train_stage(plan, run, args.seed, args.stage, args.save_seconds, args.wait, args.track)


def do_labels(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    plan.label_set(args.name)
    from dearkd.jobs import labels

    labels.label_shard(plan, args.name, args.seed, args.shard, args.save_seconds, args.wait)


def do_evaluate(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    run = plan.run(args.run)
    _unchanged(args.fingerprint, run.fingerprint(run.stages[-1].name), args.run)
    verify.stages(plan, run, args.seed)
    from dearkd.jobs.evaluate import evaluate_run

    evaluate_run(plan, run, args.seed)


def do_keep(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    run = plan.run(args.run)
    verify.stages(plan, run, args.seed)
    from dearkd.jobs.inputs import keep_weights

    print(f"Weights: {keep_weights(plan, run, args.seed)}")


def do_export(args: Namespace) -> None:
    if args.dry_run and not args.push:
        raise InputError("--dry-run says what --push ORG/NAME would send: name the repository")
    plan = experiments.load(args.scale)
    run = plan.run(args.run)
    verify.evaluation(plan, run, args.seed)
    from dearkd.jobs import export, publish

    repository = args.push and publish.checked(args.push)
    source = f"hf-hub:{repository}" if repository else f"local-dir:{args.out}"
    names = export.export(plan, run, args.seed, args.out, args.onnx, source)
    if args.dry_run:
        print(publish.listed(args.out, names, repository))
    elif repository:
        print(publish.push(args.out, names, repository, f"{args.run}, seed {args.seed}, scale {plan.scale.name}"))
    _loads(source)


def _loads(source: str) -> None:
    print(f'Load it: import timm, dearkd.models; timm.create_model("{source}", pretrained=True)')


def do_synthesize(args: Namespace) -> None:
    from dearkd.fingerprint import fingerprint

    if args.teacher:
        return _invert(args)
    own = ("weights", "classes", "pick", "recipe", "quick", "image_size", "mean", "std")
    for name in (name for name in own if getattr(args, name)):
        raise InputError(f"--{name.replace('_', '-')} is about a CNN of your own: name it with --teacher")
    if args.source is None:
        raise InputError("name a method of the matrix (deepinversion, adi, df_dearkd), or a CNN with --teacher")
    plan = experiments.load(args.scale)
    _unchanged(args.fingerprint, fingerprint(plan.source(args.source)), args.source)
    from dearkd.jobs import synthesis

    synthesis.synthesise_shard(plan, args.source, args.seed, args.shard, args.save_seconds, args.wait)


def _invert(args: Namespace) -> None:
    if args.images < 1 or args.image_size < 0:
        raise InputError(
            f"--images {args.images}, --image-size {args.image_size}: at least one image, of at least one pixel"
        )
    teacher, recipe, classes = own_cnn.teacher(args), own_cnn.recipe(args.recipe), own_cnn.class_names(args.classes)
    from dearkd.jobs import invert

    print(
        invert.invert(
            teacher,
            classes,
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
        args.set,
    )
    _loads(f"local-dir:{folder}")


def do_train_on(args: Namespace) -> None:
    from dearkd.jobs import train_on

    folder = train_on.train_on(
        args.folder.expanduser(),
        args.out.expanduser(),
        args.student,
        args.image_size,
        args.epochs,
        args.seed,
        args.set,
    )
    _loads(f"local-dir:{folder}")


def do_pretrained(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    plan.system(args.label)
    from dearkd.jobs.pretrained import evaluate_pretrained

    evaluate_pretrained(plan, args.label)


def do_throughput(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    from dearkd.jobs.architectures import measure_architectures

    measure_architectures(plan)


def do_diversity(args: Namespace) -> None:
    plan = experiments.load(args.scale)
    plan.images(args.images)
    from dearkd.jobs import image_sets

    image_sets.describe(plan, args.images, args.seed)


def do_warm(args: Namespace) -> int:
    if not args.command:
        raise InputError("no command: name one to run, as in `warm snakemake -c2 all`")
    name, *rest = args.command
    command = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)  # a venv that is not activated
    if command is None:
        raise InputError(f"{name}: no such command on PATH; name one to run, as in `warm snakemake -c2 all`")
    return forkserver.run([command, *rest], args.main)


def _unchanged(planned: str, current: str, run: str) -> None:
    if planned and planned != current:
        raise InputError(
            f"run {run}: the matrix or the scale has changed since this job was planned; start snakemake again"
        )
