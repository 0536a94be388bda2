"""Store of scan records on disk, and the batches that pre-training reads from it. Only this package uses grain."""

from pnet_jax.records.manifest import Record
from pnet_jax.records.pipeline import LEAST_VALIDATED, Batches, batches, split_subjects, split_validation
from pnet_jax.records.preparation import Prepared, prepare, read_sites
from pnet_jax.records.store import Store, open_store, read_scan, read_space

__all__ = [
    "LEAST_VALIDATED",
    "Batches",
    "Prepared",
    "Record",
    "Store",
    "batches",
    "open_store",
    "prepare",
    "read_scan",
    "read_sites",
    "read_space",
    "split_subjects",
    "split_validation",
]
