"""Micro-batches on the device: copied ahead of use, and normalised and erased there if the recipe says so."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, UInt8
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from dearkd.data.order import Loaded, MicroBatch
from dearkd.keys import seed_all
from dearkd.plan.stage import Augment, Data


def moments(data: Data) -> tuple[Float[Tensor, "channels 1 1"], Float[Tensor, "channels 1 1"]]:
    """(mean, standard deviation) of each channel, of pixels from 0 to 1."""
    return torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]


class Finish:
    """What `Augment.finish: device` leaves to the device: normalisation and timm's random erasing.

    Which patches are erased depends on the seed and the micro-batch alone. The noise in them is drawn by the device's
    own generator, as dropout is.
    """

    def __init__(self, data: Data, augment: Augment, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self.mean, self.std = (v.to(device) for v in moments(data))
        self.erase = RandomErasing(augment.erasing, mode="pixel", min_count=1, max_count=1, device=device.type)

    def __call__(
        self, batch: MicroBatch, pixels: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """The pixels of a micro-batch, on the device, normalised and erased."""
        seed_all(self.seed, "erase", batch.epoch, batch.step, batch.group)
        return self.erase(pixels.float().div_(255).sub_(self.mean).div_(self.std))


def arriving(loaded: Iterable[Loaded], device: torch.device, finish: Finish | None) -> Iterator[Loaded]:
    """The micro-batches on a device. Each is copied and finished on a stream of its own, while the last one is in use.

    The order of calls is that of timm's PrefetchLoader.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" and torch.cuda.is_available() else None
    waiting = None
    for batch, pixels, labels in loaded:
        with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
            pixels, labels = (t.to(device, non_blocking=True) for t in (pixels, labels))
            pixels = finish(batch, pixels) if finish else pixels
        if waiting:
            yield waiting
        if stream:
            used = torch.cuda.current_stream(device)
            used.wait_stream(stream)
            for tensor in (pixels, labels):
                tensor.record_stream(used)  # or the next copy could overwrite what a step still reads
        waiting = batch, pixels, labels
    if waiting:
        yield waiting
