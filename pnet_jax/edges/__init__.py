"""Edges: one file a measure, and the registry of their names."""

from pnet_jax.edges.registry import Measure, compute, measure, names
from pnet_jax.edges import correlation as _correlation, inverse as _inverse, tangent as _tangent  # noqa: F401  they register
from pnet_jax.edges.tangent import tangent

__all__ = ["Measure", "compute", "measure", "names", "tangent"]
