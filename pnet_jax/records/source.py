"""Scans of a store as input for network construction, so that recordings are decoded and cleaned only once."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pnet_jax.config import CleaningConfig
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.bids import select_scans
from pnet_jax.records.manifest import MANIFEST
from pnet_jax.records.store import Store, open_store, read_scan
from pnet_jax.scan import Scan


@dataclasses.dataclass(frozen=True)
class StoredSource(ScanSource):
    """One scan of a store.

    Attributes:
      store: Folder of the store.
      number: Index of the scan in the store.
    """

    store: Path = Path()
    number: int = 0

    @property
    def files(self) -> tuple[Path | None, ...]:
        """Files of the scan in the store."""
        return (self.bold,)

    def load(self, cleaning: CleaningConfig, **options: Any) -> Scan:
        """Read the scan as it was stored; `cleaning` and `options` have no effect."""
        return read_scan(_opened(self.store), self.number)


def is_store(folder: str | Path) -> bool:
    """Return whether a folder is a store written by `prepare`."""
    return (Path(folder) / MANIFEST).is_file()


def stored_scans(
    folder: str | Path,
    *,
    participant_labels: Sequence[str] | None = None,
    session_labels: Sequence[str] | None = None,
    task: str | None = None,
) -> list[ScanSource]:
    """List the scans of a store, sorted by label; those that `prepare` could not read are included with the reason.

    Args:
      folder: Store written by `prepare`.
      participant_labels, session_labels, task: See `find_scans`.

    Raises:
      SettingsError: If the store is empty, or has no scans with a given label.
      InputError: If its manifest is damaged.
    """
    folder = Path(folder)
    store = _opened(folder)
    twice = {label for label, count in Counter(record.scan for record in store.records).items() if count > 1}
    found: list[ScanSource] = []
    for number, record in enumerate(store.records):
        entities = dict(part.split("-", 1) for part in record.scan.split("_") if "-" in part)
        subject = entities.pop("sub", "unknown")
        problem = f"{record.scan}: two datasets in the store contain a scan with this name" if record.scan in twice else ""
        found.append(StoredSource(folder / record.file, None, None, subject, entities, problem, folder, number))
    return select_scans(found, folder, participant_labels, session_labels, task)


@functools.lru_cache(maxsize=4)
def _opened(folder: Path) -> Store:
    return open_store(folder, allow_mixed=True, allow_damaged=True)
