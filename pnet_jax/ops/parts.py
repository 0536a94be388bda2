"""Functions that run on each device's shard of the locations if a mesh splits them.

Under `jit`, the compiler partitions most of a step by itself. Loops over blocks of a sharded axis and segment sums along it, however,
would run on the whole array on every device; these functions partition them explicitly. On one device they add nothing to the program.
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
    """Call `function(*split, *same)` on each device with its shard of the arrays in `split`.

    The mesh is the one on which the step runs (`jax.shard_map` or `jax.set_mesh`). Without a mesh, or if the number of shards does not
    divide the arrays, the function is called directly.

    Args:
      function: function of arrays and pytrees; every traced value must be an argument.
      split: arrays of equal size along the dimension `along`.
      same: pytrees that are replicated on every device.
      along: dimension along which the arrays are split.
      total: whether the results are summed over the shards; otherwise they are split along their first dimension.

    Returns:
      The results of `function`, summed or split.
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
    """Return `jax.ops.segment_sum` over locations: one sum on each device, then one sum over devices."""
    return over_parts(lambda rows, at: jax.ops.segment_sum(rows, at, count), (rows, at), total=True)
