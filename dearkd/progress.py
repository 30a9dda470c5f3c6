"""Progress of long work: a bar on a terminal, plain lines in a log.

Output that cannot be written never aborts the work. If its reader leaves or its terminal closes, the process is asked
to stop (`dearkd.stop`). A log on a full disk misses lines.
"""

import contextlib
import sys
import time
from typing import Any

EVERY_SECONDS = 60.0
"""Longest silence in a log. It is shorter at first, five seconds."""


class Progress:
    """Counts steps of one job; the first process shows it, the others stay silent.

    Args:
        title: name of the work. total, done: number of steps, and of those already done. shown: whether to show
        anything. images: of one step, for a rate in images/s; 0: none is shown.
    """

    def __init__(self, title: str, total: int, done: int = 0, shown: bool = True, images: int = 0) -> None:
        self.title, self.total, self.done, self.shown, self.images = title, total, done, shown, images
        self.bar: Any = None

    def __enter__(self) -> "Progress":
        self.began, self.first, self.told = time.monotonic(), self.done, time.monotonic()
        if self.shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.done)
        elif self.shown and self.done:
            self.line(f"continues after step {self.done} of {self.total}")
        return self

    def advance(self, done: int) -> None:
        """Steps finished so far."""
        self.done = done
        if self.bar:
            self.bar.update(self.task, completed=done)
        elif self.shown and time.monotonic() - self.told > min(EVERY_SECONDS, 5 + 0.2 * (self.told - self.began)):
            self.line(f"step {done} of {self.total}")

    def line(self, text: str) -> None:
        """Print a line that stays. In a log, which has no bar, the line ends with the progress."""
        if self.shown:
            self.told = time.monotonic()
            with contextlib.suppress(OSError):
                if self.bar:
                    self.bar.console.print(f"{self.title}: {text}", markup=False, highlight=False)
                else:
                    print(f"{self.title}: {text}  [{self._reached()}]", flush=True)

    def _reached(self) -> str:
        """'33 %, about 4 min left, 120 images/s'."""
        reached = f"{100 * self.done // max(self.total, 1)} %"
        if self.done == self.first:
            return reached
        seconds = (time.monotonic() - self.began) / (self.done - self.first)
        rate = f", {self.images / seconds:,.0f} images/s" if self.images and seconds else ""
        return f"{reached}, about {duration((self.total - self.done) * seconds)} left{rate}"

    def __exit__(self, *_: object) -> None:
        if self.bar:
            with contextlib.suppress(OSError):
                self.bar.stop()


def duration(seconds: float) -> str:
    """'42 s', '4 min', '1.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
