r"""Properties of real scans that the easy, medium and hard tiers lack.

A location v of the subject's parcel k with the adjacent parcel j has the neural signal

.. math:: n_v(t) = g_v \Big[(1 - w_v)\, x_k(t) + w_v\, x_j(t) + a\, \lambda_v\, u_k(t) + b\, G^{-1/2} \sum_g \phi_{vg}\, s_g(t)\Big]

with :math:`g_v` the gain, :math:`w_v < 1/2` the share of the adjacent parcel (soft borders), u the parcels' second latents with the
spatially varying loading :math:`\lambda_v`, and s the signals of G gradients, whose loadings :math:`\phi_{vg}` are continuous across
borders. Vascular and motion signals, which all parcels share, are added to it; image intensity varies over space; the noise is
heavy-tailed.

Truth: the label of a location is the parcel of largest weight, which is k because :math:`w_v < 1/2`. The true connectivity is that of
the first latents x alone. Both loadings have mean 0 inside each true parcel, so that second latents and gradients cancel in the
parcel's mean signal.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy import fft
from scipy.spatial import cKDTree
from scipy.special import ndtr

from pnet_jax.simulate.space import smooth_field
from pnet_jax.space import Space

BORDER_MM = (4.0, 8.0)  # width of a border between 10 % and 90 % of an area's own signal
WIDTH_IN_SD = 2.5631  # distance between the 10 % and 90 % quantiles of the normal distribution
BORDER_REACH_SD = 3.0  # the share of the adjacent area is 0.001 there
BORDER_FIELD_MM = 30.0  # length scale over which the width varies
LOADING_MM = 12.0  # length scale of the second latent's loading: less than the size of a parcel
GRADIENTS, GRADIENT_MM = 16, 16.0  # number of gradients, length scale of their loadings
FEATURES_PER_PARCEL = 3  # Fourier features of the gradients; those beyond one per parcel are left after the means are removed
VESSELS = 3  # independent systemic signals
VASCULAR_HZ = (0.008, 0.15)
VASCULAR_FIELD_MM = 25.0
VASCULAR_LOG_SD = 0.8  # spatial spread of the vascular loading
TRANSIT_SD_SECONDS, TRANSIT_STEP_SECONDS, TRANSIT_MAX_SECONDS = 1.0, 0.25, 4.0  # arrival of the systemic signal
CONTRAST_MM = 12.0  # length scale of the intensity gradients that turn head motion into signal
INTENSITY_LOG_SD = 0.3
INTENSITY_FIELD_MM = 25.0
# Signal drop-out above the sinuses and the ear canals: centre in MNI mm, spread in mm.
DROP_OUT = (((0.0, 38.0, -22.0), 16.0), ((-48.0, -22.0, -28.0), 14.0), ((48.0, -22.0, -28.0), 14.0))
HEAD_CENTRE_MM = (0.0, -18.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Realism:
    """Amplitudes of what makes a scan as hard as a real one; one unit is the sd of a parcel's first latent.

    Attributes:
      heterogeneity: rms over locations of the second latent, a.
      gradients: rms over locations of the gradients, b.
      vascular: rms over locations of the vascular signals.
      motion: rms over locations of the signal of a head displacement, per mm.
      drop_out: share of the image intensity that is lost at the centre of a drop-out, 0…1.
      tail: degrees of freedom of the noise, above 4; its excess kurtosis is 6 / (tail − 4).
    """

    heterogeneity: float
    gradients: float
    vascular: float
    motion: float
    drop_out: float
    tail: float


@dataclasses.dataclass(frozen=True, eq=False)
class Traits:
    """Spatial maps of a subject, the same in all sessions.

    Attributes:
      adjacent: nearest other parcel of the same hemisphere, `[V]`; the own parcel where none is in reach of the border.
      share: its share w of the location's signal, 0…1/2, `[V]`.
      loading: of the second latent, mean 0 in each parcel and rms 1, `[V]`.
      gradients: loading of each gradient, mean 0 in each parcel and rms 1, `[V, G]`.
      order: a permutation; the second latent of parcel k is coupled as the first of parcel `order[k]`, `[K]`.
      vessels: loading of each vascular signal, above 0, rms 1 over locations and signals together, `[V, N]`.
      transit: arrival time of each vascular signal in seconds, `[V, N]`.
      contrast: signal per mm of translation and per rad of rotation, rms 1 per mm, `[V, 6]`.
      intensity: image intensity relative to a scan without drop-out, `[V]`.
    """

    adjacent: Int[np.ndarray, " V"]
    share: Float[np.ndarray, " V"]
    loading: Float[np.ndarray, " V"]
    gradients: Float[np.ndarray, "V G"]
    order: Int[np.ndarray, " K"]
    vessels: Float[np.ndarray, "V N"]
    transit: Float[np.ndarray, "V N"]
    contrast: Float[np.ndarray, "V 6"]
    intensity: Float[np.ndarray, " V"]


@dataclasses.dataclass(frozen=True, eq=False)
class RealismInputs:
    """What a realistic recording needs besides first latents, labels and noise.

    Attributes:
      realism: amplitudes.
      traits: the subject's maps.
      second: second latent of each parcel, variance 1, `[K, T]`.
      gradients: signals of the gradients, variance 1, `[G, T]`.
    """

    realism: Realism
    traits: Traits
    second: Float[np.ndarray, "K T"]
    gradients: Float[np.ndarray, "G T"]


def draw_traits(labels: Int[np.ndarray, " V"], space: Space, parcels: int, realism: Realism, rng: np.random.Generator) -> Traits:
    """Draws a subject's spatial maps.

    Args:
      labels: the subject's parcel of each location, 0…K−1, `[V]`.
      space: V locations.
      parcels: K.
      realism: amplitudes.
      rng: the subject's, for nothing else.
    """
    low, high = BORDER_MM
    width = low + (high - low) * ndtr(smooth_field(space.xyz, rng, length=BORDER_FIELD_MM)[:, 0])  # uniform between both
    adjacent, share = soft_borders(labels, space, width)
    vessels = np.exp(VASCULAR_LOG_SD * smooth_field(space.xyz, rng, length=VASCULAR_FIELD_MM, channels=VESSELS))
    return Traits(
        adjacent=adjacent,
        share=share,
        loading=_centred(smooth_field(space.xyz, rng, length=LOADING_MM)[:, 0], labels, parcels),
        gradients=balanced_fields(labels, space.xyz, parcels, rng),
        order=rng.permutation(parcels),
        vessels=vessels / np.sqrt(np.square(vessels).sum(1).mean()),
        transit=TRANSIT_SD_SECONDS * smooth_field(space.xyz, rng, length=VASCULAR_FIELD_MM, channels=VESSELS),
        contrast=_contrast(space, rng),
        intensity=_intensity(space, realism.drop_out, rng),
    )


def soft_borders(
    labels: Int[np.ndarray, " V"], space: Space, width: Float[np.ndarray, " V"]
) -> tuple[Int[np.ndarray, " V"], Float[np.ndarray, " V"]]:
    r"""Adjacent parcel of each location and its share of the signal.

    .. math:: w_v = \Phi(-d_v / \sigma_v), \qquad \sigma_v = \text{width}_v / 2.563

    with :math:`d_v` the distance to the border, taken as that to the nearest location of another parcel less half a voxel.

    Args:
      labels: parcel of each location, `[V]`.
      space: V locations; parcels blend inside a hemisphere only.
      width: distance in mm between the locations of 10 % and of 90 % of the own signal, `[V]`.

    Returns:
      The adjacent parcel, the own where none is in reach, and its share, below 1/2, both `[V]`.
    """
    sd = width / WIDTH_IN_SD
    half = space.resolution / 2
    reach = BORDER_REACH_SD * float(sd.max()) + half
    adjacent, share = labels.copy(), np.zeros(len(labels), np.float32)
    side = space.hemisphere
    for parcel in np.unique(labels):
        own = np.flatnonzero(labels == parcel)
        low, high = space.xyz[own].min(0) - reach, space.xyz[own].max(0) + reach
        near = ((space.xyz >= low) & (space.xyz <= high)).all(1) & (side == side[own[0]]) & (labels != parcel)
        others = np.flatnonzero(near)
        if len(others) == 0:
            continue
        distance, nearest = cKDTree(space.xyz[others]).query(space.xyz[own], distance_upper_bound=reach)
        found = np.isfinite(distance)
        rows = own[found]
        adjacent[rows] = labels[others[nearest[found]]]
        share[rows] = ndtr(-(distance[found] - half) / sd[rows])
    return adjacent, share


def balanced_fields(
    labels: Int[np.ndarray, " V"], xyz: Float[np.ndarray, "V 3"], parcels: int, rng: np.random.Generator, *, block: int = 4096
) -> Float[np.ndarray, "V G"]:
    """Smooth random fields, continuous across borders, with mean 0 in each parcel and rms 1, `[V, G]`.

    Weights of random Fourier features, projected onto those that no parcel's mean depends on.

    Args:
      labels: parcel of each location, 0…K−1, `[V]`.
      xyz: mm, `[V, 3]`.
      parcels: K.
      rng: random numbers.
      block: locations at a time; memory is block × 3K × 4 bytes.
    """
    count = FEATURES_PER_PARCEL * parcels
    waves = (rng.standard_normal((3, count)) / GRADIENT_MM).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    weights = rng.standard_normal((count, GRADIENTS))
    rows = [slice(start, start + block) for start in range(0, len(xyz), block)]
    total = np.zeros((parcels, count))
    for part in rows:
        np.add.at(total, labels[part], np.cos(xyz[part] @ waves + phases))
    weights -= np.linalg.lstsq(total, total @ weights, rcond=None)[0]
    out = np.concatenate([np.cos(xyz[part] @ waves + phases) @ weights.astype(np.float32) for part in rows])
    return out / np.sqrt(np.square(out).mean(0))


def neural(latent: Float[np.ndarray, "K T"], labels: Int[np.ndarray, " V"], parts: RealismInputs) -> Float[np.ndarray, "V T"]:
    """Neural signal of each location before its gain, `[V, T]`.

    Args:
      latent: first latent of each parcel, variance 1, `[K, T]`.
      labels: parcel of each location, `[V]`.
      parts: second latents, gradients, maps and amplitudes.
    """
    realism, traits = parts.realism, parts.traits
    out = latent[labels]
    here = np.flatnonzero(traits.share > 0)
    out[here] += traits.share[here, None] * (latent[traits.adjacent[here]] - out[here])
    out += np.float32(realism.heterogeneity) * traits.loading[:, None] * parts.second[labels]
    return out + np.float32(realism.gradients / np.sqrt(GRADIENTS)) * traits.gradients @ parts.gradients


def vascular(traits: Traits, rng: np.random.Generator, *, tr: float, frames: int) -> Float[np.ndarray, "V T"]:
    """Systemic low-frequency signals that reach each location at its own time, rms 1 over locations, `[V, T]`.

    Power falls as 1/f between .008 and .15 Hz. Arrival times are rounded to a quarter of a second.
    """
    step, latest = TRANSIT_STEP_SECONDS, TRANSIT_MAX_SECONDS
    delays = np.arange(-latest, latest + step / 2, step)
    times = np.arange(frames) * tr
    fine = np.arange(0, times[-1] + 2 * latest + 2 * step, step)
    index = np.clip(np.round((traits.transit + latest) / step).astype(int), 0, len(delays) - 1)  # [V, N]
    out = np.zeros((len(index), frames), np.float32)
    for vessel in range(index.shape[1]):
        course = _pink(rng, len(fine), step)
        table = np.stack([np.interp(times + latest - delay, fine, course) for delay in delays]).astype(np.float32)
        out += traits.vessels[:, vessel, None] * table[index[:, vessel]]
    return out


def heavy_tails(rng: np.random.Generator, frames: int, tail: float) -> Float[np.ndarray, " T"]:
    """Factor of each frame's noise, mean square 1, `[T]`, float32; makes Gaussian noise a Student's t of `tail` degrees of freedom.

    A frame's locations share the factor, as in bursts of physiological noise. Independent factors would not survive spatial smoothing.
    """
    return np.sqrt((tail - 2) / rng.chisquare(tail, frames)).astype(np.float32)


def _pink(rng, length, step):
    """Noise of variance 1 with power ∝ 1/f inside the vascular band, `[length]`."""
    padded = fft.next_fast_len(2 * length, real=True)  # the transform is periodic
    frequency = fft.rfftfreq(padded, step)
    inside = (frequency >= VASCULAR_HZ[0]) & (frequency <= VASCULAR_HZ[1])
    amplitude = np.where(inside, np.where(inside, frequency, 1.0) ** -0.5, 0.0)
    drive = rng.standard_normal((2, len(frequency)))
    course = fft.irfft(amplitude * (drive[0] + 1j * drive[1]), padded)[:length]
    return course / np.sqrt(4 * np.square(amplitude).sum()) * padded


def _centred(values, labels, parcels):
    """Values with mean 0 in each parcel and rms 1 over all, `[V]`, float32."""
    count = np.maximum(np.bincount(labels, minlength=parcels), 1)
    out = values - (np.bincount(labels, weights=values, minlength=parcels) / count)[labels]
    return (out / np.sqrt(np.square(out).mean())).astype(np.float32)


def _contrast(space, rng):
    """Signal per mm along x, y, z and per rad about them, `[V, 6]`: c and r × c, r from the centre of the head in mm."""
    gradient = smooth_field(space.xyz, rng, length=CONTRAST_MM, channels=3)
    arm = space.xyz - np.float32(HEAD_CENTRE_MM)
    return np.concatenate([gradient, np.cross(arm, gradient)], 1)


def _intensity(space, drop_out, rng):
    """Image intensity without the scanner's sensitivity, `[V]`, float32: log-normal, and lost above the air-filled cavities."""
    kept = np.ones(len(space))
    for centre, spread in DROP_OUT:
        kept *= 1 - drop_out * np.exp(-0.5 * np.square((space.xyz - centre) / spread).sum(1))
    return (kept * np.exp(INTENSITY_LOG_SD * smooth_field(space.xyz, rng, length=INTENSITY_FIELD_MM)[:, 0])).astype(np.float32)
