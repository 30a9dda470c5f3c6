"""Run by test_killed.py in a project with a trained teacher: kill each kind of job at random instants, damage what they
made, and print a line of JSON for each trial. One process that has torch imported forks every job, so that it is quick.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from dearkd.__main__ import main
from dearkd.jobs import synthesis, train  # noqa: F401  what takes seconds

SCALE = """extends: base
name: smoke
label_epochs: 1
training: {epochs: 3, stage1_epochs: 2, augment: {mixup: 0.5, cutmix: 0.5}}
"""
CACHED = "--scale", "smoke"
RUN = "dearkd-Ti", *CACHED, "--seed", "0"
OFTEN = "--save-seconds", "0", "--wait"
STATE, RESULTS = "checkpoints/smoke", "results/smoke"
KINDS = {
    "subset": (["subset", "main", *CACHED], [f"{RESULTS}/subsets"]),
    "labels": (None, [f"{STATE}/labels", f"{RESULTS}/labels"]),
    "stage I": (["train", *RUN, "--stage", "I", *OFTEN], [f"{STATE}/dearkd-Ti/seed0/I"]),
    "stage II": (["train", *RUN, "--stage", "II", *OFTEN], [f"{STATE}/dearkd-Ti/seed0/II"]),
    "evaluate": (["evaluate", *RUN], [f"{RESULTS}/runs/dearkd-Ti/seed0/predictions.csv"]),
    "images": (["synthesize", "deepinversion", *CACHED, *OFTEN], [f"{STATE}/images", f"{RESULTS}/images"]),
}
"""Kind of job: its command, and the files or folders that must be the same in the end."""
KEPT = (".txt", ".npy", ".zip", ".csv", ".safetensors")
"""What has no times in it; records have."""


def fork(arguments):
    """Process of a job, which writes what it says into the file `said`."""
    child = os.fork()
    if child == 0:
        out = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        status = 99
        try:
            status = main(list(arguments))
        finally:
            os._exit(status)
    return child


def finish(arguments):
    return os.waitstatus_to_exitcode(os.waitpid(fork(arguments), 0)[1])


def digests(places):
    files = sorted(f for p in map(Path, places) for f in ([p] if p.is_file() else p.rglob("*")) if f.suffix in KEPT)
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def remove(places):
    for place in map(Path, places):
        shutil.rmtree(place) if place.is_dir() else place.unlink()


def kill(kind, command, places, chance, times):
    """Undisturbed once; then killed at random instants, each attempt going on from the last, to the end."""
    began = time.monotonic()
    assert finish(command) == 0, Path("said").read_text()
    whole, expected = time.monotonic() - began, digests(places)
    remove(places)
    record = Path(f"{RESULTS}/runs/dearkd-Ti/seed0/{kind.removeprefix('stage ')}.json")
    record.unlink(missing_ok=True)
    instants = sorted(chance.uniform(0, whole) for _ in range(times))
    for instant in instants:
        child = fork(command)
        time.sleep(instant)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    status = finish(command)
    left = [str(p) for p in Path().rglob(".*.tmp") if p.stat().st_mtime < time.time() - 3600 or STATE in str(p)]
    same = expected == digests(places) and bool(expected)
    say(kind, status == 0 and same and not left, instants=instants, left=left)


def damage(path, command, chance):
    """One bit of a file is flipped: who reads it refuses by the name of the file, in one sentence."""
    raw = bytearray(path.read_bytes())
    whole, place = bytes(raw), chance.randrange(len(raw))
    raw[place] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)
    status, words = finish(command), Path("said").read_text()
    path.write_bytes(whole)
    refused = status == 2 and str(path) in words and "Traceback" not in words
    say(f"damaged {path}", refused, place=place, status=status)


def say(trial, held, **how):
    print(
        json.dumps({"trial": trial, "held": held, **how, "said": "" if held else Path("said").read_text()}), flush=True
    )


def all_kinds(seed, times):
    from dearkd.plan import experiments

    scale = Path("workflow/scales/smoke.yaml")
    scale.with_name("base.yaml").write_text(scale.read_text().replace("name: smoke", "name: base"))
    scale.write_text(SCALE)
    chance, plan = random.Random(seed), experiments.load("smoke")
    for place in (f"{STATE}/dearkd-Ti", f"{RESULTS}/runs/dearkd-Ti"):
        shutil.rmtree(place)
    name = plan.labels_of(plan.runs["dearkd-Ti"].stages[0]).name
    label = ["labels", name, *CACHED, "--seed", "0"]
    for kind, (command, places) in KINDS.items():
        kill(kind, command or [*label, "--shard", "0", *OFTEN], places, chance, times)
        if kind == "labels":
            assert finish([*label, "--shard", "1"]) == 0, Path("said").read_text()
    stage1, evaluate = KINDS["stage I"][0], KINDS["evaluate"][0]
    shutil.rmtree(f"{STATE}/dearkd-Ti/seed0/I")
    damage(plan.paths.label_file(name, 0, 0), stage1, chance)
    damage(next(Path(f"{STATE}/teacher-main").rglob("student.safetensors")), ["teacher", "main", *CACHED], chance)
    damage(Path(f"{STATE}/dearkd-Ti/seed0/II/student.safetensors"), evaluate, chance)


if __name__ == "__main__":
    all_kinds(int(sys.argv[1]), int(sys.argv[2]))
