"""From parcel signals to a recording: what voxels, head motion and a scanner add.

One unit is the sd of a parcel's signal. Figures are fixed once, never tuned to reach a result; those of the tier `real` were tuned to two
numbers of a real scan (`TIERS`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.simulate.realism import Realism, RealismInputs, heavy_tails, neural, vascular
from pnet_jax.simulate.space import smooth_field
from pnet_jax.space import Space

GAIN_LOG_SD = 0.3  # between voxels
LOCAL_FWHM_MM, LOCAL_FRAMES = 10.0, 3  # of the local noise
GLOBAL_AMPLITUDE, GLOBAL_FRAMES = 0.3, 5
DRIFT_RMS = 0.5  # of the signal's sd, linear and quadratic in equal parts
SPIKES_PER_MINUTE, SPIKE_AMPLITUDE, SPIKE_FRAMES = 1.0, 3.0, 2
PATTERN_MM = 40.0  # length scale of whatever varies smoothly over the brain
SITE_GAIN_LOG_SD = 0.2
BASELINE, UNIT = 1000.0, 5.0  # raw = site gain × (1000 + 5 × signal): tSNR of real 3–4 mm recordings
HEAD_RADIUS_MM = 50.0  # Power's framewise displacement
JITTER_MM = 0.02  # of the head between two frames, sd of each parameter
SPIKE_MM = (0.5, 1.5)  # displacement in a frame with a spike
BLOCK_FRAMES = 32


@dataclasses.dataclass(frozen=True)
class Tier:
    """How hard a recording is.

    Attributes:
      local_noise: amplitude of the local noise.
      snr: signal-to-noise ratio of a voxel before smoothing; white noise has an sd of 1 / snr.
      realism: amplitudes of the properties of real scans that `realism` adds; None for a tier without them.
    """

    local_noise: float
    snr: float
    realism: Realism | None = None


@dataclasses.dataclass(frozen=True)
class Site:
    """How a scanner differs from others.

    Attributes:
      name: `"A"`…`"D"`.
      tr: seconds.
      length: share of the configured minutes that is recorded.
      snr: factor on the tier's SNR.
      psf_mm: FWHM of the point-spread function.
    """

    name: str
    tr: float
    length: float
    snr: float
    psf_mm: float


TIERS = {
    "easy": Tier(0.5, 0.35),
    "medium": Tier(1.2, 0.18),
    "hard": Tier(1.5, 0.15),
    # Heterogeneity, gradients, vascular signals and both noises were tuned to two numbers of a real scan, label agreement and
    # fingerprint reliability of its halves of 3 min as `python benchmarks/simulator_realism.py` measures them, and to nothing else.
    # They are frozen: not to be changed to reach another figure. Motion, drop-out and tails were set beforehand.
    "real": Tier(0.8, 0.3, Realism(heterogeneity=0.8, gradients=1.1, vascular=1.2, motion=2.0, drop_out=0.7, tail=6.0)),
}
# Site A is the reference; the others leave it in repetition time, length, SNR and smoothness.
SITES = (Site("A", 2.0, 1.0, 1.0, 6.0), Site("B", 2.5, 0.8, 0.85, 7.0), Site("C", 1.5, 0.9, 0.9, 5.0), Site("D", 3.0, 0.7, 1.1, 8.0))


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedRecording:
    """Raw signals and what fMRIPrep would say of them.

    Attributes:
      y: raw signals, `[V, T]`, float32, around 1000.
      displacement: framewise displacement in mm, `[T]`, 0 in the first frame.
      confounds: the basic columns by fMRIPrep's names, `[T]` each: six motion parameters (mm, rad), `csf`, `white_matter`,
        `global_signal`, `framewise_displacement`, `std_dvars`.
    """

    y: Float[np.ndarray, "V T"]
    displacement: Float[np.ndarray, " T"]
    confounds: dict[str, Float[np.ndarray, " T"]]


class MaskedGaussian:
    """Gaussian smoothing inside a mask, normalised by the smoothed mask: a constant stays constant up to the edge.

    Three small matrix products, one an axis, on the box around the mask.

    Args:
      space: voxels of one isotropic grid.
      fwhm: mm.

    Attributes:
      spread: sd that white noise of sd 1 has after smoothing, `[V]`.

    Raises:
      ValueError: the space is no grid, or `fwhm` is not above 0.
    """

    def __init__(self, space: Space, fwhm: float):
        if space.grid is None:
            raise ValueError(f"smoothing needs a grid, got a space of kind {space.kind!r}")
        if not fwhm > 0:
            raise ValueError(f"expected a FWHM above 0 mm, got {fwhm}")
        at = space.grid.ijk - space.grid.ijk.min(0)
        self._at = tuple(at.T)
        self._shape = tuple(at.max(0) + 1)
        sigma = fwhm / np.sqrt(8 * np.log(2)) / space.resolution
        steps = [np.arange(n)[:, None] - np.arange(n)[None] for n in self._shape]
        # Cut at 5 sd: further out the weights are denormal numbers, which make a matrix product ten times slower.
        self._kernels = [np.where(np.abs(step) <= 5 * sigma, np.exp(-0.5 * (step / sigma) ** 2), 0).astype(np.float32) for step in steps]
        ones = np.ones((len(space), 1), np.float32)
        self._total = self._sum(ones, self._kernels)
        self.spread = (np.sqrt(self._sum(ones, [kernel**2 for kernel in self._kernels])) / self._total)[:, 0]

    def __call__(self, values: Float[np.ndarray, "V T"]) -> Float[np.ndarray, "V T"]:
        """Smoothed values, `[V, T]`, float32; 32 frames at a time."""
        out = np.empty(values.shape, np.float32)
        for start in range(0, values.shape[1], BLOCK_FRAMES):
            frames = slice(start, start + BLOCK_FRAMES)
            out[:, frames] = self._sum(values[:, frames], self._kernels) / self._total
        return out

    def _sum(self, values, kernels):
        box = np.zeros((*self._shape, values.shape[1]), np.float32)  # [X, Y, Z, t]
        box[self._at] = values
        x, y, z, t = box.shape
        box = (kernels[0] @ box.reshape(x, -1)).reshape(x, y, z * t)
        box = (kernels[1] @ box).reshape(x * y, z, t)
        return (kernels[2] @ box).reshape(x, y, z, t)[self._at]


def site_gain(space: Space, rng: np.random.Generator) -> Float[np.ndarray, " V"]:
    """A scanner's smooth sensitivity over the brain, `[V]`, LogN(0, .2)."""
    return np.exp(SITE_GAIN_LOG_SD * smooth_field(space.xyz, rng, length=PATTERN_MM)[:, 0])


