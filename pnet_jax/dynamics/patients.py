r"""Hierarchical prior of the coupling J of patients: healthy group → patient group → patient.

Every recording gives a one-step estimate of its J, starting from that of the healthy group (`linear_stochastic.one_step_in_modes`). In the
modes of the healthy J, the errors are independent and known, so the variances of the hierarchy have closed forms: the variance of the
patient group's shift beyond sampling error, and the variance between the participants of a group. The patient group mean is then the
maximum a posteriori (MAP) estimate of the pooled patients around the healthy J, and a patient's J is the MAP estimate of their recording
around the patient group mean (`fit.by_scoring`). The mean of the one-step estimates is not used because it overshoots if the groups
differ strongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.dynamics.fit import DELAY_SD, LEVEL_SD, DynamicsPrior, by_scoring
from pnet_jax.dynamics.linear_stochastic import Params, information, jacobian, one_step_in_modes
from pnet_jax.dynamics.spectra import Spectra, pool

LEAST = 3  # minimum number of participants per group
ROUNDS = 30  # iterations of the weighted moment estimate of a variance
SMALLEST = 1e-7  # minimum variance in 1/s²
NARROWEST = 0.2  # minimum standard deviation relative to the RMS coupling; with few parcels, scaled signals vary too little
GROUP_STEPS = 12


class Estimates(NamedTuple):
    """One-step estimates of S recordings in the modes of the healthy J.

    Attributes:
      healthy: parameters of the healthy group.
      recordings: the S recordings.
      moved: deviations from the healthy J in its modes, Uᵀ (estimate − healthy J) U, `[S, K, K]`.
      variance: error variance of each entry, `[S, K, K]`.
    """

    healthy: Params
    recordings: tuple[Spectra, ...]
    moved: Float[np.ndarray, "S K K"]
    variance: Float[np.ndarray, "S K K"]


class PatientPrior(NamedTuple):
    """Prior of the J of a new patient, learned from training participants.

    Attributes:
      prior: mean and isotropic precision of a patient's parameters; the mean is that of the patient group.
      shift_sd: standard deviation of an entry of the patient group's J around that of the healthy group, in 1/s.
      sd: standard deviation of an entry of a patient's J around that of the patient group, in 1/s.
    """

    prior: DynamicsPrior
    shift_sd: float
    sd: float


def estimates(healthy: Params, recordings: Sequence[Spectra]) -> Estimates:
    """Compute one-step estimates of recordings that were standardised like those of the healthy group.

    Recordings should have the same number of bins (`frequency_bins(size=…)`) to avoid recompilation.

    Memory: two matrices `[K, K]` per recording.
    """
    step = jax.jit(one_step_in_modes)
    found = [[np.asarray(x) for x in step(healthy, one)[1:]] for one in recordings]
    return Estimates(healthy, tuple(recordings), *(np.stack(each) for each in zip(*found, strict=True)))


def patient_prior(known: Estimates, patient: Bool[np.ndarray, " S"], rows: Int[np.ndarray, " n"]) -> PatientPrior:
    """Estimate the prior of a new patient from the training participants.

    Args:
      known: estimates of S recordings.
      patient: whether each recording is of a patient, `[S]`.
      rows: indices of the recordings of training participants, `[n]`.

    Returns:
      The prior.

    Raises:
      ValueError: If there are fewer than 3 patients or 3 healthy participants among the rows.
    """
    groups = [rows[patient[rows] == one] for one in (False, True)]
    if min(map(len, groups)) < LEAST:
        raise ValueError(f"expected at least {LEAST} patients and {LEAST} controls for training, got {len(groups[1])} and {len(groups[0])}")
    means = [known.moved[of].mean(0, dtype=np.float64) for of in groups]
    scatter = sum(((known.moved[of] - mean) ** 2).sum(0) for of, mean in zip(groups, means, strict=True)) / (len(rows) - 2)
    noise = known.variance[rows].mean(0, dtype=np.float64)
    coupling = np.asarray(jacobian(known.healthy), np.float64)
    narrowest = NARROWEST**2 * float(np.square(coupling[~np.eye(len(coupling), dtype=bool)]).mean())
    between = max(_beyond(np.asarray(scatter, np.float64), noise), narrowest)
    shift = max(_beyond((means[1] - means[0]) ** 2, (between + noise) * sum(1 / len(of) for of in groups)), narrowest)
    pooled = pool([known.recordings[at] for at in groups[1]])
    mean = by_scoring(pooled, _isotropic(known.healthy, shift), steps=GROUP_STEPS)
    return PatientPrior(_isotropic(mean, between), float(shift**0.5), float(between**0.5))


def posterior_draws(params: Params, spectra: Spectra, prior: DynamicsPrior, draws: int, key: Array) -> Float[Array, "n K K"]:
    """Draw samples of a participant's J around the MAP estimate, `[n, K, K]`; all are stable.

    The posterior is approximated as normal in the modes of the estimate, with the sum of the information and the prior precision.
    """
    modes, info = information(params, spectra)
    sd = jax.lax.rsqrt(info + prior.precision.coupling.mean())
    noise = jax.random.normal(key, (draws, *sd.shape), sd.dtype)
    inside = sd[None] * (jnp.triu(noise) + jnp.triu(noise, 1).swapaxes(1, 2))
    change = jnp.matmul(jnp.matmul(modes[None], inside, precision="highest"), modes.T[None], precision="highest")
    return jax.vmap(lambda one: jacobian(params._replace(coupling=params.coupling + one)))(change)


def _isotropic(mean: Params, variance: float) -> DynamicsPrior:
    levels = (jnp.float32(sd**-2) for sd in (LEVEL_SD, LEVEL_SD, DELAY_SD))
    return DynamicsPrior(mean, Params(jnp.full_like(mean.coupling, 1 / variance), *levels))


def _beyond(squares: Float[np.ndarray, "K K"], noise: Float[np.ndarray, "K K"]) -> float:
    """Estimate the mean of squares in excess of their noise variance, weighting entries by their precision."""
    found = SMALLEST
    for _ in range(ROUNDS):
        weight = 1 / np.square(noise + found)
        found = max(float((weight * (squares - noise)).sum() / weight.sum()), SMALLEST)
    return found
