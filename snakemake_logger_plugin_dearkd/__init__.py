"""`snakemake --logger dearkd`: where Snakemake looks for the view of `dearkd.live`."""

from dearkd.live import LogHandler

__all__ = ["LogHandler"]
