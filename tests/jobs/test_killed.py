"""What held must go on holding: jobs of six kinds killed at random instants end with the same bits, and what is damaged
is refused. Longer: `PYTHONPATH=. python tests/jobs/killed.py SEED TIMES` in a copy with a trained teacher.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLED = Path(__file__).parent / "killed.py"


def test_killed_at_random_instants_and_damaged_anywhere(project):
    """Its seed is printed when it fails; the instants are of the clock, so no seed repeats them exactly."""
    seed = random.randrange(10**6)
    command = [sys.executable, str(KILLED), str(seed), "2"]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == 9
    assert all(trial["held"] for trial in trials), f"seed {seed}\n{done.stdout}"
