"""How two ways of doing one thing are compared: in turns, in one process, as a ratio with its spread."""

import dataclasses
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table.

    ratio: of `kind`, ours over the peer's, median over the rounds; low, high: its quartiles. bound: what `target` is.
    ours, peer: absolute figures in `unit`. peak_mb: most memory (1e6 bytes) that each side held; 0: not measured.
    """

    name: str
    setting: str
    kind: Literal["speed", "time", "memory"]
    ratio: float
    low: float
    high: float
    bound: Literal["at least", "at most"]
    target: float
    ours: float
    peer: float
    unit: str
    peer_name: str
    ours_peak_mb: float = 0.0
    peer_peak_mb: float = 0.0

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.bound == "at least" else self.ratio <= self.target


def seconds(work: Callable[[], object]) -> float:
    """Duration of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int = 7, repeats: int = 1
) -> tuple[list[float], list[float]]:
    """Seconds per call of both, measured alternately after one call each that does not count.

    Taking turns lets a machine that slows down slow both; every other round begins with the peer.
    """
    ours(), peer()
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        order = ((0, ours), (1, peer)) if number % 2 == 0 else ((1, peer), (0, ours))
        for side, work in order:
            found[side].append(seconds(lambda work=work: [work() for _ in range(repeats)]) / repeats)
    return found


def ratio(ours: list[float], peer: list[float], kind: Literal["speed", "time"]) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile) over rounds of ours against the peer's.

    speed: how many times as fast we are. time: how many times as long we take.
    """
    each = [p / o if kind == "speed" else o / p for o, p in zip(ours, peer, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    return middle, low, high


def peak() -> float:
    """Most memory that this process has held, in 1e6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def peak_mb(work: Callable[[], object]) -> float:
    """Most memory that a forked process held while it did the work, in 1e6 bytes, what it began with included.

    Call it before anything has started threads: a fork does not inherit them.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        work()
        sender.send(peak())

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()
