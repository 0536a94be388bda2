"""Effects of interventions on one participant along disease axes; compiled once, then called for each participant."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.dynamics.fit import by_scoring, fit_group
from pnet_jax.dynamics.interventions import Kind, Quadrature, all_frequencies, amplitudes_at, decompose, energy, in_band, intervene
from pnet_jax.dynamics.linear_stochastic import Params, jacobian
from pnet_jax.dynamics.patients import Estimates, PatientPrior, estimates, patient_prior, posterior_draws
from pnet_jax.dynamics.spectra import BAND_HZ, Spectra, pool

CLIP = 0.999  # limit of correlations, as in `columns.fisher_z`
FC_IDENTITY = 0.2  # share of the identity in covariances estimated from correlations
STEPS = 8  # iterations of the fit of a patient's J
BATCH = 8  # number of targets processed at a time
SPREAD = 0.12  # largest change in connectivity in Wu 2018


class Effects(NamedTuple):
    """Effects of N targets at the energy cap, for the negative and the positive amplitude.

    Attributes:
      shift: Shift along each of A axes towards the mean control, relative to the distance between the groups, `[A, N, 2]`.
      damage: Root mean square over edges of the change in Fisher z orthogonal to the direction of the first axis, `[N, 2]`.
      energy: Energy in units of the mean power of one node's intrinsic drive, `[N, 2]`; below the cap if the amplitude reaches its limit
          first.
      amplitude: Amplitude, `[N, 2]`.
    """

    shift: Float[np.ndarray, "A N 2"]
    damage: Float[np.ndarray, "N 2"]
    energy: Float[np.ndarray, "N 2"]
    amplitude: Float[np.ndarray, "N 2"]


class Subject(NamedTuple):
    """Dynamics of a participant.

    Attributes:
      jacobian: Jacobian J in 1/s, `[K, K]`.
      quadrature: Measurement of the signals as a quadrature over frequencies.
      params: Fitted parameters; None if J was computed from connectivity.
    """

    jacobian: Float[Array, "K K"]
    quadrature: Quadrature
    params: Params | None = None


class Dynamics(Protocol):
    """Estimator of a patient's J: `learn` from training rows, then the mean patient, one patient, and draws of J."""

    source: str

    def learn(self, patient: Bool[np.ndarray, " S"], rows: Int[np.ndarray, " n"]) -> Any: ...

    def group(self, learned: Any) -> Subject: ...

    def one(self, learned: Any, at: int) -> Subject: ...

    def draws(self, learned: Any, at: int, subject: Subject, count: int, key: Array) -> list[Subject]: ...


class OfSignals:
    """Dynamics fitted to parcel signals with a hierarchical prior: healthy → patient group → patient."""

    source = "parcel signals, Whittle likelihood"

    def __init__(self, recordings: Sequence[Spectra], healthy: Int[np.ndarray, " h"], forcing_hz: float) -> None:
        self.forcing_hz = forcing_hz
        self.known: Estimates = estimates(fit_group(pool([recordings[at] for at in healthy])), recordings)

    def learn(self, patient: Bool[np.ndarray, " S"], rows: Int[np.ndarray, " n"]) -> PatientPrior:
        """Learn the prior of a further patient from the training participants."""
        return patient_prior(self.known, patient, rows)

    def group(self, learned: PatientPrior) -> Subject:
        """Return the mean patient."""
        return self._subject(learned.prior.mean)

    def one(self, learned: PatientPrior, at: int) -> Subject:
        """Estimate a patient's dynamics from the recording and the prior."""
        return self._subject(by_scoring(self.known.recordings[at], learned.prior, steps=STEPS))

    def draws(self, learned: PatientPrior, at: int, subject: Subject, count: int, key: Array) -> list[Subject]:
        """Draw J of a patient from its posterior."""
        assert subject.params is not None
        found = posterior_draws(subject.params, self.known.recordings[at], learned.prior, count, key)
        return [subject._replace(jacobian=one) for one in found]

    def _subject(self, params: Params) -> Subject:
        noise = jnp.exp(2 * (params.log_sigma_e - params.log_sigma_x))
        return Subject(jacobian(params), in_band(BAND_HZ, noise=noise, delay=params.delay, forcing_hz=self.forcing_hz), params)


class LearnedFc(NamedTuple):
    """Mean correlations of the training patients, `[K, K]`, and the retained share of individual deviations."""

    mean: Float[np.ndarray, "K K"]
    kept: float


class OfFc:
    """Dynamics computed from connectivity alone: J = −C⁻¹ / 2 for a shrunk correlation matrix. All rates are relative."""

    source = "correlations, shrunk and inverted (no signals)"

    def __init__(self, r: Float[np.ndarray, "S K K"], n_eff: Float[np.ndarray, " S"], forcing_hz: float) -> None:
        self.r, self.n_eff, self.forcing_hz = r, n_eff, forcing_hz

    def learn(self, patient: Bool[np.ndarray, " S"], rows: Int[np.ndarray, " n"]) -> LearnedFc:
        """Compute the mean of the training patients, and their variance beyond the estimation error of correlations."""
        own = self.r[rows[patient[rows]]]
        total = own.var(0, ddof=1).mean()
        error = np.mean(1 / np.maximum(self.n_eff[rows] - 3, 1)) * np.square(1 - np.square(own.mean(0))).mean()
        return LearnedFc(own.mean(0), float(np.clip(1 - error / max(total, 1e-12), 0.1, 1.0)))

    def group(self, learned: LearnedFc) -> Subject:
        """Return the mean patient."""
        return self._subject(learned.mean)

    def one(self, learned: LearnedFc, at: int) -> Subject:
        """Return a patient, shrunk towards the mean patient."""
        return self._subject(learned.mean + learned.kept * (self.r[at] - learned.mean))

    def draws(self, learned: LearnedFc, at: int, subject: Subject, count: int, key: Array) -> list[Subject]:
        """Return an empty list: correlations alone have no posterior of J."""
        return []

    def _subject(self, r: Float[np.ndarray, "K K"]) -> Subject:
        values, vectors = np.linalg.eigh((1 - FC_IDENTITY) * r + FC_IDENTITY * np.eye(len(r)))
        own = -(vectors * (0.5 / np.maximum(values, FC_IDENTITY / 2))) @ vectors.T
        return Subject(jnp.asarray(own, jnp.float32), all_frequencies(self.forcing_hz))


