"""DearKD in a training script of one's own: `from dearkd.task import DearKDTask` (docs/model.md)."""

from dearkd.train.task import DearKDTask

__all__ = ["DearKDTask"]
