"""The view of a running workflow: live on a terminal, elsewhere a line for each finished job.

This is a logger plugin of Snakemake (`--logger dearkd`). It prints each table when the table is ready, and the end of a
failed job's log. The last line names the file with Snakemake's full log.
"""

import contextlib
import logging
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from dearkd.progress import duration

TAIL_LINES, TAIL_BYTES = 12, 4000
"""Lines that are shown of a failed job's log; bytes that are read for them and for a running job's newest line."""
SAVED = ("the same command resumes from here", "stopped by Ctrl-C; nothing finished was lost")
"""How the last line of a job's log ends when it was asked to stop."""


@dataclass
class Job:
    """A running job: its name, its rule, its files, and when it began (monotonic clock, seconds)."""

    name: str
    rule: str
    log: Path | None
    outputs: list[str]
    began: float = field(default_factory=time.monotonic)

    def newest(self) -> str:
        """The progress of the job, then the newest line of its log, without the job's name in front."""
        lines = _tail(self.log)
        said = lines[-1].split(": ", 1)[-1] if lines else ""
        reached = re.search(r"\s*\[(\d+ %[^]]*)\]$", said)
        return f"{reached[1]}  {said[: reached.start()]}" if reached else said


class LogHandler(LogHandlerBase):
    """Follows Snakemake's events; see `emit`."""

    needs_rulegraph = has_filter = has_formatter = writes_to_file = False
    writes_to_stream = True

    def __post_init__(self) -> None:
        self.console = Console(stderr=not self.common_settings.stdout, highlight=False)
        self.began, self.done, self.total, self.slots = time.monotonic(), 0, 0, 1
        self.running: dict[int, Job] = {}
        self.failed: list[str] = []
        self.left: Counter[str] = Counter()
        self.spent: defaultdict[str, list[float]] = defaultdict(list)
        self.errors: list[str] = []
        self.full_log, self.stopping, self.closed = "", False, False
        self.live: Live | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Show one event. A terminal that is gone raises no error."""
        said: Any = record  # Snakemake sets the values of an event as attributes
        event = getattr(record, "event", None)
        with contextlib.suppress(OSError):
            if self.common_settings.dryrun:
                self._print(self.format(record))
            elif event == LogEvent.RUN_INFO:
                self._start(said.stats)
            elif event == LogEvent.JOB_INFO:
                self._begin(said)
            elif event == LogEvent.JOB_FINISHED:
                self._finish(said.job_id)
            elif event == LogEvent.JOB_ERROR:
                self._fail(said)
            elif event == LogEvent.PROGRESS:
                self.done, self.total = said.done, said.total
            elif event in (None, LogEvent.ERROR):
                self._message(record)

    def close(self) -> None:
        """Remove the view and say, once, how the workflow ended and where its full log is."""
        closed, self.closed = self.closed, True
        with contextlib.suppress(OSError):
            if self.live:
                self.live.stop()
            if closed:
                return
            if self.errors and not self.failed and not self.stopping:
                self._print("\n".join(self.errors))
            if self.total:
                failed = f", {len(self.failed)} failed: {', '.join(self.failed)}" if self.failed else ""
                spent = duration(time.monotonic() - self.began)
                self._print(f"{self.done} of {self.total} jobs done in {spent}{failed}")
            if self.full_log:
                self._print(f"Full log: {self.full_log}")
        super().close()

    def _start(self, stats: dict[str, int]) -> None:
        self.left.update({rule: count for rule, count in stats.items() if rule != "total"})
        self.total = self.left.total()
        if self.console.is_terminal:
            self.live = Live(get_renderable=self.picture, console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        else:
            self._print(f"{self.total} jobs to do")

    def _begin(self, record: Any) -> None:
        words = _words(record.wildcards)
        name = " ".join(words if words and words[0].startswith(record.rule_name) else [record.rule_name, *words])
        log = Path(record.log[0]) if record.log else None
        self.running[record.jobid] = Job(name, record.rule_name, log, list(record.output))
        self.slots = max(self.slots, len(self.running))

    def _finish(self, number: int) -> None:
        job = self.running.pop(number, None)
        if job is None:
            return
        self.done += 1
        self.left[job.rule] -= 1
        self.spent[job.rule].append(time.monotonic() - job.began)
        if self.live is None:
            spent = duration(self.spent[job.rule][-1])
            self._print(f"{self.done} of {self.total}  {job.name}: {spent}{self._time_left()}")
        for path in (p for p in job.outputs if job.rule == "table" and p.endswith(".md")):
            self._print(f"\n{Path(path).read_text().rstrip()}\n")

    def _fail(self, record: Any) -> None:
        job = self.running.pop(record.jobid, None)
        lines = _tail(Path(record.log[0])) if record.log else []
        name = job.name if job else record.rule_name
        if lines and lines[-1].endswith(SAVED):
            self._print(f"{name}: {lines[-1].rsplit(': ', 1)[-1]}")
            return
        if not self.stopping:
            self.failed.append(name)
            shown = "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])
            self._print(f"{name} failed; the end of {record.log[0] if record.log else 'its log'}:\n{shown}")

    def _message(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Complete log(s): "):
            self.full_log = text.removeprefix("Complete log(s): ").replace(f"{Path.cwd()}/", "")
        elif text.startswith("Terminating processes on user request"):
            self.stopping = True
        elif text.startswith("Nothing to be done"):
            self._print(text)
        elif record.levelno >= logging.ERROR:
            self.errors.append(text)

    def picture(self) -> RenderableType:
        """A bar of all jobs, then a line for each running job: its name, its time, the newest line of its log."""
        head = Table.grid(padding=(0, 2))
        state = "stopping, jobs save" if self.stopping else f"{self.done} of {self.total} jobs{self._time_left()}"
        head.add_row(ProgressBar(total=max(self.total, 1), completed=self.done, width=30), Text(state))
        rows = Table.grid(
            Column(no_wrap=True), Column(no_wrap=True), Column(no_wrap=True, ratio=1), padding=(0, 2), expand=True
        )
        for job in list(self.running.values()):
            spent = duration(time.monotonic() - job.began)
            rows.add_row(Text(f"  {job.name}"), Text(spent, justify="right"), Text(job.newest(), "dim"))
        return Group(head, rows)

    def _time_left(self) -> str:
        """', about 4 min left', from the times of finished jobs of the same rules; '' before the first has ended."""
        every = [seconds for spent in self.spent.values() for seconds in spent]
        if not every or self.done >= self.total:
            return ""
        mean = {rule: sum(spent) / len(spent) for rule, spent in self.spent.items() if spent}
        seconds = sum(count * mean.get(rule, sum(every) / len(every)) for rule, count in self.left.items())
        for job in list(self.running.values()):
            seconds -= min(time.monotonic() - job.began, mean.get(job.rule, 0.0))
        return f", about {duration(max(seconds, 0.0) / self.slots)} left"

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def _words(wildcards: dict[str, str]) -> list[str]:
    """'dearkd-Ti', 'seed 0', 'stage I': numbers and stages say what they are."""
    return [f"{k} {v}" if k in ("seed", "shard", "stage") else str(v) for k, v in wildcards.items()]


def _tail(path: Path | None) -> list[str]:
    """The last lines of a log that are not empty; none where there is no log yet."""
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            file.seek(-min(TAIL_BYTES, path.stat().st_size), 2)
            return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []
