"""Worker processes that train: where the process that started them is gone, they save and leave."""

import multiprocessing
import os
import signal
import threading
import time

SAVING = 5.0
"""Seconds for a checkpoint. What is cut short then loses no more than a kill does: checkpoints are written whole."""


def leave_with_parent() -> None:
    """Initialiser of a pool: once the parent is gone, send SIGURG, on which the loop saves and leaves; then end."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGURG)
    time.sleep(SAVING)
    os._exit(1)  # a worker without a task would wait for its dead parent's next one
