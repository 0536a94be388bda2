"""The layers of a network's edges, what each is meant for, and what is refused."""

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
    "coupling": "mechanism, virtual modulation; shrunk towards other participants, and so not for tests between groups",
    "effective": "mechanism, direction of influence; shrunk towards other participants, and so not for tests between groups",
}


class Layer(NamedTuple):
    """One estimate of all edges.

    Attributes:
      edges: correlations with diagonal 1, `[K, K]`; NaN for absent parcels.
      uncertainty: standard deviation in Fisher z with diagonal 0, `[K, K]`.
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
    """Every layer that can be made of a scan: `raw`, with a group `shrunk`, with a guide `guided`.

    Args:
      raw: Pearson correlations, `[K, K]`; NaN for absent parcels.
      n_eff: independent frames, about 2 · bandwidth · seconds (`network.qc.n_eff`).
      group: group that `fit_shrinkage` fitted to other participants.
      taught: guide that `fit_guided` learned from other participants.
      views: further views of the same scan in the order in which the guide was fitted.

    Returns:
      Layers by name. The uncertainty of `raw` is the group's measured noise, or 1/√(n_eff − 3) without a group.

    Raises:
      ValueError: n_eff is not above 0, or a group or guide has another K.

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
            raise ValueError(f"the {name} was fitted with {known[-1]} parcels, the scan has {len(raw)}: expected the same prior")
    noise = np.full(raw.shape, n_eff / max(n_eff - 3, 1), np.float32) if group is None else np.asarray(group.noise)
    spread = np.where(np.isnan(raw), np.nan, np.sqrt(noise / np.float32(n_eff))).astype(np.float32)
    np.fill_diagonal(spread, 0)
    made = {"raw": Layer(raw, spread)}
    if group is not None:
        made["shrunk"] = Layer(*map(np.asarray, shrink(jnp.asarray(raw), group, n_eff)))
    if taught is not None:
        stack: Float[Array, "P K K"] = jnp.stack([jnp.asarray(view, jnp.float32) for view in (raw, *views)])
        made["guided"] = Layer(*map(np.asarray, guide(stack, taught, n_eff)))
    # What an absent parcel has with itself is unknown as well.
    return {
        name: Layer(layer.edges, np.where(np.isnan(layer.edges), np.float32(np.nan), layer.uncertainty)) for name, layer in made.items()
    }


def add_layers(network: Network, made: dict[str, Layer]) -> Network:
    """The network with the layers among its edges and their uncertainty beside them; the raw layer stays under `"pearson"`."""
    named = {"pearson" if name == "raw" else name: layer for name, layer in made.items()}
    return dataclasses.replace(
        network,
        edges=network.edges | {name: layer.edges for name, layer in named.items()},
        uncertainty=network.uncertainty | {name: layer.uncertainty for name, layer in named.items()},
    )


def meant_for(name: str) -> str:
    """What a layer is meant for.

    Raises:
      ValueError: there is no such layer.

    >>> meant_for("raw")
    'inference, diagnosis, circuits'
    """
    if name not in MEANT_FOR:
        raise ValueError(f"unknown layer {name!r}: expected one of {list(MEANT_FOR)}{nearest(name, MEANT_FOR)}")
    return MEANT_FOR[name]


def case_control_layer(name: str, *, force: bool = False) -> str:
    """Check that a layer may enter a test of patients against controls.

    `evaluate.circuits` calls it for the layer that it is asked to test. Call it in an analysis script of your own as well: the tests in
    `pnet_jax.ops.permutation` take arrays, which do not say what layer they are of. Sidecars of saved edges name the layer's purpose
    under `MeantFor`.

    A shrunk or guided edge is shrunk towards the participants on whom the group was fitted. Differences of patients shrink with all other
    individual differences (`benchmarks/planted_difference.py`: a third, half are left), and by how much depends on the length of a scan:
    where patients have fewer frames left than controls, as patients do who move, differences vanish or appear that no brain has. Guided
    edges also spread a local change over the edges that vary together in the group. For participants on whom the group was fitted, the
    errors are not independent, and permutation tests are not valid.

    Args:
      name: of the layer.
      force: let it pass with a warning.

    Returns:
      The name.

    Raises:
      ValueError: the layer is shrunk or guided and `force` is not set, or there is no such layer.

    Warns:
      UserWarning: it is, and `force` is set.

    >>> case_control_layer("raw")
    'raw'
    """
    purpose = meant_for(name)
    if name != "raw":
        said = (
            f"{name} edges are meant for {purpose}, not for tests of patients against controls: they are shrunk towards the "
            "participants on whom they were fitted, which erases effects of disease"
        )
        if not force:
            raise ValueError(f'{said}. Expected the layer "raw", got "{name}"; force=True tests it all the same')
        warnings.warn(said, UserWarning, stacklevel=2)
    return name
