"""Selection of the edges to evaluate, and their warnings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from pnet_jax.cohort import Cohort
from pnet_jax.errors import SettingsError
from pnet_jax.evaluate.columns import layer_of, upper

SHRUNK = ("shrunk", "guided", "coupling", "effective")  # edges that are shrunk towards a group


def is_directed(cohort: Cohort, layer: str) -> bool:
    """Return whether the edges of a layer have a direction."""
    return bool(cohort.views.get(layer, {}).get("directed", False))


def chosen_layers(cohort: Cohort, layers: Sequence[str] | None) -> tuple[str, ...]:
    """Return the selected edges without duplicates; all edges of the cohort by default.

    Raises:
      SettingsError: If edges are unknown, or there are none.
    """
    chosen = tuple(dict.fromkeys(cohort.edges if layers is None else layers))
    if not chosen:
        raise SettingsError("expected at least one layer of edges, found none in the cohort or in the settings")
    for name in chosen:
        layer_of(cohort, name)
    return chosen


def undirected(cohort: Cohort, layers: Sequence[str] | None) -> tuple[str, ...]:
    """Return the selected edges; all undirected ones of the cohort by default.

    Raises:
      SettingsError: If edges are unknown or directed, or there are none.
    """
    known = [name for name in cohort.edges if not is_directed(cohort, name)]
    chosen = chosen_layers(cohort, known if layers is None else layers)
    if directed := [name for name in chosen if name not in known]:
        raise SettingsError(
            f"edges {directed[0]!r} are directed: expected undirected ones, {', '.join(known) or 'of which there are none'}"
        )
    return chosen


def edge_vectors(cohort: Cohort, layer: str, rows: Int[np.ndarray, " n"], shared: Bool[np.ndarray, " K"]) -> Float[np.ndarray, "n E"]:
    """Return the edges between shared parcels: those above the diagonal, or all off-diagonal ones if they are directed."""
    matrices = cohort.edges[layer][rows]
    above = upper(matrices, shared)
    return np.concatenate([above, upper(matrices.swapaxes(1, 2), shared)], 1) if is_directed(cohort, layer) else above


def shrunk_warnings(layers: Sequence[str]) -> list[str]:
    """Return warnings about edges that are shrunk towards a group."""
    shrunk = [name for name in layers if name in SHRUNK]
    if not shrunk:
        return []
    return [
        f"{', '.join(shrunk)}: edges that are shrunk towards a group model are similar because they share it, which increases similarity "
        "within and between participants; reliability and identification are valid only if one group model was applied to all scans."
    ]
