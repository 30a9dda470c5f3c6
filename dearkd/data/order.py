"""The keyed order of an epoch, and the micro-batches of each process.

The micro-batch (epoch, step, group) shows the same images with any number of processes.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from dearkd.errors import InputError
from dearkd.keys import numpy_generator


def epoch_order(size: int, draws: int, repeats: int, seed: int, epoch: int) -> Int[np.ndarray, " draws"]:
    """Indices of one epoch: shuffled passes over `size` images, each index `repeats` times in a row, cut at `draws`.

    With repeats 3 this is DeiT's repeated augmentation. An epoch then shows a third of the images three times, and
    neighbours in the order go to different micro-batches.
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


Loaded = tuple[MicroBatch, Shaped[Tensor, "batch channels height width"], Int[Tensor, " batch"]]
"""A micro-batch with its images and labels. Images are normalised, or of eight bits until the device finishes them."""


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
