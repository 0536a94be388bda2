"""Neural dynamics of parcel signals: models with closed-form spectra, their likelihoods and fits."""

from pnet_jax.dynamics.fit import (
    DynamicsPrior,
    Fit,
    Hierarchy,
    distance_precision,
    empirical_bayes,
    fit_group,
    posterior_sd,
    structural,
    subject_prior,
)
from pnet_jax.dynamics.linear_stochastic import (
    Params,
    correlation,
    covariance,
    from_jacobian,
    jacobian,
    negative_log_likelihood,
    standard_errors,
)
from pnet_jax.dynamics.spectra import Bins, Spectra, frequency_bins, last_held_out, pool, scale_of, spectra, standardise

__all__ = [
    "Bins",
    "DynamicsPrior",
    "Fit",
    "Hierarchy",
    "Params",
    "Spectra",
    "correlation",
    "covariance",
    "distance_precision",
    "empirical_bayes",
    "fit_group",
    "frequency_bins",
    "from_jacobian",
    "jacobian",
    "last_held_out",
    "negative_log_likelihood",
    "pool",
    "posterior_sd",
    "scale_of",
    "spectra",
    "standard_errors",
    "standardise",
    "structural",
    "subject_prior",
]
