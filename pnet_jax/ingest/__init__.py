"""Load recordings as `Scan` and atlas files as `Atlas`."""

from pnet_jax.ingest.atlas import load_atlas
from pnet_jax.ingest.bids import find_scans
from pnet_jax.ingest.load import load_scan
from pnet_jax.ingest.source import ScanSource

__all__ = ["ScanSource", "find_scans", "load_atlas", "load_scan"]
