"""Import this module to register the students in timm."""

from dearkd.model import networks, students

__all__ = ["networks", "students"]
