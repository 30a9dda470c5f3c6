"""Aligners, of which Figure 3 is DearKD's: content tokens of a student block beside a teacher's feature map.

They exist in stage I only. Their weights never reach the exported student.
"""

from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from dearkd.model.resize import average, bilinear, resized


class Aligner(nn.Module):
    """Reshape, depth-wise convolution, LayerNorm, ReLU, bilinear interpolation, depth-wise convolution, LayerNorm.

    Figure 3 names these layers. None of them maps d to c channels, so we add one point-wise convolution. It commutes
    with the interpolation and comes before it, which is 4 x cheaper when the side doubles.

    Args:
        dim: width d of the student's tokens.
        grid: patches per column and row of the student.
        channels: channels c of the teacher's feature map.
        size: height and width of that map. Where it is smaller than the grid, average pooling avoids aliasing.
        nonnegative: end with a ReLU, for teachers whose features are never negative (ResNet, RegNet after a stage).
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], channels: int, size: tuple[int, int], nonnegative: bool
    ) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        self.mix = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim), LayerNorm2d(dim), nn.ReLU())
        self.project = nn.Conv2d(dim, channels, 1)
        self.refine = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), LayerNorm2d(channels))
        self.final = nn.ReLU() if nonnegative else nn.Identity()

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch channels height width"]:
        """Content tokens (without class token) as a feature map of the teacher's shape."""
        image = tokens.transpose(1, 2).unflatten(2, self.grid)
        return self.final(self.refine(self._resize(self.project(self.mix(image)))))

    def _resize(self, image: Tensor) -> Tensor:
        if self.size == self.grid:
            return image
        return resized(image, self.size, average if self.size < self.grid else bilinear)


class Pointwise(nn.Module):
    """Locality guidance (Li et al., ECCV 2022): a point-wise convolution, at the student's own grid."""

    def __init__(self, dim: int, grid: tuple[int, int], channels: int, *_: object) -> None:
        super().__init__()
        self.grid, self.project = grid, nn.Conv2d(dim, channels, 1)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch channels rows columns"]:
        return self.project(tokens.transpose(1, 2).unflatten(2, self.grid))


class Orthogonal(nn.Module):
    """VkD (Miles et al., CVPR 2024): the mean token through a projector whose rows, or columns, stay orthonormal.

    Such a projector keeps angles and lengths, so the student must learn and not the projector. Its parameter has
    Householder reflections and, on its diagonal, signs. Weight decay would make the signs and thus the projector 0, so
    the projector has none.
    """

    def __init__(self, dim: int, grid: tuple[int, int], channels: int, *_: object) -> None:
        super().__init__()
        self.project = orthogonal(nn.Linear(dim, channels, bias=False), orthogonal_map="householder")

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch channels 1 1"]:
        return self.project(tokens.mean(1))[..., None, None]


ALIGNERS = {"figure3": Aligner, "pointwise": Pointwise, "orthogonal": Orthogonal}
"""The aligners that `stage.LOSSES` names. All have the same five arguments."""
