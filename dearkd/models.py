"""Import this module to register the students in timm."""

from dearkd.model import students

__all__ = ["students"]
