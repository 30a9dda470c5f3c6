"""The images of a training step: augmentation, and the loaders of micro-batches.

Every random choice has a key (`keys.py`). The micro-batch (epoch, step, group) has the same pixels with any number of
workers or processes.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from dearkd.data.arrival import Finish, arriving, moments
from dearkd.data.augment import Transform
from dearkd.data.images import Images
from dearkd.data.order import Loaded, MicroBatch, Schedule
from dearkd.errors import InputError
from dearkd.keys import seed_cpu, torch_generator
from dearkd.plan.stage import Augment, Data


class TrainingImages(torch.utils.data.Dataset):
    """Augmented micro-batches. `__getitems__` takes a MicroBatch, so that a worker decodes and augments it whole."""

    def __init__(
        self, images: Images, data: Data, augment: Augment, seed: int, device: torch.device = torch.device("cpu")
    ) -> None:
        self.images, self.data, self.augment, self.seed, self.device = images, data, augment, seed, device
        self.transform = Transform(data, augment) if augment.kind == "timm" else None
        self.mean, self.std = (v.to(device) for v in moments(data))
        self.labels = torch.from_numpy(images.labels).to(device)
        self.pixels = None
        if self.transform is None and images.pixels is not None and images.pixels.shape[1] == data.image_size:
            self.pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, batch: MicroBatch) -> Loaded | InputError:
        """(batch, images, labels); normalised, or of eight bits where the device finishes them.

        An InputError is returned, so that it passes from worker to trainer.
        """
        try:
            pixels = self._whole(batch) if self.transform is None else self._per_image(batch, self.transform)
        except InputError as error:
            return error
        return batch, pixels, self.labels[self._chosen(batch)]

    def _chosen(self, batch: MicroBatch) -> Int[Tensor, " batch"]:
        return torch.tensor(batch.indices).to(self.device, non_blocking=True)

    def _per_image(self, batch: MicroBatch, transform: Transform) -> Shaped[Tensor, "batch channels height width"]:
        side, kind = self.data.image_size, torch.uint8 if self.augment.finish == "device" else torch.float32
        pixels = torch.empty(len(batch.indices), self.data.channels, side, side, dtype=kind)
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
) -> Iterator[Loaded]:
    """Micro-batches of a span of steps, decoded by `workers` processes. The number of workers changes no pixel.

    Images in memory are kept and augmented on the `device`. Others arrive in pinned memory, from which a GPU copies
    the next micro-batch while it learns from the last one. Raises InputError naming an image that cannot be read.
    """
    batches: Any = schedule.batches(first_step, last_step)  # the DataLoader's types know lists of indices alone
    if device.type != "cpu" and augment.kind != "timm" and images.pixels is not None:
        return _sound(map(TrainingImages(images, data, augment, schedule.seed, device).__getitems__, batches))
    made = torch.utils.data.DataLoader(
        TrainingImages(images, data, augment, schedule.seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
    )
    finish = Finish(data, augment, schedule.seed, device) if augment.finish == "device" else None
    return _sound(made) if device.type == "cpu" and finish is None else arriving(_sound(made), device, finish)


def _sound(made: Iterable[Any]) -> Iterator[Any]:
    """What a loader made. Raises it where it is an InputError."""
    for item in made:
        if isinstance(item, InputError):
            raise item
        yield item


class EvaluationImages(torch.utils.data.Dataset):
    """Images resized and centre-cropped for evaluation. `__getitems__` takes a range of indices."""

    def __init__(self, images: Images, data: Data) -> None:
        self.images, self.data = images, data
        self.mean, self.std = moments(data)

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            pixels = whole_pixels(self.images, indices, self.data)
        except InputError as error:
            return error
        return (pixels - self.mean) / self.std, torch.from_numpy(self.images.labels[indices])


def evaluation_loader(
    images: Images, data: Data, batch: int, workers: int = 0
) -> Iterator[tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]]:
    """(normalised images, labels) in order, without augmentation. Raises InputError naming an unreadable image."""
    spans = [list(range(i, min(i + batch, len(images)))) for i in range(0, len(images), batch)]
    return _sound(
        torch.utils.data.DataLoader(
            EvaluationImages(images, data), batch_sampler=spans, num_workers=workers, collate_fn=_unchanged
        )
    )


def _unchanged(item: Any) -> Any:
    return item


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
