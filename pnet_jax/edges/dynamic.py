"""Connectivity in sliding windows, its variability, a static null for it, and recurring states."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pnet_jax.edges._clock import Recording, on_clock
from pnet_jax.edges.registry import register

WINDOW_SECONDS = 44.0
TAPER_SECONDS = 6.0
MIN_SHARE = 0.5  # of a window's weight must lie on kept frames
SHARE_MARGIN = 1e-9  # float64 rounds a share by less; half of a symmetric taper is half, on every CPU
MOST_R = 1 - 1e-6


class Windows(NamedTuple):
    """Connectivity in sliding windows of one recording.

    Attributes:
      edges: correlation in each window, `[W, K, K]`.
      at: position of each window's first frame in frames after the first kept one, `[W]`.
      tr: seconds between frames, and between the starts of windows.
    """

    edges: Float[np.ndarray, "W K K"]
    at: Int[np.ndarray, " W"]
    tr: float


class Null(NamedTuple):
    """Variability of edges beside that of surrogates whose connectivity is static.

    Attributes:
      observed: `dynamic_variability` of the signals, `[K, K]`.
      mean: its mean over surrogates, `[K, K]`.
      sd: its standard deviation over surrogates, `[K, K]`.
      p: share of recordings, the observed one with the surrogates, that vary at least as much, `[K, K]`; NaN on the diagonal.
    """

    observed: Float[np.ndarray, "K K"]
    mean: Float[np.ndarray, "K K"]
    sd: Float[np.ndarray, "K K"]
    p: Float[np.ndarray, "K K"]


class States(NamedTuple):
    """Recurring patterns of connectivity, the most frequent first.

    Attributes:
      centres: mean connectivity of each state (of Fisher z, given as r), `[M, K, K]`; NaN where a recording has no value.
      labels: state of each window, one `[W]` a recording.
      occupancy: share of a recording's windows in each state, `[S, M]`.
      dwell: mean duration of a visit in seconds, `[S, M]`; NaN for a state that was not visited.
      transitions: probability of the next window's state (column) after each state (row), `[S, M, M]`; NaN where none follows.
      inertia: sum of squared distances of the windows to their states' centres, in Fisher z of the edges above the diagonal.
    """

    centres: Float[np.ndarray, "M K K"]
    labels: tuple[Int[np.ndarray, " W"], ...]
    occupancy: Float[np.ndarray, "S M"]
    dwell: Float[np.ndarray, "S M"]
    transitions: Float[np.ndarray, "S M M"]
    inertia: float


def taper(tr: float, seconds: float = WINDOW_SECONDS, sigma: float = TAPER_SECONDS) -> Float[np.ndarray, " n"]:
    """Weights of a window's frames: a rectangle of `seconds` smoothed by a Gaussian of `sigma` seconds, cut at 3 sigma; largest 1."""
    frames, reach = max(round(seconds / tr), 1), int(np.ceil(3 * sigma / tr))
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) * tr / sigma) ** 2) if sigma > 0 else np.ones(1)
    weights = np.convolve(np.ones(frames), bell)
    weights = weights + weights[::-1]  # symmetric to the last bit: convolution adds the two sides in different orders
    return (weights / weights.max()).astype(np.float32)


