"""The view of a workflow, what a person sees of Snakemake's events. Real runs: test_faults.py, test_warm.py."""

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from snakemake_interface_logger_plugins.common import LogEvent

from dearkd.jobs import live


@pytest.fixture
def view(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = live.LogHandler(SimpleNamespace(stdout=False, dryrun=False), None)
    handler.console = Console(file=io.StringIO(), width=120)
    return handler


def tell(view, event=None, message="", level=logging.INFO, **values):
    """What Snakemake's own logger hands on."""
    record = logging.LogRecord("snakemake", level, "", 0, message, None, None)
    vars(record).update(event=event, **values)
    view.emit(record)


def begin(view, number, rule="train", wildcards=(("run", "dearkd-Ti"), ("seed", "0"), ("stage", "I")), outputs=()):
    tell(view, LogEvent.JOB_INFO, jobid=number, rule_name=rule, wildcards=dict(wildcards), log=["log"], output=outputs)


def said(view):
    return view.console.file.getvalue()


def test_without_a_terminal_each_finished_job_is_a_line(view, tmp_path):
    tell(view, LogEvent.RUN_INFO, stats={"train": 2, "table": 1, "total": 3})
    begin(view, 1)
    begin(view, 2, wildcards=(("run", "deit-Ti"), ("seed", "1"), ("stage", "II")))
    tell(view, LogEvent.JOB_FINISHED, job_id=1)
    tell(view, LogEvent.JOB_FINISHED, job_id=2)
    (tmp_path / "table1.md").write_text("| [red]a[/red] | b |\n")
    begin(view, 3, "table", [("table", "table1")], ["table1.csv", "table1.md"])
    tell(view, LogEvent.JOB_FINISHED, job_id=3)
    tell(view, message=f"Complete log(s): {tmp_path}/.snakemake/log/x.log")
    view.close()
    view.close()
    assert said(view).splitlines() == [
        "3 jobs to do",
        "1 of 3  train dearkd-Ti seed 0 stage I: 0 s, about 0 s left",
        "2 of 3  train deit-Ti seed 1 stage II: 0 s, about 0 s left",
        "3 of 3  table1: 0 s",
        "",
        "| [red]a[/red] | b |",
        "",
        "3 of 3 jobs done in 0 s",
        "Full log: .snakemake/log/x.log",
    ]


def test_a_failed_job_shows_the_end_of_its_own_log_and_nothing_of_python(view, tmp_path):
    (tmp_path / "log").write_text("".join(f"line {i}\n" for i in range(100)) + "dearkd train: [bold]images[/x]: none\n")
    tell(view, LogEvent.RUN_INFO, stats={"train": 2})
    begin(view, 1)
    tell(view, LogEvent.ERROR, "CalledProcessError in file train.smk", logging.ERROR)
    tell(view, LogEvent.JOB_ERROR, "Error in rule train", logging.ERROR, jobid=1, rule_name="train", log=["log"])
    tell(view, message="Exiting because a job execution failed.", level=logging.ERROR)
    view.close()
    lines = said(view).splitlines()
    assert lines[1] == "train dearkd-Ti seed 0 stage I failed; the end of log:"
    assert lines[-2] == "  dearkd train: [bold]images[/x]: none" and len(lines) == 3 + live.TAIL_LINES
    assert lines[-1] == "0 of 2 jobs done in 0 s, 1 failed: train dearkd-Ti seed 0 stage I"


def test_a_job_that_was_asked_to_stop_has_not_failed(view, tmp_path):
    tell(view, LogEvent.RUN_INFO, stats={"train": 2})
    begin(view, 1)
    begin(view, 2)
    for number, end in enumerate(live.SAVED[:2], start=1):
        (tmp_path / "log").write_text(f"t: epoch 1\nt: stopped at step 3 of 9 and saved; {end}\n")
        tell(view, LogEvent.JOB_ERROR, jobid=number, rule_name="train", log=["log"], level=logging.ERROR)
    view.close()
    assert "failed" not in said(view) and said(view).count("stopped at step 3 of 9") == 2


def test_what_ends_snakemake_itself_is_said(view):
    tell(view, LogEvent.ERROR, "MissingRuleException:\nNo rule to produce tble1", logging.ERROR)
    view.close()
    assert said(view) == "MissingRuleException:\nNo rule to produce tble1\n"


def test_on_a_terminal_running_jobs_show_how_far_they_are(view, tmp_path):
    (tmp_path / "log").write_bytes(b"\xff\n[red]x: epoch 3  loss 2.1  [33 %, about 4 min left]\n")
    view.done, view.total = 3, 12
    view.left.update({"train": 8, "table": 1})
    view.spent["train"], view.slots = [60.0, 180.0], 2
    begin(view, 1)
    view.console.print(view.picture())
    head, job = said(view).splitlines()
    assert head.endswith("3 of 12 jobs, about 9 min left")
    assert " ".join(job.split()) == "train dearkd-Ti seed 0 stage I 0 s 33 %, about 4 min left epoch 3 loss 2.1"
    tell(view, message="Terminating processes on user request, this might take some time.")
    view.console.print(view.picture())
    assert "stopping, jobs save" in said(view)


def test_a_terminal_that_is_gone_ends_nothing(view):
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115
    view.console = Console(file=full)
    tell(view, LogEvent.RUN_INFO, stats={"train": 1})
    begin(view, 1)
    tell(view, LogEvent.JOB_FINISHED, job_id=1)
    view.close()
    assert view.done == 1
    with pytest.raises(OSError, match="No space left"):
        full.close()
