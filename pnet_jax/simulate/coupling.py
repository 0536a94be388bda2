"""Coupling between parcels: group and individual weights, their normalisation, and the resulting Jacobian.

The weights include the properties that make connectomes hard to tell apart: unequal modules of distant bilateral patches, hubs, homotopic
and short-range connections.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from pnet_jax.simulate.space import kmeans

PATCHES = 24  # bilateral patches; fewer if there are fewer than 48 parcels
MODULE_SHARES = (0.20, 0.17, 0.15, 0.13, 0.11, 0.10, 0.08, 0.06)  # share of parcels in each of 8 modules
WITHIN_MODULE = 0.35
BETWEEN_MODULES_SD = 0.06  # affinity of two modules: |N(0, sd)|
WEIGHT_LOG_SD = 0.5
HUB_LOG_SD = 0.45  # log standard deviation of a parcel's propensity
HOMOTOPIC_HUB_LOG_SD = 0.15  # deviation of the propensity of its homotopic partner
LOCAL_WEIGHT = 0.5
LOCAL_DECAY_MM = 15.0
HOMOTOPIC_WEIGHT = 0.5
SUBJECT_LOG_SD = 0.5
MOVED_SHARE = 0.06  # share of parcels that belong to another module in a subject
GLOBAL_REMOVED = 0.9  # share of the first mode that is removed
GAIN = 0.93  # gain of the slowest mode; 1 is the limit of stability
TAU_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class GroupCoupling:
    """Coupling parameters shared by all subjects of a cohort.

    Attributes:
      modules: Module of each parcel, `[K]`.
      affinity: Weight level of each pair of modules, `[8, 8]`.
      scatter: Log-normal factor of each edge, symmetric, `[K, K]`.
      propensity: Hub strength of each parcel, `[K]`.
      local: Weights that decay with distance, `[K, K]`.
      homotopic: Weights between mirrored parcels, `[K, K]`.
    """

    modules: Int[np.ndarray, " K"]
    affinity: Float[np.ndarray, "M M"]
    scatter: Float[np.ndarray, "K K"]
    propensity: Float[np.ndarray, " K"]
    local: Float[np.ndarray, "K K"]
    homotopic: Float[np.ndarray, "K K"]


def group_coupling(centroids: Float[np.ndarray, "K 3"], rng: np.random.Generator) -> GroupCoupling:
    """Draw the coupling parameters of the group.

    Args:
      centroids: Coordinates of the parcels in mm, `[K, 3]`, with the K/2 left parcels first.
      rng: Random generator of the cohort.
    """
    parcels = len(centroids)
    half = parcels // 2
    affinity = np.abs(_symmetric(rng, len(MODULE_SHARES))) * BETWEEN_MODULES_SD
    np.fill_diagonal(affinity, WITHIN_MODULE)
    partner = half + cKDTree(centroids[half:] * [-1, 1, 1]).query(centroids[:half])[1]
    propensity = np.exp(HUB_LOG_SD * rng.standard_normal(parcels))
    propensity[partner] = propensity[:half] * np.exp(HOMOTOPIC_HUB_LOG_SD * rng.standard_normal(half))
    homotopic = np.zeros((parcels, parcels))
    homotopic[np.arange(half), partner] = homotopic[partner, np.arange(half)] = HOMOTOPIC_WEIGHT
    distance = np.linalg.norm(centroids[:, None] - centroids[None], axis=-1)
    return GroupCoupling(
        modules=_bilateral_modules(centroids, rng),
        affinity=affinity,
        scatter=np.exp(WEIGHT_LOG_SD * _symmetric(rng, parcels)),
        propensity=propensity,
        local=LOCAL_WEIGHT * np.exp(-distance / LOCAL_DECAY_MM),
        homotopic=homotopic,
    )


def weights(group: GroupCoupling, modules: Int[np.ndarray, " K"] | None = None) -> Float[np.ndarray, "K K"]:
    """Compute symmetric weights ≥ 0 with zero diagonal, `[K, K]`, of a brain with the given modules (those of the group if None)."""
    own = group.modules if modules is None else modules
    hubs = np.sqrt(np.outer(group.propensity, group.propensity))
    out = (group.affinity[np.ix_(own, own)] * group.scatter + group.local) * hubs + group.homotopic
    np.fill_diagonal(out, 0)
    return out


def subject_coupling(group: GroupCoupling, rng: np.random.Generator) -> tuple[Float[np.ndarray, "K K"], Int[np.ndarray, " K"]]:
    """Draw individual weights `[K, K]` and modules `[K]`: 6 % of the parcels change module, and each edge is scaled by LogN(0, 0.5)."""
    parcels = len(group.modules)
    modules = group.modules.copy()
    moved = rng.choice(parcels, round(MOVED_SHARE * parcels), replace=False)
    count = len(group.affinity)
    modules[moved] = (modules[moved] + rng.integers(1, count, len(moved))) % count
    return weights(group, modules) * np.exp(SUBJECT_LOG_SD * _symmetric(rng, parcels)), modules


def normalise(weights: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    r"""Coupling :math:`N = D^{-1/2} W D^{-1/2} - .9\,\lambda_1 u_1 u_1^T`, `[K, K]`.

    The first mode is global; if it were kept, all pairs of parcels would be correlated similarly.

    Raises:
      ValueError: If a parcel has no coupling.
    """
    strength = weights.sum(1)
    if not (strength > 0).all():
        raise ValueError(f"expected every parcel to be coupled, got strength 0 for parcels {np.flatnonzero(strength <= 0).tolist()}")
    scaled = weights / np.sqrt(np.outer(strength, strength))
    values, vectors = np.linalg.eigh(scaled)
    return scaled - GLOBAL_REMOVED * values[-1] * np.outer(vectors[:, -1], vectors[:, -1])


def jacobian(coupling: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    r""":math:`J = -(I - g N / \lambda_{max}) / \tau`, `[K, K]`, in 1/s: stable for every coupling, with slowest rate (1 − g)/τ."""
    largest = np.linalg.eigvalsh(coupling)[-1]
    return -(np.eye(len(coupling)) - GAIN * coupling / largest) / TAU_SECONDS


def _bilateral_modules(centroids, rng):
    """Assign patches of the mirrored brain to modules, so that each module approximates its share of the parcels."""
    patch = kmeans(centroids * [0, 1, 1] + np.abs(centroids) * [1, 0, 0], min(PATCHES, len(centroids) // 2), rng)
    size = np.bincount(patch) / len(centroids)
    missing = np.array(MODULE_SHARES)
    module = np.empty(len(size), np.int32)
    for index in rng.permutation(len(size)):
        module[index] = np.argmax(missing)
        missing[module[index]] -= size[index]
    return module[patch]


def _symmetric(rng, size):
    """Draw a symmetric matrix of standard normal numbers, `[size, size]`."""
    upper = np.triu(rng.standard_normal((size, size)))
    return upper + np.triu(upper, 1).T