def windows(
    signals: Float[Array, "K T"],
    *,
    tr: float,
    frames: Int[np.ndarray, " T"] | None = None,
    seconds: float = WINDOW_SECONDS,
    sigma: float = TAPER_SECONDS,
) -> Windows:
    r"""Correlation in tapered windows that slide by one frame.

    .. math::
      r_{kl}(w) = \frac{c_{kl}}{\sqrt{c_{kk} c_{ll}}}, \quad
      c_{kl} = \sum_t g_{t-w} (x_{kt} - \bar x_k)(x_{lt} - \bar x_l)

    with g the taper on kept frames, 0 on frames left out, and means weighted alike. Windows with less than half of their weight on
    kept frames are left out; exactly half is enough. The defaults are the 44 s with a taper of 6 s of Allen et al. (22 and 3 frames of
    2 s); a window sees no fluctuation slower than about 1 / seconds.

    Args:
      signals: any unit, `[K, T]`; rows of NaN give NaN.
      tr: seconds between frames.
      frames: positions of the T kept frames in the recording, ascending; all in a row if not given.
      seconds: length of a window at half its height.
      sigma: of the taper, in seconds; 0 for rectangles.

    Raises:
      ValueError: the recording is shorter than a window, too few frames in every window, a window of fewer than 4 frames, or `frames` do
        not fit the signals.

    Memory: 4 · W · K² bytes. `dynamic_variability` holds no such table.

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
    "sampling error that static connectivity has too: compare with surrogates",
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
    r"""Variance over sliding windows of each edge's Fisher z, one window held at a time.

    .. math::
      D_{kl} = \frac{1}{W - 1} \sum_w (\operatorname{artanh} r_{kl}(w) - \bar z_{kl})^2

    Most of it is no dynamics: a window of 44 s holds few independent samples, and r from these varies by itself, more so for weak
    edges and smooth signals. `static_null` says how much of it static connectivity explains; report both. Args and Raises: as `windows`.

    Returns:
      At least 0, diagonal 0, `[K, K]`; a signal that is constant throughout a window gives NaN.

    Memory: the recording and a few `[K, K]`.

    >>> x = jnp.sin(jnp.arange(60.0)[None] * jnp.array([[0.5], [0.5], [0.9]]))
    >>> found = dynamic_variability(x, tr=2.0)
    >>> print(bool(found[0, 1] < 1e-3 < found[0, 2]))
    True

    Source: Hindriks et al. 2016 and Liégeois et al. 2017, NeuroImage (on what it does not show).
    """
    return _variance(*_plan(signals, tr, frames, seconds, sigma))


def phase_randomised(key: Array, signals: Float[Array, "K T"]) -> Float[Array, "K T"]:
    """A surrogate with the spectra and cross-spectra of the signals, and so their static connectivity, but random phases.

    One random phase a frequency is added to all signals alike. Frames are taken as evenly spaced: with gaps the spectra are those of
    the kept frames put in a row. Values become nearly Gaussian: spikes are among what the surrogate has not.

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
    """What of `dynamic_variability` static connectivity explains: the same of phase-randomised surrogates.

    Args:
      key: of the surrogates.
      signals, tr, frames, seconds, sigma: as `windows`.
      surrogates: how many, 2 or more; p is no smaller than 1 / (surrogates + 1).

    Raises:
      ValueError: fewer than 2 surrogates, or as `windows`.

    Memory: as `dynamic_variability`, and the surrogates' results `[surrogates, K, K]`.
    """
    if surrogates < 2:
        raise ValueError(f"surrogates must be 2 or more, got {surrogates}")
    signals = jnp.asarray(signals, jnp.float32)
    variability = functools.partial(dynamic_variability, tr=tr, frames=frames, seconds=seconds, sigma=sigma)
    observed = np.asarray(variability(signals))
    drawn = np.stack([np.asarray(variability(phase_randomised(one, signals))) for one in jax.random.split(key, surrogates)])
    p = (1 + (drawn >= observed[None]).sum(0)) / (surrogates + 1)
    none = np.isnan(observed) | np.eye(len(observed), dtype=bool)
    return Null(observed, drawn.mean(0), drawn.std(0, ddof=1), np.where(none, np.nan, p).astype(np.float32))


