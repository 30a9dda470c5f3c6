"""The images of a training step: the keyed order of an epoch, augmentation, and the loaders of micro-batches.

Every random choice has a key (`keys.py`). The micro-batch (epoch, step, group) has the same pixels with any number of
workers or processes.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dearkd.data.augment import Transform
from dearkd.data.images import Images
from dearkd.keys import numpy_generator, seed_cpu, torch_generator
from dearkd.plan.stage import Augment, Data
from dearkd.schema import InputError


def epoch_order(size: int, draws: int, repeats: int, seed: int, epoch: int) -> Int[np.ndarray, " draws"]:
    """Indices of one epoch: shuffled passes over `size` images, each index `repeats` times in a row, cut at `draws`.

    With repeats 3 this is DeiT's repeated augmentation. An epoch then shows a third of the images three times, and
    neighbours in the order are in different micro-batches.
    """
    distinct = -(-draws // repeats)
    passes = [numpy_generator(seed, "order", epoch, i).permutation(size) for i in range(-(-distinct // size))]
    return np.repeat(np.concatenate(passes)[:distinct], repeats)[:draws]


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """The images of one forward pass: `indices` into the data set, at `positions` of the epoch's order."""

    epoch: int
    step: int
    group: int
    indices: tuple[int, ...]
    positions: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The micro-batches of a process, from any step on.

    size: number of images in the subset. draws: number of images in an epoch. rank, processes: this process among all
    that share the batch. Each process gets whole micro-batches, so pixels and random choices do not depend on the
    number of processes.
    """

    size: int
    draws: int
    batch: int
    micro_batch: int
    repeats: int
    seed: int
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.steps_per_epoch == 0:
            raise InputError(f"an epoch shows {self.draws} images, fewer than one batch of {self.batch}; lower `batch`")
        if self.groups % self.processes:
            raise InputError(
                f"{self.processes} processes cannot share {self.groups} micro-batches evenly; "
                f"choose a number that divides {self.groups}, or a smaller micro_batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in an epoch."""
        return self.draws // self.batch

    @property
    def groups(self) -> int:
        """Number of micro-batches in a batch, of all processes."""
        return self.batch // self.micro_batch

    def batches(self, first_step: int, last_step: int) -> Iterator[MicroBatch]:
        """This process's micro-batches of steps first_step to last_step - 1, counted over the whole run."""
        share = self.groups // self.processes
        order, order_epoch = np.empty(0), -1
        for step in range(first_step, last_step):
            epoch, within = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.size, self.draws, self.repeats, self.seed, epoch), epoch
            for group in range(self.rank * share, (self.rank + 1) * share):
                positions = np.arange(group, self.batch, self.groups) + within * self.batch
                yield MicroBatch(epoch, step, group, tuple(order[positions].tolist()), tuple(positions.tolist()))


@dataclasses.dataclass(frozen=True)
class Decisions:
    """A teacher's hard labels, computed ahead (`jobs/labels.py`).

    shards: by number of the shard an array (epochs, draws) of uint16, the label at each position of an epoch's order.
    epochs: number of epochs of a shard.
    """

    shards: dict[int, np.ndarray]
    epochs: int

    def of(self, batch: MicroBatch) -> Int[Tensor, " batch"]:
        """Labels of a micro-batch, in its order."""
        shard, epoch = divmod(batch.epoch, self.epochs)
        return torch.from_numpy(self.shards[shard][epoch, list(batch.positions)].astype(np.int64))


# ---------------------------------------------------------------------------------------------- pixels


class TrainingImages(torch.utils.data.Dataset):
    """Augmented micro-batches. `__getitems__` takes a MicroBatch, so that a worker decodes and augments it whole."""

    def __init__(
        self, images: Images, data: Data, augment: Augment, seed: int, device: torch.device = torch.device("cpu")
    ) -> None:
        self.images, self.data, self.augment, self.seed, self.device = images, data, augment, seed, device
        self.transform = Transform(data, augment) if augment.kind == "timm" else None
        self.mean, self.std = (v.to(device) for v in _moments(data))
        self.labels = torch.from_numpy(images.labels).to(device)
        self.pixels = None
        if self.transform is None and images.pixels is not None and images.pixels.shape[1] == data.image_size:
            self.pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, batch: MicroBatch) -> "tuple[MicroBatch, Tensor, Tensor] | InputError":
        """(batch, normalised images, labels). An InputError is returned, so that it passes from worker to trainer."""
        try:
            pixels = self._whole(batch) if self.transform is None else self._per_image(batch, self.transform)
        except InputError as error:
            return error
        return batch, pixels, self.labels[self._chosen(batch)]

    def _chosen(self, batch: MicroBatch) -> Int[Tensor, " batch"]:
        return torch.tensor(batch.indices).to(self.device, non_blocking=True)

    def _per_image(self, batch: MicroBatch, transform: Transform) -> Float[Tensor, "batch channels height width"]:
        side = self.data.image_size
        pixels = torch.empty(len(batch.indices), self.data.channels, side, side)
        for index, position, out in zip(batch.indices, batch.positions, pixels, strict=True):
            seed_cpu(self.seed, "augment", batch.epoch, position, index)
            transform(self.images, index, out)
        return pixels

    def _whole(self, batch: MicroBatch) -> Float[Tensor, "batch channels height width"]:
        if self.pixels is None:
            pixels = whole_pixels(self.images, batch.indices, self.data).to(self.device)
        else:
            pixels = self.pixels[self._chosen(batch)].float() / 255
        if self.augment.kind == "affine":
            pixels = affine(
                pixels, self.augment, torch_generator(self.seed, "augment", batch.epoch, batch.step, batch.group)
            )
        return (pixels - self.mean) / self.std


