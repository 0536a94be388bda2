"""Where simulated parcels lie: a grey-matter grid, group parcels by k-means, a subject's parcels by a smooth displacement."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.spatial import cKDTree

from pnet_jax.errors import SettingsError
from pnet_jax.space import LEFT, RIGHT, Space, grid_space

RESOLUTIONS = (4, 3, 2)  # mm: about 28k, 64k and 204k voxels
MASK_THRESHOLD = 0.2  # grey-matter probability
TEMPLATE = "MNI152NLin2009cAsym"
LENGTH_SCALE_MM = 20.0  # of the displacement
DISPLACEMENT_MM = 5.0  # its rms along each axis: 72 % overlap with the group, as real areal variability
FOURIER_FEATURES = 128
_KMEANS_STEPS = 50
_KMEANS_TRIES = 20


@functools.lru_cache(maxsize=len(RESOLUTIONS))
def grey_matter_space(resolution: int) -> Space:
    """Space of the MNI152 grey-matter mask that nilearn ships.

    Args:
      resolution: voxel size in mm: 4, 3 or 2.

    Raises:
      ValueError: another resolution.
    """
    if resolution not in RESOLUTIONS:
        raise SettingsError(f"SimulateConfig.resolution: expected 4, 3 or 2 mm, got {resolution!r}")
    from nilearn.datasets import load_mni152_gm_mask

    mask = load_mni152_gm_mask(resolution=resolution, threshold=MASK_THRESHOLD)
    return grid_space(np.asarray(mask.dataobj) > 0, mask.affine, name=TEMPLATE)


def group_parcels(space: Space, parcels: int, rng: np.random.Generator) -> Int[np.ndarray, " V"]:
    """Parcel of each location, `[V]`: k-means on mm, 0…K/2−1 in the left hemisphere, K/2…K−1 in the right.

    Args:
      space: V locations.
      parcels: K, even.
      rng: decides where k-means starts.

    Raises:
      ValueError: K is odd, below 2 or more than the locations can carry.
    """
    if parcels < 2 or parcels % 2:
        raise SettingsError(f"SimulateConfig.parcels: expected an even number, half in each hemisphere, got {parcels!r}")
    half = parcels // 2
    labels = np.empty(len(space), np.int32)
    for side in (LEFT, RIGHT):
        here = space.hemisphere == side
        labels[here] = kmeans(space.xyz[here], half, rng) + side * half
    return labels


def kmeans(points: Float[np.ndarray, "N D"], clusters: int, rng: np.random.Generator) -> Int[np.ndarray, " N"]:
    """Cluster of each point, `[N]`, none empty. One thread and float64, so that the same seed gives the same clusters.

    Raises:
      ValueError: more clusters than points.
    """
    if clusters > len(points):
        raise ValueError(f"expected at most {len(points)} clusters of {len(points)} points, got {clusters}")
    for _ in range(_KMEANS_TRIES):
        try:
            found = kmeans2(np.asarray(points, np.float64), clusters, iter=_KMEANS_STEPS, minit="++", missing="raise", rng=rng)[1]
        except ClusterError:  # a cluster ran empty on the way: start elsewhere
            continue
        if len(np.unique(found)) == clusters:
            return found.astype(np.int32)
    raise ValueError(f"k-means left one of {clusters} clusters of {len(points)} points empty {_KMEANS_TRIES} times: ask for fewer")


def subject_parcels(
    labels: Int[np.ndarray, " V"], space: Space, rng: np.random.Generator, *, amplitude: float = DISPLACEMENT_MM
) -> Int[np.ndarray, " V"]:
    """A subject's parcels: each location takes the group label found where a smooth random displacement leads it.

    A location never leaves its hemisphere: the label comes from the nearest location of the same side.

    Args:
      labels: group parcels, `[V]`.
      space: V locations.
      rng: the subject's.
      amplitude: rms of the displacement along each axis in mm.
    """
    moved = space.xyz + np.float32(amplitude) * smooth_field(space.xyz, rng, length=LENGTH_SCALE_MM, channels=3)
    out = np.empty_like(labels)
    for side in (LEFT, RIGHT):
        here = space.hemisphere == side
        out[here] = labels[here][cKDTree(space.xyz[here]).query(moved[here])[1]]
    return out


def smooth_field(
    xyz: Float[np.ndarray, "V 3"], rng: np.random.Generator, *, length: float, channels: int = 1, block: int = 32768
) -> Float[np.ndarray, "V C"]:
    r"""Independent Gaussian random fields by random Fourier features, unit variance.

    .. math:: u(x) = \sqrt{2/M} \sum_m w_m \cos(k_m \cdot x + \phi_m), \quad k_m \sim N(0, I/\ell^2)

    whose covariance tends to :math:`\exp(-d^2 / 2\ell^2)`.

    Args:
      xyz: mm, `[V, 3]`.
      rng: random numbers.
      length: length scale in mm.
      channels: number C of fields.
      block: locations at a time; memory is block × 128 × 4 bytes.
    """
    waves = (rng.standard_normal((3, FOURIER_FEATURES)) / length).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, FOURIER_FEATURES).astype(np.float32)
    weights = (rng.standard_normal((FOURIER_FEATURES, channels)) * np.sqrt(2 / FOURIER_FEATURES)).astype(np.float32)
    out = np.empty((len(xyz), channels), np.float32)
    for start in range(0, len(xyz), block):
        rows = slice(start, start + block)
        out[rows] = np.cos(xyz[rows] @ waves + phases) @ weights
    return out


def centroids(labels: Int[np.ndarray, " V"], xyz: Float[np.ndarray, "V 3"], parcels: int) -> Float[np.ndarray, "K 3"]:
    """Mean coordinate of each parcel in mm, `[K, 3]`; NaN where a parcel has no location."""
    count = np.bincount(labels, minlength=parcels).astype(np.float64)
    total = np.stack([np.bincount(labels, weights=xyz[:, axis], minlength=parcels) for axis in range(3)], 1)
    return total / np.where(count > 0, count, np.nan)[:, None]
