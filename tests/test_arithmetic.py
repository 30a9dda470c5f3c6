"""The same bits on any CPU: what jobs ask for before torch computes, what their records say of it, and the way out."""

import json
import os
import subprocess
import sys

import pytest

from dearkd import arithmetic

pytestmark = [pytest.mark.slow, pytest.mark.cold]

CODE = """
import json
from dearkd import arithmetic, record
arithmetic.ask()
import torch
print(json.dumps([record.provenance()["hardware"]["arithmetic"], torch.backends.cpu.get_cpu_capability()]))
"""


def asked(**environment):
    kept = {k: v for k, v in os.environ.items() if k not in arithmetic.EVERYWHERE}
    done = subprocess.run([sys.executable, "-c", CODE], env={**kept, **environment}, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_a_job_asks_for_avx2_and_its_record_says_so():
    said, capability = asked()
    assert said == arithmetic.EVERYWHERE
    assert capability != "AVX512", "x86 gets AVX2 or less, other CPUs know nothing of it"


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"DEARKD_ARITHMETIC": "native"}, {}),
        ({"DEARKD_ARITHMETIC": "deterministic"}, {**arithmetic.EVERYWHERE, **arithmetic.ON_GPU}),
        ({"MKL_CBWR": "COMPATIBLE"}, {**arithmetic.EVERYWHERE, "MKL_CBWR": "COMPATIBLE"}),
    ],
)
def test_what_a_person_sets_is_left_alone(environment, said):
    assert asked(**environment)[0] == said


def test_a_value_that_means_nothing_is_refused():
    command = [sys.executable, "-m", "dearkd", "plan", "--scale", "smoke"]
    done = subprocess.run(
        command, env={**os.environ, "DEARKD_ARITHMETIC": "determinstic"}, capture_output=True, text=True
    )
    said = "dearkd plan: DEARKD_ARITHMETIC: unknown value 'determinstic'; did you mean 'deterministic'?\n"
    assert (done.returncode, done.stderr) == (2, said)
