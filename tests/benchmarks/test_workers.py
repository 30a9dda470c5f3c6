"""Workers of a pool: when the process that started them is killed, none trains on by itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cold]

CODE = """
import multiprocessing, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from benchmarks.workers import leave_with_parent

signal.signal(signal.SIGURG, lambda *_: sys.exit("asked to leave"))  # as the training loop listens

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), leave_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 60).result()
"""


def test_a_worker_leaves_when_its_parent_is_killed(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(CODE)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 30
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(worker)


def alive(process):
    """Whether it runs; one that has ended and whose end nobody has taken note of does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and state[0] != "Z"
