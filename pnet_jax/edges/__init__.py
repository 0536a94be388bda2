"""Edge measures, one module each, with a registry by name; and the layers of edges: raw, shrunk and guided."""

from pnet_jax.edges import copula as _copula
from pnet_jax.edges import correlation as _correlation
from pnet_jax.edges import coupling as _coupling
from pnet_jax.edges import distance as _distance
from pnet_jax.edges import dynamic as _dynamic
from pnet_jax.edges import inverse as _inverse
from pnet_jax.edges import lagged as _lagged
from pnet_jax.edges import multivariate as _multivariate
from pnet_jax.edges import tangent as _tangent
from pnet_jax.edges import whitened as _whitened
from pnet_jax.edges.guided import Guide, fit_guided, guide
from pnet_jax.edges.layers import MEANT_FOR, Layer, add_layers, case_control_layer, layers, meant_for
from pnet_jax.edges.registry import Measure, compute, measure, names
from pnet_jax.edges.shrinkage import Shrinkage, fit_shrinkage, shrink
from pnet_jax.edges.tangent import cohort_tangent, tangent

__all__ = [
    "MEANT_FOR",
    "Guide",
    "Layer",
    "Measure",
    "Shrinkage",
    "add_layers",
    "case_control_layer",
    "cohort_tangent",
    "compute",
    "fit_guided",
    "fit_shrinkage",
]
__all__ += ["guide", "layers", "meant_for", "measure", "names", "shrink", "tangent"]
