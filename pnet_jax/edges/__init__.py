"""Edges: one file a measure, and the registry of their names."""

from pnet_jax.edges import copula as _copula
from pnet_jax.edges import correlation as _correlation
from pnet_jax.edges import coupling as _coupling
from pnet_jax.edges import distance as _distance
from pnet_jax.edges import dynamic as _dynamic
from pnet_jax.edges import inverse as _inverse
from pnet_jax.edges import lagged as _lagged
from pnet_jax.edges import multivariate as _multivariate
from pnet_jax.edges import tangent as _tangent
from pnet_jax.edges.registry import Measure, compute, measure, names
from pnet_jax.edges.tangent import tangent

__all__ = ["Measure", "compute", "measure", "names", "tangent"]
