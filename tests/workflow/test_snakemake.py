"""What we rely on inside Snakemake, in one small workflow: when a new version moves it, this says what has moved.

`dearkd/jobs/live.py` reads Snakemake's events; `workflow/rules/common.smk` asks its workflow object.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ASKED = (  # of the workflow object, by `settled` in common.smk
    "workflow.is_main_process is True",
    "os.path.samefile(workflow.basedir, '.')",
    "workflow.persistence.metadata(IOFile('given')) is None",
    "(workflow.persistence.metadata(IOFile('made-1')) is not None) == os.path.exists('made-1')",
    "ancient('given') == 'given'",
    "workflow.dag.forcefiles.add('made-1') is None",
)
SNAKEFILE = f"""
import os
from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile


def ask(wildcards):
    for expression in {ASKED}:
        try:
            held = eval(expression)
        except Exception as error:
            held, expression = False, f"{{expression}}: {{error!r}}"
        if not held:
            print(expression, file=open("moved", "a"))
    return ["given"]


rule interrupt:
    params:
        process=os.getpid(),
    shell:
        "kill -INT {{params.process}}; sleep 9"


rule all:
    default_target: True
    input:
        "made-1",
        "failed",


rule give:
    output:
        "given",
    shell:
        "touch {{output}}"


rule make:
    input:
        ask,
    output:
        "made-{{number}}",
    log:
        "make-{{number}}.log",
    shell:
        "touch {{output}} > {{log}}"


rule fail:
    output:
        "failed",
    log:
        "fail.log",
    shell:
        "exit 1"
"""
SPY = """
import json
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent


class LogHandler(LogHandlerBase):
    needs_rulegraph = has_filter = has_formatter = writes_to_file = False
    writes_to_stream = True

    def emit(self, record):
        event = getattr(record, "event", None)
        settings = {"stdout": self.common_settings.stdout, "dryrun": self.common_settings.dryrun}
        seen = {**vars(record), "said": record.getMessage(), "event": event and event.name, "settings": settings}
        print(json.dumps(seen, default=str), file=open("events", "a"))
"""
JOB = {"rule_name": "make", "wildcards": {"number": "1"}, "log": ["make-1.log"], "output": ["made-1"]}
EVENTS = {  # what `LogHandler.emit` of live.py reads of each
    "RUN_INFO": {"stats": {"all": 1, "make": 1, "fail": 1, "total": 3}},
    "JOB_INFO": {**JOB, "jobid": int},
    "JOB_FINISHED": {"job_id": int},
    "JOB_ERROR": {"rule_name": "fail", "log": ["fail.log"], "jobid": int},
    "PROGRESS": {"done": 1, "total": 3},
}


def test_what_we_rely_on_inside_snakemake_has_not_moved(tmp_path):
    """Three times: from nothing, with one job that fails; again, forced by its input function; interrupted."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "given").touch()
    (tmp_path / "snakemake_logger_plugin_spy").mkdir()
    (tmp_path / "snakemake_logger_plugin_spy/__init__.py").write_text(SPY)

    def events(*targets, options=()):
        """What the plugin was told of a run."""
        (tmp_path / "events").unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "-c1",
            "--keep-going",
            *options,
            "--logger",
            "spy",
            "--",
            *targets,
        ]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert (tmp_path / "events").exists(), f"moved: logger plugins\n{done.stderr}"
        return [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]

    def said(records, start):
        return any(record["said"].startswith(start) for record in records)

    first, again, stopped, nothing = events(), events("made-1"), events("interrupt"), events("given", options=["-n"])
    moved = [
        f"LogEvent.{name}: {field} is not {value}"
        for name, fields in EVENTS.items()
        for field, value in fields.items()
        if not any(r["event"] == name and (r.get(field) == value or type(r.get(field)) is value) for r in first)
    ]
    messages = {"Complete log(s): ": first, "Terminating processes on user request": stopped, "Nothing to be": nothing}
    moved += [f"message {start!r}" for start, records in messages.items() if not said(records, start)]
    moved += [] if first[0]["settings"] == {"stdout": False, "dryrun": False} else ["common_settings"]
    moved += [] if nothing[0]["settings"]["dryrun"] else ["common_settings.dryrun"]
    moved += (tmp_path / "moved").read_text().splitlines() if (tmp_path / "moved").exists() else []
    if not any(record["event"] == "JOB_INFO" for record in again):
        moved.append("workflow.dag.forcefiles: a job added to it is not made again")
    assert not moved, "Snakemake has moved what live.py and common.smk rely on:\n" + "\n".join(moved)
