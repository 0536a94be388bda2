"""The definition: all rearrangements at once, components by repeated squaring of who reaches whom."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pnet_jax.ops.permutation.model import Model, correlations, rearranged, sided, slack, to_r, to_t


def test(
    model: Model, key: PRNGKeyArray, permutations: int, tail: str, threshold: Float[Array, ""] | None, table: Int[Array, "K K"]
) -> tuple[Int[Array, " E"], Float[Array, " P"], Float[Array, " P"], Float[Array, " P"]]:
    """How often each edge was exceeded, and the maximum of r, extent and intensity of each rearrangement."""
    observed = sided(correlations(model, model.rows[None])[0], tail)
    rows = jax.vmap(lambda number: rearranged(model, key, number))(jnp.arange(permutations))
    r = jnp.where(model.tested[None, :], sided(correlations(model, rows), tail), -jnp.inf)  # [P, E]
    exceeded = (r >= observed[None, :] - slack(r.dtype)).sum(0, dtype=jnp.int32)
    if threshold is None:
        none = jnp.zeros(permutations, r.dtype)
        return exceeded, r.max(1), none, none
    _, extent, intensity = components(excess(r, model, threshold), table)
    return exceeded, r.max(1), extent.max(1), intensity.max(1)


def excess(r: Float[Array, "B E"], model: Model, threshold: Float[Array, ""]) -> Float[Array, "B E"]:
    """t − threshold above the threshold, 0 elsewhere."""
    above = r > to_r(threshold, model.df)
    return jnp.where(above, jnp.maximum(to_t(r, model.df) - threshold, jnp.finfo(r.dtype).tiny), 0)


def components(excess: Float[Array, "B E"], table: Int[Array, "K K"]) -> tuple[Int[Array, "B K"], Float[Array, "B K"], Float[Array, "B K"]]:
    """The lowest node of each node's component; number of edges and summed excess of the component that a node is the lowest of."""
    nodes = len(table)
    weight = jnp.pad(excess, ((0, 0), (0, 1)))[:, table]  # [B, K, K]; the table has −1 where there is no edge
    reached = (weight > 0) | jnp.eye(nodes, dtype=bool)[None]
    for _ in range(max(nodes - 1, 1).bit_length()):
        reached = jnp.einsum("bij,bjk->bik", reached.astype(jnp.float32), reached.astype(jnp.float32)) > 0
    lowest = jnp.argmax(reached, axis=2).astype(jnp.int32)
    member = (lowest[:, :, None] == jnp.arange(nodes)[None, None, :]).astype(excess.dtype)  # [B, K, component]
    extent = jnp.einsum("bij,bic->bc", (weight > 0).astype(excess.dtype), member, precision="highest") / 2
    return lowest, extent, jnp.einsum("bij,bic->bc", weight, member, precision="highest") / 2
