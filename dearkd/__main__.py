"""python -m dearkd VERB: every job of the workflow is a command for a person, a test and a cluster."""

import argparse
import contextlib
import errno
import os
import shutil
import signal
import sys
from pathlib import Path

if sys.platform == "win32":
    sys.exit("dearkd runs on Linux and macOS; on Windows, install and run it inside WSL 2")

import resource

import dearkd
from dearkd import arithmetic
from dearkd.jobs import forkserver
from dearkd.jobs.gpus import become_processes, claimed, given
from dearkd.schema import LARGEST, InputError, unknown
from dearkd.stop import Interrupted

AGAIN = 75
"""Exit status of a job that was asked to stop and has saved: run it again (EX_TEMPFAIL)."""


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""A full disk, a spent quota, a read-only place."""
HEAVY = ("subset", "presize", "teacher", "labels", "train", "evaluate", "pretrained", "throughput")
HEAVY += ("synthesize", "distil", "diversity")
"""Verbs that need torch."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status. What can end a verb early becomes one sentence on stderr, here alone.

    Status 2: an InputError, or a disk that refuses. 75: asked to stop, everything is saved. 130: Ctrl-C where there
    was nothing to save. 141: the reader of the output has left, as in `| head`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
    args.gpu = given(args.gpu, args.gpu_percent) if args.verb in HEAVY else 0
    arithmetic.ask()
    try:
        with claimed(args.gpu):
            status = args.verb_function(args) or 0
        if args.verb in HEAVY and os.environ.get("RANK", "0") == "0":
            _say(f"dearkd {args.verb}: {_spent()}")
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        status, said = 128 + signal.SIGPIPE, ""
    except Interrupted as stop:
        status, said = AGAIN, str(stop)
    except InputError as error:
        status, said = 2, f"dearkd {args.verb}: {error}"
    except KeyboardInterrupt:
        status, said = 128 + signal.SIGINT, f"dearkd {args.verb}: stopped by Ctrl-C; nothing finished was lost"
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = error.filename or "a file"
        status, said = 2, f"dearkd {args.verb}: {place}: {error.strerror}; nothing finished was lost"
    _say(said)
    return status


