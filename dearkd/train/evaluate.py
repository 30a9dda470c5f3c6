"""Measures of a model: predictions, top-1 and top-5, and the average attention distance of Figure 4."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dearkd.errors import InputError
from dearkd.model.attention import MHCA
from dearkd.train.optimise import autocast


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]],
    device: torch.device,
    precision: str = "fp32",
) -> tuple[Float[Tensor, "n classes"], Int[Tensor, " n"]]:
    """(logits in fp32, labels) of a data set, in order. The model's mode is restored.

    precision: in which a GPU computes: bf16, fp16 or fp32.
    """
    training = model.training
    model.eval()
    logits, labels = [], []
    for images, target in batches:
        with autocast(precision, device):
            logits.append(model(images.to(device, non_blocking=True)).float().cpu())
        labels.append(target)
    model.train(training)
    return torch.cat(logits), torch.cat(labels)


def accuracy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], k: int = 1) -> float:
    """Top-k accuracy in percent."""
    return 100.0 * hits(logits, labels, k).float().mean().item()


def hits(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], k: int = 1) -> Bool[Tensor, " n"]:
    """Whether the label is among the k classes of the largest logits."""
    return (logits.topk(min(k, logits.shape[1]), dim=1).indices == labels[:, None]).any(1)


@torch.no_grad()
def attention_distance(
    model: VisionTransformer, images: Float[Tensor, "batch rgb height width"]
) -> Float[Tensor, "layers heads"]:
    """Average distance in patches between a query and the keys that it attends to (Figure 4, Sec. 3.2).

    The value of a layer and head is the sum over keys of attention times distance, averaged over patch queries and
    images. Uniform attention on a 14 x 14 grid gives 7.281 patches.
    Raises InputError where `attended` does.
    """
    rows, columns = model.patch_embed.grid_size
    positions = torch.cartesian_prod(torch.arange(float(rows)), torch.arange(float(columns))).to(images.device)
    apart = torch.cdist(positions, positions)
    return torch.stack([(layer * apart).sum(-1).mean((0, 2)) for layer in attention_maps(model, images)])


@torch.no_grad()
def attention_maps(
    model: VisionTransformer, images: Float[Tensor, "batch rgb height width"]
) -> Iterator[Float[Tensor, "batch heads patches patches"]]:
    """The attention of each patch (rows) to each patch, layer by layer; one layer at a time is in memory.

    Class and distillation tokens are neither queries nor keys here: each row is a softmax over patches alone.
    Raises InputError where `attended` does.
    """
    training = model.training
    model.eval()
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    for block, attention in attended(model):
        logits = _logits(attention, block.norm1(x))
        yield logits[:, :, model.num_prefix_tokens :, model.num_prefix_tokens :].softmax(-1)
        x = block(x)
    model.train(training)


def attended(model: VisionTransformer) -> list[tuple[Block, Attention]]:
    """The blocks of a transformer and their attention. Raises InputError when timm's `Block` is not the type of all."""
    found = [(block, block.attn) for block in model.blocks if isinstance(block, Block)]
    usual = [(block, attention) for block, attention in found if isinstance(attention, Attention)]
    if len(usual) < len(model.blocks):
        raise InputError(
            f"attention: {type(model).__name__} has other blocks than timm's with `Attention`; set attention_images: 0"
        )
    return usual


def _logits(attention: Attention, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens tokens"]:
    """Attention logits of MHCA or of timm's MHSA."""
    if isinstance(attention, MHCA):
        return attention.logits(x)
    batch, tokens, _ = x.shape
    qkv = attention.qkv(x).reshape(batch, tokens, 3, attention.num_heads, attention.head_dim)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return attention.q_norm(q).float() @ attention.k_norm(k).float().transpose(-2, -1) * attention.scale
