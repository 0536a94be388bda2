"""Maps of a scan: parcels, confidence, changed locations, and the strongest edges in a transparent brain."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.network import Network
from pnet_jax.outputs import images
from pnet_jax.outputs.bids import parcel_centroids
from pnet_jax.report.chart import number
from pnet_jax.report.plates import Plate, slices_plate, template, views_plate
from pnet_jax.report.png import LEVELS, hexadecimal, png, ramp, rgb
from pnet_jax.report.words import has_confidence

PERSONAL, ALARM, KEPT = "#0f766e", "#d9480f", "#cbd5e1"
EDGES_SHOWN = 150
SCALE = 2.0  # pixels per mm of the transparent brain
VIEWS = (("left", 1, 2), ("from above", 0, 1), ("back", 0, 2))  # axes drawn rightwards and upwards


class Edge(NamedTuple):
    """Edge between two parcels, given by their rows in the tables; from the first to the second if `directed`."""

    source: int
    target: int
    value: float
    directed: bool


def plate(network: Network) -> Plate:
    """Return the views shared by all maps of a scan: slices for a voxel grid, otherwise views from outside."""
    grid = network.space.grid
    if grid is None or grid.brain_models is not None:
        return views_plate(network.space)
    volume = np.full(grid.shape, -1, np.int32)
    inside = (network.labels >= 0) | (network.atlas_labels >= 0)
    volume[tuple(grid.ijk[inside].T)] = np.flatnonzero(inside)
    return slices_plate(volume, grid.affine, anatomy(network))


def anatomy(network: Network) -> Any:
    """Return MNI152 if the scan is in that space, otherwise its mean image, or None."""
    if network.space.name.startswith("MNI"):
        return template()
    return None if network.mean is None else images.location_image(network, np.nan_to_num(np.asarray(network.mean, np.float32)))


def parcel_map(network: Network, views: Plate, labels: Int[np.ndarray, " V"]) -> str:
    """Draw the parcels, in the same colours for every scan."""
    return views.draw(images.parcel_colors(network.ids), labels)


def confidence_map(network: Network, views: Plate) -> str | None:
    """Draw the probability of the label of each location; None if probabilities were not saved."""
    if not has_confidence(network):
        return None
    shares = np.where(network.labels >= 0, network.confidence, np.nan)
    return views.draw(ramp("probability"), share_levels(shares))


def share_levels(shares: Float[np.ndarray, " V"]) -> Int[np.ndarray, " V"]:
    """Return the colour level of each share in 0…1, counted from 0; −1 for NaN."""
    levels = np.clip(np.nan_to_num(shares) * LEVELS, 0, LEVELS - 1).astype(np.int32)
    return np.where(np.isfinite(shares), levels, -1).astype(np.int32)


def changes(network: Network) -> tuple[Int[np.ndarray, " V"], dict[str, str]]:
    """Return the kind of change of each location as a code from 0 (−1 outside), and the name and colour of each code."""
    moved = (network.labels != network.atlas_labels) & (network.labels >= 0) & (network.atlas_labels >= 0)
    mark = np.where(moved, 1, np.where((network.labels >= 0) | (network.atlas_labels >= 0), 0, -1)).astype(np.int32)
    if network.qc.calibration is None or not has_confidence(network):
        return mark, {f"as in {network.start}": KEPT, "changed": ALARM}
    mark[moved & (network.confidence < 0.5)] = 2
    names = {"changed, replication probability ≥ 50 %": PERSONAL, "changed, replication probability < 50 %": ALARM}
    return mark, {f"as in {network.start}": KEPT} | names


def change_map(network: Network, views: Plate) -> tuple[str, dict[str, str]] | None:
    """Draw the locations whose parcel changed, with the names of the colours; None if the initial parcels were returned."""
    if network.qc.selection.decision == "atlas":
        return None
    mark, names = changes(network)
    return views.draw(np.array([rgb(colour) for colour in names.values()]), mark), names


def strongest(network: Network, measure: str) -> list[Edge]:
    """Return the strongest edges of a measure in ascending order, so that the strongest are drawn last."""
    present = np.isfinite(parcel_centroids(network)).all(1)
    matrix = np.nan_to_num(network.edges[measure].astype(float), posinf=0, neginf=0)
    directed = not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5)
    matrix = np.where(present[:, None] & present, matrix, 0)
    np.fill_diagonal(matrix, 0)
    rows, columns = np.nonzero(matrix if directed else np.triu(matrix))
    order = np.argsort(np.abs(matrix[rows, columns]), kind="stable")[-EDGES_SHOWN:]
    # Row k, column l of a directed matrix is the edge from l to k.
    return [Edge(int(columns[k]), int(rows[k]), float(matrix[rows[k], columns[k]]), directed) for k in order]


def edges_drawing(network: Network, measure: str) -> str | None:
    """Draw the strongest edges between parcel centroids in three views; None if there is no edge."""
    edges, centres = strongest(network, measure), parcel_centroids(network)
    if not edges:
        return None
    most = max(abs(edge.value) for edge in edges)
    colours, fill = hexadecimal(ramp("diverging", 41)), hexadecimal(images.parcel_colors(network.ids))
    degree = np.bincount([end for edge in edges for end in (edge.source, edge.target)], minlength=network.n_parcels)
    parts: list[str] = []
    names, left, tallest = [], 0.0, 0.0
    for name, across, up in VIEWS:
        shadow, low, high = _shadow(across, up)
        width, height = SCALE * (high - low)
        place = np.stack([left + SCALE * (centres[:, across] - low[0]), SCALE * (high[1] - centres[:, up])], 1)
        parts.append(f'<image x="{left:.0f}" y="0" width="{width:.0f}" height="{height:.0f}" href="{shadow}"/>')
        for edge in edges:
            (x1, y1), (x2, y2) = place[edge.source], place[edge.target]
            arrow = ' marker-end="url(#arrow)"' if edge.directed else ""
            line = f'x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}"'
            parts.append(f'<line {line} stroke="{colours[round(20 + 20 * edge.value / most)]}"{arrow}/>')
        for k in np.flatnonzero(degree):
            said = f"{degree[k]} of the strongest edges"
            circle = f'cx="{place[k, 0]:.0f}" cy="{place[k, 1]:.0f}" r="{2 + np.sqrt(degree[k]):.1f}" fill="{fill[k]}"'
            parts.append(f'<circle {circle} data-parcel="{k}"><title>{said}</title></circle>')
        names.append((left + width / 2, name))
        left, tallest = left + width + 16, max(tallest, height)
    parts += [f'<text x="{middle:.0f}" y="{tallest + 14:.0f}" text-anchor="middle">{name}</text>' for middle, name in names]
    marker = '<defs><marker id="arrow" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="5" markerHeight="5" orient="auto-start-reverse">'
    marker += '<path d="M0 0L6 3L0 6z" fill="context-stroke"/></marker></defs>'
    label = f"The {len(edges)} strongest edges ({measure}) between parcel centroids; sizes up to {number(round(most, 3))}"
    size = f'viewBox="0 0 {left - 16:.0f} {tallest + 20:.0f}"'
    return f'<svg class="glass" {size} role="img" aria-label="{label}">{marker}{"".join(parts)}</svg>'


@functools.lru_cache(maxsize=3)
def _shadow(across: int, up: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Return the projection of MNI152 along the third axis as an image, and its lower left and upper right corners in mm."""
    image = template()
    depth = (np.asarray(image.dataobj) > 0.1).sum(3 - across - up).T[::-1]
    pixels = np.zeros((*depth.shape, 4), np.uint8)
    pixels[..., :3] = 130
    pixels[..., 3] = np.where(depth > 0, 22 + 8 * np.round(6 * (1 - depth / depth.max())), 0)
    spacing, origin = image.affine[[across, up], [across, up]], image.affine[[across, up], 3]
    low, high = origin - spacing / 2, origin + spacing * (np.array(depth.shape[::-1]) - 0.5)
    return png(pixels), low, high
