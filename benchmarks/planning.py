"""How long it takes to plan: `snakemake -n all` at the paper's scale, thousands of jobs, in a process of its own."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.compare import Result

ROUNDS = 3
TARGET = 5.0
"""Seconds."""


def run(options: argparse.Namespace) -> list[Result]:
    snakemake = Path(sys.executable).with_name("snakemake")
    command = [str(snakemake), "-n", "--config", "scale=imagenet", "--", "all"]
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken.append(time.perf_counter() - began)
    jobs = next((line.split()[1] for line in done.stdout.splitlines() if line.startswith("total")), "?")
    low, middle, high = sorted(taken)
    return [
        Result(
            name="planning",
            setting=f"snakemake -n all, scale imagenet, {jobs} jobs",
            kind="time",
            ratio=middle / TARGET,
            low=low / TARGET,
            high=high / TARGET,
            bound="at most",
            target=1.0,
            ours=middle,
            peer=TARGET,
            unit="s",
            peer_name="five seconds",
        )
    ]
