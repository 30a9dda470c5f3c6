"""DearKD in one file: a CNN teaches a vision transformer to read digits, in two stages. A minute on a CPU.

    python examples/dearkd_in_one_file.py

It prints the accuracy of a CNN that saw 1,000 images (here 99.6 %), and of a DeiT (80.6 %) and a DearKD (94.6 %) that
saw 250 of them. This is one seed, and the settings were chosen on the same images: it shows the method and is no
measurement.

A vision transformer learns slowly from few images, because it must learn that neighbouring pixels belong together. A
CNN has this built in. DearKD (CVPR 2022) trains the transformer with a CNN first and without it later:

    stage I    The student's early blocks attend like convolutions (MHCA) and imitate early features of the CNN. Its
               pooled tokens learn the CNN's decision, its class token learns the label.                       (Eq. 6)
    stage II   The CNN is gone. The class token keeps learning the label.                                      (Eq. 7)

This is all of the method, in plain PyTorch. The package `dearkd` does the same at any size; a test compares the losses.
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

SIDE, PATCH, CLASSES = 12, 3, 10
GRID, WIDTH, DEPTH = SIDE // PATCH, 36, 3
ALPHA, BETA = 0.5, 4.0


class Attention(nn.Module):
    """Multi-head self-attention (Eq. 1)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def bias(self) -> Tensor | None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, self.bias())  # softmax(q kᵀ / sqrt(d) + bias) v
        return self.proj(x.transpose(1, 2).flatten(2))


class MHCA(Attention):
    """Multi-head convolutional attention (Eq. 2 and 3): each head prefers keys at a learned offset from the query.

    A key d patches away gets the bias -alpha (|d|² - 2 delta · d). With a large alpha, a head sees only the patch at
    offset delta; nine such heads are a 3 x 3 convolution. The class token has no position and gets no bias.
    """

    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        near = torch.arange(heads**0.5) - (heads**0.5 - 1) / 2
        patches = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID)).float()
        self.alpha, self.delta = nn.Parameter(torch.ones(heads)), nn.Parameter(torch.cartesian_prod(near, near))
        self.register_buffer("d", patches[None, :] - patches[:, None])  # (query, key, 2)

    def bias(self) -> Tensor:
        along = torch.einsum("hx,qkx->hqk", self.delta, self.d)
        bias = -self.alpha[:, None, None] * (self.d.square().sum(-1) - 2 * along)
        return F.dropout(F.pad(bias, (1, 0, 1, 0)), 0.1, self.training)  # so that no head sees only neighbours


class Block(nn.Module):
    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), attention, nn.LayerNorm(WIDTH, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Student(nn.Module):
    """A vision transformer whose first `mhca` blocks are MHCA. Without any it is a DeiT."""

    def __init__(self, mhca: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + GRID**2, WIDTH) * 0.5)
        self.patch_embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.blocks = nn.ModuleList(Block(MHCA(heads) if i < mhca else Attention(heads)) for i in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH, 1e-6), nn.Linear(WIDTH, CLASSES)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits of the class token, pooled tokens of the patches, and tokens of the patches after each block."""
        x = self.patch_embed(images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        after = [(x := block(x))[:, 1:] for block in self.blocks]
        x = self.norm(x)
        return self.head(x[:, 0]), x[:, 1:].mean(1), after


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class StageOne(nn.Module):
    """The parts that only stage I has: the aligner (Figure 3) and a classifier of the pooled tokens.

    features: sample features of the CNN, (batch, channels, height, width), for their shape and scale.
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        c, self.size, self.scale = features.shape[1], features.shape[2:], features.square().mean().sqrt()
        mix = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), LayerNorm2d(WIDTH, 1e-6), nn.ReLU()
        refine = nn.Conv2d(c, c, 3, padding=1, groups=c), LayerNorm2d(c, 1e-6), nn.ReLU()
        self.mix, self.refine = nn.Sequential(*mix, nn.Conv2d(WIDTH, c, 1)), nn.Sequential(*refine)
        self.pooled_head = nn.Linear(WIDTH, CLASSES)

    def align(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, patches, width) in the shape of the CNN's features."""
        image = self.mix(tokens.mT.unflatten(2, (GRID, GRID)))
        return self.refine(F.interpolate(image, self.size, mode="bilinear"))


