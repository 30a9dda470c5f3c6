"""`snakemake --logger dearkd`: where Snakemake looks for the view of `dearkd.jobs.live`."""

from dearkd.jobs.live import LogHandler

__all__ = ["LogHandler"]
