"""Public functions of the op."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops._choose import choose
from pnet_jax.ops._signals import frames_that_count
from pnet_jax.ops.location_correlation import chunked, reference, ring

_TOTAL = {"reference": reference.total, "chunked": chunked.total}
_TOP = {"reference": reference.top, "chunked": chunked.top}
LOCATION = "location"  # the mesh axis
_STATISTICS = ("degree", "mean", "mean_z", "strength")


class TopCorrelations(NamedTuple):
    """The k locations with which each location has the largest correlations.

    Attributes:
      values: correlations in descending order, padded with NaN, `[V, k]`.
      indices: indices of the locations, padded with −1, `[V, k]`.
    """

    values: Float[Array, "V k"]
    indices: Int[Array, "V k"]


def location_correlation(
    y: Float[Array, "V T"],
    statistic: str | Callable[[Array], Array] = "mean_z",
    *,
    threshold: float = 0.25,
    kept: Bool[Array, " T"] | None = None,
    mask: Bool[Array, " V"] | None = None,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " V"]:
    r"""Compute a statistic of each location's correlations with all others, without storing the `[V, V]` matrix.

    .. math:: s_v = \sum_{w \ne v} f(r_{vw}) \quad \text{or, for a mean,} \quad \tfrac{1}{V - 1} \sum_{w \ne v} f(r_{vw})

    Args:
      y: signals, any unit, `[V, T]`; bfloat16 and float16 are converted to float32. For a cohort, use `jax.lax.map` over subjects.
      statistic: `"mean"` (mean r), `"mean_z"` (mean Fisher z, with |r| clipped to 1 − 10⁻⁶), `"degree"` (number of r above the
        threshold), `"strength"` (sum of the r above the threshold), or an elementwise function of r whose values are summed.
      threshold: threshold of r for degree and strength.
      kept: mask of the included frames, `[T]`; default: all. Values in excluded frames are ignored.
      mask: mask of the included locations, `[V]`; default: all.
      implementation: `"reference"` or `"chunked"` (default).
      mesh: mesh whose axis "location" splits the locations (`ring`); default: no split.

    Returns:
      The statistic, `[V]`, float32. Masked and constant locations do not contribute to others and are NaN, with gradients of 0.

    Raises:
      ValueError: If there are fewer than 3 frames, shapes do not agree, `y` is not floating point, the statistic or implementation is
        unknown, or the mesh lacks the axis or its size does not divide V.

    Memory: the result plus a few tiles of 512 × 512 and blocks of `[512, T]`, and a copy of y if V is above 512 and not a multiple
    of it (`chunked`); or `[V, V]` (`reference`). On each device of a mesh, its shard of y and one from another device, in float32. Time
    is proportional to V²T.

    >>> y = jnp.array([[1.0, 2, 4], [2, 4, 8], [-1, -2, -4]])
    >>> location_correlation(y, "degree").tolist()
    [1.0, 1.0, 0.0]

    Source: degree: Buckner et al. 2009, Journal of Neuroscience; strength: Rubinov & Sporns 2010, NeuroImage.
    """
    if isinstance(statistic, str) and statistic not in _STATISTICS:
        raise ValueError(f"statistic must be one of {list(_STATISTICS)} or a function of r, got {statistic!r}")
    frames, locations = _that_count(y, kept, mask)
    function, run = _function(statistic, threshold), choose(_TOTAL, implementation)
    if mesh is not None:
        run = _over(mesh, y, implementation, lambda y, kept, mask, function: ring.total(y, kept, mask, function, LOCATION))
    sums, present = run(jnp.asarray(y), frames, locations, function)
    others = jnp.maximum(present.sum() - 1, 1).astype(sums.dtype) if statistic in ("mean", "mean_z") else 1.0
    return jnp.where(present, sums / others, jnp.nan)


def top_correlations(
    y: Float[Array, "V T"],
    k: int,
    *,
    kept: Bool[Array, " T"] | None = None,
    mask: Bool[Array, " V"] | None = None,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> TopCorrelations:
    r"""Find the k other locations with which each location has the largest correlations, without storing the `[V, V]` matrix.

    .. math:: N_k(v) = \text{the } k \text{ largest of } \{ r_{vw} : w \ne v \}

    Args:
      y: signals, any unit, `[V, T]`; bfloat16 and float16 are converted to float32. For a cohort, use `jax.lax.map` over subjects.
      k: number of locations to return for each location, 1 to V − 1.
      kept: mask of the included frames, `[T]`; default: all. Values in excluded frames are ignored.
      mask: mask of the included locations, `[V]`; default: all.
      implementation: `"reference"` or `"chunked"` (default).
      mesh: mesh whose axis "location" splits the locations (`ring`); default: no split.

    Returns:
      `TopCorrelations`. Masked and constant locations are not listed, and their own lists are empty.

    Raises:
      ValueError: If k is out of range, or for any reason given in `location_correlation`.

    Memory: as for `location_correlation`.

    >>> top_correlations(jnp.array([[1.0, 2, 4], [2, 4, 7], [-1, -2, -4]]), 1).indices.ravel().tolist()
    [1, 0, 1]

    Source: Pearson 1895.
    """
    frames, locations = _that_count(y, kept, mask)
    if not 1 <= k < len(y):
        raise ValueError(f"k must be 1 to {len(y) - 1} for {len(y)} locations, got {k}")
    run = choose(_TOP, implementation)
    if mesh is not None:
        run = _over(mesh, y, implementation, lambda y, kept, mask, k: ring.top(y, kept, mask, k, LOCATION))
    return TopCorrelations(*run(jnp.asarray(y), frames, locations, k))


def _over(mesh: Mesh, y: Array, implementation: str | None, part: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `part` on each device with its shard of the locations and the same `setting`."""
    if LOCATION not in mesh.axis_names:
        raise ValueError(f"expected a mesh with an axis {LOCATION}, got {mesh.axis_names}")
    if len(y) % mesh.shape[LOCATION]:
        parts = mesh.shape[LOCATION]
        raise ValueError(f"the mesh splits locations over {parts} devices: expected a multiple of {parts} locations, got {len(y)}")
    if implementation == "reference":
        raise ValueError("a mesh needs the implementation 'chunked', got 'reference'")
    each = P(LOCATION)

    def run(y: Array, kept: Array, mask: Array, setting: Any) -> Any:
        return jax.shard_map(
            lambda *arrays: part(*arrays, setting), mesh=mesh, in_specs=(each, P(), each), out_specs=each, check_vma=False
        )(y, kept, mask)

    return run


def _that_count(y: Array, kept: Array | None, mask: Array | None) -> tuple[Float[Array, " T"], Bool[Array, " V"]]:
    if y.ndim != 2:
        raise ValueError(f"y must be [locations, frames], got shape {y.shape}")
    if kept is not None and kept.shape != y.shape[1:]:
        raise ValueError(f"kept must have shape {y.shape[1:]} (frames), got {kept.shape}")
    if mask is not None and mask.shape != y.shape[:1]:
        raise ValueError(f"mask must have shape {y.shape[:1]} (locations), got {mask.shape}")
    frames = frames_that_count(y[None], None if kept is None else kept[None], "y")[0]
    return frames, jnp.ones(len(y), bool) if mask is None else jnp.asarray(mask).astype(bool)


def _function(statistic: str | Callable[[Array], Array], threshold: float) -> Callable[[Array], Array]:
    if callable(statistic):
        return statistic
    return {
        "mean": lambda r: r,
        "mean_z": lambda r: jnp.arctanh(jnp.clip(r, -1 + 1e-6, 1 - 1e-6)),
        "degree": lambda r: (r > threshold).astype(r.dtype),
        "strength": lambda r: jnp.where(r > threshold, r, 0.0),
    }[statistic]
