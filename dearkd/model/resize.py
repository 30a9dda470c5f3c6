"""Feature maps at another size, with a gradient whose sums have a fixed order on a GPU too.

CUDA adds the gradient of interpolation and of adaptive pooling atomically, in no fixed order. Two identical runs then
differ. Both are linear maps of an image's places, hence a product with a small matrix, whose gradient is a product.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Maps = Float[Tensor, "batch channels height width"]
Resized = Float[Tensor, "batch channels rows columns"]


def resized(maps: Maps, size: tuple[int, int], resize: Callable[[Tensor, tuple[int, int]], Tensor]) -> Resized:
    """`resize(maps, size)`, on a GPU as a product. `resize` is linear and treats all channels alike."""
    if maps.device.type != "cuda":
        return resize(maps, size)
    return maps if maps.shape[2:] == size else by_product(maps, size, resize)


def bilinear(maps: Maps, size: tuple[int, int]) -> Resized:
    """Bilinear interpolation that aligns the edges of the maps, not the centres of their corner pixels."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def average(maps: Maps, size: tuple[int, int]) -> Resized:
    """Average pooling: each new place is the mean over its share of the old places."""
    return F.adaptive_avg_pool2d(maps, size)


def by_product(maps: Maps, size: tuple[int, int], resize: Callable[[Tensor, tuple[int, int]], Tensor]) -> Resized:
    """`resize(maps, size)` as a product in the maps' type. The factor is what `resize` makes of each place alone."""
    grid = maps.shape[2:]
    alone = torch.eye(grid.numel(), device=maps.device).unflatten(1, grid)[None]
    matrix = resize(alone, size)[0].flatten(1)
    with torch.autocast(maps.device.type, enabled=False):
        return (maps.flatten(2) @ matrix.to(maps.dtype)).unflatten(2, size)
