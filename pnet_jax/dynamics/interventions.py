r"""Interventions in the symmetric linear stochastic model: a node or a set is modulated, and the new connectivity has a closed form.

.. math:: dx = J x\,dt + dW \;\to\; dx = (J + U M U^T) x\,dt + dW, \qquad \text{or} \quad dx = J x\,dt + dW + u\,E 1\cos(\omega_0 t)\,dt

J is decomposed once for a participant. An intervention on m nodes changes the resolvent :math:`R(s) = (sI - J)^{-1}` by rank 2m at most
(Woodbury),

.. math:: R' = R + R U (I - M U^T R U)^{-1} M U^T R

and every covariance is a sum of resolvents, :math:`C = \mathrm{Re} \sum_f c_f R(s_f)`: with s = 0, c = ½ the solution of the Lyapunov
equation :math:`J C + C J^T + I = 0` (all frequencies), with :math:`s = i\omega, c = 2 h\,i/\omega` the covariance in a band seen through a
haemodynamic response of power h, since :math:`(\omega^2 + J^2)^{-1} = -\mathrm{Im}\,R(i\omega)/\omega` for a symmetric J.

**Energy.** An intervention is an input v to the nodes, :math:`\dot x = J x + v + \text{noise}`: v = U M Uᵀ x, or the forcing itself. Its
cost is the mean power of the input, :math:`E|v|^2`, in the steady state that it leads to, the quantity whose integral is the control
energy of network control theory (Gu 2015, Betzel 2016). The unit is the mean power of one node's own drift,
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
SMALLEST = {"coupling": -1.0, "local": -1.0, "forcing": 0.0}  # amplitude: at −1 the links are cut, or the own decay is gone
LARGEST = 1e3
MARGIN = 0.98  # of the amplitude at which stability is lost
HALVINGS = 30
BAND_POINTS = 12  # Gauss-Legendre nodes of a band: within 1e-4 of its integral for rates from .03 1/s


class Quadrature(NamedTuple):
    """A covariance as a sum of resolvents.

    Attributes:
      shift: s of each resolvent, `[F]`.
      weight: c of each, `[F]`.
      noise: variance that the measurement adds to each node, over that of the drive.
      forcing: i times the angular frequency of a periodic input, 1/s.
      gain: factor by which the measurement multiplies the power at that frequency.
    """

    shift: Complex[Array, " F"]
    weight: Complex[Array, " F"]
    noise: Float[Array, ""]
    forcing: Complex[Array, ""]
    gain: Float[Array, ""]


class Model(NamedTuple):
    """A participant's dynamics, decomposed.

    Attributes:
      jacobian: J in 1/s, `[K, K]`.
      latent: covariance over all frequencies, without measurement, `[K, K]`: solves J C + C Jᵀ + I = 0.
      resolvents: R at each shift of the quadrature, and last at the forcing's, `[F + 1, K, K]`.
      covariance: of the measured signals, `[K, K]`.
      unit: mean power of one node's own drift, E|Jx|² / K.
    """

    jacobian: Float[Array, "K K"]
    latent: Float[Array, "K K"]
    resolvents: Complex[Array, "F1 K K"]
    covariance: Float[Array, "K K"]
    unit: Float[Array, ""]


def all_frequencies(forcing_hz: float = 0.05) -> Quadrature:
    """The latent process over all frequencies: the Lyapunov equation."""
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
    """Signals in a band through the haemodynamic response.

    Args:
      band: Hz.
      noise: σe² / σx² of `linear_stochastic.Params`.
      delay: of the haemodynamic peak in seconds.
      forcing_hz: frequency of a periodic input, in the band if it is to be seen.
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


def decompose(jacobian: Float[Array, "K K"], quadrature: Quadrature) -> Model:
    """Decompose a symmetric, stable J; one `eigh`.

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
    return Model(jacobian, latent, resolvents, covariance, -values.mean() / 2)


def stable(jacobian: Float[Array, "K K"]) -> Bool[Array, ""]:
    """Whether all eigenvalues of a symmetric J are below 0."""
    return jnp.linalg.eigvalsh(jacobian)[-1] < 0


def limits(model: Model, nodes: Int[Array, " m"], kind: Kind) -> Float[Array, " 2"]:
    r"""Smallest and largest amplitude at which the model is stable, with a margin of 2 %, `[2]`.

    Along :math:`J + a U M_1 U^T` stability is lost where :math:`2 a G^{1/2} M_1 G^{1/2}` has an eigenvalue 1, with
    :math:`G = U^T C U` and C the covariance over all frequencies.
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


