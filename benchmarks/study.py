"""Train runs of a scale, or what its tables show, in several processes of one machine, without Snakemake.

    python -m benchmarks.study fashion table1 table2 --processes 8 --minutes 5

It is for a machine that has a GPU for minutes and no Snakemake. Jobs and records are those of the workflow. A job that
has its record is not repeated, so `snakemake` or the same command continues where the time ran out. Seeds are trained
one after the other, so that finished seeds are complete. Runs that start from other runs or from synthetic images are
left to Snakemake; a line says how many.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from benchmarks.workers import leave_with_parent
from dearkd import arithmetic, record
from dearkd.errors import InputError, unknown
from dearkd.jobs.evaluate import evaluate_run
from dearkd.jobs.subset import list_subsets
from dearkd.jobs.teacher import admit_teacher
from dearkd.jobs.train import train_stage
from dearkd.plan import experiments
from dearkd.stop import Interrupted


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.split("\n")[0])
    parser.add_argument("scale")
    parser.add_argument("targets", nargs="*", help="tables or runs; none: only lists of images and teachers")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing is started or continued")
    parser.add_argument("--seeds", default="", help="comma-separated, of the scale's; default: all of them")
    given = parser.parse_intermixed_args(arguments)  # targets may come after options
    arithmetic.ask()
    try:
        return study(given.scale, given.targets, given.seeds, given.processes, time.time() + 60 * given.minutes)
    except InputError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2


def study(scale: str, targets: list[str], seeds: str, processes: int, until: float) -> int:
    """Train and evaluate until a time (seconds since 1970); 0, or 1 where runs are left."""
    plan = experiments.load(scale)
    if strange := [t for t in targets if t not in plan.tables and t not in plan.runs]:
        raise InputError(unknown(strange[0], (*plan.tables, *plan.runs), "table or run", f"scale {plan.scale.name}"))
    shown = dict.fromkeys(r for t in targets for r in (plan.runs_of(t) if t in plan.tables else [plan.runs[t]]))
    runs = [run for run in shown if not run.initial and not any(stage.source for stage in run.stages)]
    chosen = [s for s in plan.scale.seeds if not seeds or str(s) in seeds.split(",")]
    if missing := set(filter(None, seeds.split(","))) - {str(s) for s in chosen}:
        raise InputError(f"--seeds {', '.join(sorted(missing))}: scale {plan.scale.name} has {plan.scale.seeds}")
    prepare(plan)
    wanted = [(run.name, seed) for seed in chosen for run in runs]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), leave_with_parent) as pool:
        running = [pool.submit(work, scale, name, seed, until) for name, seed in wanted]
        finished = sum(future.result() for future in as_completed(running))
    print(f"{finished} of {len(wanted)} runs are finished")
    if len(shown) > len(runs):
        print(f"{len(shown) - len(runs)} runs that start from other runs or synthetic images are left to Snakemake")
    return int(finished < len(wanted))


def prepare(plan: experiments.Plan) -> None:
    """Lists of images and teachers, where they are not there yet."""
    if not (plan.paths.subsets("main") / "data.json").is_file():
        list_subsets(plan, "main")
    for name in plan.scale.teachers:
        run = plan.teacher_run(name)
        if run and not plan.paths.stage(run.name, 0, "I").is_file():
            train_stage(plan, run, 0, "I")
        if not plan.paths.teacher(name).is_file():
            admit_teacher(plan, name)


def work(scale: str, name: str, seed: int, until: float) -> bool:
    """Train and evaluate a run of a seed as far as it is not; whether it is finished."""
    began = time.time()
    timer = threading.Timer(max(until - began, 0), os.kill, (os.getpid(), signal.SIGURG))
    timer.daemon = True
    timer.start()
    torch.set_flush_denormal(True)
    plan = experiments.load(scale)
    run = plan.runs[name]
    try:
        for stage in run.stages:
            if time.time() > until:
                return False
            if not _made(plan.paths.stage(name, seed, stage.name), run.fingerprint(stage.name)):
                with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                    train_stage(plan, run, seed, stage.name)
        if not _made(plan.paths.metrics(name, seed), run.fingerprint(run.stages[-1].name)):
            evaluate_run(plan, run, seed)
    except (Interrupted, InputError) as error:
        print(f"{name}, seed {seed}: {error}", file=sys.stderr, flush=True)
        return False
    finally:
        timer.cancel()
    top1 = record.read(plan.paths.metrics(name, seed))["metrics"]["top1"]
    print(f"{name}, seed {seed}: finished, {time.time() - began:.0f} s, top-1 {top1:.2f} %", flush=True)
    return True


def _made(path: Path, fingerprint: str) -> bool:
    return path.is_file() and record.read(path)["fingerprint"] == fingerprint


if __name__ == "__main__":
    sys.exit(main())
