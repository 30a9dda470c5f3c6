"""The verbs of the command line and their arguments, as a table."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dearkd
from dearkd.ranges import LARGEST
from dearkd.verbs import jobs, plan, report

Argument = tuple[tuple[str, ...], dict[str, Any]]


class Verb(NamedTuple):
    """run: a function of the arguments, which returns an exit status or None for 0."""

    run: Callable[[argparse.Namespace], int | None]
    help: str
    arguments: tuple[Argument, ...] = ()
    heavy: bool = False
    """Whether it needs torch, and may take GPUs."""
    scale: bool = True
    own: tuple[Argument, ...] = ()
    """Arguments for a CNN of the user's, without a scale."""

    @property
    def shared(self) -> tuple[Argument, ...]:
        """Its arguments that other verbs have too."""
        return ((SCALE,) if self.scale else ()) + (GPUS if self.heavy else ())

    @property
    def options(self) -> list[str]:
        return [n for names, _ in (*self.arguments, *self.own, *self.shared) for n in names if n.startswith("-")]


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


def _arg(*names: str, **how: Any) -> Argument:
    return names, how


TARGETS = _arg("targets", nargs="*")
SEED, ANY_SEED = _arg("--seed", type=_seed, required=True), _arg("--seed", type=_seed, default=0)
PLANNED = _arg("--fingerprint", default="", help="refuse when the plan has changed since the job was planned")
RESUMED = (
    _arg("--save-seconds", type=_seconds, help="longest time between two checkpoints; default: the scale's"),
    _arg("--wait", action="store_true", help="wait while another job makes this, instead of refusing"),
)
SCALE = _arg("--scale", default="digits", help="a scale of workflow/scales, or a .yaml file of your own")
GPUS = (
    _arg(
        "--gpu",
        type=float,
        default=0,
        help="number of GPUs; 0.25: a share of one; train starts a process for each GPU",
    ),
    _arg("--gpu-percent", type=int, default=100, help="share of the GPU in percent, with --gpu 1; Snakemake sets it"),
)
FOLDER = "tensorboard={}".format
BOARD = os.environ.get("DEARKD_TENSORBOARD")
TRACK = (
    _arg(
        "--track",
        default=os.environ.get("DEARKD_TRACK") or (FOLDER(BOARD) if BOARD else ""),
        metavar="KIND[=PLACE]",
        help="show the curve in tensorboard[=FOLDER], trackio[=PROJECT] or wandb[=PROJECT]; default: DEARKD_TRACK",
    ),
    _arg(
        "--tensorboard",
        dest="track",
        type=FOLDER,
        metavar="FOLDER",
        default=argparse.SUPPRESS,
        help="as --track tensorboard=FOLDER; default: DEARKD_TENSORBOARD",
    ),
)
SET = _arg("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the scale, repeatable")
OWN_CNN = (
    _arg("--teacher", default="", help="timm tag"),
    _arg("--weights", default="", help="its weights: safetensors or a plain state dict; default: timm's hub"),
    _arg("--classes", default="", help="a name for each output, in order: comma-separated, or one a line in a file"),
    _arg("--pick", default="", help="names or numbers of the classes to make, comma-separated; default: all"),
    _arg("--images", type=int, default=42, help="number of images, rounded up to whole batches"),
    _arg("--recipe", default="", help="YAML with the keys of `synthesis` in a scale"),
    _arg("--quick", action="store_true", help="a tenth of the iterations, for a first look"),
    _arg("--image-size", type=int, default=0, help="side in pixels; default: the recipe's, or the tag's"),
    _arg("--mean", default="", help="mean of the pixels it learned from, comma-separated; default: the tag's"),
    _arg("--std", default="", help="std of the pixels it learned from, comma-separated; default: the tag's"),
    _arg("--out", default="synthetic", help="folder for images.zip, images.csv and images.json"),
)
VERBS = {
    "init": Verb(
        plan.do_init,
        "write a study of your own: Snakefile, scale, README",
        (
            _arg("folder"),
            _arg("--images", type=Path, help="your images, a folder for each class; default: you add them later"),
        ),
        scale=False,
    ),
    "plan": Verb(
        plan.do_plan,
        "list the runs of tables and figures, all by default, and what they cost",
        (
            TARGETS,
            _arg("--gpus", type=int, default=8, help="number of GPUs that share the work"),
            _arg("--gpu", dest="card", default="", help="kind of GPU: v100 (the paper's), a100, 4090, h100, h200"),
            _arg("--fingerprints", action="store_true", help="print the fingerprint of each stage"),
        ),
    ),
    "show": Verb(
        plan.do_show,
        "print a run, a teacher or a set of images as YAML: every value, and where it comes from",
        (_arg("name", help="as `plan` lists the runs; deepinversion, adi, df_dearkd; a key of `teachers`"),),
    ),
    "status": Verb(
        report.do_status, "show which runs of tables and figures are done, running or missing; default: all", (TARGETS,)
    ),
    "fetch": Verb(
        jobs.do_fetch,
        "bring the weights and public data sets that a scale needs",
        (_arg("--check", action="store_true", help="only list what is missing"),),
    ),
    "subset": Verb(
        jobs.do_subset, "write the lists of a data set's fractions and validation split", (_arg("data"),), heavy=True
    ),
    "presize": Verb(
        jobs.do_presize,
        "copy a data set's training images at a smaller size, as its `presize` says",
        (_arg("data"),),
        heavy=True,
    ),
    "teacher": Verb(
        jobs.do_teacher,
        "put a teacher's weights where jobs read them and check its accuracy",
        (_arg("name"),),
        heavy=True,
    ),
    "labels": Verb(
        jobs.do_labels,
        "compute a shard of a teacher's hard labels, ahead of the runs that share them",
        (_arg("name"), SEED, _arg("--shard", type=int, required=True), *RESUMED),
        heavy=True,
    ),
    "train": Verb(
        jobs.do_train,
        "train one stage of a run, or resume it",
        (_arg("run"), _arg("--stage", required=True), *TRACK, SEED, PLANNED, *RESUMED),
        heavy=True,
    ),
    "evaluate": Verb(
        jobs.do_evaluate, "measure a finished run on the test images", (_arg("run"), SEED, PLANNED), heavy=True
    ),
    "export": Verb(
        jobs.do_export,
        "write a finished run as a folder that timm loads, with a model card",
        (
            _arg("run"),
            ANY_SEED,
            _arg("--out", type=Path, required=True, help="folder"),
            _arg("--onnx", action="store_true", help="model.onnx too"),
            _arg("--push", default="", metavar="ORG/NAME", help="send the folder to the hub too"),
            _arg("--dry-run", action="store_true", help="write the folder, say what --push would send"),
        ),
    ),
    "keep": Verb(
        jobs.do_keep,
        "copy a finished run's weights beside its record, so that a clone has them",
        (_arg("run"), ANY_SEED),
    ),
    "synthesize": Verb(
        jobs.do_synthesize,
        "make a shard of synthetic images, or (--teacher) invert a timm CNN of your own",
        (
            _arg("source", nargs="?", help="method of the matrix: deepinversion, adi, df_dearkd"),
            ANY_SEED,
            _arg("--shard", type=int, default=0),
            PLANNED,
            *RESUMED,
        ),
        heavy=True,
        own=OWN_CNN,
    ),
    "distil": Verb(
        jobs.do_distil,
        "train a DearKD from a CNN of your own, on images made from it or on a folder",
        (
            _arg("--images", type=Path, required=True, help="images.zip of synthesize, or a folder of class folders"),
            _arg("--teacher", default="", help="timm name of the CNN; default: the one in images.json"),
            _arg("--weights", default="", help="its weights; default: those in images.json"),
            _arg("--student", default="Ti", help="Ti (default), S or B"),
            _arg(
                "--epochs", type=int, default=100, help="number of epochs; the teacher is used in the first five sixths"
            ),
            SET,
            ANY_SEED,
            _arg("--out", type=Path, required=True, help="folder for the student, its scale and its checkpoints"),
        ),
        heavy=True,
        scale=False,
    ),
    "train-on": Verb(
        jobs.do_train_on,
        "train a CNN and then a DearKD on one folder of images",
        (
            _arg("folder", type=Path, help="a folder for each class, or train/ and val/ with a folder for each class"),
            _arg("--out", type=Path, required=True, help="folder for the student, its scale and its checkpoints"),
            _arg("--student", default="Ti", help="Ti (default), S or B"),
            _arg("--image-size", type=int, default=64, help="side in pixels (64); from 160 on the paper's students"),
            _arg(
                "--epochs", type=int, default=100, help="of the student (100); the CNN teaches in five sixths of them"
            ),
            SET,
            ANY_SEED,
        ),
        heavy=True,
        scale=False,
    ),
    "pretrained": Verb(
        jobs.do_pretrained,
        "evaluate weights that others have trained, a row of Table 3",
        (_arg("label"),),
        heavy=True,
    ),
    "throughput": Verb(
        jobs.do_throughput, "size and images/s of every architecture of Table 3 on this machine", heavy=True
    ),
    "diversity": Verb(
        jobs.do_diversity,
        "LPIPS, latent codes and a sample of a set of images",
        (_arg("images"), SEED),
        heavy=True,
    ),
    "warm": Verb(
        jobs.do_warm,
        "run a command whose jobs share one import of torch",
        (_arg("command", nargs=argparse.REMAINDER),),
    ),
    "table": Verb(report.do_table, "write a table from the records", (_arg("name"),)),
    "figure": Verb(report.do_figure, "draw a figure from the records", (_arg("name"),)),
    "savings": Verb(
        report.do_savings, "write on how many images DearKD beats the others on all images, from Table 2's records"
    ),
    "compare": Verb(
        report.do_compare,
        "compare repeated results with the committed ones: the same bits, or how different",
        (_arg("--to", metavar="SCALE", required=True, help="whose records are committed"),),
    ),
    "curves": Verb(report.do_curves, "draw a run's training curves from its records", (_arg("run"),)),
    "claims": Verb(report.do_claims, "judge the paper's claims on the records and on the paper's own numbers"),
    "scales": Verb(
        report.do_scales,
        "write one table with the verdict on each claim at each scale",
        (_arg("names", nargs="*", help="scales whose claims have been judged; default: all"),),
        scale=False,
    ),
    "report": Verb(report.do_report, "write one HTML page of all tables, figures, claims, costs and records"),
    "crate": Verb(
        report.do_crate,
        "describe all records of all scales as one RO-Crate, for an archive",
        (_arg("--out", type=Path, default=Path("ro-crate-metadata.json")),),
        scale=False,
    ),
}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. Its `verb` is a key of `VERBS`."""
    own = Path(sys.argv[0]).name == "dearkd"
    about = "Every job of the workflow as a command that a person, a test and a cluster can run."
    whole = argparse.ArgumentParser(prog="dearkd" if own else "python -m dearkd", description=about)
    whole.add_argument("--version", action="version", version=f"dearkd {dearkd.__version__}")
    subs = whole.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = subs.add_parser(name, help=verb.help, description=verb.help)
        for names, how in (*verb.arguments, *verb.shared):
            sub.add_argument(*names, **how)
        group = sub.add_argument_group("a CNN of your own, without a scale") if verb.own else sub
        for names, how in verb.own:
            group.add_argument(*names, **how)
    return whole
