"""Jobs forked from one warm process: same output, same exit status, same signals, as if each had started by itself."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOB = f"{sys.executable} -m dearkd"
TRAIN = f"{JOB} train teacher-main --scale slow.yaml --seed 0 --stage I"


def run(script, warm=True, **environment):
    command = [sys.executable, "-m", "dearkd", "warm"] * warm + ["bash", "-c", script]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False
    )


@pytest.fixture
def slow(project):
    """A training that takes minutes, of which some steps are done before anything happens to it."""
    (project / "slow.yaml").write_text(
        "extends: smoke\nname: slow\nteachers: {main: {training: {epochs: 5000, stage1_epochs: 5000}}}\n"
    )
    log = project / "log"
    train = f"{JOB} subset main --scale slow.yaml; {TRAIN} > {log} 2>&1 & p=$!;"
    return log, f"{train} until grep -q 'epoch 2' {log}; do sleep 0.1; done;"


def test_a_job_is_the_same_warm_and_cold(project):
    predictions = "results/smoke/runs/dearkd-Ti/seed0/predictions.csv"
    script = f"{JOB} evaluate dearkd-Ti --scale smoke --seed 0; echo status $?; md5sum {predictions}"
    cold, warm = run(script, warm=False), run(script)
    assert warm.returncode == 0 and "status 0" in warm.stdout and warm.stdout == cold.stdout


def test_a_mistake_has_its_sentence_and_status():
    done = run(f"{JOB} subset man --scale smoke")
    assert done.returncode == 2
    assert done.stderr == "dearkd subset: scale smoke: unknown data set 'man'; did you mean 'main'?\n"


def test_jobs_do_not_import_torch_again(project):
    done = run(f"{JOB} evaluate dearkd-Ti --scale smoke --seed 0", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and len(re.findall(r"\|\s+torch$", done.stderr, re.MULTILINE)) == 1


def test_without_a_server_a_job_runs_by_itself(project):
    done = run(f"{JOB} subset main --scale smoke", warm=False, DEARKD_WARM="/nowhere/socket")
    assert done.returncode == 0, done.stderr


def test_a_signal_reaches_the_job_which_saves(slow):
    log, script = slow
    done = run(f"{script} kill -TERM $p; wait $p; echo status $?")
    assert "status 75" in done.stdout, done.stderr
    assert "saved" in log.read_text()


def test_a_job_whose_client_is_killed_saves_and_stops(slow):
    log, script = slow
    run(f"{script} kill -KILL $p; sleep 3")
    deadline = time.monotonic() + 20
    while "saved" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "saved" in log.read_text()


def test_a_job_that_dies_is_a_failure(slow):
    _, script = slow
    kill = "for parent in $(pgrep -P $PPID); do pkill -KILL -P $parent -f 'dearkd warm'; done"
    done = run(f"{script} {kill}; wait $p; echo status $?")
    assert "status 137" in done.stdout, done.stderr


def test_the_server_ends_with_what_started_it():
    """The process that is killed is the one of `dearkd warm`; its server is its only other child."""
    script = "pgrep -P $PPID | grep -v $$; kill -KILL $PPID"
    server = int(run(script).stdout.split()[0])
    deadline = time.monotonic() + 20
    while Path(f"/proc/{server}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{server}").exists()
