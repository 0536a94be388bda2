"""Symmetric and directed coupling of parcels under linear stochastic dynamics, estimated by fitting the dynamics."""

from pnet_jax.edges.registry import _MEASURES, Measure

_MEASURES["coupling"] = Measure(
    "coupling",
    None,
    units="1/s",
    diagonal="minus the decay rate of a parcel",
    signed=True,
    description="Symmetric coupling J of linear stochastic dynamics with haemodynamics, fitted to the parcels' spectra",
    made_by="dynamics (--dynamics)",
)
_MEASURES["effective"] = Measure(
    "effective",
    None,
    units="1/s",
    diagonal="minus the decay rate of a parcel",
    signed=True,
    description="Directed coupling J of linear stochastic dynamics with haemodynamics, fitted to the parcels' cross-spectra: row k, "
    "column l is the effect of parcel l on parcel k",
    directed=True,
    made_by="dynamics (--dynamics)",
)
