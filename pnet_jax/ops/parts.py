"""Locations in parts: what is to be run on each device's own locations where a mesh splits them.

Under `jit` the compiler splits most of a step by itself. A loop over blocks of a split axis, and a sum by label along it, it runs on all
of the array on every device instead: these are told here where the parts are. On one device nothing is added to the program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

LOCATION = "location"  # the mesh axis


def over_parts(
    function: Callable[..., Any], split: Sequence[Array], same: Sequence[Any] = (), *, along: int = 0, total: bool = False
) -> Any:
    """`function(*split, *same)`, each device with its own part of the arrays in `split`.

    The mesh is the one that the step runs on (`jax.shard_map` or `jax.set_mesh`); without one, or where its parts do not divide the
    arrays, the function is called as it is.

    Args:
      function: of arrays and trees; everything that is traced enters as an argument.
      split: arrays of one size along `along`.
      same: trees that every device holds whole.
      along: dimension that is split.
      total: the results are sums, added over the parts; otherwise they are split along their first dimension.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = mesh.shape[LOCATION] if LOCATION in mesh.auto_axes else 1
    if parts == 1 or split[0].shape[along] % parts:
        return function(*split, *same)

    def added(*arguments: Any) -> Any:
        return jax.lax.psum(function(*arguments), LOCATION)

    layouts = (P(*(None,) * along, LOCATION),) * len(split) + (P(),) * len(same)
    run = jax.shard_map(
        added if total else function, in_specs=layouts, out_specs=P() if total else P(LOCATION), axis_names={LOCATION}, check_vma=False
    )
    return run(*split, *same)


def segment_sum(rows: Float[Array, "V ..."], at: Int[Array, " V"], count: int) -> Float[Array, "K ..."]:
    """`jax.ops.segment_sum` over locations: of each part on its device, then one sum over the parts."""
    return over_parts(lambda rows, at: jax.ops.segment_sum(rows, at, count), (rows, at), total=True)