@functools.partial(jax.jit, static_argnames=("kind", "cap"))
def _effects(
    own: Array, quadrature: Quadrature, targets: Array, weights: Array, direction: Array, *, kind: Kind, cap: float
) -> tuple[Array, Array, Array, Array]:
    model = decompose(own, quadrature)
    before = _fisher(model.covariance)
    size = jnp.square(direction).sum()
    edges = len(own) * (len(own) - 1)

    def one(nodes: Array) -> tuple[Array, Array, Array, Array]:
        amplitudes = amplitudes_at(model, nodes, kind, cap)

        def at(amplitude: Array) -> tuple[Array, Array, Array]:
            change = _fisher(intervene(model, quadrature, nodes, kind, amplitude)) - before
            along = (change * direction).sum()
            off = jnp.square(change).sum() - jnp.square(along) / size
            return -(weights * change[None]).sum((1, 2)), jnp.sqrt(jnp.maximum(off, 0.0) / edges), energy(model, nodes, kind, amplitude)

        return (*jax.vmap(at, out_axes=(1, 0, 0))(amplitudes), amplitudes)

    return jax.lax.map(one, targets, batch_size=min(BATCH, len(targets)))


def effects(
    subject: Subject, targets: Int[np.ndarray, "N m"], weights: Float[np.ndarray, "A K K"], direction: Float[np.ndarray, "K K"], kind: Kind,
    cap: float,
) -> Effects:  # fmt: skip
    """Compute the effects of all targets on one participant, at the energy cap.

    Args:
      subject: Participant with K nodes.
      targets: Nodes of each target, −1 for padding.
      weights: Weights of A axes for all K² entries (`square`).
      direction: Direction from the mean control to the mean patient.
      kind, cap: See `dynamics.interventions`.

    Cost: N · (32 F K² + 10 K²) operations for F frequencies in the band, after one `eigh`.
    """
    out = _effects(
        subject.jacobian, subject.quadrature, jnp.asarray(targets), jnp.asarray(weights), jnp.asarray(direction), kind=kind, cap=cap
    )
    shift, damage, spent, amplitude = (np.asarray(x, np.float64) for x in out)
    return Effects(np.moveaxis(shift, 0, 1), damage, spent, amplitude)


def square(edges: Float[np.ndarray, "... E"], k: int, share: float = 1.0) -> Float[np.ndarray, "... K K"]:
    """Convert edges above the diagonal to symmetric matrices times `share`, with diagonal 0, float32."""
    out = np.zeros((*edges.shape[:-1], k, k), np.float32)
    i, j = np.triu_indices(k, 1)
    out[..., i, j] = out[..., j, i] = share * edges
    return out


def spreading(r: Float[np.ndarray, "K K"], weights: Float[np.ndarray, "K K"], members: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    """Shift along an axis by spreading along functional connectivity (after Wu 2018), for the better of the two directions, `[N]`.

    Connectivity with the target changes by 12 %, and that between two other nodes in proportion to both: Δr = ±0.12 r_T r_Tᵀ.
    """
    rows = members @ r / members.sum(1, keepdims=True)
    inner = weights / np.maximum(1 - np.square(np.clip(r, -CLIP, CLIP)), 1 - CLIP**2)
    return SPREAD * np.abs(np.einsum("nk,kl,nl->n", rows, inner, rows, optimize=True))


@jax.jit
def _control_cost(own: Array, wanted: Array, targets: Array) -> Array:
    values, modes = jnp.linalg.eigh(own)
    pairs = 1 / -(values[:, None] + values[None, :])
    x = jnp.matmul(modes.T, wanted.T, precision="highest")  # [K, A]
    ridge = (-0.5 / values).sum() / len(values) ** 2

    def one(nodes: Array) -> Array:
        inputs = jnp.where(nodes[None] >= 0, modes.T[:, nodes], 0.0)  # [K, m]: one input per node
        gramian = jnp.matmul(inputs, inputs.T, precision="highest") * pairs
        factor = jax.scipy.linalg.cho_factor(gramian + ridge * jnp.eye(len(x)))
        return (x * jax.scipy.linalg.cho_solve(factor, x)).sum(0)

    return jax.lax.map(one, targets).T


def control_cost(own: Float[Array, "K K"], wanted: Float[np.ndarray, "A K"], targets: Int[np.ndarray, "N m"]) -> Float[np.ndarray, "A N"]:
    r"""Energy for moving the nodes by `wanted` with inputs at the target, :math:`x^T (W_T + \rho I)^{-1} x`, `[A, N]` (after Gu 2015).

    W is the controllability Gramian; ρ, its mean diagonal, acts as a tolerance of the final state, without which few inputs would require
    numerically infinite energies.
    """
    return np.asarray(_control_cost(own, jnp.asarray(wanted, jnp.float32), jnp.asarray(targets)), np.float64)


def _fisher(covariance: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Fisher z of a covariance, with diagonal 0."""
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(covariance), 1e-12))
    r = covariance * scale[:, None] * scale[None, :] * (1 - jnp.eye(len(covariance)))
    return jnp.arctanh(jnp.clip(r, -CLIP, CLIP))
