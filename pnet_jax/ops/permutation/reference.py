"""Reference definition: all permutations at once; components by repeated squaring of the reachability matrix."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pnet_jax.ops.permutation.asked import Asked, Kept
from pnet_jax.ops.permutation.model import PermutationModel, correlations, rearranged, sided, slack, to_r, to_t


def test(model: PermutationModel, key: PRNGKeyArray, permutations: int, tail: str, asked: Asked) -> tuple[Int[Array, " E"], Kept]:
    """Return how many permutations reach the statistic of each edge, and the values kept of each permutation."""
    observed = sided(correlations(model, model.rows[None])[0], tail)
    r = correlations(model, jax.vmap(lambda number: rearranged(model, key, number))(jnp.arange(permutations)))  # [P, E]
    exceeded = (beyond(r, model, tail) >= observed[None, :] - slack(r.dtype)).sum(0, dtype=jnp.int32)
    return exceeded, kept(r, model, tail, asked, components, enhanced)


def kept(r: Float[Array, "B E"], model: PermutationModel, tail: str, asked: Asked, components: Any, enhanced: Any) -> Kept:
    """Return the values kept of permutations, given the `components` and `enhanced` functions of an implementation."""
    extreme = beyond(r, model, tail)
    extent, intensity, score = None, None, None
    if asked.threshold is not None:
        _, extents, intensities = components(excess(extreme, model, asked.threshold), asked.table)
        extent, intensity = extents.max(1), intensities.max(1)
    if asked.levels is not None:
        score = enhanced(heights(extreme, model), asked).max(1)
    sets = {name: set_means(to_t(r, model.df), members, model) for name, members in asked.sets.items()}
    return Kept(extreme.max(1), extent, intensity, score, sets)


def beyond(r: Float[Array, "B E"], model: PermutationModel, tail: str) -> Float[Array, "B E"]:
    """Return r in the direction of the tail; −∞ for edges that cannot be tested."""
    return jnp.where(model.tested[None, :], sided(r, tail), -jnp.inf)


def excess(r: Float[Array, "B E"], model: PermutationModel, threshold: Float[Array, ""]) -> Float[Array, "B E"]:
    """Return t − threshold above the threshold, 0 elsewhere."""
    above = r > to_r(threshold, model.df)
    return jnp.where(above, jnp.maximum(to_t(r, model.df) - threshold, jnp.finfo(r.dtype).tiny), 0)


def heights(r: Float[Array, "B E"], model: PermutationModel) -> Float[Array, "B E"]:
    """Return t if it is above 0, else 0."""
    return to_t(jnp.maximum(r, 0), model.df)


def set_means(
    t: Float[Array, "B E"], members: Float[Array, "E G"], model: PermutationModel
) -> tuple[Float[Array, "B G"], Float[Array, "B G"]]:
    """Return the mean t and mean t² of each set, over the edges that can be tested."""
    members = jnp.where(model.tested[:, None], members, 0)
    size = jnp.maximum(members.sum(0), 1)[None, :]
    t = jnp.where(model.tested[None, :], t, 0)
    return jnp.matmul(t, members, precision="highest") / size, jnp.matmul(jnp.square(t), members, precision="highest") / size


def components(excess: Float[Array, "B E"], table: Int[Array, "K K"]) -> tuple[Int[Array, "B K"], Float[Array, "B K"], Float[Array, "B K"]]:
    """Return the lowest node of each node's component, and at that node the component's number of edges and summed excess."""
    nodes = len(table)
    weight = jnp.pad(excess, ((0, 0), (0, 1)))[:, table]  # [B, K, K]; the table is −1 if there is no edge
    reached = (weight > 0) | jnp.eye(nodes, dtype=bool)[None]
    for _ in range(max(nodes - 1, 1).bit_length()):
        reached = jnp.einsum("bij,bjk->bik", reached.astype(jnp.float32), reached.astype(jnp.float32)) > 0
    lowest = jnp.argmax(reached, axis=2).astype(jnp.int32)
    member = (lowest[:, :, None] == jnp.arange(nodes)[None, None, :]).astype(excess.dtype)  # [B, K, component]
    extent = jnp.einsum("bij,bic->bc", (weight > 0).astype(excess.dtype), member, precision="highest") / 2
    return lowest, extent, jnp.einsum("bij,bic->bc", weight, member, precision="highest") / 2


def enhanced(t: Float[Array, "B E"], asked: Asked) -> Float[Array, "B E"]:
    r"""Return threshold-free scores, 0 for edges below the first level.

    .. math:: \sum_l e_l^E \int_{h_l}^{\min(t, h_{l+1})} h^H dh

    summed over the levels below t, where e is the number of edges of the edge's component at that level; the last level has no upper end.
    """
    assert asked.levels is not None
    extent, height = asked.powers
    total = jnp.zeros_like(t)
    for number, low in enumerate(asked.levels):
        label, edges_in, _ = components(jnp.where(t > low, 1, 0).astype(t.dtype), asked.table)
        size = jnp.take_along_axis(edges_in, label[:, asked.ends[:, 0]], axis=1)
        high = asked.levels[number + 1] if number + 1 < len(asked.levels) else jnp.inf
        gained = (jnp.minimum(t, high) ** (height + 1) - low ** (height + 1)) / (height + 1)
        total += jnp.where(t > low, size**extent * gained, 0)
    return total
