"""Sliding-window connectivity, its variability with a static null model, and recurring states."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.edges._clock import TimedSignals, on_clock
from pnet_jax.edges.registry import register

WINDOW_SECONDS = 44.0
TAPER_SECONDS = 6.0
MIN_SHARE = 0.5  # minimum share of a window's weight on kept frames
SHARE_MARGIN = 1e-9  # above the rounding error of a share in float64, so that exactly half of a symmetric taper passes on every CPU
MOST_R = 1 - 1e-6


class Windows(NamedTuple):
    """Sliding-window connectivity of one recording.

    Attributes:
      edges: correlations in each window, `[W, K, K]`.
      at: first frame of each window, in frames after the first kept one, `[W]`.
      tr: repetition time in seconds, which is also the step between windows.
    """

    edges: Float[np.ndarray, "W K K"]
    at: Int[np.ndarray, " W"]
    tr: float


class Null(NamedTuple):
    """Variability of edges compared with surrogates of static connectivity.

    Attributes:
      observed: `dynamic_variability` of the signals, `[K, K]`.
      mean: mean over surrogates, `[K, K]`.
      sd: standard deviation over surrogates, `[K, K]`.
      p: share of the surrogates and the observed recording that vary at least as much as the observed one, `[K, K]`; NaN on the diagonal.
    """

    observed: Float[np.ndarray, "K K"]
    mean: Float[np.ndarray, "K K"]
    sd: Float[np.ndarray, "K K"]
    p: Float[np.ndarray, "K K"]


class States(NamedTuple):
    """Recurring patterns of connectivity (states), the most frequent first.

    Attributes:
      centres: mean connectivity of each state (averaged in Fisher z, returned as r), `[M, K, K]`; NaN for edges missing in a recording.
      labels: state of each window, `[W]` for each recording.
      occupancy: share of a recording's windows in each state, `[S, M]`.
      dwell: mean duration of a visit in seconds, `[S, M]`; NaN for states that are not visited.
      transitions: probability of the next window's state (column) given the current state (row), `[S, M, M]`; NaN without transitions.
      inertia: sum of squared distances of the windows to the centres of their states, in Fisher z of the edges above the diagonal.
    """

    centres: Float[np.ndarray, "M K K"]
    labels: tuple[Int[np.ndarray, " W"], ...]
    occupancy: Float[np.ndarray, "S M"]
    dwell: Float[np.ndarray, "S M"]
    transitions: Float[np.ndarray, "S M M"]
    inertia: float


def taper(tr: float, seconds: float = WINDOW_SECONDS, sigma: float = TAPER_SECONDS) -> Float[np.ndarray, " n"]:
    """Return the weights of a window's frames: a rectangle convolved with a Gaussian truncated at 3 sigma, with maximum 1.

    Args:
      tr: repetition time in seconds.
      seconds: length of the rectangle in seconds.
      sigma: standard deviation of the Gaussian in seconds.
    """
    frames, reach = max(round(seconds / tr), 1), int(np.ceil(3 * sigma / tr))
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) * tr / sigma) ** 2) if sigma > 0 else np.ones(1)
    weights = np.convolve(np.ones(frames), bell)
    weights = weights + weights[::-1]  # exactly symmetric; the convolution sums the two sides in different orders
    return (weights / weights.max()).astype(np.float32)


def windows(
    signals: Float[Array, "K T"],
    *,
    tr: float,
    frames: Int[np.ndarray, " T"] | None = None,
    seconds: float = WINDOW_SECONDS,
    sigma: float = TAPER_SECONDS,
) -> Windows:
    r"""Compute correlations in tapered windows that slide by one frame.

    .. math::
      r_{kl}(w) = \frac{c_{kl}}{\sqrt{c_{kk} c_{ll}}}, \quad
      c_{kl} = \sum_t g_{t-w} (x_{kt} - \bar x_k)(x_{lt} - \bar x_l)

    where g is the taper on kept frames and 0 elsewhere, and means are weighted by g. Windows with less than half of their weight on
    kept frames are left out. The defaults are those of Allen et al.: windows of 44 s with a taper of 6 s (22 and 3 frames of
    2 s). Fluctuations slower than about 1 / seconds cannot be resolved.

    Args:
      signals: parcel signals, any unit, `[K, T]`; rows of NaN give NaN.
      tr: repetition time in seconds.
      frames: indices of the T kept frames in the recording, ascending; default: consecutive frames.
      seconds: full width of a window at half maximum, in seconds.
      sigma: standard deviation of the taper in seconds; 0 for rectangular windows.

    Returns:
      The windows.

    Raises:
      ValueError: If the recording is shorter than a window, too few frames are kept in every window, a window has fewer than 4 frames, or
        `frames` do not match the signals.

    Memory: 4 · W · K² bytes; `dynamic_variability` does not store the windows.

    >>> x = jnp.sin(jnp.arange(60.0)[None] * jnp.array([[0.5], [0.5], [0.9]]))
    >>> found = windows(x, tr=2.0)
    >>> found.edges.shape, f"{found.edges[0, 0, 1]:.2f}"
    ((39, 3, 3), '1.00')

    Source: Allen et al. 2014, Cerebral Cortex.
    """
    recording, weights, starts = _plan(signals, tr, frames, seconds, sigma)
    return Windows(np.asarray(_every(recording, weights, starts)), np.asarray(starts), float(tr))


@register(
    "dynamic_variability",
    units="squared Fisher z",
    diagonal="0",
    signed=False,
    description=f"Variance over sliding windows ({WINDOW_SECONDS:g} s, tapered) of the Fisher z of mean parcel signals; much of it is "
    "sampling error, which static connectivity shows too: compare with surrogates",
    needs=("tr", "frames"),
)
def dynamic_variability(
    signals: Float[Array, "K T"],
    *,
    tr: float,
    frames: Int[np.ndarray, " T"] | None = None,
    seconds: float = WINDOW_SECONDS,
    sigma: float = TAPER_SECONDS,
) -> Float[Array, "K K"]:
    r"""Compute the variance of each edge's Fisher z over sliding windows, with one window in memory at a time.

    .. math::
      D_{kl} = \frac{1}{W - 1} \sum_w (\operatorname{artanh} r_{kl}(w) - \bar z_{kl})^2

    Most of this variance does not reflect dynamics: a window of 44 s has few independent samples, so r varies by sampling error, more so
    for weak edges and smooth signals. Report it together with `static_null`, which estimates the part explained by static connectivity.
    For the arguments and errors, see `windows`.

    Returns:
      Variances ≥ 0 with diagonal 0, `[K, K]`; NaN for a signal that is constant throughout a window.

    Memory: the recording and a few `[K, K]`.

    >>> x = jnp.sin(jnp.arange(60.0)[None] * jnp.array([[0.5], [0.5], [0.9]]))
    >>> found = dynamic_variability(x, tr=2.0)
    >>> print(bool(found[0, 1] < 1e-3 < found[0, 2]))
    True

    Source: Hindriks et al. 2016 and Liégeois et al. 2017, NeuroImage (on limits of its interpretation).
    """
    return _variance(*_plan(signals, tr, frames, seconds, sigma))


def phase_randomised(key: Array, signals: Float[Array, "K T"]) -> Float[Array, "K T"]:
    """Draw a phase-randomised surrogate, which has the spectra and cross-spectra of the signals and so their static connectivity.

    The same random phase is added to all signals at each frequency. Frames are treated as evenly spaced: with gaps, the spectra are those
    of the concatenated kept frames. Values become nearly Gaussian, so the surrogate has no spikes.

    Source: Prichard & Theiler 1994, Physical Review Letters.
    """
    frames = signals.shape[1]
    mean = signals.mean(1, keepdims=True)
    turned = jax.random.uniform(key, (1, frames // 2 + 1), maxval=2 * np.pi).at[:, 0].set(0.0)
    if frames % 2 == 0:
        turned = turned.at[:, -1].set(0.0)  # the highest frequency has no phase
    spectrum = jnp.fft.rfft(signals - mean, axis=1) * jnp.exp(1j * turned.astype(jnp.complex64))
    return jnp.fft.irfft(spectrum, n=frames, axis=1) + mean


def static_null(
    key: Array,
    signals: Float[Array, "K T"],
    *,
    tr: float,
    frames: Int[np.ndarray, " T"] | None = None,
    surrogates: int = 50,
    seconds: float = WINDOW_SECONDS,
    sigma: float = TAPER_SECONDS,
) -> Null:
    """Compare `dynamic_variability` with that of phase-randomised surrogates, whose connectivity is static.

    Args:
      key: random key of the surrogates.
      signals, tr, frames, seconds, sigma: as in `windows`.
      surrogates: number of surrogates, at least 2; the smallest p is 1 / (surrogates + 1).

    Returns:
      The observed variability and its null distribution.

    Raises:
      ValueError: If there are fewer than 2 surrogates, or as for `windows`.

    Memory: as for `dynamic_variability`, plus the results of the surrogates, `[surrogates, K, K]`.
    """
    if surrogates < 2:
        raise ValueError(f"surrogates must be at least 2, got {surrogates}")
    signals = jnp.asarray(signals, jnp.float32)
    variability = functools.partial(dynamic_variability, tr=tr, frames=frames, seconds=seconds, sigma=sigma)
    observed = np.asarray(variability(signals))
    drawn = np.stack([np.asarray(variability(phase_randomised(one, signals))) for one in jax.random.split(key, surrogates)])
    p = (1 + (drawn >= observed[None]).sum(0)) / (surrogates + 1)
    none = np.isnan(observed) | np.eye(len(observed), dtype=bool)
    return Null(observed, drawn.mean(0), drawn.std(0, ddof=1), np.where(none, np.nan, p).astype(np.float32))


def states(recordings: Sequence[Windows], n_states: int = 5, *, seed: int = 0, starts: int = 10) -> States:
    """Find recurring states of connectivity in the windows of one or several recordings, by k-means on the Fisher z of their edges.

    K-means returns the requested number of states whether or not distinct states exist; compare with a static null (`phase_randomised`).
    Distances are Euclidean (Allen et al. used the sum of absolute differences). Edges that are missing in a window are left out.

    Args:
      recordings: `windows` of each subject or run, with the same parcels and TR.
      n_states: number of states M.
      seed: random seed of the initialisations (k-means++).
      starts: number of initialisations, of which the best result is returned.

    Returns:
      The states.

    Raises:
      ValueError: If there is no recording, parcels or TR differ, there are more states than windows, or no edge is present in all windows.

    Memory: 4 · W · K² bytes for a total of W windows.

    >>> block = np.where((np.arange(20) // 5 % 2)[:, None, None] == 0, 0.8, -0.2) * np.ones((20, 3, 3))
    >>> found = states([Windows(block.astype(np.float32), np.arange(20), 2.0)], 2)
    >>> found.occupancy.tolist(), found.dwell.tolist()
    ([[0.5, 0.5]], [[10.0, 10.0]])

    Source: Allen et al. 2014, Cerebral Cortex.
    """
    if not recordings:
        raise ValueError("states need the windows of at least one recording, got none")
    if len({(one.edges.shape[1:], one.tr) for one in recordings}) > 1:
        raise ValueError(f"recordings must have the same parcels and TR, got {sorted({(len(one.edges[0]), one.tr) for one in recordings})}")
    upper = np.triu_indices(recordings[0].edges.shape[1], 1)
    z = np.concatenate([_fisher(one.edges[:, *upper]) for one in recordings])  # [W, E]
    seen = np.isfinite(z).all(0)
    if not seen.any():
        raise ValueError("states need an edge that is present in all windows, got none: leave out absent parcels")
    if not 1 <= n_states <= len(z):
        raise ValueError(f"n_states must be from 1 to the number of windows, {len(z)}, got {n_states}")
    centres, label, inertia = _k_means(jnp.asarray(z[:, seen]), jax.random.key(seed), n_states, starts)
    # Equally frequent states are ordered by first occurrence, so that the order does not depend on rounding.
    label_seen, at = np.unique(label, return_index=True)
    first = np.full(n_states, len(label))
    first[label_seen] = at
    order = np.lexsort((first, -np.bincount(label, minlength=n_states)))
    label = np.argsort(order)[label]
    parts = tuple(np.split(label, np.cumsum([len(one.at) for one in recordings])[:-1]))
    occupancy = np.stack([np.bincount(part, minlength=n_states) / len(part) for part in parts])
    dwell, transitions = zip(*(_visits(part, one, n_states) for part, one in zip(parts, recordings, strict=True)), strict=True)
    return States(_square(centres[order], seen, upper), parts, occupancy, np.stack(dwell), np.stack(transitions), inertia)


def _plan(
    signals: Array, tr: float, frames: Int[np.ndarray, " T"] | None, seconds: float, sigma: float
) -> tuple[TimedSignals, Array, Int[Array, " W"]]:
    """Return the signals padded for the ends of the taper, the taper, and the starts of the windows with enough kept frames."""
    recording = on_clock(signals, tr, frames)
    length, span = len(recording.kept), max(round(seconds / tr), 1)
    if span < 4 or sigma < 0:
        raise ValueError(f"a window must have at least 4 frames and sigma ≥ 0, got {seconds} s at a TR of {tr} s and sigma = {sigma} s")
    if length <= span:
        raise ValueError(f"sliding windows of {seconds:g} s need a longer recording, got {length * tr:g} s")
    weights = taper(tr, seconds, sigma)
    ends = (len(weights) - span) // 2
    kept = np.pad(np.asarray(recording.kept), ends)
    # A window centred on the edge of a gap has exactly half of its weight on kept frames.
    wide = np.float64(weights)
    share = np.correlate(np.float64(kept), wide, "valid") / wide.sum()
    starts = np.flatnonzero(share >= MIN_SHARE - SHARE_MARGIN).astype(np.int32)
    if len(starts) < 2:
        raise ValueError(f"expected at least 2 sliding windows with half of their {seconds:g} s kept, got {len(starts)}")
    padded = TimedSignals(jnp.pad(recording.x, ((0, 0), (ends, ends))), jnp.asarray(kept))
    return padded, jnp.asarray(weights), jnp.asarray(starts)


def _window(recording: TimedSignals, weights: Float[Array, " n"], start: Array) -> Float[Array, "K K"]:
    """Return the weighted correlations in one window."""
    x = jax.lax.dynamic_slice_in_dim(recording.x, start, len(weights), axis=1)
    weight = weights * jax.lax.dynamic_slice_in_dim(recording.kept, start, len(weights))
    weight = weight / weight.sum()
    centred = (x - (x * weight[None]).sum(1, keepdims=True)) * jnp.sqrt(weight)[None]
    energy = jnp.square(centred).sum(1)
    varies = ~(energy <= 1e-10 * (jnp.square(x) * weight[None]).sum(1))
    scaled = jnp.where(varies[:, None], centred / jnp.sqrt(jnp.where(varies, energy, 1.0))[:, None], jnp.nan)
    return jnp.matmul(scaled, scaled.T, precision="highest")


@jax.jit
def _every(recording: TimedSignals, weights: Array, starts: Array) -> Float[Array, "W K K"]:
    return jax.lax.map(functools.partial(_window, recording, weights), starts)


@jax.jit
def _variance(recording: TimedSignals, weights: Array, starts: Array) -> Float[Array, "K K"]:
    def add(state: tuple[Array, Array, Array], start: Array) -> tuple[tuple[Array, Array, Array], None]:
        n, mean, squares = state
        z = jnp.arctanh(jnp.clip(_window(recording, weights, start), -MOST_R, MOST_R))
        n, difference = n + 1, z - mean
        mean = mean + difference / n
        return (n, mean, squares + difference * (z - mean)), None

    empty = jnp.zeros((len(recording.x),) * 2)
    (n, _, squares), _ = jax.lax.scan(add, (jnp.float32(0), empty, empty), starts)
    own = jnp.eye(len(empty), dtype=bool) & ~jnp.isnan(squares)
    return jnp.where(own, 0.0, squares / (n - 1))


def _fisher(r: Float[np.ndarray, "W E"]) -> Float[np.ndarray, "W E"]:
    return np.arctanh(np.clip(r, -MOST_R, MOST_R)).astype(np.float32)


def _k_means(z: Float[Array, "W E"], key: Array, n_states: int, starts: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the centres, the label of each window, and the inertia of the best of several initialisations."""
    best = min((_lloyd(z, one, n_states=n_states) for one in jax.random.split(key, starts)), key=lambda found: float(found[2]))
    return np.asarray(best[0]), np.asarray(best[1]), float(best[2])


@functools.partial(jax.jit, static_argnames=("n_states", "steps"))
def _lloyd(z: Float[Array, "W E"], key: Array, *, n_states: int, steps: int = 100) -> tuple[Array, Array, Array]:
    def step(centres: Array, _: Array) -> tuple[Array, None]:
        member = jax.nn.one_hot(_apart(z, centres).argmin(1), n_states, dtype=z.dtype)  # [W, M]
        size = member.sum(0)
        mean = jnp.matmul(member.T, z, precision="highest") / jnp.maximum(size, 1.0)[:, None]
        return jnp.where(size[:, None] > 0, mean, centres), None

    centres, _ = jax.lax.scan(step, _plus_plus(z, key, n_states), jnp.arange(steps))
    apart = _apart(z, centres)
    label = apart.argmin(1)
    return centres, label, jnp.square(z - centres[label]).sum()


def _plus_plus(z: Float[Array, "W E"], key: Array, n_states: int) -> Float[Array, "M E"]:
    """Initialise centres by k-means++: windows are drawn in proportion to their squared distance to the nearest centre so far."""
    first, rest = jax.random.split(key)
    centres = jnp.zeros((n_states, z.shape[1])).at[0].set(z[jax.random.randint(first, (), 0, len(z))])

    def draw(state: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (centres, nearest), (m, key) = state, at
        chosen = z[jax.random.categorical(key, jnp.log(nearest + 1e-12))]
        return (centres.at[m].set(chosen), jnp.minimum(nearest, jnp.square(z - chosen[None]).sum(1))), None

    begun = (centres, jnp.square(z - centres[:1]).sum(1))
    if n_states == 1:
        return centres
    return jax.lax.scan(draw, begun, (jnp.arange(1, n_states), jax.random.split(rest, n_states - 1)))[0][0]


def _apart(z: Float[Array, "W E"], centres: Float[Array, "M E"]) -> Float[Array, "W M"]:
    """Return squared distances, up to a term that is the same for all centres."""
    return jnp.square(centres).sum(1)[None] - 2 * jnp.matmul(z, centres.T, precision="highest")


def _visits(label: Int[np.ndarray, " W"], one: Windows, n_states: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean duration of visits in seconds and the transition probabilities; neither spans windows that were left out."""
    follows = np.diff(one.at) == 1
    counts = np.zeros((n_states, n_states))
    np.add.at(counts, (label[:-1][follows], label[1:][follows]), 1)
    begins = np.concatenate([[True], ~follows | (np.diff(label) != 0)])
    visits = np.bincount(label[begins], minlength=n_states)
    windows_in = np.bincount(label, minlength=n_states)
    left = counts.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(visits > 0, windows_in / visits * one.tr, np.nan), np.where(left > 0, counts / left, np.nan)


def _square(z: Float[np.ndarray, "M E"], seen: np.ndarray, upper: tuple[np.ndarray, ...]) -> Float[np.ndarray, "M K K"]:
    """Return symmetric correlation matrices with diagonal 1 from the Fisher z of edges above the diagonal; NaN for missing edges."""
    parcels = int(upper[1].max()) + 1
    out = np.full((len(z), parcels, parcels), np.nan, np.float32)
    rows, columns = upper[0][seen], upper[1][seen]
    out[:, rows, columns] = out[:, columns, rows] = np.tanh(z)
    own = np.unique(np.concatenate([rows, columns]))
    out[:, own, own] = 1
    return out