def stage_one(
    student: Student, extra: StageOne, cnn: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 6: the loss and its three terms."""
    with torch.no_grad():
        decision, features = cnn(images)
    logits, pooled, after = student(images)
    ce = F.cross_entropy(logits, labels, label_smoothing=0.1)
    logit = F.cross_entropy(extra.pooled_head(pooled), decision.argmax(1))
    hidden = F.mse_loss(extra.align(after[1]), features / extra.scale)
    return ALPHA * ce + (1 - ALPHA) * logit + BETA * hidden, {"ce": ce, "logit": logit, "hidden": hidden}


def stage_two(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Eq. 7: the loss on the labels alone, with which a DeiT or a CNN trains too."""
    return F.cross_entropy(model(images)[0], labels, label_smoothing=0.1)


class CNN(nn.Module):
    """The teacher: logits, and the features after its first stage."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = self._stage(1, 16, 1), nn.Sequential(self._stage(16, 32, 2), self._stage(32, 64, 2))
        self.head = nn.Linear(64, CLASSES)

    def _stage(self, a: int, b: int, stride: int) -> nn.Sequential:
        first = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
        return nn.Sequential(*first, nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.early(images)
        return self.head(self.late(features).mean((2, 3))), features


def digits() -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits of 8 x 8 pixels, each at a random place of a black image: (images, labels)."""
    data = load_digits()
    images = torch.zeros(len(data.target), 1, SIDE, SIDE)
    for image, digit in zip(images, torch.tensor(data.images).float(), strict=True):
        row, column = torch.randint(SIDE - 7, (2,)).tolist()
        image[0, row : row + 8, column : column + 8] = digit / 16
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def moved(images: Tensor) -> Tensor:
    """Each image turned by up to 8 degrees, zoomed by up to 8 % and shifted by up to 1.5 pixels."""
    turn, zoom, x, y = (2 * torch.rand(4, len(images)) - 1) * torch.tensor([0.14, 0.08, 0.25, 0.25])[:, None]
    cos, sin = (1 + zoom) * turn.cos(), (1 + zoom) * turn.sin()
    grid = F.affine_grid(torch.stack([cos, -sin, x, sin, cos, y], 1).view(-1, 2, 3), list(images.shape), False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(loss, modules: list[nn.Module], images: Tensor, labels: Tensor, steps: int) -> None:
    """Minimise loss(step, images, labels), under one learning rate schedule for both stages."""
    parameters = [p for module in modules for p in module.train().parameters()]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.1)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        chosen = torch.randint(len(images), (32,))
        optimiser.zero_grad()
        loss(step, moved(images[chosen]), labels[chosen]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        rate.step()


def main(steps: int = 1200) -> dict[str, float]:
    """Top-1 (%) on 797 test images: a CNN that saw 1,000 images, a DeiT and a DearKD that saw 250 of them."""
    torch.manual_seed(0)
    images, labels = digits()
    order = torch.randperm(len(images))
    seen, few, test = order[:1000], order[:250], order[1000:]

    cnn, deit, dearkd = CNN(), Student(mhca=0, heads=3), Student(mhca=2, heads=9)
    train(lambda step, x, y: stage_two(cnn, x, y), [cnn], images[seen], labels[seen], steps)
    train(lambda step, x, y: stage_two(deit, x, y), [deit], images[few], labels[few], steps)
    cnn.eval().requires_grad_(False)
    extra = StageOne(cnn(images[few])[1])

    def both_stages(step: int, x: Tensor, y: Tensor) -> Tensor:
        return stage_one(dearkd, extra, cnn, x, y)[0] if step < steps * 5 // 6 else stage_two(dearkd, x, y)

    train(both_stages, [dearkd, extra], images[few], labels[few], steps)
    models = {"CNN, 1,000 images": cnn, "DeiT, 250 images": deit, "DearKD, 250 images": dearkd}
    with torch.no_grad():
        right = {name: model.eval()(images[test])[0].argmax(1) == labels[test] for name, model in models.items()}
    return {name: 100 * hits.float().mean().item() for name, hits in right.items()}


if __name__ == "__main__":
    for name, value in main(*map(int, sys.argv[1:])).items():
        print(f"{name:20} {value:5.1f} %")
