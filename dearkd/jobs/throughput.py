"""Size and speed of architectures (Table 3), with random weights and images, each at its own image size.

They run in plain eager PyTorch in contiguous layout: no compilation, no channels-last, no folding of BatchNorm.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dearkd.errors import InputError
from dearkd.model import networks
from dearkd.plan.scale import Throughput
from dearkd.plan.stage import Model
from dearkd.progress import Progress

Rate = dict[str, int | float]
"""batch; median, q1 and q3 in images/s over the passes; on a GPU peak_mb (1e6 bytes allocated at most)."""


def size(name: str) -> dict[str, int | float]:
    """`parameters`, `input_size` (side in pixels) and `gmacs` (1e9 multiply-adds an image) of a timm architecture.

    Multiply-adds are those of convolutions and matrix products, attention included. For DearKD `gmacs` counts the fold
    that evaluation uses, whose heads are four dimensions wider, and `gmacs_dense` counts Eq. 3 as printed.
    Raises InputError when timm has no architecture of that name.
    """
    counts: dict[str, int | float] = {}
    for suffix, path in _paths(name).items():
        with torch.device("meta"):
            net = _build(name, path)
        # the cost of a second image: what a pass does once for any batch, such as DearKD's bias, is not counted
        counts[f"gmacs{suffix}"] = (_flops(net, 2) - _flops(net, 1)) / 2e9
    *_, side = _input_size(net)
    return {"parameters": sum(p.numel() for p in net.parameters()), "input_size": side, **counts}


@torch.inference_mode()
def _flops(net: nn.Module, batch: int) -> int:
    """Two for each multiply-add of a forward pass."""
    with FlopCounterMode(display=False) as counter:
        net(_images(net, batch, torch.device("meta")))
    return counter.get_total_flops()


def measure(names: Sequence[str], spec: Throughput, device: torch.device) -> dict[str, dict[str, Rate]]:
    """Forward images/s of each architecture, by `fp32` and `bf16` (autocast, on a GPU only).

    A GPU also has `fp32_largest` and `bf16_largest`, at the largest batch that fits, in doublings of the usual one.
    DearKD has its folded attention under these keys and the dense one under `fp32_dense` and `bf16_dense`.
    Architectures are measured one after the other, so that only one is in memory. A machine that slows down as it warms
    therefore measures the later ones as slower.
    Raises InputError when timm has no architecture of a name, or when a GPU cannot hold the usual batch.
    """
    torch.set_flush_denormal(True)  # activations of an untrained CNN may fade to denormals, which CPUs are slow at
    found = {}
    with Progress("throughput", len(names)) as progress, _exact_fp32():
        for done, name in enumerate(names, 1):
            found[name] = _rates(name, spec, device)
            medians = ", ".join(f"{key} {rate['median']:.1f}" for key, rate in found[name].items())
            progress.line(f"{name}: images/s {medians}")
            progress.advance(done)
    return found


def _rates(name: str, spec: Throughput, device: torch.device) -> dict[str, Rate]:
    """All rates of one architecture, whose memory is then freed."""
    cuda, found = device.type == "cuda", {}
    for suffix, path in _paths(name).items():
        net = _build(name, path).to(device)
        for precision in ("fp32", "bf16") if cuda else ("fp32",):
            half = precision == "bf16"
            try:
                found[precision + suffix] = _rate(net, spec, device, half)
            except torch.OutOfMemoryError:
                raise InputError(
                    f"throughput.batch: {spec.batch} images do not fit into the GPU's memory with {name}; lower it"
                ) from None
            if cuda and spec.largest and not suffix:
                batch = _largest(net, spec.batch, device, half)
                # as many images in all as at the usual batch, because a pass over a whole GPU's memory takes seconds
                passes = max(3, spec.repeats * spec.batch // batch)
                whole = dataclasses.replace(spec, batch=batch, warmup=1, repeats=passes)
                found[f"{precision}_largest"] = _rate(net, whole, device, half)
        del net
        torch.cuda.empty_cache()
    return found


def _rate(net: nn.Module, spec: Throughput, device: torch.device, half: bool) -> Rate:
    """Median and quartiles over `spec.repeats` passes, after `spec.warmup` that do not count."""
    if cuda := device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    images = _images(net, spec.batch, device)
    seconds = [_seconds(net, images, half) for _ in range(spec.warmup + spec.repeats)][spec.warmup :]
    rates = spec.batch / torch.tensor(seconds)
    q1, median, q3 = rates.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    peak = {"peak_mb": torch.cuda.max_memory_allocated(device) / 1e6} if cuda else {}
    return {"batch": spec.batch, "median": median, "q1": q1, "q3": q3, **peak}


@torch.inference_mode()
def _seconds(net: nn.Module, images: Float[Tensor, "batch channels side side"], half: bool) -> float:
    """Duration of one forward pass, the GPU being idle before and after."""
    wait = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    began = time.perf_counter()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        net(images)
    wait()
    return time.perf_counter() - began


def _largest(net: nn.Module, batch: int, device: torch.device, half: bool) -> int:
    """The last of batch, 2 batch, 4 batch, ... that a forward pass survives."""
    while _fits(net, 2 * batch, device, half):
        batch *= 2
    return batch


def _fits(net: nn.Module, batch: int, device: torch.device, half: bool) -> bool:
    with contextlib.suppress(RuntimeError):  # out of memory, or more elements or blocks than a kernel can count
        _seconds(net, _images(net, batch, device), half)
        return True
    torch.cuda.empty_cache()
    return False


def _paths(name: str) -> dict[str, str]:
    """Attention path by suffix of the key."""
    return {"": "folded", "_dense": "dense"} if name.startswith("dearkd_") else {"": ""}


def _build(name: str, path: str) -> nn.Module:
    """The architecture in evaluation mode; `path`: DearKD's `rpe.path`, empty for all others."""
    args = (("rpe", (("path", path),)),) if path else ()
    return networks.create(Model(name=name, args=args, init="timm"), seed=0).eval()


def _images(net: nn.Module, batch: int, device: torch.device) -> Float[Tensor, "batch channels side side"]:
    return torch.randn(batch, *_input_size(net), device=device)


def _input_size(net: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a network of timm takes."""
    config: Any = net.pretrained_cfg
    return config["input_size"]


@contextlib.contextmanager
def _exact_fp32() -> Iterator[None]:
    """No TF32 in fp32; cuDNN picks its algorithms by trial, as DeiT's code lets it. Both are restored."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
