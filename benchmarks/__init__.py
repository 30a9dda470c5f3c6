"""Ours against the peer, both in one run on one machine: `python -m benchmarks`. See docs/performance.md."""

NAMES = ("attention", "stage1", "synthesis", "lpips_pairs", "loading", "planning", "growth")
"""Modules of this package; each has `run(options) -> list[Result]`, and is run in a process of its own."""
