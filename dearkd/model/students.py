"""The students, registered in timm, and what training wraps around one.

After `import dearkd.models`, `timm.create_model("dearkd_tiny_patch16_224")` works. A DearKD is timm's VisionTransformer
with `MHCA` in its first blocks, and timm can use it as any ViT.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float
from timm.layers import Attention, LayerNorm, get_norm_layer, resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, group_parameters, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.deit import checkpoint_filter_fn
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from dearkd.keys import key_of, torch_generator
from dearkd.model import t2t  # noqa: F401  registers its models in timm
from dearkd.model.aligner import ALIGNERS
from dearkd.model.attention import MHCA
from dearkd.model.gated import GPSA
from dearkd.plan.stage import DEARKD_HEADS, LOSSES, SIZES, Distillation, Model, Rpe
from dearkd.schema import InputError, build, unknown

_CFG = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic", "license": "apache-2.0"}
_VIT = {**_CFG, "fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}
_CNN = {**_CFG, "first_conv": "stem.conv", "classifier": "head.fc"}
default_cfgs = generate_default_cfgs(
    {
        "dearkd_tiny_patch16_224": _VIT,
        "dearkd_small_patch16_224": _VIT,
        "dearkd_base_patch16_224": _VIT,
        "convnet_micro": _CNN,
        "resnet56_cifar": _CNN,
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
            raise InputError(f"n_mhca {n_mhca} is more than the {len(self.blocks)} blocks of the model, or less than 0")
        rpe = rpe if isinstance(rpe, Rpe) else build(Rpe, dict(rpe), "rpe")
        self.n_mhca, self.rpe = n_mhca, rpe
        for block in self.blocks[:n_mhca]:
            plain = block.attn
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
        for block in self.blocks[: self.n_mhca]:
            block.attn.rpe.set_grid(self.patch_embed.grid_size)

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
                warnings.warn(f"{', '.join(moved)}: resampled to {self.patch_embed.grid_size} patches", stacklevel=2)
        positions = {name: value for name, value in own.items() if ".rpe." in name}
        if positions and not positions.keys() & state_dict.keys():
            state_dict = {**state_dict, **positions}
            warnings.warn(
                f"weights of a plain ViT: alpha and Delta of the {self.n_mhca} MHCA blocks keep the values they have",
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
        raise InputError("dynamic_img_size: the position encoding is built for one grid; call set_input_size instead")
    if not n_mhca:
        return
    if kwargs.get("patch_drop_rate"):
        raise InputError(
            "patch_drop_rate: MHCA must know where each token comes from, and timm's PatchDropout does not tell; "
            "leave it at 0, or set n_mhca: 0"
        )
    if kwargs.get("attn_layer", "attn") not in ("", "attn", Attention):
        raise InputError("attn_layer: MHCA is the first blocks' attention; leave it out, or set n_mhca: 0")
    if kwargs.get("block_fn", Block) not in (Block, ResPostBlock):
        raise InputError("block_fn: MHCA takes the place of a block's attn; use timm's Block or ResPostBlock")


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


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """ResNet-56 for images of 32 pixels (He et al. 2016, projecting shortcuts): 861,620 parameters for 100 classes."""
    return convnet_micro(pretrained, widths=(16, 32, 64), depths=(9, 9, 9), strides=(1, 2, 2), **kwargs)


@register_model
def convnet_micro(
    pretrained: bool = False,
    widths: tuple[int, ...] = (24, 48, 64),
    depths: tuple[int, ...] = (1, 1, 1),
    strides: tuple[int, ...] = (1, 2, 2),
    **kwargs: Any,
) -> ByobNet:
    """A residual CNN with BatchNorm for images of a dozen pixels: the teacher of the small scales.

    Built from timm's blocks, so its stages, features and statistics are read as any timm CNN's. The stem keeps the
    side (timm's stems halve it, which costs 5 points at 12 pixels); stage k has `depths[k]` basic blocks of `widths[k]`
    channels and stride `strides[k]`.
    """
    blocks = tuple(ByoBlockCfg(type="basic", d=d, c=c, s=s) for d, c, s in zip(depths, widths, strides, strict=True))
    cfg = ByoModelCfg(blocks=blocks, stem_type="3x3", stem_pool="", stem_chs=widths[0])
    net = build_model_with_cfg(
        ByobNet, "convnet_micro", pretrained, model_cfg=cfg, feature_cfg={"flatten_sequential": True}, **kwargs
    )
    net.stem.conv.stride = (1, 1)
    return net


def create(model: Model, seed: int) -> nn.Module:
    """A freshly initialised model. Students with a common parameter name and shape start from the same value.

    Raises InputError naming the model when timm knows none of that name, or refuses its arguments.
    """
    torch.manual_seed(key_of(seed, "init"))
    net = _from_timm(model)
    if model.stem_stride:
        net.get_submodule(net.pretrained_cfg["first_conv"]).stride = (model.stem_stride, model.stem_stride)
    if model.init != "timm":
        _initialise(net, model.init, seed)
    return net


def sketch(model: Model) -> nn.Module:
    """The same network on torch's `meta` device, without values, to see its shapes and whether it can be built."""
    with torch.device("meta"):
        return _from_timm(model)


def _from_timm(model: Model) -> nn.Module:
    if not timm.is_model(model.name):
        raise InputError(unknown(model.name, timm.list_models(), "model", "timm"))
    try:
        return timm.create_model(model.name, **_arguments(model))
    except (RuntimeError, TypeError, AssertionError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"model {model.name}: {' '.join(str(error).split())[:300]}") from None


def _arguments(model: Model) -> dict[str, Any]:
    return {k: dict(v) if k == "rpe" else v for k, v in model.args}


def _initialise(net: nn.Module, init: str, seed: int) -> None:
    """Redraw each random weight from a generator keyed by its name.

    deit: truncated normal of std 0.02 for linear weights, positions and tokens (timm's own class token starts at 1e-6);
    the patch convolution keeps torch's default. fan_in: std 1/sqrt(fan in) for linear and patch weights, 0.5 for
    positions: at width 36 the std of 0.02, right for 192, makes every block the identity.
    """
    for name, parameter in net.named_parameters():
        generator = torch_generator(seed, "init", name)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
        if ".rpe." in name or parameter.ndim == 1 or not parameter.requires_grad:
            continue
        if name.endswith("_token"):
            std = 0.02
        elif name == "pos_embed":
            std = 0.02 if init == "deit" else 0.5
        elif name.startswith("patch_embed.") and init == "deit":
            bound = 1 / math.sqrt(fan_in)  # torch's kaiming_uniform_(a=sqrt(5))
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
            continue
        else:
            std = 0.02 if init == "deit" else 1 / math.sqrt(fan_in)
        nn.init.trunc_normal_(parameter, std=std, generator=generator)
    if isinstance(net, DearKD) and net.rpe.value_identity:
        with torch.no_grad():
            for block in net.blocks[: net.n_mhca]:
                block.attn.qkv.weight[-net.embed_dim :] = torch.eye(net.embed_dim)


def adopt(student: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Take over the weights of a trained student, except its classifiers. Positions are resampled to this grid.

    The resampling is timm's bicubic one, as in DeiT's fine-tuning at another resolution. A CNN takes over all weights.
    """
    own = student.state_dict()
    if not isinstance(student, VisionTransformer):
        student.load_state_dict({**own, **weights})
        return
    kept = {k: v for k, v in weights.items() if not k.startswith(("head.", "head_dist."))}
    kept["pos_embed"] = resample_abs_pos_embed(
        kept["pos_embed"], list(student.patch_embed.grid_size), num_prefix_tokens=student.num_prefix_tokens
    )
    student.load_state_dict({**own, **kept})


class Outputs(NamedTuple):
    """The outputs of a student for a batch."""

    logits: Float[Tensor, "batch classes"]
    """The prediction, from the class token."""
    taught: Float[Tensor, "batch classes"] | None
    """Logits that learn the teacher's decision: pooled content tokens (DearKD) or the distillation token (DeiT).

    Without a teacher (fine-tuning) the distillation token learns the true labels.
    """
    hidden: tuple[Float[Tensor, "batch channels height width"], ...]
    """Aligned block outputs, in the order of the pairs."""


class Trainee(nn.Module):
    """A student and the parts that stage I adds, as one module to train. `auxiliary` is dropped at the stage's end.

    Args:
        student: ViT or CNN.
        losses: names of the stage's losses, which decide what is built.
        knobs: Distillation where one of the losses needs it.
        features: shape (channels, height, width) and sign of the teacher's feature map, one per pair.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: tuple[str, ...] = ("ce",),
        knobs: Distillation | None = None,
        features: tuple["FeatureShape", ...] = (),
    ) -> None:
        super().__init__()
        self.student, self.knobs = student, knobs
        self.wants_token, self.wants_pooled, self.wants_hidden = (
            not {"token", "token_label", "soft_token"}.isdisjoint(losses),
            not {"logit", "soft_logit"}.isdisjoint(losses),
            any(LOSSES[name].aligner for name in losses),
        )
        self.auxiliary = nn.ModuleDict()
        if self.wants_pooled and knobs.pooled_head == "separate":
            self.auxiliary["pooled_head"] = nn.Linear(student.embed_dim, student.num_classes)
            nn.init.trunc_normal_(self.auxiliary["pooled_head"].weight, std=0.02)
            nn.init.zeros_(self.auxiliary["pooled_head"].bias)
        if self.wants_hidden:
            grid, aligner = student.patch_embed.grid_size, next(a for n in losses if (a := LOSSES[n].aligner))
            for (block, _), f in zip(knobs.pairs, features, strict=True):
                made = ALIGNERS[aligner](student.embed_dim, grid, f.channels, f.size, f.nonnegative)
                self.auxiliary[f"aligner{block}"] = made

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, by their names here: the student's, and those of an orthogonal projector."""
        names = {
            name for name, _ in self.auxiliary.named_parameters(prefix="auxiliary") if ".parametrizations." in name
        }
        return names | {f"student.{name}" for name in getattr(self.student, "no_weight_decay", set)()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """timm's layer of a parameter, as in the student; `auxiliary` is in the last layer."""
        layers = group_parameters(self.student, self.student.group_matcher(coarse), reverse=True)
        return lambda name: layers.get(name.removeprefix("student."), max(layers.values()))

    def forward(self, images: Float[Tensor, "batch rgb height width"]) -> Outputs:
        """One forward pass. timm's `forward_intermediates` returns the hidden block outputs; there are no hooks."""
        student = self.student
        if not isinstance(student, VisionTransformer):
            return Outputs(student(images), None, ())
        blocks = [block - 1 for block, _ in self.knobs.pairs] if self.wants_hidden else []
        last = len(student.blocks) - 1
        tokens, streams = student.forward_intermediates(images, indices=[*blocks, last], output_fmt="NLC")
        stream = dict(zip(sorted({*blocks, last}), streams, strict=True))
        taught = None
        if self.wants_token:
            taught = student.head_dist(tokens[:, 1])
        elif self.wants_pooled:
            content = stream[last] if self.knobs.pool_before_norm else tokens[:, student.num_prefix_tokens :]
            head = self.auxiliary["pooled_head"] if self.knobs.pooled_head == "separate" else student.head
            taught = head(content.mean(1))
        hidden = tuple(
            self.auxiliary[f"aligner{block + 1}"](
                student.norm(stream[block]) if self.knobs.hidden_ln else stream[block]
            )
            for block in blocks
        )
        return Outputs(student.head(tokens[:, 0]), taught, hidden)


class FeatureShape(NamedTuple):
    """Shape of one image's feature map at a teacher's stage, and whether it is never negative."""

    channels: int
    size: tuple[int, int]
    nonnegative: bool