def whole_pixels(images: Images, indices: Sequence[int], data: Data) -> Float[Tensor, "batch channels height width"]:
    """The images in [0, 1] at the data set's size, without augmentation."""
    if images.pixels is not None and images.pixels.shape[1] == data.image_size:
        return torch.from_numpy(images.pixels[list(indices)]).permute(0, 3, 1, 2).float() / 255
    transform = _evaluation_transform(data)
    return torch.stack([transform(images.open(i, data.channels)) for i in indices])


def affine(
    pixels: Float[Tensor, "batch channels height width"], augment: Augment, generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Shift, rotate and zoom each image by its own uniform draw. Pixels from outside the image are 0.

    `generator` is on the CPU for pixels on any device, so that the draws are the same everywhere.
    """
    batch, _, side, _ = pixels.shape
    angle, zoom, down, right = 2 * torch.rand(4, batch, generator=generator) - 1
    angle, zoom = angle * augment.rotate * torch.pi / 180, 1 + zoom * augment.zoom
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    unit = 2 * augment.shift / side
    theta = torch.stack([torch.stack([cos, -sin, right * unit], 1), torch.stack([sin, cos, down * unit], 1)], 1)
    grid = F.affine_grid(theta.to(pixels.device, non_blocking=True), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def training_loader(
    images: Images,
    data: Data,
    augment: Augment,
    schedule: Schedule,
    first_step: int,
    last_step: int,
    workers: int,
    device: torch.device = torch.device("cpu"),
) -> Iterator[tuple[MicroBatch, Tensor, Tensor]]:
    """Micro-batches of a span of steps, decoded by `workers` processes. The number of workers changes no pixel.

    Images in memory are kept and augmented on the `device`. Others arrive in pinned memory, from which the device can
    copy without the CPU. Raises InputError naming an image that cannot be read.
    """
    batches: Any = schedule.batches(first_step, last_step)  # the DataLoader's types know lists of indices alone
    made: Iterable[tuple[MicroBatch, Tensor, Tensor] | InputError]
    if device.type != "cpu" and augment.kind != "timm" and images.pixels is not None:
        made = map(TrainingImages(images, data, augment, schedule.seed, device).__getitems__, batches)
    else:
        made = torch.utils.data.DataLoader(
            TrainingImages(images, data, augment, schedule.seed),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
        )
    for item in made:
        if isinstance(item, InputError):
            raise item
        yield item


class EvaluationImages(torch.utils.data.Dataset):
    """Images resized and centre-cropped for evaluation. `__getitems__` takes a range of indices."""

    def __init__(self, images: Images, data: Data) -> None:
        self.images, self.data = images, data
        self.mean, self.std = _moments(data)

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            pixels = whole_pixels(self.images, indices, self.data)
        except InputError as error:
            return error
        return (pixels - self.mean) / self.std, torch.from_numpy(self.images.labels[indices])


def evaluation_loader(images: Images, data: Data, batch: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """(normalised images, labels) in order, without augmentation. Raises InputError naming an unreadable image."""
    spans = [list(range(i, min(i + batch, len(images)))) for i in range(0, len(images), batch)]
    for item in torch.utils.data.DataLoader(
        EvaluationImages(images, data), batch_sampler=spans, num_workers=workers, collate_fn=_unchanged
    ):
        if isinstance(item, InputError):
            raise item
        yield item


def _unchanged(item: Any) -> Any:
    return item


def _moments(data: Data) -> tuple[Tensor, Tensor]:
    return torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]


def _evaluation_transform(data: Data) -> Any:
    """Resize, centre crop and scale to [0, 1]. At crop 0.875 these are DeiT's 256 and 224."""
    from torchvision.transforms import v2

    side = round(data.image_size / data.crop)
    return v2.Compose(
        [
            v2.Resize(side, interpolation=v2.InterpolationMode(data.interpolation), antialias=True),
            v2.CenterCrop(data.image_size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
