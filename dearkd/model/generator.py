"""A network that draws images from random codes, for synthesis in few iterations (the method `fast`).

Fast-Datafree (Fang et al., AAAI 2022, github.com/zju-vipa/Fast-Datafree): a few steps adapt a copy of the generator to
each batch, and the generator learns from these steps to be a good start. NAYER (Tran et al., CVPR 2024,
github.com/tmtuan1307/NAYER) gives a generator the class as an input. Both repositories were read for their formulas.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Generator(nn.Module):
    """Codes and classes to images: 3 x 3 convolutions with a batch's own normalisation, the side doubling in between.

    Args:
        classes: number of classes; each has a code of its own, which is added at every place.
        side: of the images, in pixels. mean: of each channel, from 0 to 1, the colour that a fresh generator draws.
        code, width: channels of codes and of the network at the images' side; twice as many below.
        class_code: standard deviation of the classes' codes; that of the images' is 1.
        upsamplings: how often the side doubles. A code's side is that of the images, halved as often and rounded up.
        random: draws the weights.
    """

    def __init__(
        self,
        classes: int,
        side: int,
        mean: Sequence[float],
        code: int,
        width: int,
        class_code: float,
        upsamplings: int,
        random: torch.Generator,
    ) -> None:
        super().__init__()
        self.sides = [-(-side // 2**i) for i in range(upsamplings, -1, -1)]
        self.code_shape = (code, self.sides[0], self.sides[0])
        self.classes = nn.Parameter(class_code * torch.randn(classes, code, 1, 1, generator=random))
        widths = [code, *[2 * width] * upsamplings, width]
        pairs = list(itertools.pairwise(widths))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b, track_running_stats=False) for _, b in pairs)
        self.last = nn.Conv2d(width, len(mean), 3, padding=1)
        for layer in (*self.convolutions, self.last):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()), generator=random)
        self.last.bias = nn.Parameter(torch.tensor(mean).logit(1e-3))

    def forward(
        self, codes: Float[Tensor, "n code small small"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n channels side side"]:
        """Pixels in 0 to 1."""
        x = codes + self.classes[labels]
        for side, convolution, norm in zip(self.sides, self.convolutions, self.norms, strict=True):
            x = F.leaky_relu(norm(convolution(F.interpolate(x, size=side))), 0.2)
        return self.last(x).sigmoid()


def first_order(gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """First-order gradient of the start for the loss after k steps from it: the sum of the steps' gradients.

    gradients: of each step, those of the adapted copy's parameters. (First-order MAML as in Fast-Datafree.)
    """
    return [torch.stack(of_one).sum(0) for of_one in zip(*gradients, strict=True)]
