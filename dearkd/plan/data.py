"""A data set, its split and its pixels."""

from typing import Annotated, Literal

from dearkd.errors import InputError
from dearkd.ranges import Part, Whole, Within
from dearkd.schema import spec

IN_FILES = ("folder", "flowers102", "cars")
"""Kinds of data that are image files, which are decoded again in each epoch."""

REAL = "real"
"""The value of `images` for real images, those of the scale's main data set."""

Fraction = Annotated[int, Within(1, 100)]
"""Percent of the training images."""


def subset_name(fraction: int, draw: int | None = None) -> str:
    """Name of the list of a fraction's images; `draw`: the seed that drew them, None for the draw that all share."""
    return f"train-{fraction}" if draw is None else f"train-{fraction}-seed{draw}"


@spec
class Data:
    """A data set, its split and its pixels. A mean or std of one number serves all channels."""

    kind: Literal["digits", "photos", "idx", "cifar10", "cifar100", "flowers102", "cars", "folder"]
    root: str = ""
    """Folder with the files; empty for data that a package ships (`digits`, `photos`)."""
    classes: Annotated[int, Within(2)]
    image_size: Annotated[int, Within(1, 8192)]
    """Side of the square image in pixels, as the student sees it."""
    channels: Annotated[int, Within(1, 3)] = 3
    mean: tuple[Annotated[float, Within(-255, 255)], ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Within(0, 255, above=True)], ...] = (0.229, 0.224, 0.225)
    validation: Whole = 0
    """Number of training images held out for validation, equally from each class. Every choice is made on them."""
    crop: Annotated[float, Within(0, 1, above=True)] = 0.875
    """Centre crop at evaluation, as a share of the resized side (DeiT: 224/256)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation of the resize at evaluation."""
    label_noise: Part = 0.0
    """Share of the training labels replaced by another class; validation and test stay clean."""
    task: Literal["digit", "upside_down", "parity", "textured", "left_of_two"] = "digit"
    """The task on `digits`; `datasets.TASKS` says how each is made. All have the same images."""
    order: Literal["shuffled", "first"] = "shuffled"
    """How a fraction picks images per class: seeded and nested, or the first files as ConViT does."""
    test_share: Part = 0.0
    """Share of each class that is held out as test images, in a folder without train/."""
    presize: Whole = 0
    """Shorter side in pixels of a copy that training reads instead of the files, an approximation; 0: no copy."""

    def __post_init__(self) -> None:
        if self.presize and self.presize < self.image_size:
            raise InputError(
                f"presize {self.presize} is smaller than image_size {self.image_size}; raise it, or set presize: 0"
            )
        if self.presize and self.kind not in IN_FILES:
            raise InputError(f"presize works on image files, and {self.kind} has none; set presize: 0")
        if self.channels == 2:
            raise InputError("channels is 2; write 1 for grey images or 3 for RGB")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise InputError(
                    f"{name} has {len(values)} values, but channels is {self.channels}; write one value a channel"
                )
