"""Import this to register the students in timm: `timm.create_model("dearkd_tiny_patch16_224")`."""

from dearkd.model import students

__all__ = ["students"]
