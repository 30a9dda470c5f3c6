"""The plugin of `snakemake --logger dearkd`, which is the view of `dearkd.jobs.live`."""

from dearkd.jobs.live import LogHandler

__all__ = ["LogHandler"]