def observe(
    latent: Float[np.ndarray, "K T"],
    labels: Int[np.ndarray, " V"],
    space: Space,
    rng: np.random.Generator,
    *,
    tr: float,
    tier: Tier,
    site: Site,
    gain: Float[np.ndarray, " V"],
    second: Float[np.ndarray, "K T"] | None = None,
    parts: RealismInputs | None = None,
) -> SimulatedRecording:
    """A recording of parcel signals.

    Voxel gains are drawn anew in every recording, so that nothing but parcels, coupling and traits ties a subject's sessions together.

    Args:
      latent: parcel signals of variance 1, `[K, T]`.
      labels: parcel of each location, `[V]`.
      space: V voxels.
      rng: the recording's.
      tr: seconds.
      tier: how hard.
      site: which scanner.
      gain: the scanner's sensitivity, `[V]`.
      second: another latent of each parcel, `[K, T]`, that enters each voxel with a smooth loading: parcels that are not homogeneous.
      parts: what makes it realistic; needed by a tier with realism, and then instead of `second`.

    Raises:
      ValueError: the tier has realism and there are no `parts`.
    """
    if tier.realism is not None and parts is None:
        raise ValueError("a tier with realism needs `parts`: second latents, gradients and the subject's traits")
    frames = latent.shape[1]
    amplitude = np.exp(GAIN_LOG_SD * rng.standard_normal(len(labels), np.float32))[:, None]
    y = amplitude * (latent[labels] if parts is None else neural(latent, labels, parts))
    if second is not None:
        y += smooth_field(space.xyz, rng, length=PATTERN_MM) * second[labels]
    common = GLOBAL_AMPLITUDE * _moving_sum(rng.standard_normal((1, frames + GLOBAL_FRAMES - 1), np.float32), GLOBAL_FRAMES)
    if parts is not None:
        systemic = np.float32(parts.realism.vascular) * vascular(parts.traits, rng, tr=tr, frames=frames)
        y += systemic
    # Factors of the noise: of each frame, and of each voxel, whose thermal noise does not fade with the image.
    bursts = np.ones(1, np.float32) if parts is None else heavy_tails(rng, frames, parts.realism.tail)
    intensity = np.ones(1, np.float32) if parts is None else parts.traits.intensity
    y += tier.local_noise * _local_noise(space, frames, rng) * bursts + common
    y += rng.standard_normal(y.shape, np.float32) / np.float32(tier.snr * site.snr) * (bursts / intensity[:, None])
    y = MaskedGaussian(space, site.psf_mm)(y)
    spikes = _spikes(rng, frames, tr)
    patterns, course = _drift_and_spikes(space, rng, frames, spikes)
    y += patterns @ course
    motion = _head_motion(rng, frames, spikes)
    if parts is not None:
        common = common + systemic.mean(0)
        y += np.float32(parts.realism.motion) * parts.traits.contrast @ motion.astype(np.float32)
    y *= UNIT
    y += BASELINE
    y *= (gain * intensity)[:, None]
    return SimulatedRecording(y, framewise_displacement(motion), _confounds(y, motion, patterns.mean(0) @ course + common[0], rng))


