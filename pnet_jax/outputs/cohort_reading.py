"""Reading of the cohort store into a Cohort."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from pnet_jax.cohort import IDENTITY, NUMBERS, TEXTS, Cohort, view_of
from pnet_jax.config import nearest
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.outputs.cohort import DONE, PENDING, WORDS, block_rows, n_blocks, read_layout, scans_of
from pnet_jax.outputs.cohort_arrays import EDGES, block_arrays, is_empty, open_store, plain_name, read_array, read_rows
from pnet_jax.provenance import shared_provenance

TRIES = 3  # attempts to read a store whose scans are being replaced


def read_store(path: str | Path, *, edges: Sequence[str] | None = None, signals: bool = True, labels: bool = True) -> Cohort:
    """Read the finished scans of a store; the others are listed in `provenance["left_out"]`.

    Every checksum is verified, and a missing array of a finished scan is an error: damaged values are never returned.

    Args:
      path: Folder or fsspec address.
      edges: Edge measures to read; all by default.
      signals: Whether to read parcel signals.
      labels: Whether to read labels and confidence, if the scans share a Space.

    Raises:
      FileNotFoundError: If there is no store.
      InputError: If the store is damaged (names array and scan), or no scan is done.
      SettingsError: If the store does not contain the requested edges, or scans are replaced faster than they can be read.
    """
    for _ in range(TRIES):
        before = _state(path)
        try:
            cohort = _read(_open(path), edges, signals, labels)
        except InputError:
            if np.array_equal(before, _state(path)):
                raise
            continue  # a file was replaced while it was read
        if np.array_equal(before, _state(path)):
            return cohort
    raise SettingsError(f"{path}: scans were replaced during each of {TRIES} attempts to read them; wait until writing has finished")


def stored_results(path: str | Path) -> dict[str, tuple[int, str]]:
    """Return status and `Entry.result` of each scan of a store, in order; a scan with damaged texts counts as pending."""
    group = open_store(path)
    scans, status = scans_of(group), read_array(group, "status")
    out: dict[str, tuple[int, str]] = {}
    for number in range(n_blocks(group)):
        rows = block_rows(group, number)
        try:
            words = read_rows(group, "text", rows, scans[rows])
        except InputError:
            out |= dict.fromkeys(scans[rows], (PENDING, ""))
            continue
        out |= {
            scans[row]: (int(status[row]), str(words[at, WORDS.index("result")])) for at, row in enumerate(range(rows.start, rows.stop))
        }
    return out


def check_block(path: str | Path, number: int) -> None:
    """Read a whole block to verify it.

    Raises:
      InputError: If part of it is damaged or missing; names array and scan.
    """
    store = _open(path)
    rows = block_rows(store.group, number)
    for name, _ in block_arrays(store.group):
        store.rows(name, rows, store.status[rows] == DONE)


def _state(path: str | Path) -> np.ndarray:
    """Return the values that change when a scan is written: the writer marks scans as pending in `status`, then increments `revision`."""
    group = open_store(path)
    revision = read_array(group, "revision")
    return np.stack([revision, read_array(group, "status")])


@dataclasses.dataclass(frozen=True)
class _Store:
    """State of a store at one moment.

    Attributes:
      path, group: Location of the store, and its zarr group.
      scans: Labels of the scans.
      status: Status of each scan.
      holds: Names of the arrays of each finished scan.
      words: Columns of `text`, for every scan.
    """

    path: str | Path
    group: Any
    scans: list[str]
    status: np.ndarray
    holds: list[set[str]]
    words: dict[str, np.ndarray]

    def whole(self, name: str, wanted: Bool[np.ndarray, " S"]) -> np.ndarray:
        """Read the rows of the wanted scans from an array, a block at a time."""
        out = np.empty((int(wanted.sum()), *self.group[name].shape[1:]), self.group[name].dtype)
        start = np.concatenate([[0], np.cumsum(wanted)])
        for number in range(n_blocks(self.group)):
            rows = block_rows(self.group, number)
            if wanted[rows].any():
                out[start[rows.start] : start[rows.stop]] = self.rows(name, rows, wanted[rows])
        return out

    def rows(self, name: str, rows: slice, wanted: Bool[np.ndarray, " n"]) -> np.ndarray:
        """Read the wanted rows of a block; a missing file, which zarr reads as unwritten values, is an error."""
        values = read_rows(self.group, name, rows, self.scans[rows])[wanted]
        for row, one in zip(np.flatnonzero(wanted) + rows.start, values, strict=True):
            if name in self.holds[row] and is_empty(name, one):
                raise InputError(f"{self.path}: {name} of {self.scans[row]} is missing; run `pnet collect` again to rewrite the block")
        return values


def _open(path: str | Path) -> _Store:
    group = open_store(path)
    scans, status = scans_of(group), read_array(group, "status")
    blocks = [block_rows(group, number) for number in range(n_blocks(group))]
    text = np.concatenate([read_rows(group, "text", rows, scans[rows]) for rows in blocks])
    words = {word: text[:, at].astype(object) for at, word in enumerate(WORDS)}
    holds = [set(one.split()) for one in words["arrays"]]
    for scan, there, own in zip(scans, status == DONE, holds, strict=True):
        if there and not own:
            raise InputError(f"{path}: text of {scan} is missing; run `pnet collect` again to rewrite the block")
    return _Store(path, group, scans, status, holds, words)


def _read(store: _Store, edges: Sequence[str] | None, signals: bool, labels: bool) -> Cohort:
    layout, done = read_layout(store.group), store.status == DONE
    reasons = np.where(store.status == PENDING, "pending", store.words["error"])
    left_out = {scan: str(reason) for scan, reason, there in zip(store.scans, reasons, done, strict=True) if not there}
    if not done.any():
        raise InputError(f"{store.path}: no scan is done; {len(left_out)} are pending or failed")
    chosen = list(layout.edges if edges is None else edges)
    if unknown := [name for name in chosen if name not in layout.edges]:
        said = f"expected some of {list(layout.edges)}{nearest(unknown[0], layout.edges)}"
        raise SettingsError(f"{store.path}: no edges {unknown[0]!r}; {said}")
    maps = labels and all("labels" in own for own, there in zip(store.holds, done, strict=True) if there)
    names = [*(("signals", "frames") if signals else ()), *(("labels", "confidence") if maps else ())]
    arrays = {name: store.whole(name, done) for name in names}
    if signals:
        longest = int((arrays["frames"] >= 0).sum(1).max())
        arrays = arrays if longest else {name: array for name, array in arrays.items() if name not in ("signals", "frames")}
    if "signals" in arrays:
        arrays |= {"signals": arrays["signals"][:, :, :longest], "frames": arrays["frames"][:, :longest]}
    provenance = [json.loads(one) for one in store.words["provenance"][done]]
    return Cohort(
        table=_table(store, done),
        edges={name: store.whole(EDGES + plain_name(name), done) for name in chosen},
        views={name: view_of(name) for name in chosen},
        coverage=store.whole("coverage", done),
        ids=layout.ids,
        names=layout.names,
        hemispheres=layout.hemispheres,
        atlas=layout.atlas,
        space=layout.space if maps else None,
        provenance=shared_provenance(provenance) | {"left_out": left_out},
        **arrays,
    )


def _table(store: _Store, done: Bool[np.ndarray, " S"]) -> dict[str, np.ndarray]:
    qc = store.whole("qc", done)
    figures = {name: qc[:, at] for at, name in enumerate(NUMBERS)} | {name: store.words[name][done].astype(np.str_) for name in TEXTS}
    fixed = {name: read_array(store.group, name)[done] for name in (*IDENTITY, *store.group.attrs["covariates"])}
    return {name: fixed.pop(name) for name in IDENTITY} | figures | fixed
