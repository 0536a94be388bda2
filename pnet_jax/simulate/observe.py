"""From parcel signals to a recording: effects of voxels, head motion and scanner.

One unit is the standard deviation of a parcel signal. All values were fixed in advance, never tuned to a result; those of the tier `real`
were tuned to two measures of a real scan (`TIERS`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from pnet_jax.simulate.realism import Realism, RealismInputs, heavy_tails, neural, vascular
from pnet_jax.simulate.space import smooth_field
from pnet_jax.space import Space

GAIN_LOG_SD = 0.3  # log standard deviation between voxels
LOCAL_FWHM_MM, LOCAL_FRAMES = 10.0, 3  # smoothness of the local noise in space and time
GLOBAL_AMPLITUDE, GLOBAL_FRAMES = 0.3, 5
DRIFT_RMS = 0.5  # relative to the standard deviation of the signal; linear and quadratic in equal parts
SPIKES_PER_MINUTE, SPIKE_AMPLITUDE, SPIKE_FRAMES = 1.0, 3.0, 2
PATTERN_MM = 40.0  # length scale of all effects that vary smoothly over the brain
SITE_GAIN_LOG_SD = 0.2
BASELINE, UNIT = 1000.0, 5.0  # raw = site gain × (1000 + 5 × signal): gives the tSNR of real 3–4 mm recordings
HEAD_RADIUS_MM = 50.0  # as in the framewise displacement of Power et al.
JITTER_MM = 0.02  # standard deviation of each motion parameter between frames
SPIKE_MM = (0.5, 1.5)  # displacement in a frame with a spike
BLOCK_FRAMES = 32


@dataclasses.dataclass(frozen=True)
class Tier:
    """Difficulty of a recording.

    Attributes:
      local_noise: Amplitude of the local noise.
      snr: Signal-to-noise ratio of a voxel before smoothing; white noise has a standard deviation of 1 / snr.
      realism: Amplitudes of the properties of real scans added by `realism`; None for tiers without them.
    """

    local_noise: float
    snr: float
    realism: Realism | None = None


@dataclasses.dataclass(frozen=True)
class Site:
    """Properties of one scanner.

    Attributes:
      name: Site name, `"A"`…`"D"`.
      tr: Repetition time in seconds.
      length: Recorded share of the configured duration.
      snr: Factor on the SNR of the tier.
      psf_mm: FWHM of the point-spread function in mm.
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
    # Heterogeneity, gradients, vascular signals and both noises were tuned to two measures of a real scan, the label agreement and the
    # fingerprint reliability of its 3 min halves as measured by `python benchmarks/simulator_realism.py`, and to nothing else.
    # They are fixed and must not be changed to reach other results. Motion, drop-out and tails were set beforehand.
    "real": Tier(0.8, 0.3, Realism(heterogeneity=0.8, gradients=1.1, vascular=1.2, motion=2.0, drop_out=0.7, tail=6.0)),
}
# Site A is the reference; the others differ in repetition time, length, SNR and smoothness.
SITES = (Site("A", 2.0, 1.0, 1.0, 6.0), Site("B", 2.5, 0.8, 0.85, 7.0), Site("C", 1.5, 0.9, 0.9, 5.0), Site("D", 3.0, 0.7, 1.1, 8.0))


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedRecording:
    """Raw signals with the confounds that fMRIPrep would report.

    Attributes:
      y: Raw signals, `[V, T]`, float32, around 1000.
      displacement: Framewise displacement in mm, `[T]`, 0 in the first frame.
      confounds: Basic columns under their fMRIPrep names, `[T]` each: six motion parameters (mm, rad), `csf`, `white_matter`,
          `global_signal`, `framewise_displacement`, `std_dvars`.
    """

    y: Float[np.ndarray, "V T"]
    displacement: Float[np.ndarray, " T"]
    confounds: dict[str, Float[np.ndarray, " T"]]


