"""DearKD in three sizes, registered in timm.

After `import dearkd.models`, `timm.create_model("dearkd_tiny_patch16_224")` works. A DearKD is timm's VisionTransformer
with `MHCA` in its first blocks, and timm can use it as any ViT.
"""

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import Attention, LayerNorm, get_norm_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import checkpoint_filter_fn
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import nn

from dearkd.errors import InputError
from dearkd.model.attention import MHCA
from dearkd.model.gated import GPSA
from dearkd.plan.stage import DEARKD_HEADS, SIZES, Rpe
from dearkd.schema import build

_CFG = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "license": "apache-2.0",
    "fixed_input_size": True,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
default_cfgs = generate_default_cfgs(
    {
        "dearkd_tiny_patch16_224": _CFG,
        "dearkd_small_patch16_224": _CFG,
        "dearkd_base_patch16_224": _CFG,
    }
)


class DearKD(VisionTransformer):
    """A ViT whose first `n_mhca` blocks are MHCA and the rest MHSA (Sec. 5.1); the class token is there from the start.

    Args:
        n_mhca: blocks with MHCA; 0 gives plain DeiT with this number of heads.
        rpe: knobs of the position encoding, as `stage.Rpe` or a mapping of its fields.
        Others: those of timm's VisionTransformer; `img_size` and `set_input_size` change the image size.

    Raises InputError for an argument that MHCA cannot serve: dynamic_img_size, patch_drop_rate, another attn_layer or
    block_fn, n_mhca beyond the depth, an unknown knob.
    """

    def __init__(
        self, *args: Any, n_mhca: int = 8, rpe: Rpe | Mapping[str, Any] | tuple = Rpe(), **kwargs: Any
    ) -> None:
        _refuse(n_mhca, kwargs)
        super().__init__(*args, **{**kwargs, "weight_init": "skip"})
        if not 0 <= n_mhca <= len(self.blocks):
            raise InputError(
                f"n_mhca is {n_mhca}, but the model has {len(self.blocks)} blocks; take 0 to {len(self.blocks)}"
            )
        rpe = rpe if isinstance(rpe, Rpe) else build(Rpe, dict(rpe) if isinstance(rpe, tuple) else rpe, "rpe")
        self.n_mhca, self.rpe = n_mhca, rpe
        for block in self.blocks[:n_mhca]:
            plain = block.attn
            assert isinstance(plain, Attention)
            block.attn = (GPSA if rpe.mix == "gated" else MHCA)(
                self.embed_dim,
                plain.num_heads,
                self.patch_embed.grid_size,
                self.num_prefix_tokens,
                rpe,
                qkv_bias=plain.qkv.bias is not None,
                qk_norm=kwargs.get("qk_norm", False),
                scale_norm=kwargs.get("scale_attn_norm", False),
                proj_bias=plain.proj.bias is not None,
                attn_drop=plain.attn_drop.p,
                proj_drop=plain.proj_drop.p,
                norm_layer=get_norm_layer(kwargs.get("norm_layer")) or LayerNorm,
                device=kwargs.get("device"),
                dtype=kwargs.get("dtype"),
            )
        mode = kwargs.get("weight_init", "")
        self.weight_init_mode = "reset" if mode == "skip" else mode
        if mode != "skip":
            self.init_weights(needs_reset=False)

    def convolutional(self) -> list[MHCA]:
        """The MHCA of the first blocks, in order."""
        return [module for module in self.modules() if isinstance(module, MHCA)]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names without weight decay: timm's, and alpha and Delta by name, since Delta is a matrix (heads, 2).

        At lr 2e-3 and weight decay 0.05 the sum of their product over 300 epochs is about 9: decay would erase them.
        """
        positions = set() if self.rpe.weight_decay else {n for n, _ in self.named_parameters() if ".rpe." in n}
        return super().no_weight_decay() | positions

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Change the image size. timm resamples positions; distances stay in patches (`rpe.coord`)."""
        super().set_input_size(img_size, patch_size)
        for attention in self.convolutional():
            attention.rpe.set_grid(self.patch_embed.grid_size)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as torch does, and also weights that fit a ViT only after a change, with a warning.

        Positions of another grid and patches of another size are resampled as timm does. The weights of a plain ViT
        have no position encoding: alpha and Delta of all MHCA blocks keep their values.
        """
        own = self.state_dict()
        moved = [n for n in _RESAMPLED if n in own and n in state_dict and own[n].shape != state_dict[n].shape]
        if moved:
            with contextlib.suppress(RuntimeError):  # weights of no grid: torch names what differs
                state_dict = checkpoint_filter_fn(dict(state_dict), self)
                warnings.warn(
                    f"{', '.join(moved)}: the weights were resampled to {self.patch_embed.grid_size} patches",
                    stacklevel=2,
                )
        positions = {name: value for name, value in own.items() if ".rpe." in name}
        if positions and not positions.keys() & state_dict.keys():
            state_dict = {**state_dict, **positions}
            warnings.warn(
                f"the weights are a plain ViT's, so alpha and Delta of the {self.n_mhca} MHCA blocks keep their values",
                stacklevel=2,
            )
        return super().load_state_dict(state_dict, strict, assign)

    def __prepare_scriptable__(self) -> "DearKD":
        raise InputError("torch.jit.script cannot read MHCA; use torch.export, torch.compile or torch.jit.trace")


_RESAMPLED = ("pos_embed", "patch_embed.proj.weight")
"""Weights whose shape follows from the image's and the patches' size."""


def _refuse(n_mhca: int, kwargs: Mapping[str, Any]) -> None:
    """Raise InputError for an argument of timm's VisionTransformer that MHCA cannot serve."""
    if kwargs.get("dynamic_img_size"):
        raise InputError(
            "dynamic_img_size: MHCA's position encoding is built for one grid; call set_input_size instead"
        )
    if not n_mhca:
        return
    if kwargs.get("patch_drop_rate"):
        raise InputError(
            "patch_drop_rate: MHCA must know where each token comes from, and timm's PatchDropout does not tell; "
            "leave it at 0, or set n_mhca: 0"
        )
    if kwargs.get("attn_layer", "attn") not in ("", "attn", Attention):
        raise InputError("attn_layer: the first blocks attend by MHCA; leave attn_layer out, or set n_mhca: 0")
    if kwargs.get("block_fn", Block) not in (Block, ResPostBlock):
        raise InputError("block_fn: MHCA replaces the attribute `attn` of a block; take timm's Block or ResPostBlock")


def _dearkd(size: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """A DearKD, or with `features_only` timm's wrapper of one."""
    kwargs = {**SIZES[size], "num_heads": DEARKD_HEADS[size], **kwargs}
    return build_model_with_cfg(
        DearKD,
        f"dearkd_{size}_patch16_224",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def dearkd_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DearKD-Ti: DeiT-Ti with 12 heads instead of 3, 8 MHCA and 4 MHSA blocks; 5,717,704 parameters."""
    return _dearkd("tiny", pretrained, **kwargs)


@register_model
def dearkd_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DearKD-S: DeiT-S with 12 heads instead of 6; 22,050,952 parameters."""
    return _dearkd("small", pretrained, **kwargs)


@register_model
def dearkd_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DearKD-B: DeiT-B with 16 heads instead of 12; 86,568,040 parameters."""
    return _dearkd("base", pretrained, **kwargs)
