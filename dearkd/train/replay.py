"""A step of training as one CUDA graph: the same kernels in the same order, launched at once.

A step of a small student is some 500 kernels of a few microseconds each. Launching them one by one takes several times
longer than running them. The random numbers equal those of the eager step, because a graph reads the generator's seed
when it is replayed.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

WARM = 3
"""Number of eager steps before the first capture. They create the optimiser's moments and let libraries settle."""


class Replayed:
    """A call of `work(*tensors)`: kernel by kernel the first `WARM` times, then replayed from a CUDA graph.

    `work` returns nothing, waits for nothing, and uses the device alone. Its tensors keep their shapes. The key stands
    for what the graph holds as a constant (the learning rate); a new key captures a new graph.
    """

    def __init__(self, work: Callable[..., None]) -> None:
        self.work = work
        self.calls = 0
        self.key: Hashable = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor | None, ...] = ()
        self.stream: torch.cuda.Stream | None = None
        self.pool: Any = None

    def __call__(self, key: Hashable, *tensors: Tensor | None) -> None:
        if self.stream is None:
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        if self.calls < WARM:
            self.calls += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.work(*tensors)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graph is None:
            self.inputs = tuple(t if t is None else t.clone() for t in tensors)
        if self.key != key or self.graph is None:
            self.key, self.graph = key, self._capture()  # the one before lives until then: a pool must not be empty
        for kept, given in zip(self.inputs, tensors, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given, non_blocking=True)
        self.graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The graph of `work` on the inputs; nothing runs. `torch.cuda.graph` would collect garbage each time."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool)
            try:
                self.work(*self.inputs)
            finally:
                graph.capture_end()
        return graph
