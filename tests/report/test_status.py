"""`python -m dearkd status`: every stage is done, running, stopped, stale or missing, and says how far it is."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dearkd import record
from dearkd.plan import experiments
from dearkd.report import status

STATUS = [sys.executable, "-m", "dearkd", "status", "--scale", "smoke"]
TRAIN = [sys.executable, "-m", "dearkd", "train", "deit-Ti", "--scale", "smoke", "--seed", "0", "--stage", "I"]


def line_of(text, run, stage="I"):
    return next((line for line in text.splitlines() if f" {run} seed 0 stage {stage}" in line), "")


def ask(*targets):
    return subprocess.run([*STATUS, *targets], capture_output=True, text=True, check=True).stdout


def test_seeds_that_miss_the_same_stage_share_a_line():
    states = {0: "done", 1: "missing", 2: "missing", 3: "stale", 4: "missing"}
    found = [
        status.Standing("a", seed, stage, state if stage == "II" else "done")
        for seed, state in states.items()
        for stage in ("I", "II")
    ]
    assert status.describe([*found, status.Standing("b", 7, "I", "missing")]).splitlines() == [
        "missing  a seeds 1 to 2, 4 stage II",
        "stale    a seed 3 stage II",
        "missing  b seed 7 stage I",
        "6 done, 4 missing, 1 stale",
    ]


def test_without_a_target_a_line_for_each_table_counts_what_is_missing():
    """What runs, was stopped or is stale has its line all the same."""
    found = [status.Standing(run, 0, "I", "missing") for run in "abc"]
    found += [status.Standing("d", 0, "I", "done"), status.Standing("d", 0, "II", "stopped", 5, 10)]
    assert status.describe(found, {"table1": {"a", "d"}, "figure1": {"b"}}).splitlines() == [
        "stopped  d seed 0 stage II  step 5 of 10 (50 %)",
        "table1   1 missing, 1 done, 1 stopped",
        "figure1  1 missing",
        "all      3 missing, 1 done, 1 stopped",
    ]


def test_done_missing_and_stale(project):
    before = ask("table2")
    assert not line_of(before, "dearkd-Ti") and line_of(before, "deit-Ti").startswith("missing")
    done = before.splitlines()[-1]
    assert "2 done" in done and "missing" in done  # both stages of DearKD
    path = experiments.load("smoke").paths.stage("dearkd-Ti", 0, "I")
    values = record.read(path)
    values["specs"][0]["training"]["lr"] = 1.0
    record.write(path, values)
    after = ask("table2")
    assert line_of(after, "dearkd-Ti").startswith("stale") and "training.lr: 1.0 recorded" in after


@pytest.mark.cold
def test_running_then_stopped(project):
    folder = experiments.load("smoke").paths.state("deit-Ti", 0, "I")
    process = subprocess.Popen([*TRAIN, "--save-seconds", "0"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(list(folder.glob("step-*.pt"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)
    running = line_of(ask(), "deit-Ti")  # 950 images in batches of 64 are 14 steps, three times
    assert running.startswith("running") and " of 42 " in running
    os.kill(process.pid, signal.SIGCONT)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = line_of(ask(), "deit-Ti")
    assert stopped.startswith("stopped") and " of 42 " in stopped


def leave(folder, name, began, of, *steps):
    """What an attempt leaves: what it began with, and checkpoints, each written a second after the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"began": began, "of": of, "saved": began}))
    for i, step in enumerate(steps, 1):
        path = folder / f"step-{step:09d}-0123456789abcdef.pt"
        path.touch()
        os.utime(path, (began + i, began + i))


def standing(plan, held=False):
    folder = plan.paths.state("deit-Ti", 0, "I")
    return status.standings(plan, [plan.runs["deit-Ti"]], {folder} if held else set())[0]


def test_a_checkpoint_of_another_recipe_is_no_progress(project):
    """109 % of today's steps, or fewer: neither stopped nor running on it; its own attempts count."""
    plan, now = experiments.load("smoke"), time.time() - 1000
    folder, of = plan.paths.state("deit-Ti", 0, "I"), plan.runs["deit-Ti"].fingerprint("I")
    leave(folder, "attempt-0001.json", now, "another", 20, 46)
    assert standing(plan)[3:6] == ("missing", 0, 42) and "another recipe" in standing(plan).note
    assert "%" not in status.describe([standing(plan), standing(plan, held=True)])
    leave(folder, "attempt-0002.json", now + 100, of)  # killed before its first save
    assert standing(plan).state == "missing" and standing(plan, held=True)[3:6] == ("running", 0, 42)
    leave(folder, "attempt-0003.json", now + 200, of, 10, 14)
    assert standing(plan)[3:6] == ("stopped", 14, 42)
    assert standing(plan, held=True)[3:6] == ("running", 14, 42) and standing(plan, held=True).seconds_left is not None
    leave(folder, "attempt-0004.json", now + 300, of, 50)  # of more data than there are now
    assert standing(plan)[3:6] == ("stopped", 14, 42)


def test_time_left_is_at_the_pace_of_the_last_two_checkpoints():
    now = time.time()
    assert status._left([(10, now - 100), (30, now)], 50) == pytest.approx(100, abs=1)
    assert status._left([(10, now)], 50) is None and status._left([(10, now), (10, now)], 50) is None
    assert status._duration(59.0) == "59 s" and status._duration(3660.0) == "1 h 01 min"
