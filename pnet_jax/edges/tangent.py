"""Tangent-space connectivity of a cohort."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from pnet_jax.edges.inverse import ledoit_wolf
from pnet_jax.edges.registry import _MEASURES, Measure
from pnet_jax.ops import tangent as op

_MEASURES["tangent"] = Measure(
    "tangent",
    None,
    units="log ratio of covariances",
    diagonal="log variance ratio to the cohort",
    signed=True,
    description="Matrix logarithm of the Ledoit-Wolf covariance whitened by the cohort's geometric mean",
    made_by="a cohort of several subjects",
)

tangent = jax.jit(op.tangent, static_argnames="implementation")


def cohort_tangent(signals: Sequence[Float[np.ndarray, "K T"]], shared: Bool[np.ndarray, " K"]) -> Float[np.ndarray, "S K K"]:
    """Compute tangent edges of a cohort from the signals of its scans, which may differ in length.

    Args:
      signals: Parcel signals of each scan, `[K, T]`; finite in the shared parcels.
      shared: Mask of the parcels present in every scan, at least 2, `[K]`.

    Returns:
      Tangent edges of each scan at the cohort's geometric mean, NaN for parcels that are not shared, `[S, K, K]`.
    """
    found, _ = tangent(jnp.stack([ledoit_wolf(jnp.asarray(x[shared])) for x in signals]))
    whole = np.full((len(signals), len(shared), len(shared)), np.nan, np.float32)
    whole[:, np.flatnonzero(shared)[:, None], np.flatnonzero(shared)] = found
    return whole
