"""The time that `plan` takes from records, against sums by hand."""

import json
import shutil

import pytest

from dearkd import record
from dearkd.__main__ import main
from dearkd.plan import experiments, recorded
from dearkd.schema import to_json

CPU = "A CPU"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The scale `digits` in a folder without records."""
    monkeypatch.chdir(tmp_path)
    return experiments.load("digits")


def wrote(plan, run, seed, stage, seconds, threads=1, device="cpu"):
    """A record of a stage with no more than an estimate reads."""
    spec = plan.run(run).stage(stage)
    values = {
        "kind": "stage",
        "scale": plan.scale.name,
        "run": run,
        "seed": seed,
        "stage": stage,
        "specs": [to_json(spec)],
    }
    values |= {"fingerprint": plan.run(run).fingerprint(stage), "seconds": seconds, "threads": threads}
    record.write(plan.paths.stage(run, seed, stage), {**values, "hardware": {"device": device, "cpu": CPU}})


def epochs(plan, run, stage):
    return plan.run(run).stage(stage).last_epoch - plan.run(run).stage(stage).first_epoch


def test_a_job_without_a_record_takes_as_long_as_the_nearest_that_has_one(plan):
    """Seed 0 of DearKD's stage I has a record on two cores; stage II has other losses, DeiT another network."""
    wrote(plan, "dearkd-Ti", 0, "I", 30.0, threads=2)
    wrote(plan, "teacher-main", 0, "I", 5.0)
    found = recorded.estimate(plan, [plan.run("dearkd-Ti"), plan.run("deit-Ti")])
    pace = 60.0 / epochs(plan, "dearkd-Ti", "I")
    second, whole = pace * epochs(plan, "dearkd-Ti", "II"), pace * epochs(plan, "deit-Ti", "I")
    assert (found.jobs, found.done, found.unlike) == (1 + 3 * 2 + 3, 2, [])
    assert found.left == pytest.approx(2 * 60.0 + 3 * second + 3 * whole)
    assert found.seconds == pytest.approx(found.left + 65.0)
    assert found.by == {CPU: dict(zip((recorded.DONE, *recorded.LIKE), (2, 2, 3, 3), strict=True))}


def test_the_median_counts_and_a_damaged_record_does_not(plan):
    for seed, seconds in ((0, 10.0), (1, 12.0)):
        wrote(plan, "deit-Ti", seed, "I", seconds)
    assert recorded.estimate(plan, [plan.run("deit-Ti")]).left == pytest.approx(11.0)
    plan.paths.stage("deit-Ti", 1, "I").write_text('{"kind": "stage", "seed": 1}')
    assert recorded.estimate(plan, [plan.run("deit-Ti")]).left == pytest.approx(2 * 10.0)


def test_another_recipe_is_not_done_and_a_gpu_tells_nothing_of_a_cpu(plan):
    wrote(plan, "deit-Ti", 0, "I", 10.0)
    path = plan.paths.stage("deit-Ti", 0, "I")
    record.write(path, {**record.read(path), "fingerprint": "0" * 16})
    assert recorded.estimate(plan, [plan.run("deit-Ti")])[:2] == (3, 0)
    path.unlink()
    wrote(plan, "deit-Ti", 0, "I", 10.0, device="A GPU")
    found = recorded.estimate(plan, [plan.run("deit-Ti")])
    assert (found.done, found.seconds, found.unlike) == (1, 0.0, ["deit-Ti"])


def test_all_is_done_in_a_clone_and_the_demo_takes_what_converged_took(capsys):
    assert main(["plan", "--scale", "digits"]) == 0
    digits = capsys.readouterr().out
    assert "nothing to come" in digits and "not counted" not in digits
    assert main(["plan", "table2", "--scale", "demo", "--fingerprints"]) == 0
    demo = capsys.readouterr().out
    told = json.loads(next(experiments.load("converged").paths.results.glob("runs/deit-Ti/seed0/I.json")).read_text())
    assert told["fingerprint"] in demo and "by records of the same network and losses" in demo
    assert "hours" not in demo.splitlines()[-1] and "not counted" not in demo


def test_without_a_record_it_says_what_gives_an_estimate(plan, capsys):
    shutil.rmtree("results", ignore_errors=True)
    assert main(["plan", "table2", "--scale", "digits"]) == 0
    assert "`plan` counts them after a first job of each kind" in capsys.readouterr().out