def _say(sentence: str) -> None:
    """Print a sentence on stderr, which may have no reader."""
    with contextlib.suppress(OSError):
        if sentence:
            print(sentence, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _spent() -> str:
    """Processor time and most memory of this process: under `warm`, Snakemake's benchmarks would measure its client."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    gigabytes = used.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    return f"took {used.ru_utime + used.ru_stime:.1f} s of processor time and {gigabytes:.2f} GB of memory at most"


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > LARGEST:
        raise argparse.ArgumentTypeError(f"{text[:20]}: a seed is a whole number from 0 to {LARGEST:,}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text[:20]}: a number of seconds, from 0")
    return seconds


def _parser() -> argparse.ArgumentParser:
    own = Path(sys.argv[0]).name == "dearkd"
    parser = argparse.ArgumentParser(prog="dearkd" if own else "python -m dearkd", description=__doc__)
    parser.add_argument("--version", action="version", version=f"dearkd {dearkd.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(function, help: str, *names: str, scale: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(function.__name__.strip("_"), help=help, description=help)
        for name in names:
            sub.add_argument(name)
        if scale:
            sub.add_argument(
                "--scale", default="digits", help="a scale of workflow/scales, or a .yaml file of your own"
            )
        sub.set_defaults(verb_function=function)
        return sub

    init = verb(_init, "write a study of your own: Snakefile, scale, README", "folder", scale=False)
    init.add_argument("--images", type=Path, help="your images, a folder for each class; default: still to be added")
    plan = verb(_plan, "list the runs of tables and figures, all by default, and what they cost")
    plan.add_argument("targets", nargs="*")
    plan.add_argument("--gpus", type=int, default=8, help="how many GPUs share the work")
    plan.add_argument("--gpu", dest="card", default="", help="which: v100 (the paper's), a100, 4090, h100, h200")
    show = verb(_show, "print a run, a teacher or a set of images as YAML: every value, and where it comes from")
    show.add_argument("name", help="as `plan` lists the runs; deepinversion, adi, df_dearkd; a key of `teachers`")
    stand = verb(_status, "say where the runs of tables and figures stand, by table, or one by one of those named")
    stand.add_argument("targets", nargs="*")
    verb(_fetch, "bring the weights and public data sets that a scale needs").add_argument(
        "--check", action="store_true", help="only list what is missing"
    )
    verb(_subset, "write the lists of a data set's fractions and validation split", "data")
    verb(_presize, "copy a data set's training images at a smaller size, as its `presize` says", "data")
    verb(_teacher, "fetch or take over a teacher's weights and check its accuracy", "name")
    labels = verb(_labels, "compute a shard of a teacher's hard labels, ahead of the runs that share them", "name")
    labels.add_argument("--seed", type=_seed, required=True)
    labels.add_argument("--shard", type=int, required=True)
    train = verb(_train, "train one stage of a run, or go on with it", "run")
    train.add_argument("--stage", required=True)
    train.add_argument(
        "--tensorboard",
        type=Path,
        default=os.environ.get("DEARKD_TENSORBOARD") or None,
        help="folder for TensorBoard's event files; default: the environment variable DEARKD_TENSORBOARD",
    )
    for sub in (train, verb(_evaluate, "measure a finished run on the test images", "run")):
        sub.add_argument("--seed", type=_seed, required=True)
        sub.add_argument("--fingerprint", default="", help="refuse when the plan has changed since the job was planned")
    export = verb(_export, "write a finished run as a folder that timm loads, with a model card", "run")
    export.add_argument("--seed", type=_seed, default=0)
    export.add_argument("--out", type=Path, required=True, help="folder")
    export.add_argument("--onnx", action="store_true", help="model.onnx too")
    export.add_argument("--push", default="", metavar="ORG/NAME", help="send the folder to the hub too")
    export.add_argument("--dry-run", action="store_true", help="write the folder, say what --push would send")
    synthesize = verb(_synthesize, "make a shard of synthetic images, or (--teacher) invert a timm CNN of your own")
    synthesize.add_argument("source", nargs="?", help="method of the matrix: deepinversion, adi, df_dearkd")
    synthesize.add_argument("--seed", type=_seed, default=0)
    synthesize.add_argument("--shard", type=int, default=0)
    synthesize.add_argument("--fingerprint", default="", help="refuse when the plan has changed since it was planned")
    for sub in (train, synthesize, labels):
        sub.add_argument(
            "--save-seconds", type=_seconds, help="longest time between two checkpoints; default: the scale's"
        )
        sub.add_argument("--wait", action="store_true", help="wait while another job makes this, instead of refusing")
    own = synthesize.add_argument_group("a CNN of your own, without a scale")
    own.add_argument("--teacher", default="", help="timm tag")
    own.add_argument(
        "--weights", default="", help="its weights: safetensors or a plain state dict; default: timm's hub"
    )
    own.add_argument(
        "--classes", default="", help="a name for each output, in order: comma-separated, or a file of lines"
    )
    own.add_argument("--pick", default="", help="names or numbers of the classes wanted, comma-separated; default: all")
    own.add_argument("--images", type=int, default=42, help="how many, rounded up to whole batches")
    own.add_argument("--recipe", default="", help="YAML with the keys of `synthesis` in a scale")
    own.add_argument("--quick", action="store_true", help="a tenth of the iterations, for a first look")
    own.add_argument("--image-size", type=int, default=0, help="side in pixels; default: the recipe's, or the tag's")
    for name in ("mean", "std"):
        own.add_argument(
            f"--{name}", default="", help=f"{name} of the pixels it learned from, comma-separated; default: the tag's"
        )
    own.add_argument("--out", default="synthetic", help="folder for images.zip, images.csv and images.json")
    distil = verb(_distil, "train a DearKD from a CNN of your own, on images made from it or on a folder", scale=False)
    distil.add_argument(
        "--images", type=Path, required=True, help="images.zip of synthesize, or a folder of class folders"
    )
    distil.add_argument("--teacher", default="", help="timm name of the CNN; default: the one in images.json")
    distil.add_argument("--weights", default="", help="its weights; default: those in images.json")
    distil.add_argument("--student", default="Ti", help="Ti (default), S or B")
    distil.add_argument("--epochs", type=int, default=100, help="a teacher teaches in the first five sixths of them")
    distil.add_argument("--seed", type=_seed, default=0)
    distil.add_argument("--out", type=Path, required=True, help="folder for the student, its scale and its checkpoints")
    verb(_pretrained, "evaluate weights that others have trained, a row of Table 3", "label")
    verb(_throughput, "size and images/s of every architecture of Table 3 on this machine")
    verb(_diversity, "LPIPS, latent codes and a sample of a set of images", "images").add_argument(
        "--seed", type=_seed, required=True
    )
    for name in HEAVY:
        help = "GPUs to take; 0.25: a share of one, beside other jobs; train: a process for each, which share the batch"
        verbs.choices[name].add_argument("--gpu", type=float, default=0, help=help)
        help = "of the GPU that --gpu 1 takes, as Snakemake counts it"
        verbs.choices[name].add_argument("--gpu-percent", type=int, default=100, help=help)
    verb(_warm, "run a command whose jobs share one import of torch").add_argument("command", nargs=argparse.REMAINDER)
    verb(_table, "write a table from the records", "name")
    verb(_figure, "draw a figure from the records", "name")
    verb(_savings, "say on how many images DearKD equals the others on all, from Table 2's records")
    verb(_curves, "draw a run's training curves from its records", "run")
    verb(_claims, "judge the paper's claims on the records and on the paper's own numbers")
    verb(_report, "write one HTML page of all tables, figures, claims, costs and records")
    crate = verb(_crate, "describe all records of all scales as one RO-Crate, for an archive", scale=False)
    crate.add_argument("--out", type=Path, default=Path("ro-crate-metadata.json"))
    return parser


def _load(args: argparse.Namespace):
    from dearkd.plan.experiments import load

    return load(args.scale)


def _init(args: argparse.Namespace) -> None:
    from dearkd.jobs import study

    scale = study.init(Path(args.folder).expanduser(), args.images and args.images.expanduser())
    print(f"{scale} says on what and how long is trained; {scale.with_name('README.md')} says how to start")


def _plan(args: argparse.Namespace) -> None:
    if args.gpus < 1:
        raise InputError(f"--gpus {args.gpus}: at least one shares the work")
    plan = _load(args)
    for run in plan.runs_of(*args.targets) if args.targets else plan.runs.values():
        for stage in run.stages:
            print(
                f"{run.name}  stage {stage.name}  epochs {stage.first_epoch} to {stage.last_epoch}  "
                f"seeds {', '.join(map(str, run.seeds))}  {run.fingerprint(stage.name)}"
            )
    _cost(plan, args.targets or [*plan.tables, *plan.figures], args.gpus, args.card.lower())


def _show(args: argparse.Namespace) -> None:
    from dearkd.plan.show import show

    print(show(_load(args), args.name, args.scale), end="")


def _cost(plan, targets: list[str], gpus: int, gpu: str) -> None:
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


def _status(args: argparse.Namespace) -> None:
    from dearkd.report import status
    from dearkd.train import lease

    plan = _load(args)
    runs = plan.runs_of(*args.targets) if args.targets else list(plan.runs.values())
    folders = {plan.paths.state(run.name, seed, s.name) for run in runs for seed in run.seeds for s in run.stages}
    names = [] if args.targets else [*plan.tables, *plan.figures]
    shown = {name: {run.name for run in plan.runs_of(name)} for name in names if plan.runs_of(name)}
    print(status.describe(status.standings(plan, runs, {folder for folder in folders if lease.held(folder)}), shown))


def _fetch(args: argparse.Namespace) -> None:
    from dearkd.jobs import fetch

    fetch.fetch(_load(args), args.check)


def _subset(args: argparse.Namespace) -> None:
    plan = _load(args)
    if args.data not in plan.scale.data:
        raise InputError(unknown(args.data, plan.scale.data, "data set", f"scale {args.scale}"))
    from dearkd.jobs.subset import list_subsets

    list_subsets(plan, args.data)


def _presize(args: argparse.Namespace) -> None:
    plan = _load(args)
    if args.data not in plan.scale.data:
        raise InputError(unknown(args.data, plan.scale.data, "data set", f"scale {args.scale}"))
    from dearkd.data import presize

    presize.presize(plan, args.data)


def _teacher(args: argparse.Namespace) -> None:
    plan = _load(args)
    if args.name not in plan.scale.teachers:
        raise InputError(unknown(args.name, plan.scale.teachers, "teacher", f"scale {args.scale}"))
    from dearkd.jobs.teacher import admit_teacher

    admit_teacher(plan, args.name)


def _train(args: argparse.Namespace) -> None:
    if args.gpu > 1 and "RANK" not in os.environ:
        become_processes(int(args.gpu), args.arguments)
    from dearkd.jobs.train import train_stage

    plan = _load(args)
    run = plan.run(args.run)
    _unchanged(args.fingerprint, run.fingerprint(run.stage(args.stage).name), args.run)
    train_stage(plan, run, args.seed, args.stage, args.save_seconds, args.wait, args.tensorboard)


def _labels(args: argparse.Namespace) -> None:
    plan = _load(args)
    if args.name not in plan.labels:
        raise InputError(unknown(args.name, plan.labels, "set of labels", f"scale {args.scale}"))
    from dearkd.jobs import labels

    labels.label_shard(plan, args.name, args.seed, args.shard, args.save_seconds, args.wait)


def _evaluate(args: argparse.Namespace) -> None:
    from dearkd.jobs.evaluate import evaluate_run

    plan = _load(args)
    run = plan.run(args.run)
    _unchanged(args.fingerprint, run.fingerprint(run.stages[-1].name), args.run)
    evaluate_run(plan, run, args.seed)


def _export(args: argparse.Namespace) -> None:
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


def _synthesize(args: argparse.Namespace) -> None:
    from dearkd.jobs import synthesis
    from dearkd.schema import fingerprint

    if args.teacher:
        return _invert(args)
    own = ("weights", "classes", "pick", "recipe", "quick", "image_size", "mean", "std")
    for name in (name for name in own if getattr(args, name)):
        raise InputError(f"--{name.replace('_', '-')} is about a CNN of your own: name it with --teacher")
    if args.source is None:
        raise InputError("name a method of the matrix (deepinversion, adi, df_dearkd), or a CNN with --teacher")
    plan = _load(args)
    if args.source not in plan.sources:
        raise InputError(unknown(str(args.source), plan.sources, "source", f"scale {args.scale}"))
    _unchanged(args.fingerprint, fingerprint(plan.sources[args.source]), args.source)
    synthesis.synthesise_shard(plan, args.source, args.seed, args.shard, args.save_seconds, args.wait)


def _invert(args: argparse.Namespace) -> None:
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


def _distil(args: argparse.Namespace) -> None:
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


def _numbers(name: str, args: argparse.Namespace) -> tuple[float, ...]:
    """The values of a comma-separated argument."""
    try:
        return tuple(float(value) for value in getattr(args, name).split(",") if value.strip())
    except ValueError:
        raise InputError(
            f"--{name} {getattr(args, name)}: give numbers separated by commas, as in 0.5,0.5,0.5"
        ) from None


def _pretrained(args: argparse.Namespace) -> None:
    from dearkd.jobs.pretrained import evaluate_pretrained

    plan = _load(args)
    if args.label not in plan.pretrained:
        raise InputError(unknown(args.label, plan.pretrained, "system", f"scale {args.scale}: peers"))
    evaluate_pretrained(plan, args.label)


def _throughput(args: argparse.Namespace) -> None:
    from dearkd.jobs.architectures import measure_architectures

    measure_architectures(_load(args))


def _diversity(args: argparse.Namespace) -> None:
    from dearkd.jobs import image_sets

    plan = _load(args)
    if args.images not in ("real", *plan.sources):
        raise InputError(unknown(args.images, ["real", *plan.sources], "set of images", f"scale {args.scale}"))
    image_sets.describe(plan, args.images, args.seed)


def _warm(args: argparse.Namespace) -> int:
    if not args.command or shutil.which(args.command[0]) is None:
        raise InputError(
            f"{' '.join(args.command[:1]) or 'no command'}: name a command to run, as in `warm snakemake -c2 all`"
        )
    return forkserver.run(args.command, main)


def _table(args: argparse.Namespace) -> None:
    from dearkd.report import tables

    plan = _load(args)
    if args.name not in plan.tables:
        raise InputError(unknown(args.name, plan.tables, "table", f"scale {args.scale}"))
    tables.write(plan, args.name)


def _figure(args: argparse.Namespace) -> None:
    from dearkd.report import figures

    plan = _load(args)
    if args.name not in plan.figures:
        raise InputError(unknown(args.name, plan.figures, "figure", f"scale {args.scale}"))
    figures.write(plan, args.name)


def _savings(args: argparse.Namespace) -> None:
    from dearkd.report import savings

    print(savings.write(_load(args)), end="")


def _curves(args: argparse.Namespace) -> None:
    from dearkd.report import curves

    print(f"Curves: {curves.write(_load(args), args.run)}")


def _claims(args: argparse.Namespace) -> None:
    from dearkd.report.claims import judge, verdicts

    plan = _load(args)
    verdicts.write(plan, judge.frame(plan))


def _report(args: argparse.Namespace) -> None:
    from dearkd.report import page

    print(f"Report: {page.write(_load(args))}")


def _crate(args: argparse.Namespace) -> None:
    from dearkd.report import crate

    print(crate.write(args.out))


def _unchanged(planned: str, current: str, run: str) -> None:
    if planned and planned != current:
        raise InputError(
            f"run {run}: the matrix or the scale has changed since this job was planned; start snakemake again"
        )


def start() -> int:
    """`main`, by a server's fork where there is one.

    Not for several GPUs: such a job becomes torchrun, whose processes are its own.
    """
    if forkserver.SERVER in os.environ and sys.argv[1:2] and sys.argv[1] in HEAVY:
        several = given(_parser().parse_args().gpu) > 1
        status = None if several else forkserver.ask(sys.argv[1:])
        if status is not None:
            return status
    return main()


if __name__ == "__main__":
    try:
        sys.exit(start())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
