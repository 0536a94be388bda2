"""The faces of the op."""

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
    """The locations that each location correlates with most.

    Attributes:
      values: r, from the largest down; NaN where there are fewer than k, `[V, k]`.
      indices: the locations; −1 where there are fewer than k, `[V, k]`.
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
    r"""One number for each location from its correlations with all others, without the table of them.

    .. math:: s_v = \sum_{w \ne v} f(r_{vw}) \quad \text{or, for a mean,} \quad \tfrac{1}{V - 1} \sum_{w \ne v} f(r_{vw})

    Args:
      y: signals, any unit, `[V, T]`; bfloat16 and float16 are read as float32. For a cohort `jax.lax.map` over subjects.
      statistic: `"mean"` (of r), `"mean_z"` (of Fisher's z, with |r| held below 1 − 10⁻⁶), `"degree"` (how many r lie above the
        threshold), `"strength"` (the sum of those), or a function of an array of r, element by element, whose values are summed.
      threshold: of degree and strength.
      kept: frames that count, `[T]`; all if not given. What stands in the other frames is not read.
      mask: locations that count, `[V]`; all if not given.
      implementation: `"reference"` or `"chunked"`; `"chunked"` if not given.
      mesh: with an axis "location" that splits the locations (`ring`); not given, they are not split.

    Returns:
      The statistic, `[V]` in float32. Masked and constant locations add nothing to others and are NaN themselves, with gradients of 0.

    Raises:
      ValueError: fewer than 3 frames, shapes that do not agree, signals that are no floats, an unknown statistic or implementation, a
        mesh without the axis or with parts that do not divide V.

    Memory: the result plus a few tiles of 512 × 512 and blocks of `[512, T]`, and a copy of y if V is above 512 and no multiple
    of it (`chunked`); or `[V, V]` (`reference`). Time grows with V²T. On each
    device of a mesh, its own part of y and a visiting one in float32.

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
    r"""The k locations that each location correlates with most, itself left out: a sparse graph without the dense one.

    .. math:: N_k(v) = \text{the } k \text{ largest of } \{ r_{vw} : w \ne v \}

    Args:
      y: signals, any unit, `[V, T]`; bfloat16 and float16 are read as float32. For a cohort `jax.lax.map` over subjects.
      k: how many, 1 to V − 1.
      kept: frames that count, `[T]`; all if not given. What stands in the other frames is not read.
      mask: locations that count, `[V]`; all if not given.
      implementation: `"reference"` or `"chunked"`; `"chunked"` if not given.
      mesh: with an axis "location" that splits the locations (`ring`); not given, they are not split.

    Returns:
      `TopCorrelations`. Masked and constant locations are in no list, and their own are empty.

    Raises:
      ValueError: k out of range, fewer than 3 frames, shapes that do not agree, signals that are no floats, an unknown implementation, a
        mesh as in `location_correlation`.

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
    """`part` on each device, with its own locations; the setting behind the arrays is the same for all."""
    if LOCATION not in mesh.axis_names:
        raise ValueError(f"expected a mesh with an axis {LOCATION}, got {mesh.axis_names}")
    if len(y) % mesh.shape[LOCATION]:
        raise ValueError(f"the mesh splits locations into {mesh.shape[LOCATION]}: expected a multiple of it, got {len(y)}")
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
