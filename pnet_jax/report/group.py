"""Group statistics of maps and edges over participants, accumulated one scan at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pnet_jax.outputs.maps import Maps, load_maps
from pnet_jax.outputs.reading import stem_of
from pnet_jax.outputs.sidecars import stat_label
from pnet_jax.outputs.tables import beside, read_matrix

MOST, LEAST = 200, 3  # largest number of participants read (about 30 ms each at 2 mm and 200 parcels), and smallest group
MOST_SPACES = 4  # accumulated in parallel until it is known which Space most scans have
MEASURE = "pearson"


@dataclasses.dataclass(eq=False)
class MapSums:
    """Sums over scans of one Space; the arrays have one value for each location of a scan's maps.

    Attributes:
      first: Maps of the first scan, which define the locations.
      scans: Number of scans added.
      inside: Number of scans in which the location has both an initial and a final parcel.
      changed: Number of these scans in which the two differ.
      confidence: Sum of the probabilities of the location's parcel.
    """

    first: Maps
    scans: int
    inside: np.ndarray
    changed: np.ndarray
    confidence: np.ndarray

    @classmethod
    def empty(cls, first: Maps) -> MapSums:
        shape = first.labels.shape
        return cls(first, 0, np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32))

    def add(self, maps: Maps) -> None:
        inside = (maps.labels > 0) & (maps.atlas_labels > 0)
        self.scans += 1
        self.inside += inside
        self.changed += inside & (maps.labels != maps.atlas_labels)
        self.confidence += np.where(inside, maps.confidence, 0).astype(np.float32)

    def mean(self, sums: np.ndarray) -> np.ndarray:
        """Return the mean over the scans that cover a location; NaN if fewer than half of all scans do."""
        enough = 2 * self.inside >= max(self.scans, 1)
        return np.where(enough & (self.inside > 0), sums / np.maximum(self.inside, 1), np.nan)


@dataclasses.dataclass(eq=False)
class Moments:
    """Running mean and standard deviation of matrices, edge by edge, ignoring NaN (Welford 1962).

    Attributes:
      scans: Number of matrices added.
      count: Number of finite values of each edge, `[K, K]`.
      mean: Mean of each edge, `[K, K]`.
      squares: Sum of squared deviations from the mean, `[K, K]`.
    """

    scans: int
    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, parcels: int) -> Moments:
        return cls(0, *(np.zeros((parcels, parcels)) for _ in range(3)))

    def add(self, matrix: Float[np.ndarray, "K K"]) -> None:
        known = np.isfinite(matrix)
        self.scans += 1
        self.count += known
        away = np.where(known, matrix - self.mean, 0)
        self.mean += away / np.maximum(self.count, 1)
        self.squares += away * np.where(known, matrix - self.mean, 0)

    @property
    def average(self) -> Float[np.ndarray, "K K"]:
        """Return the mean of each edge; NaN if no scan has it."""
        return np.where(self.count > 0, self.mean, np.nan)

    @property
    def sd(self) -> Float[np.ndarray, "K K"]:
        """Return the standard deviation of each edge (n − 1); NaN if fewer than two scans have it."""
        return np.where(self.count > 1, np.sqrt(self.squares / np.maximum(self.count - 1, 1)), np.nan)


def add_maps(results: Iterable[Path]) -> tuple[MapSums | None, int]:
    """Accumulate the maps of the results in the most frequent Space.

    Args:
      results: `…_dseg.tsv` files; they are read one at a time.

    Returns:
      The sums, or None if no result could be read; and the number of results that could not be read or are in another Space.
    """
    spaces: dict[Any, MapSums] = {}
    total = 0
    for result in results:
        total += 1
        # Another process may be replacing this result; the page reports how many are missing.
        with contextlib.suppress(OSError, ValueError, KeyError):
            maps = load_maps(result)
            key = _place(maps)
            if key in spaces or len(spaces) < MOST_SPACES:
                spaces.setdefault(key, MapSums.empty(maps)).add(maps)
    most = max(spaces.values(), key=lambda sums: sums.scans, default=None)
    return most, total - (0 if most is None else most.scans)


def add_edges(results: Iterable[Path]) -> Moments | None:
    """Accumulate the Pearson matrices of results; results without one, or with a different number of parcels, are left out."""
    found: Moments | None = None
    for result in results:
        with contextlib.suppress(OSError, ValueError):
            matrix = read_matrix(beside(stem_of(result), f"stat-{stat_label(MEASURE)}_relmat.tsv"), index=True)
            found = found or Moments.empty(len(matrix))
            if matrix.shape == found.mean.shape:
                found.add(matrix.astype(np.float64))
    return found


def sample(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
    """Choose the scans for group figures.

    The first scan of each participant with the most frequent atlas is used. If there are more than 200 participants, those whose labels
    have the smallest SHA-256 are taken, so that additional participants seldom change the sample.

    Args:
      rows: Records of scans.

    Returns:
      The chosen rows, and the number of participants to choose from.
    """
    done = [row for row in rows if row.get("status") == "ok" and row.get("dseg") and row.get("subject")]
    atlases = [row.get("atlas") or "" for row in done]
    atlas = max(sorted(set(atlases)), key=atlases.count, default="")
    first: dict[str, Mapping[str, Any]] = {}
    for row in sorted(done, key=lambda row: str(row["scan"])):
        if (row.get("atlas") or "") == atlas:
            first.setdefault(str(row["subject"]), row)
    order = sorted(first, key=lambda subject: hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest())
    return [first[subject] for subject in sorted(order[:MOST])], len(first)


def _place(maps: Maps) -> Any:
    """Return a key that is equal for results with the same locations."""
    if maps.affine is not None:
        return maps.labels.shape, tuple(np.round(maps.affine, 3).ravel().tolist())
    assert maps.space is not None
    return maps.labels.shape, hashlib.sha256(np.round(maps.space.xyz, 2).tobytes()).hexdigest()
