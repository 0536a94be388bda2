"""Pages a person reads: one for each scan, and an index of all of them."""

from pnet_jax.report.index import write_index
from pnet_jax.report.page import write_report

__all__ = ["write_index", "write_report"]