def states(recordings: Sequence[Windows], n_states: int = 5, *, seed: int = 0, starts: int = 10) -> States:
    """States that the windows of one or several recordings recur to, by k-means on the Fisher z of their edges.

    K-means finds as many states as it is asked for, whether there are any: a static null (`phase_randomised`) has some too. Distances are
    Euclidean (Allen et al. took the sum of absolute differences). Edges without a value in some window are left out.

    Args:
      recordings: `windows` of each subject or run, of the same parcels and TR.
      n_states: M.
      seed: of the starts (k-means++); the best of them is given.
      starts: how many.

    Raises:
      ValueError: no recording, different parcels or TR, more states than windows, or no edge with a value in all windows.

    Memory: 4 · W · K² / 2 bytes over all W windows, twice.

    >>> block = np.where((np.arange(20) // 5 % 2)[:, None, None] == 0, 0.8, -0.2) * np.ones((20, 3, 3))
    >>> found = states([Windows(block.astype(np.float32), np.arange(20), 2.0)], 2)
    >>> found.occupancy.tolist(), found.dwell.tolist()
    ([[0.5, 0.5]], [[10.0, 10.0]])

    Source: Allen et al. 2014, Cerebral Cortex.
    """
    if not recordings:
        raise ValueError("states need windows of one recording or more, got none")
    if len({(one.edges.shape[1:], one.tr) for one in recordings}) > 1:
        raise ValueError(f"recordings must have the same parcels and TR, got {sorted({(len(one.edges[0]), one.tr) for one in recordings})}")
    upper = np.triu_indices(recordings[0].edges.shape[1], 1)
    z = np.concatenate([_fisher(one.edges[:, *upper]) for one in recordings])  # [W, E]
    seen = np.isfinite(z).all(0)
    if not seen.any():
        raise ValueError("states need an edge with a value in all windows, got none: leave absent parcels out")
    if not 1 <= n_states <= len(z):
        raise ValueError(f"n_states must be from 1 to the {len(z)} windows there are, got {n_states}")
    centres, label, inertia = _k_means(jnp.asarray(z[:, seen]), jax.random.key(seed), n_states, starts)
    # Of states that are equally frequent the one seen first, whichever of equally good starts rounding prefers.
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
) -> tuple[Recording, Array, Int[Array, " W"]]:
    """The recording with room for the tapers' ends, the taper, and where windows start that have enough kept frames."""
    recording = on_clock(signals, tr, frames)
    length, span = len(recording.kept), max(round(seconds / tr), 1)
    if span < 4 or sigma < 0:
        raise ValueError(f"a window must have 4 frames or more and a sigma of 0 or more, got {seconds} s at a TR of {tr} s and {sigma} s")
    if length <= span:
        raise ValueError(f"sliding windows of {seconds:g} s need a recording longer than that, got {length * tr:g} s")
    weights = taper(tr, seconds, sigma)
    ends = (len(weights) - span) // 2
    kept = np.pad(np.asarray(recording.kept), ends)
    # A window whose centre lies at the edge of a gap has exactly half of its weight on kept frames.
    wide = np.float64(weights)
    share = np.correlate(np.float64(kept), wide, "valid") / wide.sum()
    starts = np.flatnonzero(share >= MIN_SHARE - SHARE_MARGIN).astype(np.int32)
    if len(starts) < 2:
        raise ValueError(f"sliding windows need 2 windows or more with half of their {seconds:g} s kept, got {len(starts)}")
    padded = Recording(jnp.pad(recording.x, ((0, 0), (ends, ends))), jnp.asarray(kept))
    return padded, jnp.asarray(weights), jnp.asarray(starts)


def _window(recording: Recording, weights: Float[Array, " n"], start: Array) -> Float[Array, "K K"]:
    """Weighted correlation in one window."""
    x = jax.lax.dynamic_slice_in_dim(recording.x, start, len(weights), axis=1)
    weight = weights * jax.lax.dynamic_slice_in_dim(recording.kept, start, len(weights))
    weight = weight / weight.sum()
    centred = (x - (x * weight[None]).sum(1, keepdims=True)) * jnp.sqrt(weight)[None]
    energy = jnp.square(centred).sum(1)
    varies = ~(energy <= 1e-10 * (jnp.square(x) * weight[None]).sum(1))
    scaled = jnp.where(varies[:, None], centred / jnp.sqrt(jnp.where(varies, energy, 1.0))[:, None], jnp.nan)
    return jnp.matmul(scaled, scaled.T, precision="highest")


@jax.jit
def _every(recording: Recording, weights: Array, starts: Array) -> Float[Array, "W K K"]:
    return jax.lax.map(functools.partial(_window, recording, weights), starts)


@jax.jit
def _variance(recording: Recording, weights: Array, starts: Array) -> Float[Array, "K K"]:
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
    """Centres, label of each window and inertia of the best of several starts."""
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
    """Starts far from each other: each window is drawn with its squared distance to the nearest centre so far."""
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
    """Squared distances up to what is the same for all centres."""
    return jnp.square(centres).sum(1)[None] - 2 * jnp.matmul(z, centres.T, precision="highest")


def _visits(label: Int[np.ndarray, " W"], one: Windows, n_states: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean duration of visits in seconds, and transitions; neither goes across windows that were left out."""
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
    """Correlations of the edges above the diagonal as symmetric matrices with diagonal 1, NaN where an edge has no value."""
    parcels = int(upper[1].max()) + 1
    out = np.full((len(z), parcels, parcels), np.nan, np.float32)
    rows, columns = upper[0][seen], upper[1][seen]
    out[:, rows, columns] = out[:, columns, rows] = np.tanh(z)
    own = np.unique(np.concatenate([rows, columns]))
    out[:, own, own] = 1
    return out
