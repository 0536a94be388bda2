"""Tangent-space connectivity of a cohort."""

import jax

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