class MaskedGaussian:
    """Gaussian smoothing inside a mask, normalised by the smoothed mask, so that constants are preserved up to the edge.

    Applied as three small matrix products, one per axis, on the bounding box of the mask.

    Args:
      space: Voxels of one isotropic grid.
      fwhm: Full width at half maximum in mm.

    Attributes:
      spread: Standard deviation of unit white noise after smoothing, `[V]`.

    Raises:
      ValueError: If the space is not a grid, or `fwhm` is not above 0.
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
        # Truncated at 5 sd: beyond that, weights are denormal numbers, which make matrix products ten times slower.
        self._kernels = [np.where(np.abs(step) <= 5 * sigma, np.exp(-0.5 * (step / sigma) ** 2), 0).astype(np.float32) for step in steps]
        ones = np.ones((len(space), 1), np.float32)
        self._total = self._sum(ones, self._kernels)
        self.spread = (np.sqrt(self._sum(ones, [kernel**2 for kernel in self._kernels])) / self._total)[:, 0]

    def __call__(self, values: Float[np.ndarray, "V T"]) -> Float[np.ndarray, "V T"]:
        """Smooth values, `[V, T]`, float32; 32 frames at a time."""
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
    """Draw the smooth sensitivity of a scanner over the brain, `[V]`, LogN(0, 0.2)."""
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
    """Simulate a recording of parcel signals.

    Voxel gains are redrawn for every recording, so that the sessions of a subject share only parcels, coupling and traits.

    Args:
      latent: Parcel signals with variance 1, `[K, T]`.
      labels: Parcel of each location, `[V]`.
      space: Space with V voxels.
      rng: Random generator of the recording.
      tr: Repetition time in seconds.
      tier: Difficulty tier.
      site: Scanner.
      gain: Sensitivity of the scanner, `[V]`.
      second: Second latent signal of each parcel, `[K, T]`, with a smooth loading over voxels, which makes parcels inhomogeneous.
      parts: Components of a realistic recording; required by tiers with realism, and used there instead of `second`.

    Raises:
      ValueError: If the tier has realism and there are no `parts`.
    """
    if tier.realism is not None and parts is None:
        raise ValueError("a tier with realism needs `parts`: second latent signals, gradients and the subject's traits")
    frames = latent.shape[1]
    amplitude = np.exp(GAIN_LOG_SD * rng.standard_normal(len(labels), np.float32))[:, None]
    y = amplitude * (latent[labels] if parts is None else neural(latent, labels, parts))
    if second is not None:
        y += smooth_field(space.xyz, rng, length=PATTERN_MM) * second[labels]
    common = GLOBAL_AMPLITUDE * _moving_sum(rng.standard_normal((1, frames + GLOBAL_FRAMES - 1), np.float32), GLOBAL_FRAMES)
    if parts is not None:
        systemic = np.float32(parts.realism.vascular) * vascular(parts.traits, rng, tr=tr, frames=frames)
        y += systemic
    # Noise factors per frame and per voxel; thermal noise does not decrease with the image intensity.
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
    """Framewise displacement (Power et al.) in mm, `[T]`, 0 in the first frame, from three translations (mm) and three rotations (rad)."""
    step = np.abs(np.diff(motion, axis=1))
    return np.concatenate([[0.0], step[:3].sum(0) + HEAD_RADIUS_MM * step[3:].sum(0)])


def _local_noise(space, frames, rng):
    """Draw noise with unit sd in every voxel, smooth over 10 mm and 3 frames, `[V, T]`."""
    smooth = MaskedGaussian(space, LOCAL_FWHM_MM)
    noise = smooth(rng.standard_normal((len(space), frames + LOCAL_FRAMES - 1), np.float32))
    return _moving_sum(noise, LOCAL_FRAMES) / smooth.spread[:, None]


def _moving_sum(noise, width):
    """Sum `width` neighbouring columns, scaled so that white noise keeps its sd: `[N, T + width − 1]` to `[N, T]`."""
    frames = noise.shape[1] - width + 1
    total = noise[:, :frames].copy()
    for shift in range(1, width):
        total += noise[:, shift : shift + frames]
    total *= np.float32(width**-0.5)
    return total


def _spikes(rng, frames, tr):
    """Draw the first frame of each sudden movement, ascending."""
    return np.sort(rng.integers(1, frames, rng.poisson(SPIKES_PER_MINUTE * frames * tr / 60)))


def _drift_and_spikes(space, rng, frames, spikes):
    """Draw smooth patterns `[V, 2 + n]` and their time courses `[2 + n, T]`."""
    time = np.linspace(-1, 1, frames)
    course = np.zeros((2 + len(spikes), frames), np.float32)
    # Legendre polynomials scaled to unit rms.
    course[0], course[1] = np.sqrt(3) * time, np.sqrt(5) * (1.5 * time**2 - 0.5)
    course[:2] *= DRIFT_RMS / np.sqrt(2)
    for row, start in enumerate(spikes):
        course[2 + row, start : start + SPIKE_FRAMES] = SPIKE_AMPLITUDE
    return smooth_field(space.xyz, rng, length=PATTERN_MM, channels=len(course)), course


def _head_motion(rng, frames, spikes):
    """Draw three translations in mm and three rotations in rad, `[6, T]`: a slow random walk, plus a jump in every frame of a spike."""
    step = JITTER_MM * rng.standard_normal((6, frames))
    for start in spikes:
        for frame in range(start, min(start + SPIKE_FRAMES, frames)):
            share = rng.dirichlet(np.ones(6)) * rng.choice([-1, 1], 6)
            step[:, frame] += rng.uniform(*SPIKE_MM) * share
    # The walk reverts to its start, since realignment to one reference keeps displacements bounded.
    motion = np.zeros((6, frames))
    for frame in range(1, frames):
        motion[:, frame] = 0.98 * motion[:, frame - 1] + step[:, frame]
    motion[3:] /= HEAD_RADIUS_MM
    return motion


def _confounds(y, motion, common, rng):
    """Make fMRIPrep's basic columns; white matter and CSF, which the grey-matter mask lacks, carry the signal common to the whole brain."""
    names = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
    own = 0.2 * rng.standard_normal((2, y.shape[1]))
    change = np.zeros(y.shape[1] - 1)
    for start in range(0, len(y), 4096):  # in blocks of rows, to avoid a second copy of the recording
        change += np.square(np.diff(y[start : start + 4096], axis=1)).sum(0, dtype=np.float64)
    dvars = np.sqrt(change)
    return dict(zip(names, motion, strict=True)) | {
        "csf": 1.3 * BASELINE + UNIT * (common + own[0]),
        "white_matter": 0.9 * BASELINE + UNIT * (0.5 * common + own[1]),
        "global_signal": y.mean(0, dtype=np.float64),
        "framewise_displacement": framewise_displacement(motion),
        "std_dvars": np.concatenate([[1.0], dvars / np.median(dvars)]),
    }
