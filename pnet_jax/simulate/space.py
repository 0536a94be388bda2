"""Locations of simulated parcels: a grey-matter grid, group parcels by k-means, and individual parcels by a smooth displacement."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.spatial import cKDTree

from pnet_jax.errors import SettingsError
from pnet_jax.space import LEFT, RIGHT, Space, grid_space

RESOLUTIONS = (4, 3, 2)  # mm: about 28k, 64k and 204k voxels
MASK_THRESHOLD = 0.2  # least grey-matter probability
TEMPLATE = "MNI152NLin2009cAsym"
LENGTH_SCALE_MM = 20.0  # length scale of the displacement
DISPLACEMENT_MM = 5.0  # rms along each axis: gives 72 % overlap with the group, as in real areal variability
FOURIER_FEATURES = 128
_KMEANS_STEPS = 50
_KMEANS_TRIES = 20


@functools.lru_cache(maxsize=len(RESOLUTIONS))
def grey_matter_space(resolution: int) -> Space:
    """Return the Space of nilearn's MNI152 grey-matter mask.

    Args:
      resolution: Voxel size in mm: 4, 3 or 2.

    Raises:
      ValueError: If the resolution is not available.
    """
    if resolution not in RESOLUTIONS:
        raise SettingsError(f"SimulateConfig.resolution: expected 4, 3 or 2 mm, got {resolution!r}")
    from nilearn.datasets import load_mni152_gm_mask

    mask = load_mni152_gm_mask(resolution=resolution, threshold=MASK_THRESHOLD)
    return grid_space(np.asarray(mask.dataobj) > 0, mask.affine, name=TEMPLATE)


def group_parcels(space: Space, parcels: int, rng: np.random.Generator) -> Int[np.ndarray, " V"]:
    """Assign each location to a parcel by k-means on mm, `[V]`: 0…K/2−1 in the left hemisphere, K/2…K−1 in the right.

    Args:
      space: Space with V locations.
      parcels: Even number of parcels K.
      rng: Random generator for the initial centres.

    Raises:
      ValueError: If K is odd, below 2, or too large for the number of locations.
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
    """Assign points to clusters, `[N]`, none of them empty. One thread and float64 make the result reproducible for a seed.

    Raises:
      ValueError: If there are more clusters than points.
    """
    if clusters > len(points):
        raise ValueError(f"expected at most {len(points)} clusters for {len(points)} points, got {clusters}")
    for _ in range(_KMEANS_TRIES):
        try:
            found = kmeans2(np.asarray(points, np.float64), clusters, iter=_KMEANS_STEPS, minit="++", missing="raise", rng=rng)[1]
        except ClusterError:  # a cluster became empty: restart from other centres
            continue
        if len(np.unique(found)) == clusters:
            return found.astype(np.int32)
    raise ValueError(
        f"k-means left one of {clusters} clusters for {len(points)} points empty in all {_KMEANS_TRIES} attempts; use fewer clusters"
    )


def subject_parcels(
    labels: Int[np.ndarray, " V"], space: Space, rng: np.random.Generator, *, amplitude: float = DISPLACEMENT_MM
) -> Int[np.ndarray, " V"]:
    """Draw individual parcels: each location takes the group label at its randomly displaced position.

    Labels never cross hemispheres: the label comes from the nearest location on the same side.

    Args:
      labels: Group parcels, `[V]`.
      space: Space with V locations.
      rng: Random generator of the subject.
      amplitude: RMS of the displacement along each axis in mm.
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
    r"""Draw independent Gaussian random fields with unit variance by random Fourier features.

    .. math:: u(x) = \sqrt{2/M} \sum_m w_m \cos(k_m \cdot x + \phi_m), \quad k_m \sim N(0, I/\ell^2)

    Its covariance converges to :math:`\exp(-d^2 / 2\ell^2)`.

    Args:
      xyz: Coordinates in mm, `[V, 3]`.
      rng: Random generator.
      length: Length scale in mm.
      channels: Number of fields C.
      block: Number of locations per block; memory is block × 128 × 4 bytes.
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
    """Compute the mean coordinate of each parcel in mm, `[K, 3]`, NaN for parcels without locations."""

    count = np.bincount(labels, minlength=parcels).astype(np.float64)
    total = np.stack([np.bincount(labels, weights=xyz[:, axis], minlength=parcels) for axis in range(3)], 1)
    return total / np.where(count > 0, count, np.nan)[:, None]
