"""The benchmark of a GPU, rehearsed on a CPU: what `plan` reads of it is measured; its variants compute the same."""

import importlib
import json
import sys

import pytest
import torch
from torch import nn

from benchmarks import gpu, gpu_work
from dearkd import arithmetic
from dearkd.model import resize
from dearkd.plan import rates
from dearkd.train.loop import Learner
from dearkd.train.replay import GRAPHS

pytestmark = pytest.mark.slow


def test_what_a_plan_reads_is_measured_under_its_names():
    named = [case[:3] for case in gpu.cases()]
    assert len(set(named)) == len(named)
    for net in rates.NETS:
        assert {("stage II", net, way) for way in ("eager", "compiled")} <= set(named), net
    assert ("stage I, labels ahead", "DearKD-Ti", "compiled") in named
    assert ("synthesis", "ResNet-101, 8 x 42", "eager") in named


def test_a_measurement_is_a_line_and_an_error_costs_no_other(tmp_path, monkeypatch):
    out = tmp_path / "gpu.jsonl"
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out), "--only", "49 tokens, bf16"])
    for name in (*arithmetic.ON_GPU, GRAPHS):
        monkeypatch.setenv(name, "")  # which the benchmark sets, and only here
    gpu.main()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["way"] for line in lines] == ["eager", "graph"] and all(line["images_per_s"] > 0 for line in lines)
    assert gpu.measure(lambda: 1 / 0) == {"error": "ZeroDivisionError: division by zero"}


def test_a_package_that_is_missing_costs_one_measurement(monkeypatch):
    """A machine with a GPU may have no internet: `lpips` alone is then not measured."""
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.delitem(sys.modules, "dearkd.jobs.diversity", raising=False)
    monkeypatch.delattr("dearkd.jobs.diversity", raising=False)  # `from dearkd.jobs import` looks here first
    importlib.reload(gpu_work)
    assert gpu.measure(gpu_work.lpips_pairs)["error"].startswith("ModuleNotFoundError")
    assert gpu.measure(lambda: gpu_work.attention("dense"))["images_per_s"] > 0


def test_a_step_of_the_loop_is_what_is_measured(monkeypatch):
    """Stage I with labels ahead: weights move, and every loss of the stage is there."""
    made = []
    monkeypatch.setattr(gpu_work, "Learner", lambda *args: made.append(Learner(*args)) or made[0])
    step, images = gpu_work.learned("dearkd-Ti", "I", compiled=False, graph=False)
    before = made[0].state.student.head.weight.detach().clone()
    step()
    sums = made[0].state.meters.sums()
    assert images == gpu_work.BATCH and {"ce", "logit", "hidden"} <= sums.keys() and min(sums.values()) > 0
    assert not torch.equal(before, made[0].state.student.head.weight)


def test_a_convolution_with_zeros_between_its_groups_is_the_grouped_one():
    grouped = nn.Conv2d(12, 24, 3, stride=2, padding=1, groups=4)
    x = torch.randn(2, 12, 9, 9)
    whole = gpu_work._ungrouped(grouped)
    assert whole.groups == 1
    torch.testing.assert_close(whole(x), grouped(x), rtol=1e-4, atol=1e-5)


def test_an_aligner_that_stays_channels_last_is_the_aligner():
    maps = torch.randn(2, 5, 4, 3).to(memory_format=torch.channels_last)
    found = gpu_work._tokens_enlarged(maps, (8, 6))
    torch.testing.assert_close(found, resize.bilinear(maps, (8, 6)), rtol=1e-6, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
