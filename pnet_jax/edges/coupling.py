"""Coupling of parcels, symmetric and directed, under linear stochastic dynamics: made by fitting these, and not from the signals alone."""

from pnet_jax.edges.registry import _MEASURES, Measure

_MEASURES["coupling"] = Measure(
    "coupling",
    None,
    units="1/s",
    diagonal="minus the rate at which a parcel forgets",
    signed=True,
    description="Symmetric coupling J of linear stochastic dynamics with haemodynamics, fitted to the parcels' spectra",
    made_by="dynamics (--dynamics)",
)
_MEASURES["effective"] = Measure(
    "effective",
    None,
    units="1/s",
    diagonal="minus the rate at which a parcel forgets",
    signed=True,
    description="Directed coupling J of linear stochastic dynamics with haemodynamics, fitted to the parcels' cross-spectra: row k, "
    "column l is what parcel l does to parcel k",
    directed=True,
    made_by="dynamics (--dynamics)",
)