def framewise_displacement(motion: Float[np.ndarray, "6 T"]) -> Float[np.ndarray, " T"]:
    """Power's framewise displacement in mm, `[T]`, 0 in the first frame, of three translations (mm) and three rotations (rad)."""
    step = np.abs(np.diff(motion, axis=1))
    return np.concatenate([[0.0], step[:3].sum(0) + HEAD_RADIUS_MM * step[3:].sum(0)])


def _local_noise(space, frames, rng):
    """Noise of sd 1 in every voxel, smooth over 10 mm and 3 frames, `[V, T]`."""
    smooth = MaskedGaussian(space, LOCAL_FWHM_MM)
    noise = smooth(rng.standard_normal((len(space), frames + LOCAL_FRAMES - 1), np.float32))
    return _moving_sum(noise, LOCAL_FRAMES) / smooth.spread[:, None]


def _moving_sum(noise, width):
    """Sum of `width` neighbouring columns, scaled so that white noise keeps its sd: `[N, T + width − 1]` to `[N, T]`."""
    frames = noise.shape[1] - width + 1
    total = noise[:, :frames].copy()
    for shift in range(1, width):
        total += noise[:, shift : shift + frames]
    total *= np.float32(width**-0.5)
    return total


def _spikes(rng, frames, tr):
    """First frame of each sudden movement, ascending."""
    return np.sort(rng.integers(1, frames, rng.poisson(SPIKES_PER_MINUTE * frames * tr / 60)))


def _drift_and_spikes(space, rng, frames, spikes):
    """Smooth patterns `[V, 2 + n]` and their time courses `[2 + n, T]`."""
    time = np.linspace(-1, 1, frames)
    course = np.zeros((2 + len(spikes), frames), np.float32)
    # Legendre polynomials scaled to rms 1.
    course[0], course[1] = np.sqrt(3) * time, np.sqrt(5) * (1.5 * time**2 - 0.5)
    course[:2] *= DRIFT_RMS / np.sqrt(2)
    for row, start in enumerate(spikes):
        course[2 + row, start : start + SPIKE_FRAMES] = SPIKE_AMPLITUDE
    return smooth_field(space.xyz, rng, length=PATTERN_MM, channels=len(course)), course


def _head_motion(rng, frames, spikes):
    """Three translations in mm and three rotations in rad, `[6, T]`: a slow walk, and a jump in every frame of a spike."""
    step = JITTER_MM * rng.standard_normal((6, frames))
    for start in spikes:
        for frame in range(start, min(start + SPIKE_FRAMES, frames)):
            share = rng.dirichlet(np.ones(6)) * rng.choice([-1, 1], 6)
            step[:, frame] += rng.uniform(*SPIKE_MM) * share
    # The walk is drawn back to the start, as realignment to one reference does not let the head wander off.
    motion = np.zeros((6, frames))
    for frame in range(1, frames):
        motion[:, frame] = 0.98 * motion[:, frame - 1] + step[:, frame]
    motion[3:] /= HEAD_RADIUS_MM
    return motion


def _confounds(y, motion, common, rng):
    """fMRIPrep's basic columns; white matter and CSF, which the grey-matter mask has none of, carry what the brain has in common."""
    names = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
    own = 0.2 * rng.standard_normal((2, y.shape[1]))
    change = np.zeros(y.shape[1] - 1)
    for start in range(0, len(y), 4096):  # rows at a time: no second copy of the recording
        change += np.square(np.diff(y[start : start + 4096], axis=1)).sum(0, dtype=np.float64)
    dvars = np.sqrt(change)
    return dict(zip(names, motion, strict=True)) | {
        "csf": 1.3 * BASELINE + UNIT * (common + own[0]),
        "white_matter": 0.9 * BASELINE + UNIT * (0.5 * common + own[1]),
        "global_signal": y.mean(0, dtype=np.float64),
        "framewise_displacement": framewise_displacement(motion),
        "std_dvars": np.concatenate([[1.0], dvars / np.median(dvars)]),
    }
