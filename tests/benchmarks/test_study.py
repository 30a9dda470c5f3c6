"""`python -m benchmarks.study`: the jobs of the workflow without Snakemake, and what it refuses."""

import time

from benchmarks import study
from dearkd import record
from dearkd.plan import experiments


def test_it_trains_what_is_missing_and_repeats_nothing(project, capsys):
    """DearKD-Ti is finished; of DeiT-Ti nothing is there."""
    plan = experiments.load("smoke")
    before = plan.paths.stage("dearkd-Ti", 0, "I").read_bytes()
    until = time.time() + 600
    assert study.work("smoke", "dearkd-Ti", 0, until) and study.work("smoke", "deit-Ti", 0, until)
    assert plan.paths.stage("dearkd-Ti", 0, "I").read_bytes() == before
    made = record.read(plan.paths.metrics("deit-Ti", 0))
    assert made["fingerprint"] == plan.runs["deit-Ti"].fingerprint("I")
    assert "deit-Ti, seed 0: finished" in capsys.readouterr().out


def test_nothing_starts_after_the_time(project):
    assert not study.work("smoke", "deit-S", 0, until=0)
    assert not experiments.load("smoke").paths.stage("deit-S", 0, "I").exists()


def test_mistakes_are_one_sentence_and_what_is_left_out_is_said(project, capsys):
    for arguments, said in (
        (["smokee"], "unknown scale 'smokee'; did you mean 'smoke'"),
        (["smoke", "tabel1"], "did you mean 'table1'"),
        (["smoke", "--seeds", "7", "table1"], "--seeds 7: scale smoke has (0,)"),
    ):
        assert study.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("study: ") and said in err and err.count("\n") == 1
    assert study.main(["smoke", "table4", "--minutes", "0"]) == 0
    assert "are left to Snakemake" in capsys.readouterr().out
