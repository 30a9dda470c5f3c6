"""timm's training transform one image at a time: crop, flip, RandAugment, normalisation, erasing.

`Augment.decode` has two ways to make the crop. Both make the same random choices in the same order. This module copies
nothing without need, because on ImageNet's JPEG files this transform takes as long as decoding (docs/paper-scale.md).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from PIL import Image
from timm.data import auto_augment, create_transform
from torch import Tensor
from torchvision.transforms import Compose

from dearkd.data.arrival import moments
from dearkd.data.images import Images, eight_bit, named, opened, orientation
from dearkd.plan.stage import Augment, Data


class Transform:
    """timm's training transform with DeiT's arguments, from a data set's image to a place in a micro-batch."""

    def __init__(self, data: Data, augment: Augment) -> None:
        first, second, last = create_transform(
            (data.channels, data.image_size, data.image_size),
            is_training=True,
            scale=augment.crop_scale,
            hflip=augment.flip,
            color_jitter=0.3 if augment.auto == "3a" else 0.0,  # a part of 3-Augment
            auto_augment=augment.auto or None,
            interpolation="bicubic",
            re_prob=augment.erasing,
            re_mode="pixel",
            re_count=1,
            mean=data.mean,
            std=data.std,
            separate=True,
        )
        self.crop, *flip = first.transforms
        self.colour = Compose([*flip, *map(posterizes_to_black, second.transforms)])
        self.erase = Compose(last.transforms[2:])  # __call__ converts and normalises before it
        self.data, self.reduced = data, augment.decode == "reduced"
        self.mean, self.std = moments(data)
        self.kept: tuple[Images, int, Image.Image] | None = None

    def __call__(self, images: Images, index: int, out: Shaped[Tensor, "channels height width"]) -> None:
        """Write image `index`, augmented, into `out`: normalised into floats, or as it is into eight bits.

        The random choices come from the global generators of random, numpy and torch. Raises InputError naming a file
        that is missing or cannot be decoded.
        """
        image = self.colour(self._reduced(images, index) if self.reduced else self._as_timm(images, index))
        for plane, band in zip(out, image.split(), strict=True):
            plane.copy_(torch.from_numpy(np.array(band)))  # faster than three strided copies
        if out.is_floating_point():
            out.div_(255).sub_(self.mean).div_(self.std)
            self.erase(out)

    def _as_timm(self, images: Images, index: int) -> Image.Image:
        return self.crop(self._whole(images, index, lambda: images.open(index, self.data.channels)))

    def _whole(self, images: Images, index: int, decode: Callable[[], Image.Image]) -> Image.Image:
        """The image at full size, decoded once for copies that follow each other in a micro-batch."""
        if self.kept is None or self.kept[0] is not images or self.kept[1] != index:
            self.kept = images, index, decode()
        return self.kept[2]

    def _reduced(self, images: Images, index: int) -> Image.Image:
        """timm's crop, from a JPEG file that is decoded no larger than the crop needs."""
        if images.pixels is None and images.names[index].lower().endswith((".jpg", ".jpeg")):
            path = images.root / images.names[index]
            with named(path), opened(path) as image:
                if image.format in ("JPEG", "MPO") and orientation(image) == 1:
                    return self._resized(images, index, image)
        return self._resized(images, index, self._whole(images, index, lambda: images.open(index, self.data.channels)))

    def _resized(self, images: Images, index: int, image: Image.Image) -> Image.Image:
        side, channels = self.data.image_size, self.data.channels
        top, left, height, width = self._box(image)
        right, bottom = left + width, top + height
        shrink = reduce(image, min(height, width) // side)
        if shrink > 1:  # PIL takes edges between pixels, which rounding would move by up to half a pixel of the crop
            small = (left / shrink, top / shrink, right / shrink, bottom / shrink)
            return eight_bit(image.resize((side, side), Image.Resampling.BICUBIC, box=small), channels)
        image = self._whole(images, index, lambda: loaded(image))
        # torch: within 2 of 255 of PIL's pixels in a third of the time
        part = torch.from_numpy(np.array(eight_bit(image.crop((left, top, right, bottom)), channels))).reshape(
            1, height, width, -1
        )
        pixels = F.interpolate(part.permute(0, 3, 1, 2), (side, side), mode="bicubic", antialias=True)
        return Image.fromarray(pixels[0].permute(1, 2, 0).numpy().squeeze())

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop in pixels of the image. Only the image's size is read."""
        return self.crop.get_params(image, self.crop.scale, self.crop.ratio)


def loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels decoded, which no longer needs its file."""
    image.load()
    return image


def reduce(image: Image.Image, times: int) -> float:
    """Set a JPEG file to be decoded at 1/2, 1/4 or 1/8, the smallest that is at least 1/times; return 2, 4 or 8."""
    if times < 2:
        return 1.0
    width = image.width
    done = image.draft(None, (width // times, image.height // times))
    return width / done[1][2] if done else 1.0


def posterizes_to_black(transform: Any) -> Any:
    """RandAugment that may posterise to 0 bits, which PIL refuses from version 13 on.

    With DeiT's magnitudes, N(9, 0.5), this concerns one image in 800.
    """
    if isinstance(transform, auto_augment.RandAugment):
        for operation in transform.ops:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **style: Any) -> Image.Image:
    return auto_augment.posterize(image, bits, **style) if bits else Image.new(image.mode, image.size)
