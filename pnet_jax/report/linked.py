"""Data for the script of a scan's page: the parcel of each pixel of the maps, and the matrices."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.network import Network
from pnet_jax.report.plates import Plate
from pnet_jax.report.png import hexadecimal, ramp

MAX_MATRICES = 6
MISSING, LARGEST = -32768, 32767  # codes of an unknown and of the largest value
SIDES = {"L": "left", "R": "right", "B": "both sides"}


def linked_json(network: Network, views: Plate | None) -> str:
    """Return the JSON that links table, maps and matrices; `<` is escaped, so that text cannot close the script element.

    Args:
      network: Result of a subject.
      views: Views of its maps, or None if these could not be drawn.
    """
    order = matrix_order(network)
    content = {
        "names": list(network.names),
        "sides": [SIDES[side] for side in network.hemispheres],
        "order": order.tolist(),
        "plate": _plate(network, views) if views is not None else None,
        "matrices": [_matrix(name, network.edges[name]) for name in list(network.edges)[:MAX_MATRICES]],
        "ramp": hexadecimal(ramp("diverging", 129)),
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def matrix_order(network: Network) -> Int[np.ndarray, " K"]:
    """Return the order of the parcels in the matrix: left, bilateral, right."""
    return np.concatenate([np.flatnonzero(np.array(network.hemispheres) == side) for side in "LBR"])


def runs(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, "runs 2"]:
    """Return runs of equal labels as pairs of label + 1 and length, uint16; a long run is split."""
    start = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    length = np.diff(np.r_[start, len(labels)])
    parts = -(-length // 65535)
    label = np.repeat(labels[start] + 1, parts)
    lengths = np.full(len(label), 65535)
    lengths[np.cumsum(parts) - 1] = length - 65535 * (parts - 1)
    return np.stack([label, lengths], 1).astype(np.uint16)


def colour_limit(matrix: Float[np.ndarray, "K K"]) -> float:
    """Return the 98th percentile of the off-diagonal magnitudes, so that extreme edges do not dominate the colour scale."""
    off = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    off = off[np.isfinite(off)]
    return float(np.percentile(off, 98)) or 1.0 if len(off) else 1.0


def measure_title(measure: str) -> str:
    """Return the name of a measure with its quantity and unit, e.g. `pearson: correlation (r)`."""
    from pnet_jax import edges

    known = "pearson" if measure in ("shrunk", "guided") else measure
    return f"{measure}: {edges.measure(known).units}" if known in edges.names() else measure


def symmetric(matrix: Float[np.ndarray, "K K"]) -> bool:
    """Return whether a matrix is symmetric, so that its edges have no direction."""
    return np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5, equal_nan=True)


def _plate(network: Network, views: Plate) -> dict[str, Any]:
    height, width = views.shape
    shown = np.where(views.pixels >= 0, network.labels[views.pixels], -1)
    return {"height": height, "width": width, "runs": _encoded(runs(shown.ravel()))}


def _matrix(name: str, matrix: np.ndarray) -> dict[str, Any]:
    """Encode a matrix in units of its largest value / 32767: all of it, or the part below the diagonal if it is symmetric."""
    matrix, same = matrix.astype(float), symmetric(matrix)
    values = matrix[np.tril_indices(len(matrix), -1)] if same else matrix.ravel()
    finite = np.isfinite(values)
    largest = float(np.abs(values[finite]).max()) if finite.any() else 0.0
    codes = np.where(finite, np.rint(np.where(finite, values, 0) / (largest or 1) * LARGEST), MISSING).astype("<i2")
    limit = colour_limit(matrix)
    title = measure_title(name)
    return {"title": title, "directed": not same, "largest": largest, "limit": float(f"{limit:.3g}"), "values": _encoded(codes)}


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")
