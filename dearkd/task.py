"""DearKD in your own training script: `from dearkd.task import DearKDTask` (docs/model.md)."""

from dearkd.train.task import DearKDTask

__all__ = ["DearKDTask"]
