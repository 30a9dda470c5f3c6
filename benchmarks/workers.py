"""Worker processes that train: where the process that started them is gone, they save and leave."""

import multiprocessing
import os
import signal
import threading


def leave_with_parent() -> None:
    """Initialiser of a pool: send this process SIGURG, on which the loop saves and leaves, once its parent is gone."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGURG)
