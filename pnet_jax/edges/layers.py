"""Layers of a network's edges, their purposes, and the check for case-control tests."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pnet_jax.config import nearest
from pnet_jax.edges.guided import Guide, guide
from pnet_jax.edges.shrinkage import Shrinkage, shrink
from pnet_jax.network import Network

MEANT_FOR = {
    "raw": "inference, diagnosis, circuits",
    "shrunk": "description, identification",
    "guided": "description, identification",
    "coupling": "mechanism, virtual modulation; shrunk towards other participants, so not for tests between groups",
    "effective": "mechanism, direction of influence; shrunk towards other participants, so not for tests between groups",
}


class Layer(NamedTuple):
    """One estimate of all edges, with its uncertainty.

    Attributes:
      edges: correlations with diagonal 1, `[K, K]`; NaN for absent parcels.
      uncertainty: standard deviations in Fisher z with diagonal 0, `[K, K]`.
    """

    edges: Float[np.ndarray, "K K"]
    uncertainty: Float[np.ndarray, "K K"]


def layers(
    raw: Float[np.ndarray, "K K"],
    n_eff: float,
    group: Shrinkage | None = None,
    taught: Guide | None = None,
    views: Sequence[Float[np.ndarray, "K K"]] = (),
) -> dict[str, Layer]:
    """Compute the layers of a scan: `raw`, `shrunk` if a group is given, and `guided` if a guide is given.

    Args:
      raw: Pearson correlations, `[K, K]`; NaN for absent parcels.
      n_eff: effective number of independent frames, about 2 · bandwidth · duration (`network.qc.n_eff`).
      group: group statistics fitted by `fit_shrinkage` to other participants.
      taught: guide learned by `fit_guided` from other participants.
      views: further views of the same scan, in the order in which the guide was fitted.

    Returns:
      Layers by name. The uncertainty of `raw` is based on the noise measured in the group, or is 1/√(n_eff − 3) without a group.

    Raises:
      ValueError: If n_eff is not above 0, or K differs in the group or guide.

    >>> import numpy as np
    >>> made = layers(np.array([[1, 0.5], [0.5, 1]], np.float32), n_eff=103)
    >>> list(made), f"{made['raw'].uncertainty[0, 1]:.2f}"
    (['raw'], '0.10')
    """
    raw = np.asarray(raw, np.float32)
    if not n_eff > 0:
        raise ValueError(f"n_eff: expected a number above 0, got {n_eff}")
    for name, known in (("group", group and group.mean.shape), ("guide", taught and taught.modes.shape)):
        if known and known[-1] != len(raw):
            raise ValueError(f"the {name} was fitted with {known[-1]} parcels, the scan has {len(raw)}: expected the same atlas")
    noise = np.full(raw.shape, n_eff / max(n_eff - 3, 1), np.float32) if group is None else np.asarray(group.noise)
    spread = np.where(np.isnan(raw), np.nan, np.sqrt(noise / np.float32(n_eff))).astype(np.float32)
    np.fill_diagonal(spread, 0)
    made = {"raw": Layer(raw, spread)}
    if group is not None:
        made["shrunk"] = Layer(*map(np.asarray, shrink(jnp.asarray(raw), group, n_eff)))
    if taught is not None:
        stack: Float[Array, "P K K"] = jnp.stack([jnp.asarray(view, jnp.float32) for view in (raw, *views)])
        made["guided"] = Layer(*map(np.asarray, guide(stack, taught, n_eff)))
    # The diagonal of an absent parcel is NaN as well.
    return {
        name: Layer(layer.edges, np.where(np.isnan(layer.edges), np.float32(np.nan), layer.uncertainty)) for name, layer in made.items()
    }


def add_layers(network: Network, made: dict[str, Layer]) -> Network:
    """Return the network with the layers and their uncertainty added to its edges; the raw layer is stored as `"pearson"`."""
    named = {"pearson" if name == "raw" else name: layer for name, layer in made.items()}
    return dataclasses.replace(
        network,
        edges=network.edges | {name: layer.edges for name, layer in named.items()},
        uncertainty=network.uncertainty | {name: layer.uncertainty for name, layer in named.items()},
    )


def meant_for(name: str) -> str:
    """Return the purpose of a layer.

    Raises:
      ValueError: If there is no such layer.

    >>> meant_for("raw")
    'inference, diagnosis, circuits'
    """
    if name not in MEANT_FOR:
        raise ValueError(f"unknown layer {name!r}: expected one of {list(MEANT_FOR)}{nearest(name, MEANT_FOR)}")
    return MEANT_FOR[name]


def case_control_layer(name: str, *, force: bool = False) -> str:
    """Check that a layer may enter a test of patients against controls.

    `evaluate.circuits` calls it for the tested layer. Call it in your own analysis scripts as well: the tests in
    `pnet_jax.ops.permutation` take arrays and cannot check their layer. Sidecars of saved edges state the purpose of the layer
    under `MeantFor`.

    Shrunk and guided edges are shrunk towards the participants to whom the group was fitted. Effects of disease shrink like all other
    individual differences (to a third or a half, `benchmarks/planted_difference.py`), by an amount that depends on the length of the scan.
    If patients have fewer kept frames than controls, e.g. because of motion, differences can vanish, or appear where there is no effect.
    Guided edges also spread a local change over edges that covary in the group. For participants to whom the group was fitted, errors are
    not independent, and permutation tests are not valid.

    Args:
      name: name of the layer.
      force: whether to accept the layer with a warning.

    Returns:
      The name.

    Raises:
      ValueError: If the layer is not raw and `force` is not set, or there is no such layer.

    Warns:
      UserWarning: If the layer is not raw and `force` is set.

    >>> case_control_layer("raw")
    'raw'
    """
    purpose = meant_for(name)
    if name != "raw":
        said = (
            f"{name} edges are meant for {purpose}, not for tests of patients against controls: they are shrunk towards the "
            "participants to whom the group was fitted, which erases effects of disease"
        )
        if not force:
            raise ValueError(f'{said}. Expected the layer "raw", got "{name}"; set force=True to test it anyway')
        warnings.warn(said, UserWarning, stacklevel=2)
    return name