def energy(model: Model, nodes: Int[Array, " m"], kind: Kind, amplitude: Float[Array, ""]) -> Float[Array, ""]:
    """Mean power of the input, in units of the mean power of one node's own drift; infinite where the model becomes unstable."""
    if kind == "forcing":
        return jnp.square(amplitude) / 2 * (nodes >= 0).astype(jnp.float32).sum() / model.unit
    columns, unit = _factors(model, nodes, kind)
    gram = jnp.matmul(columns.T, jnp.matmul(model.latent, columns, precision="highest"), precision="highest")
    own = jnp.matmul(columns.T, columns, precision="highest")
    return _energy(gram, own, amplitude * unit) / model.unit


def amplitudes_at(model: Model, nodes: Int[Array, " m"], kind: Kind, cap: float) -> Float[Array, " 2"]:
    """Negative and positive amplitude at which the energy reaches the cap, or the limit of stability or of the amplitude, `[2]`."""
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
    model: Model, quadrature: Quadrature, nodes: Int[Array, " m"], kind: Kind, amplitude: Float[Array, ""]
) -> Float[Array, "K K"]:
    """Connectivity after an intervention, `[K, K]`, diagonal 1; NaN where the model becomes unstable.

    Args:
      model: of `decompose` with the same quadrature.
      quadrature: which covariance.
      nodes: that are modulated, −1 for padding.
      kind: `"coupling"` multiplies the links of the nodes by 1 + amplitude, `"local"` their own decay; `"forcing"` drives them together
        with that amplitude at the quadrature's frequency.
      amplitude: see `limits` and `amplitudes_at`.

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


def _factors(model: Model, nodes: Int[Array, " m"], kind: Kind) -> tuple[Float[Array, "K r"], Float[Array, "r r"]]:
    """U and M of amplitude 1; padded nodes have columns of 0."""
    e = _columns(nodes, len(model.jacobian))
    decay = jnp.diagonal(model.jacobian)
    if kind == "local":
        return e, jnp.diag(decay[nodes])
    links = jnp.matmul(model.jacobian, e, precision="highest") - decay[:, None] * e
    b = links - jnp.matmul(e, jnp.matmul(e.T, links, precision="highest"), precision="highest") / 2  # links within the set count once
    zero, eye = jnp.zeros((len(nodes),) * 2), jnp.eye(len(nodes))
    return jnp.concatenate([e, b], 1), jnp.block([[zero, eye], [eye, zero]])


def _change(
    model: Model, quadrature: Quadrature, nodes: Int[Array, " m"], kind: Kind, columns: Float[Array, "K r"], middle: Float[Array, "r r"]
) -> Float[Array, "K K"]:
    """Re Σ c R U (I − M Uᵀ R U)⁻¹ M Uᵀ R."""
    r = model.resolvents[:-1]
    there = (nodes >= 0).astype(jnp.float32)
    ru = r[:, :, jnp.maximum(nodes, 0)] * there.astype(r.dtype)[None, None]  # [F, K, m]
    if kind == "coupling":
        # R J = s R − I, so that the links' columns need no product with R.
        size, e = len(nodes), columns[:, : len(nodes)]
        decay = (jnp.diagonal(model.jacobian)[nodes] * there).astype(r.dtype)
        links = quadrature.shift[:, None, None] * ru - e.astype(r.dtype)[None] - ru * decay[None, None]
        within = jnp.matmul(e.T, columns[:, size:], precision="highest").astype(r.dtype)  # half the links within the set
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
    """tr M Uᵀ C' U M Uᵀ U with C' the covariance under the intervention."""
    solved = jnp.linalg.solve(jnp.eye(len(gram)) - 2 * jnp.matmul(middle, gram, precision="highest"), middle)
    after = gram + 2 * jnp.matmul(gram, jnp.matmul(solved, gram, precision="highest"), precision="highest")
    return jnp.trace(middle @ after @ middle @ own)


def _correlation(covariance: Float[Array, "K K"]) -> Float[Array, "K K"]:
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(covariance), 1e-12))
    return covariance * scale[:, None] * scale[None, :]
