"""Requests to stop, and the exit after everything is saved. Standard library only."""

import contextlib
import signal
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGURG, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)
"""Signals: by hand, before a cluster's time limit, when the terminal closes, when the output's reader leaves."""


class Interrupted(Exception):
    """The process was asked to stop. Everything is saved, and the same command resumes."""


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop. A hangup that `nohup` ignores stays ignored."""
    received: list[int] = []
    asking = [s for s in STOP_SIGNALS if s != signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, lambda number, _: received.append(number)) for s in asking}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
