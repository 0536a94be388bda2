"""The mixture of many subjects on many devices: subjects side by side, each subject's locations in parts.

Along the mesh axis "subject" nothing is exchanged. Along "location" a step costs one all-reduce, of the sums that re-estimate the
prototypes, and two collective-permutes, of the rows of q that the parts beside a part need (`ops.potts.halo`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from pnet_jax.ops.potts import halo as potts
from pnet_jax.parcellation.mixture import STEPS, Links, Mixture, Problem, begin, mixture

SUBJECT, LOCATION = "subject", "location"
_ONE: tuple[tuple[str | None, ...], ...] = ((LOCATION, None), (LOCATION, None), (LOCATION, None), (None, LOCATION, None), (None, None))
# Layouts in place of arrays.
RESULT: Any = Mixture(P(SUBJECT, LOCATION), P(SUBJECT))  # type: ignore[arg-type]


def sharded_mixture(
    mesh: Mesh,
    problem: Problem,
    kappa: Float[Array, "S V"] | Float[Array, " S"] | Float[Array, ""],
    beta: Float[Array, " S"] | Float[Array, ""],
    *,
    halo: int,
    steps: int = STEPS,
    start: Mixture | None = None,
) -> Mixture:
    """`mixture` of S subjects over a mesh.

    Args:
      mesh: with axes "subject" and "location".
      problem: as for `mixture`, each array with S in front. What all subjects share (candidates, log prior, table) may come without.
        The table is that of all locations, as `match_table` makes it: no device count is in it.
      kappa: one number, one of each subject `[S]`, or of each location `[S, V]`.
      beta: one number, or one of each subject, `[S]`.
      halo: rows exchanged, from `ops.potts.halo.halo_width(neighbours, parts)`; the largest of the subjects'. Fewer give wrong results.
      steps: unrolled steps.
      start: where to begin, `[S, V, C]` and `[S, K, D]`; the prior if not given.

    Returns:
      `Mixture` with S in front, split as the mesh says.

    Raises:
      ValueError: a mesh without these axes, sizes that its parts do not divide, a halo wider than a part, or shapes that do not agree.

    Memory: on each device that of `mixture` for its locations of all its subjects.
    """
    arguments: tuple[Any, ...] = (problem, jnp.asarray(kappa), jnp.asarray(beta), *(() if start is None else (start,)))
    layouts: tuple[Any, ...] = (layout(problem), _each(arguments[1], LOCATION), _each(arguments[2]), *(() if start is None else (RESULT,)))

    def one(problem: Problem, kappa: Array, beta: Array, start: Mixture | None = None) -> Mixture:
        return mixture(problem, kappa, beta, steps=steps, start=start, links=links(halo))

    sizes = _sizes(problem)
    _check_halo(mesh, sizes, halo)
    return over(mesh, one, arguments, layouts, RESULT, sizes, "z")


def sharded_begin(mesh: Mesh, problem: Problem, log_q: Float[Array, "S V C"]) -> Mixture:
    """`begin` of S subjects over a mesh; arguments and errors as of `sharded_mixture`."""
    one = functools.partial(begin, links=links(0))
    return over(mesh, one, (problem, log_q), (layout(problem), P(SUBJECT, LOCATION)), RESULT, _sizes(problem), "z")


def layout(problem: Problem) -> Any:
    """How the arrays of a problem lie on the mesh: a `Problem` with a PartitionSpec for each, for `parallel.place_as`."""
    arrays: tuple[Any, ...] = problem[: len(_ONE)]
    each = (P(SUBJECT, *axes) if jnp.ndim(array) > len(axes) else P(*axes) for array, axes in zip(arrays, _ONE, strict=True))
    return Problem(*each)  # type: ignore[arg-type]


def links(halo: int) -> Links:
    """For `mixture` inside a `shard_map` that splits the locations."""

    def total(here: Array) -> Array:
        return jax.lax.psum(here, LOCATION) if jax.lax.axis_size(LOCATION) > 1 else here

    return Links(lambda q, table: potts.sum_neighbours(q, table, halo, LOCATION), total)


def _each(x: Array, *rest: str) -> P:
    """Layout of a setting: one for all, or one of each subject, or one of each location too."""
    return P(*(SUBJECT, *rest)[: x.ndim])


def over(
    mesh: Mesh, one: Callable[..., Any], arguments: tuple[Any, ...], layouts: tuple[Any, ...], result: Any, sizes: tuple[int, int], of: str
) -> Any:
    """`one` for each subject, on each device for the subjects and locations it holds.

    Args:
      one: of the arrays of one subject, with the device's own locations; may exchange along "location".
      arguments: trees of arrays.
      layouts: trees of PartitionSpecs like them; an array whose first axis is no "subject" is the same for all.
      result: layouts of what comes out, "subject" first.
      sizes: S and V, and
      of: the argument that has them, for the message when another disagrees.
    """
    _check(mesh, arguments, layouts, dict(zip((SUBJECT, LOCATION), sizes, strict=True)), of)
    axes = jax.tree.map(lambda spec: 0 if SUBJECT in spec[:1] else None, layouts, is_leaf=_is_spec)
    # `check_vma` would want the kernels to say which of their sums begin at zeros of this device: they need not know of meshes.
    wave = _alone(one, axes) if sizes[0] == mesh.shape[SUBJECT] else jax.vmap(one, in_axes=axes)
    return jax.shard_map(wave, mesh=mesh, in_specs=layouts, out_specs=result, check_vma=False)(*arguments)


def _alone(one: Callable[..., Any], axes: tuple[Any, ...]) -> Callable[..., Any]:
    """`vmap` where a device has one subject: a batch of 1 is compiled to products that round in another way than larger ones do."""

    def run(*arguments: Any) -> Any:
        found = one(*jax.tree.map(lambda axis, array: array if axis is None else array[0], axes, arguments, is_leaf=lambda x: x is None))
        return jax.tree.map(lambda array: array[None], found)

    return run


def _check(mesh: Mesh, arguments: tuple[Any, ...], layouts: tuple[Any, ...], size: dict[str, int], of: str) -> None:
    if missing := {SUBJECT, LOCATION} - set(mesh.axis_names):
        raise ValueError(f"expected a mesh with axes {SUBJECT}, {LOCATION}; {', '.join(sorted(missing))} is not in {mesh.axis_names}")
    specs = jax.tree.leaves(layouts, is_leaf=_is_spec)
    for array, spec in zip(jax.tree.leaves(arguments), specs, strict=True):
        for dim, axis in enumerate(spec):
            if axis and (jnp.ndim(array) <= dim or array.shape[dim] != size[axis]):
                raise ValueError(
                    f"expected {size[axis]} {axis}s along dimension {dim}, as in {of}, got an array of shape {jnp.shape(array)}"
                )
    for axis in (SUBJECT, LOCATION):
        if size[axis] % mesh.shape[axis]:
            parts = mesh.shape[axis]
            raise ValueError(f"the mesh splits {axis}s into {parts}: expected a multiple of it, got {size[axis]}; `parallel.pad` fills up")


def _sizes(problem: Problem) -> tuple[int, int]:
    if problem.z.ndim != 3 or problem.prototypes.ndim != 3:
        raise ValueError(f"expected z [S, V, D] and prototypes [S, K, D], got {problem.z.shape} and {problem.prototypes.shape}")
    return problem.z.shape[0], problem.z.shape[1]


def _check_halo(mesh: Mesh, sizes: tuple[int, int], halo: int) -> None:
    parts = dict(mesh.shape).get(LOCATION, 1)
    if parts > 1 and sizes[1] % parts == 0 and halo > sizes[1] // parts:
        raise ValueError(f"expected a halo of at most the {sizes[1] // parts} locations of a part, got {halo}: use fewer parts")


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)
