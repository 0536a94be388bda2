r"""Virtual interventions in the symmetric linear stochastic model: closed-form connectivity after modulating one or several nodes.

.. math:: dx = J x\,dt + dW \;\to\; dx = (J + U M U^T) x\,dt + dW, \qquad \text{or} \quad dx = J x\,dt + dW + u\,E 1\cos(\omega_0 t)\,dt

J is decomposed once per participant. An intervention on m nodes changes the resolvent :math:`R(s) = (sI - J)^{-1}` by a matrix of rank 2m
or less (Woodbury),

.. math:: R' = R + R U (I - M U^T R U)^{-1} M U^T R

and every covariance is a sum of resolvents, :math:`C = \mathrm{Re} \sum_f c_f R(s_f)`. With s = 0 and c = ½, it is the solution of the
Lyapunov equation :math:`J C + C J^T + I = 0` (all frequencies); with :math:`s = i\omega, c = 2 h\,i/\omega`, it is the covariance in a band
after a haemodynamic response of power h, since :math:`(\omega^2 + J^2)^{-1} = -\mathrm{Im}\,R(i\omega)/\omega` for a symmetric J.

**Energy.** An intervention is an input v to the nodes, :math:`\dot x = J x + v + \text{noise}`, with v = U M Uᵀ x or v the forcing. Its
cost is the mean power of the input, :math:`E|v|^2`, in the resulting steady state; the integral of this power is the control
energy of network control theory (Gu 2015, Betzel 2016). The unit is the mean power of the drift of one node,
:math:`E|Jx|^2/K = -\mathrm{tr}J/2K`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from pnet_jax.dynamics import haemodynamics
from pnet_jax.dynamics.spectra import BAND_HZ

Kind = Literal["coupling", "local", "forcing"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SMALLEST = {"coupling": -1.0, "local": -1.0, "forcing": 0.0}  # minimum amplitudes; at −1, links are cut or the nodes' decay is removed
LARGEST = 1e3
MARGIN = 0.98  # maximum amplitude relative to that at which stability is lost
HALVINGS = 30
BAND_POINTS = 12  # Gauss–Legendre nodes of a band; relative error of the integral below 1e-4 for rates from 0.03 1/s


class Quadrature(NamedTuple):
    """Coefficients of a covariance as a sum of resolvents.

    Attributes:
      shift: shift s of each resolvent, `[F]`.
      weight: weight c of each resolvent, `[F]`.
      noise: variance of the measurement noise of each node, relative to that of the drive.
      forcing: angular frequency of a periodic input times i, in 1/s.
      gain: power gain of the measurement at that frequency.
    """

    shift: Complex[Array, " F"]
    weight: Complex[Array, " F"]
    noise: Float[Array, ""]
    forcing: Complex[Array, ""]
    gain: Float[Array, ""]


class DecomposedDynamics(NamedTuple):
    """A participant's dynamics in a form from which interventions are computed.

    Attributes:
      jacobian: J in 1/s, `[K, K]`.
      latent: covariance of the latent process over all frequencies, the solution of J C + C Jᵀ + I = 0, `[K, K]`.
      resolvents: resolvents R at the shifts of the quadrature, followed by that of the forcing, `[F + 1, K, K]`.
      covariance: covariance of the measured signals, `[K, K]`.
      unit: mean power of the drift of one node, E|Jx|² / K.
    """

    jacobian: Float[Array, "K K"]
    latent: Float[Array, "K K"]
    resolvents: Complex[Array, "F1 K K"]
    covariance: Float[Array, "K K"]
    unit: Float[Array, ""]


def all_frequencies(forcing_hz: float = 0.05) -> Quadrature:
    """Return the quadrature of the latent process over all frequencies (Lyapunov equation)."""
    return Quadrature(
        jnp.zeros(1, jnp.complex64), jnp.full(1, 0.5, jnp.complex64), jnp.zeros(()), jnp.asarray(2j * np.pi * forcing_hz), jnp.ones(())
    )


def in_band(
    band: tuple[float, float] = BAND_HZ,
    *,
    noise: Float[Array, ""] | float = 0.0,
    delay: Float[Array, ""] | float = 0.0,
    forcing_hz: float = 0.05,
) -> Quadrature:
    """Return the quadrature of BOLD signals in a frequency band.

    Args:
      band: frequency band in Hz.
      noise: ratio σe² / σx² of `linear_stochastic.Params`.
      delay: delay of the haemodynamic peak in seconds.
      forcing_hz: frequency of a periodic input in Hz, within the band.
    """
    point, share = np.polynomial.legendre.leggauss(BAND_POINTS)
    hz = (band[0] + band[1]) / 2 + point * (band[1] - band[0]) / 2
    share, omega = share * (band[1] - band[0]) / 2, 2 * np.pi * hz
    h = haemodynamics.power(jnp.asarray(hz, jnp.float32), delay)
    weight = jax.lax.complex(jnp.zeros(BAND_POINTS), jnp.asarray(2 * share / omega, jnp.float32) * h)
    gain = haemodynamics.power(jnp.asarray([forcing_hz], jnp.float32), delay)[0]
    return Quadrature(
        jnp.asarray(1j * omega, jnp.complex64),
        weight,
        2 * (band[1] - band[0]) * jnp.asarray(noise, jnp.float32),
        jnp.asarray(2j * np.pi * forcing_hz, jnp.complex64),
        gain,
    )


def decompose(jacobian: Float[Array, "K K"], quadrature: Quadrature) -> DecomposedDynamics:
    """Decompose a symmetric, stable J with one `eigh`.

    Memory: `[F + 1, K, K]` complex.
    """
    values, modes = jnp.linalg.eigh(jacobian)
    shift = jnp.append(quadrature.shift, quadrature.forcing)
    inverse = 1 / (shift[:, None] - values[None, :].astype(shift.dtype))  # [F + 1, K]
    parts = (modes[None] * part[:, None, :] for part in (inverse.real, inverse.imag))
    real, imaginary = (jnp.matmul(part, modes.T[None], precision="highest") for part in parts)
    resolvents = jax.lax.complex(real, imaginary)
    spread = (quadrature.weight[:, None] * inverse[:-1]).sum(0).real
    covariance = jnp.matmul(modes * spread[None], modes.T, precision="highest") + quadrature.noise * jnp.eye(len(values))
    latent = jnp.matmul(modes * (-0.5 / values)[None], modes.T, precision="highest")
    return DecomposedDynamics(jacobian, latent, resolvents, covariance, -values.mean() / 2)


def stable(jacobian: Float[Array, "K K"]) -> Bool[Array, ""]:
    """Return whether all eigenvalues of a symmetric J are below 0."""
    return jnp.linalg.eigvalsh(jacobian)[-1] < 0


def limits(model: DecomposedDynamics, nodes: Int[Array, " m"], kind: Kind) -> Float[Array, " 2"]:
    r"""Return the smallest and largest amplitude at which the model is stable, with a margin of 2 %, `[2]`.

    Along :math:`J + a U M_1 U^T`, stability is lost if :math:`2 a G^{1/2} M_1 G^{1/2}` has an eigenvalue of 1, where
    :math:`G = U^T C U` and C is the covariance over all frequencies.
    """
    if kind == "forcing":
        return jnp.array([0.0, LARGEST])
    columns, unit = _factors(model, nodes, kind)
    gram = jnp.matmul(columns.T, jnp.matmul(model.latent, columns, precision="highest"), precision="highest")
    values, vectors = jnp.linalg.eigh(gram)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None]
    found = jnp.linalg.eigvalsh(2 * jnp.matmul(root.T, jnp.matmul(unit, root, precision="highest"), precision="highest"))
    low, high = jnp.minimum(found[0], -1e-6), jnp.maximum(found[-1], 1e-6)
    return jnp.stack([jnp.maximum(MARGIN / low, SMALLEST[kind]), jnp.minimum(MARGIN / high, LARGEST)])


def energy(model: DecomposedDynamics, nodes: Int[Array, " m"], kind: Kind, amplitude: Float[Array, ""]) -> Float[Array, ""]:
    """Return the mean power of the input, in units of the mean power of the drift of one node; valid within `limits`."""
    if kind == "forcing":
        return jnp.square(amplitude) / 2 * (nodes >= 0).astype(jnp.float32).sum() / model.unit
    columns, unit = _factors(model, nodes, kind)
    gram = jnp.matmul(columns.T, jnp.matmul(model.latent, columns, precision="highest"), precision="highest")
    own = jnp.matmul(columns.T, columns, precision="highest")
    return _energy(gram, own, amplitude * unit) / model.unit


def amplitudes_at(model: DecomposedDynamics, nodes: Int[Array, " m"], kind: Kind, cap: float) -> Float[Array, " 2"]:
    """Return the negative and positive amplitude at which the energy reaches `cap`, within `limits`, `[2]`."""
    bounds = limits(model, nodes, kind)
    if kind == "forcing":
        return jnp.array([0.0, 1.0]) * jnp.sqrt(2 * cap * model.unit / jnp.maximum((nodes >= 0).astype(jnp.float32).sum(), 1.0))
    columns, unit = _factors(model, nodes, kind)
    gram = jnp.matmul(columns.T, jnp.matmul(model.latent, columns, precision="highest"), precision="highest")
    own = jnp.matmul(columns.T, columns, precision="highest")

    def one(bound: Array) -> Array:
        def halve(_: int, between: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = between
            middle = (low + high) / 2
            under = _energy(gram, own, middle * unit) <= cap * model.unit
            return jnp.where(under, middle, low), jnp.where(under, high, middle)

        reached = _energy(gram, own, bound * unit) <= cap * model.unit
        return jnp.where(reached, bound, jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(bound), bound))[0])

    return jax.vmap(one)(bounds)


def intervene(
    model: DecomposedDynamics, quadrature: Quadrature, nodes: Int[Array, " m"], kind: Kind, amplitude: Float[Array, ""]
) -> Float[Array, "K K"]:
    """Compute the connectivity after an intervention.

    Args:
      model: dynamics from `decompose` with the same quadrature.
      quadrature: quadrature of the covariance.
      nodes: indices of the modulated nodes, padded with −1, `[m]`.
      kind: type of intervention: `"coupling"` multiplies the links of the nodes by 1 + amplitude, `"local"` multiplies their decay by
        1 + amplitude, and `"forcing"` drives them jointly with that amplitude at the frequency of the quadrature.
      amplitude: amplitude of the intervention, see `limits` and `amplitudes_at`.

    Returns:
      Correlations with diagonal 1, `[K, K]`; NaN if the model becomes unstable.

    Memory: `[F, K, 2m]` complex; 8 F m K² operations.

    >>> plain = all_frequencies()
    >>> model = decompose(jnp.array([[-1.0, 0.5], [0.5, -1.0]]), plain)
    >>> cut = intervene(model, plain, jnp.array([0]), "coupling", jnp.float32(-1.0))
    >>> round(float(abs(cut[0, 1])), 3)
    0.0
    """
    if kind == "forcing":
        response = (_columns(nodes, len(model.jacobian)).sum(1)[None, :].astype(model.resolvents.dtype) @ model.resolvents[-1])[0]
        both = jnp.stack([response.real, response.imag], 1)
        change = quadrature.gain * jnp.square(amplitude) / 2 * jnp.matmul(both, both.T, precision="highest")
        return _correlation(model.covariance + change)
    columns, unit = _factors(model, nodes, kind)
    change = _change(model, quadrature, nodes, kind, columns, amplitude * unit)
    low, high = limits(model, nodes, kind) / MARGIN
    return jnp.where((amplitude > low) & (amplitude < high), _correlation(model.covariance + change), jnp.nan)


def _columns(nodes: Int[Array, " m"], size: int) -> Float[Array, "K m"]:
    return (jnp.arange(size)[:, None] == nodes[None, :]).astype(jnp.float32)


def _factors(model: DecomposedDynamics, nodes: Int[Array, " m"], kind: Kind) -> tuple[Float[Array, "K r"], Float[Array, "r r"]]:
    """Return U and M of amplitude 1; columns of padded nodes are 0."""
    e = _columns(nodes, len(model.jacobian))
    decay = jnp.diagonal(model.jacobian)
    if kind == "local":
        return e, jnp.diag(decay[nodes])
    links = jnp.matmul(model.jacobian, e, precision="highest") - decay[:, None] * e
    b = links - jnp.matmul(e, jnp.matmul(e.T, links, precision="highest"), precision="highest") / 2  # links within the set are counted once
    zero, eye = jnp.zeros((len(nodes),) * 2), jnp.eye(len(nodes))
    return jnp.concatenate([e, b], 1), jnp.block([[zero, eye], [eye, zero]])


def _change(
    model: DecomposedDynamics,
    quadrature: Quadrature,
    nodes: Int[Array, " m"],
    kind: Kind,
    columns: Float[Array, "K r"],
    middle: Float[Array, "r r"],
) -> Float[Array, "K K"]:
    """Return Re Σ c R U (I − M Uᵀ R U)⁻¹ M Uᵀ R."""
    r = model.resolvents[:-1]
    there = (nodes >= 0).astype(jnp.float32)
    ru = r[:, :, jnp.maximum(nodes, 0)] * there.astype(r.dtype)[None, None]  # [F, K, m]
    if kind == "coupling":
        # R J = s R − I, so the columns of the links need no product with R.
        size, e = len(nodes), columns[:, : len(nodes)]
        decay = (jnp.diagonal(model.jacobian)[nodes] * there).astype(r.dtype)
        links = quadrature.shift[:, None, None] * ru - e.astype(r.dtype)[None] - ru * decay[None, None]
        within = jnp.matmul(e.T, columns[:, size:], precision="highest").astype(r.dtype)  # half of the links within the set
        ru = jnp.concatenate([ru, links - jnp.matmul(ru, within[None], precision="highest")], 2)
    gram = jnp.matmul(columns.T.astype(r.dtype)[None], ru, precision="highest")
    m = middle.astype(r.dtype)[None]
    inner = jnp.linalg.solve(
        jnp.eye(len(middle), dtype=r.dtype)[None] - jnp.matmul(m, gram, precision="highest"), jnp.broadcast_to(m, gram.shape)
    )
    left = quadrature.weight[:, None, None] * jnp.matmul(ru, inner, precision="highest")
    flat = lambda x: jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)  # noqa: E731
    left = jnp.concatenate([flat(left.real), -flat(left.imag)], 1)
    right = jnp.concatenate([flat(ru.real), flat(ru.imag)], 1)
    change = jnp.matmul(left, right.T, precision="highest")
    return (change + change.T) / 2


def _energy(gram: Float[Array, "r r"], own: Float[Array, "r r"], middle: Float[Array, "r r"]) -> Float[Array, ""]:
    """Return tr M Uᵀ C' U M Uᵀ U, where C' is the covariance under the intervention."""
    solved = jnp.linalg.solve(jnp.eye(len(gram)) - 2 * jnp.matmul(middle, gram, precision="highest"), middle)
    after = gram + 2 * jnp.matmul(gram, jnp.matmul(solved, gram, precision="highest"), precision="highest")
    return jnp.trace(middle @ after @ middle @ own)


def _correlation(covariance: Float[Array, "K K"]) -> Float[Array, "K K"]:
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(covariance), 1e-12))
    return covariance * scale[:, None] * scale[None, :]
