r"""Properties of real scans that the easy, medium and hard tiers lack.

A location v of the individual parcel k, with adjacent parcel j, has the neural signal

.. math:: n_v(t) = g_v \Big[(1 - w_v)\, x_k(t) + w_v\, x_j(t) + a\, \lambda_v\, u_k(t) + b\, G^{-1/2} \sum_g \phi_{vg}\, s_g(t)\Big]

with :math:`g_v` the gain, :math:`w_v < 1/2` the share of the adjacent parcel (soft boundaries), u the second latent signals of the
parcels with the spatially varying loading :math:`\lambda_v`, and s the signals of G gradients, whose loadings :math:`\phi_{vg}` are
continuous across boundaries. Vascular and motion signals, shared by all parcels, are added; image intensity varies over space; the noise
is heavy-tailed.

Ground truth: the label of a location is the parcel with the largest weight, which is k because :math:`w_v < 1/2`. The true connectivity is
that of the first latent signals x alone. Both loadings have mean 0 inside each true parcel, so second latent signals and gradients cancel
in the mean signal of a parcel.
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

BORDER_MM = (4.0, 8.0)  # width of a boundary, from 10 % to 90 % of a parcel's own signal
WIDTH_IN_SD = 2.5631  # distance between the 10 % and 90 % quantiles of the normal distribution
BORDER_REACH_SD = 3.0  # where the share of the adjacent parcel is 0.001
BORDER_FIELD_MM = 30.0  # length scale over which the width varies
LOADING_MM = 12.0  # length scale of the second latent loading, below the size of a parcel
GRADIENTS, GRADIENT_MM = 16, 16.0  # number of gradients, length scale of their loadings
FEATURES_PER_PARCEL = 3  # Fourier features of the gradients; those beyond one per parcel remain after the means are removed
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
    """Amplitudes of the properties of real scans, in units of the standard deviation of a parcel's first latent signal.

    Attributes:
      heterogeneity: RMS of the second latent signal over locations, a.
      gradients: RMS of the gradients over locations, b.
      vascular: RMS of the vascular signals over locations.
      motion: RMS over locations of the signal caused by a head displacement, per mm.
      drop_out: Share of image intensity lost at the centre of a drop-out, 0…1.
      tail: Degrees of freedom of the noise, above 4; its excess kurtosis is 6 / (tail − 4).
    """

    heterogeneity: float
    gradients: float
    vascular: float
    motion: float
    drop_out: float
    tail: float


@dataclasses.dataclass(frozen=True, eq=False)
class Traits:
    """Spatial maps of a subject, identical in all sessions.

    Attributes:
      adjacent: Nearest other parcel of the same hemisphere, `[V]`; the parcel itself if no boundary is within reach.
      share: Share w of the adjacent parcel in the signal of the location, 0…1/2, `[V]`.
      loading: Loading of the second latent signal, with mean 0 in each parcel and unit rms, `[V]`.
      gradients: Loading of each gradient, with mean 0 in each parcel and unit rms, `[V, G]`.
      order: Permutation; the second latent signal of parcel k is coupled as the first one of parcel `order[k]`, `[K]`.
      vessels: Positive loading of each vascular signal, with unit rms over locations and signals together, `[V, N]`.
      transit: Arrival time of each vascular signal in seconds, `[V, N]`.
      contrast: Signal per mm of translation and per rad of rotation, with unit rms per mm, `[V, 6]`.
      intensity: Image intensity relative to a scan without drop-out, `[V]`.
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
    """Components of a realistic recording besides first latent signals, labels and noise.

    Attributes:
      realism: Amplitudes.
      traits: Spatial maps of the subject.
      second: Second latent signal of each parcel, with unit variance, `[K, T]`.
      gradients: Signals of the gradients, with unit variance, `[G, T]`.
    """

    realism: Realism
    traits: Traits
    second: Float[np.ndarray, "K T"]
    gradients: Float[np.ndarray, "G T"]


