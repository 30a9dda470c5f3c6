"""LPIPS of pairs of images in batches, against lpips' own scripts, which take one pair at a time.

The trunk is random, which costs as much as a trained one. Both sides must agree to 1e-5 before anything is timed.
"""

import argparse

import numpy as np
import torch

from benchmarks.compare import Result, in_turns, peak_mb, ratio
from dearkd.jobs import diversity
from dearkd.plan.scale import Diversity

PAIRS, SIDE = 64, 224
TABLE6 = 4000
"""Pairs in the paper's Table 6."""


def run(options: argparse.Namespace) -> list[Result]:
    torch.manual_seed(0)
    images = torch.rand(2 * PAIRS, 3, SIDE, SIDE)
    pairs = np.arange(2 * PAIRS).reshape(-1, 2)
    lpips = diversity.Lpips(Diversity(trunk="random", size=SIDE))

    def ours() -> np.ndarray:
        return diversity.distances(lpips, images, pairs)

    @torch.no_grad()
    def peer() -> np.ndarray:
        return np.array([lpips.net(2 * images[i : i + 1] - 1, 2 * images[j : j + 1] - 1).item() for i, j in pairs])

    memory = peak_mb(ours), peak_mb(peer)
    if np.abs(ours() - peer()).max() > 1e-5:
        raise RuntimeError("the distances differ before anything is timed")
    mine, theirs = in_turns(ours, peer, rounds=5)
    middle, low, high = ratio(mine, theirs, "speed")
    whole = np.median(mine) * TABLE6 / PAIRS
    return [
        Result(
            name="LPIPS",
            setting=f"AlexNet, {SIDE} pixels, {PAIRS} pairs; the paper's {TABLE6:,} in {whole:.0f} s",
            kind="speed",
            ratio=middle,
            low=low,
            high=high,
            bound="at least",
            target=1.0,
            ours=PAIRS / float(np.median(mine)),
            peer=PAIRS / float(np.median(theirs)),
            unit="pairs/s",
            peer_name="one pair at a time",
            ours_peak_mb=memory[0],
            peer_peak_mb=memory[1],
        )
    ]
