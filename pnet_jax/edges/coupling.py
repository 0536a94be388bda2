"""Coupling of parcels under linear stochastic dynamics: made by fitting these (`dynamics.fit`), and not from the signals alone."""

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