def draw_traits(labels: Int[np.ndarray, " V"], space: Space, parcels: int, realism: Realism, rng: np.random.Generator) -> Traits:
    """Draw the spatial maps of a subject.

    Args:
      labels: Individual parcel of each location, 0…K−1, `[V]`.
      space: Space with V locations.
      parcels: Number of parcels K.
      realism: Amplitudes.
      rng: Random generator used for these maps alone.
    """
    low, high = BORDER_MM
    width = low + (high - low) * ndtr(smooth_field(space.xyz, rng, length=BORDER_FIELD_MM)[:, 0])  # uniform between the two limits
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
    r"""Compute the adjacent parcel of each location and its share of the signal.

    .. math:: w_v = \Phi(-d_v / \sigma_v), \qquad \sigma_v = \text{width}_v / 2.563

    where :math:`d_v` is the distance to the boundary: that to the nearest location of another parcel, minus half a voxel.

    Args:
      labels: Parcel of each location, `[V]`.
      space: Space with V locations; parcels blend only within a hemisphere.
      width: Distance in mm between locations with 10 % and 90 % of their own parcel's signal, `[V]`.

    Returns:
      Adjacent parcel (the parcel itself if no boundary is within reach) and its share, below 1/2, both `[V]`.
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
    """Draw smooth random fields, continuous across boundaries, with mean 0 in each parcel and unit rms, `[V, G]`.

    The weights of random Fourier features are projected onto the subspace that leaves the means of all parcels unchanged.

    Args:
      labels: Parcel of each location, 0…K−1, `[V]`.
      xyz: Coordinates in mm, `[V, 3]`.
      parcels: Number of parcels K.
      rng: Random generator.
      block: Number of locations per block; memory is block × 3K × 4 bytes.
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
    """Compute the neural signal of each location before its gain, `[V, T]`.

    Args:
      latent: First latent signal of each parcel, with unit variance, `[K, T]`.
      labels: Parcel of each location, `[V]`.
      parts: Second latent signals, gradients, maps and amplitudes.
    """
    realism, traits = parts.realism, parts.traits
    out = latent[labels]
    here = np.flatnonzero(traits.share > 0)
    out[here] += traits.share[here, None] * (latent[traits.adjacent[here]] - out[here])
    out += np.float32(realism.heterogeneity) * traits.loading[:, None] * parts.second[labels]
    return out + np.float32(realism.gradients / np.sqrt(GRADIENTS)) * traits.gradients @ parts.gradients


def vascular(traits: Traits, rng: np.random.Generator, *, tr: float, frames: int) -> Float[np.ndarray, "V T"]:
    """Draw systemic low-frequency signals that arrive at each location with its own delay, with unit rms over locations, `[V, T]`.

    Power falls as 1/f between 0.008 and 0.15 Hz. Arrival times are rounded to a quarter of a second.
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
    """Draw noise factors per frame with unit mean square, `[T]`, float32, which turn Gaussian noise into Student's t with `tail` df.

    All locations of a frame share the factor, as in bursts of physiological noise; independent factors would be averaged out by smoothing.
    """
    return np.sqrt((tail - 2) / rng.chisquare(tail, frames)).astype(np.float32)


def _pink(rng, length, step):
    """Draw noise with unit variance and power ∝ 1/f within the vascular band, `[length]`."""
    padded = fft.next_fast_len(2 * length, real=True)  # the transform is periodic
    frequency = fft.rfftfreq(padded, step)
    inside = (frequency >= VASCULAR_HZ[0]) & (frequency <= VASCULAR_HZ[1])
    amplitude = np.where(inside, np.where(inside, frequency, 1.0) ** -0.5, 0.0)
    drive = rng.standard_normal((2, len(frequency)))
    course = fft.irfft(amplitude * (drive[0] + 1j * drive[1]), padded)[:length]
    return course / np.sqrt(4 * np.square(amplitude).sum()) * padded


def _centred(values, labels, parcels):
    """Centre values in each parcel and scale them to unit rms overall, `[V]`, float32."""
    count = np.maximum(np.bincount(labels, minlength=parcels), 1)
    out = values - (np.bincount(labels, weights=values, minlength=parcels) / count)[labels]
    return (out / np.sqrt(np.square(out).mean())).astype(np.float32)


def _contrast(space, rng):
    """Draw the signal per mm along x, y, z and per rad about them, `[V, 6]`: c and r × c, with r from the centre of the head in mm."""
    gradient = smooth_field(space.xyz, rng, length=CONTRAST_MM, channels=3)
    arm = space.xyz - np.float32(HEAD_CENTRE_MM)
    return np.concatenate([gradient, np.cross(arm, gradient)], 1)


def _intensity(space, drop_out, rng):
    """Draw the image intensity without scanner sensitivity, `[V]`, float32: log-normal, reduced above the air-filled cavities."""
    kept = np.ones(len(space))
    for centre, spread in DROP_OUT:
        kept *= 1 - drop_out * np.exp(-0.5 * np.square((space.xyz - centre) / spread).sum(1))
    return (kept * np.exp(INTENSITY_LOG_SD * smooth_field(space.xyz, rng, length=INTENSITY_FIELD_MM)[:, 0])).astype(np.float32)
