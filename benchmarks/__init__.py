"""Ours against the peer, both in one run on one machine: `python -m benchmarks`. See docs/performance.md."""
