"""A step of training as CUDA graphs, one a micro-batch: the same kernels in the same order, launched at once.

A step of a small student is some 500 kernels of a few microseconds each. Launching them one by one takes several times
longer than running them. The random numbers equal those of the eager step, because a graph reads the generator's seed
when it is replayed.
"""

import os
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from dearkd.errors import InputError, unknown

WARM = 3
"""Number of eager steps before the first capture. They create the optimiser's moments and let libraries settle."""
GRAPHS = "DEARKD_CUDA_GRAPHS"
"""Environment variable that says which steps are replayed, as a key of `ASKED`."""
ASKED = {"off": "none", "tested": "steps of one micro-batch that are not compiled, as a card has tested", "all": "all"}


def replayable(micro_batches: int, compiled: bool) -> bool:
    """Whether a step is replayed. Raises InputError for an unknown value of `GRAPHS`."""
    asked = os.environ.get(GRAPHS, "tested")
    if asked not in ASKED:
        raise InputError(unknown(asked, ASKED, "value", GRAPHS))
    return asked == "all" or (asked == "tested" and micro_batches == 1 and not compiled)


class Replayed:
    """The calls of `works`, kernel by kernel in the first `WARM` steps, then replayed from CUDA graphs.

    A step calls each of `works` once, in order, with tensors of the same shapes. One may leave gradients to the
    next; none are left at the end of a step. A work returns nothing, waits for nothing, and uses the device alone. The
    key identifies what a graph holds as a constant (the learning rate); a new key captures new graphs.
    """

    def __init__(self, *works: Callable[..., None]) -> None:
        self.works = works
        self.steps = 0
        self.keys: list[Hashable] = [None for _ in works]
        self.graphs: list[torch.cuda.CUDAGraph | None] = [None for _ in works]
        self.inputs: tuple[Tensor | None, ...] = ()
        self.stream: torch.cuda.Stream | None = None
        self.pool: Any = None

    def __call__(self, key: Hashable, *tensors: Tensor | None, place: int = 0) -> None:
        """Do the work at a place of `works`."""
        if self.stream is None:
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        if self.steps < WARM:
            self.steps += place + 1 == len(self.works)
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.works[place](*tensors)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if not self.inputs:
            self.inputs = tuple(t if t is None else t.clone() for t in tensors)
        graph = self.graphs[place]
        if graph is None or self.keys[place] != key:
            # the graph before lives until this one is captured, because a pool must not become empty
            graph = self.graphs[place] = self._capture(place)
            self.keys[place] = key
        for kept, given in zip(self.inputs, tensors, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given, non_blocking=True)
        graph.replay()

    def _capture(self, place: int) -> torch.cuda.CUDAGraph:
        """The graph of a work on the inputs; nothing runs. `torch.cuda.graph` would collect garbage each time.

        Raises InputError where CUDA cannot capture the work.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        if not any(self.graphs):
            torch.cuda.empty_cache()  # the launched steps held memory; the graphs need as much of their own
        try:
            with torch.cuda.stream(self.stream):
                # only this thread is captured: the loader's copies batches to pinned memory meanwhile
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    self.works[place](*self.inputs)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            reason = " ".join(str(error.__context__ or error).split())[:200]
            raise InputError(
                f"a step cannot be captured as a CUDA graph ({reason}); set {GRAPHS}=off, and the same command resumes"
            ) from error
        return graph
