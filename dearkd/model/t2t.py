"""T2T-ViT-7, -14 and -19 (Yuan et al., ICCV 2021), the rows of Tables 3 and 4 that timm lacks.

After `import dearkd.models`, `timm.create_model("t2t_vit_14")` works. Three soft splits with Performer attention
between them replace timm's patch embedding. All other parts are timm's VisionTransformer. Weights have the names and
shapes of the checkpoints at github.com/yitu-tech/T2T-ViT.
"""

import math
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, named_apply, register_model
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn

SIZES = {
    "t2t_vit_7": {"embed_dim": 256, "depth": 7, "num_heads": 4, "mlp_ratio": 2.0},
    "t2t_vit_14": {"embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0},
    "t2t_vit_19": {"embed_dim": 448, "depth": 19, "num_heads": 7, "mlp_ratio": 3.0},
}
"""Table 1 of the T2T-ViT paper, except depth 8 of T2T-ViT-7: its 4.3 M parameters and the authors' code have 7."""
Split = tuple[int, int, int]
"""Kernel, stride and padding of a soft split, in pixels or tokens."""
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
NORM = partial(LayerNorm, eps=1e-5)
"""torch's epsilon, as published; timm's is 1e-6."""

_CFG = {"input_size": (3, 224, 224), "fixed_input_size": True, "crop_pct": 0.9, "interpolation": "bicubic"}
default_cfgs = generate_default_cfgs({name: {**_CFG, "classifier": "head"} for name in SIZES})


def sinusoid(positions: int, dim: int) -> Float[Tensor, "positions dim"]:
    """sin(p / 10000^(2i / dim)) in column 2i and its cosine in 2i + 1 (Vaswani et al., NeurIPS 2017, Sec. 3.5)."""
    column = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(positions)[:, None] / 10000 ** ((column - column % 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


class TokenPerformer(nn.Module):
    """The T2T transformer layer (Sec. 3.1) with one head of Performer attention, linear in the number of tokens.

    The residual starts at the values, because the input is wider than the output. The m = dim / 2 random features of
    FAVOR+ (Choromanski et al., ICLR 2021) are drawn once. As published, their directions `w` have length sqrt(m), where
    FAVOR+ has sqrt(dim), and dropout is 0.1 in every model.
    """

    def __init__(self, in_dim: int, dim: int, drop: float = 0.1) -> None:
        super().__init__()
        features = dim // 2
        self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(features, dim)) * math.sqrt(features), False)
        self.norm1, self.kqv = NORM(in_dim), nn.Linear(in_dim, 3 * dim)
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(drop)
        self.norm2 = NORM(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.Dropout(drop))

    def forward(self, x: Float[Tensor, "batch tokens in_dim"]) -> Float[Tensor, "batch tokens dim"]:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, -1)
        x = v + self.proj_drop(self.proj(self.attend(k, q, v)))
        return x + self.mlp(self.norm2(x))

    def attend(self, k: Tensor, q: Tensor, v: Tensor) -> Float[Tensor, "batch tokens dim"]:
        """Mean of the values weighted by phi(q) . phi(k), in fp32.

        Features reach exp(m / 2), which is 9e6 for m = 32: too large for fp16, with which the authors report NaN.
        """
        device = "cpu" if k.is_meta else k.device.type  # autocast knows no meta device
        with torch.autocast(device, enabled=False):
            phi_k, phi_q = self.features(k.float()), self.features(q.float())
            weighted, total = phi_k.transpose(1, 2) @ v.float(), phi_k.sum(1)[..., None]
            return (phi_q @ weighted / (phi_q @ total + 1e-8)).to(v.dtype)

    def features(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens features"]:
        """phi(x) = exp(w x - |x|^2 / 2) / sqrt(m), whose product estimates the softmax kernel exp(q . k)."""
        return torch.exp(x @ self.w.float().T - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(len(self.w))


class TokensToToken(nn.Module):
    """The tokens-to-token module (Sec. 3.1): overlapping patches of the image, then twice of the tokens themselves."""

    def __init__(
        self, img_size: int | tuple[int, int], in_chans: int, embed_dim: int, token_dim: int, splits: tuple[Split, ...]
    ) -> None:
        super().__init__()
        self.splits = splits
        _, *self.grids = accumulate(splits, _grid, initial=to_2tuple(img_size))
        self.grid_size = self.grids[-1]
        self.num_patches = math.prod(self.grid_size)
        area = [kernel**2 for kernel, _, _ in splits]
        self.attention1 = TokenPerformer(in_chans * area[0], token_dim)
        self.attention2 = TokenPerformer(token_dim * area[1], token_dim)
        self.project = nn.Linear(token_dim * area[2], embed_dim)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        x = self.attention1(_soft_split(images, self.splits[0]))
        x = self.attention2(_soft_split(x.transpose(1, 2).unflatten(2, self.grids[0]), self.splits[1]))
        return self.project(_soft_split(x.transpose(1, 2).unflatten(2, self.grids[1]), self.splits[2]))

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Tokens per column and row, for timm's `forward_intermediates`. The image size is fixed."""
        return self.grid_size


def _grid(size: tuple[int, int], split: Split) -> tuple[int, int]:
    kernel, stride, padding = split
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in size)
    return rows, columns


def _soft_split(x: Float[Tensor, "batch channels height width"], split: Split) -> Float[Tensor, "batch tokens dim"]:
    kernel, stride, padding = split
    return F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2)


class T2TViT(VisionTransformer):
    """timm's ViT on tokens of the tokens-to-token module, positions being a fixed sinusoid (Eq. 5).

    Args:
        token_dim: width inside the tokens-to-token module.
        splits: its three soft splits.
        All other arguments are those of timm's VisionTransformer, for one image size.
    """

    tokens_to_token: TokensToToken

    def __init__(
        self, *args: Any, token_dim: int = 64, splits: tuple[Split, Split, Split] = SPLITS, **kwargs: Any
    ) -> None:
        def embed(img_size: int | tuple[int, int], in_chans: int, embed_dim: int, **_: Any) -> TokensToToken:
            return TokensToToken(img_size, in_chans, embed_dim, token_dim, splits)

        super().__init__(*args, **{**kwargs, "embed_layer": embed, "norm_layer": NORM, "qkv_bias": False})
        self.add_module("tokens_to_token", self._modules.pop("patch_embed"))

    @property
    def patch_embed(self) -> TokensToToken:
        """timm's name of this module; checkpoints have the other name."""
        return self.tokens_to_token

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """The original's statistics: linear weights and class token truncated normal of std 0.02, biases 0."""
        assert self.pos_embed is not None
        self.pos_embed = nn.Parameter(sinusoid(*self.pos_embed.shape[1:])[None], requires_grad=False)
        trunc_normal_(self.cls_token, std=0.02)
        named_apply(init_weights_vit_timm, self)


def _t2t(name: str, pretrained: bool, **kwargs: Any) -> T2TViT:
    getter = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(T2TViT, name, pretrained, feature_cfg=getter, **{**SIZES[name], **kwargs})


@register_model
def t2t_vit_7(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-7: 4,310,222 parameters, of which 54,528 are fixed; 1.1 GMACs."""
    return _t2t("t2t_vit_7", pretrained, **kwargs)


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14: 21,545,550 parameters, of which 79,744 are fixed; 4.8 GMACs."""
    return _t2t("t2t_vit_14", pretrained, **kwargs)


@register_model
def t2t_vit_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-19: 39,177,422 parameters, of which 92,352 are fixed; 8.5 GMACs."""
    return _t2t("t2t_vit_19", pretrained, **kwargs)
