r"""The healthy → patient group → patient prior of the coupling J.

Every recording gives a one-step estimate of its J from the healthy group's (`linear_stochastic.one_step_in_modes`). In the modes of the
healthy J its errors are independent and known, so that the variances of the hierarchy are closed forms there: that of the patient group's
shift beyond what sampling alone would make of it, and that between the participants of a group. The mean patient is then the maximum a
posteriori of the pooled patients about the healthy J, and a patient that of the own recording about the mean patient (`fit.by_scoring`).
A mean of one-step estimates would not do: it overshoots where the groups differ much.
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

LEAST = 3  # participants of a group
ROUNDS = 30  # of the weighted moment estimate of a variance
SMALLEST = 1e-7  # variance in 1/s²
NARROWEST = 0.2  # smallest standard deviation over the root mean square of the coupling: scaled signals vary too little among few parcels
GROUP_STEPS = 12


class Estimates(NamedTuple):
    """One-step estimates of S recordings in the modes of the healthy J.

    Attributes:
      healthy: parameters of the healthy group.
      recordings: the S recordings.
      moved: Uᵀ (estimate − healthy J) U, `[S, K, K]`.
      variance: of each entry, `[S, K, K]`.
    """

    healthy: Params
    recordings: tuple[Spectra, ...]
    moved: Float[np.ndarray, "S K K"]
    variance: Float[np.ndarray, "S K K"]


class PatientPrior(NamedTuple):
    """What training participants say about the J of one more patient.

    Attributes:
      prior: mean and isotropic precision of a patient's parameters; the mean is the mean patient.
      shift_sd: standard deviation of an entry of the mean patient's J about the healthy group's, in 1/s.
      sd: standard deviation of an entry of a patient's J about the mean patient's, in 1/s.
    """

    prior: DynamicsPrior
    shift_sd: float
    sd: float


def estimates(healthy: Params, recordings: Sequence[Spectra]) -> Estimates:
    """One-step estimates of recordings that were standardised as the healthy group's were.

    Recordings should share their bins' shape (`frequency_bins(size=…)`), so that one program serves all.

    Memory: two matrices `[K, K]` per recording.
    """
    step = jax.jit(one_step_in_modes)
    found = [[np.asarray(x) for x in step(healthy, one)[1:]] for one in recordings]
    return Estimates(healthy, tuple(recordings), *(np.stack(each) for each in zip(*found, strict=True)))


def patient_prior(known: Estimates, patient: Bool[np.ndarray, " S"], rows: Int[np.ndarray, " n"]) -> PatientPrior:
    """Prior of one more patient.

    Args:
      known: estimates of S recordings.
      patient: which of the S are of patients.
      rows: those that may be used: the training participants.

    Raises:
      ValueError: fewer than 3 patients or healthy participants among the rows.
    """
    groups = [rows[patient[rows] == one] for one in (False, True)]
    if min(map(len, groups)) < LEAST:
        raise ValueError(f"expected {LEAST} patients and {LEAST} controls or more to learn from, got {len(groups[1])} and {len(groups[0])}")
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
    """Draws of a participant's J around the maximum a posteriori, `[n, K, K]`, each stable.

    The posterior is normal in the modes of the estimate, with the precision of the recording's information and of the prior.
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
    """Variance that squares have beyond their noise, entries weighted by how well each says so."""
    found = SMALLEST
    for _ in range(ROUNDS):
        weight = 1 / np.square(noise + found)
        found = max(float((weight * (squares - noise)).sum() / weight.sum()), SMALLEST)
    return found
