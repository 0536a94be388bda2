"""The implementation in use: blocks of rearrangements, of which only counts and maxima are kept; components by label propagation."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pnet_jax.ops.permutation.model import Model, correlations, rearranged, sided, slack
from pnet_jax.ops.permutation.reference import excess

SUBJECT = "subject"  # the mesh axis
NUMBERS = 1 << 22  # in the largest array of a block


def test(
    model: Model,
    key: PRNGKeyArray,
    permutations: int,
    tail: str,
    threshold: Float[Array, ""] | None,
    table: Int[Array, "K K"],
    begin: Int[Array, ""] | int = 0,
    end: int | None = None,
) -> tuple[Int[Array, " E"], Float[Array, " P"], Float[Array, " P"], Float[Array, " P"]]:
    """`reference.test` of the rearrangements `begin`, `begin` + 1, …; those from `end` on are not counted."""
    own_end = jnp.minimum(begin + permutations, permutations if end is None else end)
    observed = sided(correlations(model, model.rows[None])[0], tail) - slack(model.data.dtype)
    block = block_size(model, permutations, 0 if threshold is None else table.size)

    def step(exceeded: Int[Array, " E"], first: Int[Array, ""]) -> tuple[Int[Array, " E"], tuple[Array, Array, Array]]:
        numbers = begin + first + jnp.arange(block, dtype=first.dtype)
        r = sided(correlations(model, jax.vmap(lambda number: rearranged(model, key, number))(numbers)), tail)  # [B, E]
        r = jnp.where(model.tested[None, :], r, -jnp.inf)
        exceeded += ((r >= observed[None, :]) & (numbers < own_end)[:, None]).sum(0, dtype=jnp.int32)
        if threshold is None:
            none = jnp.zeros(block, r.dtype)
            return exceeded, (r.max(1), none, none)
        _, extent, intensity = components(excess(r, model, threshold), table)
        return exceeded, (r.max(1), extent.max(1), intensity.max(1))

    start = jnp.zeros(model.data.shape[1], jnp.int32)
    exceeded, maxima = jax.lax.scan(step, start, jnp.arange(0, permutations, block, dtype=jnp.int32))
    largest, extent, intensity = (x.reshape(-1)[:permutations] for x in maxima)
    return exceeded, largest, extent, intensity


def over(
    mesh: Mesh, model: Model, key: PRNGKeyArray, permutations: int, tail: str, threshold: Float[Array, ""] | None, table: Int[Array, "K K"]
) -> tuple[Int[Array, " E"], Float[Array, " P"], Float[Array, " P"], Float[Array, " P"]]:
    """`test` with the rearrangements split over the mesh axis "subject": one all-reduce of the counts. Edges are held by every device."""
    share = -(-permutations // mesh.shape[SUBJECT])

    def part(model: Model, key: PRNGKeyArray, threshold: Array | None, table: Array) -> tuple[Array, ...]:
        begin = jax.lax.axis_index(SUBJECT) * share
        exceeded, *maxima = test(model, key, share, tail, threshold, table, begin, permutations)
        return (jax.lax.psum(exceeded, SUBJECT) if mesh.shape[SUBJECT] > 1 else exceeded), *maxima

    whole, own = P(), P(SUBJECT)
    run = jax.shard_map(part, mesh=mesh, in_specs=(whole, whole, whole, whole), out_specs=(whole, own, own, own), check_vma=False)
    exceeded, *maxima = run(model, key, threshold, table)
    largest, extent, intensity = (x[:permutations] for x in maxima)
    return exceeded, largest, extent, intensity


def block_size(model: Model, permutations: int, cells: int) -> int:
    return max(1, min(permutations, NUMBERS // max(model.data.shape[1] * len(model.rows), cells)))


def components(excess: Float[Array, "B E"], table: Int[Array, "K K"]) -> tuple[Int[Array, "B K"], Float[Array, "B K"], Float[Array, "B K"]]:
    """Every node takes the lowest label among its neighbours, then that node's label, until nothing changes in the block."""
    nodes = len(table)
    weight = jnp.pad(excess, ((0, 0), (0, 1)))[:, table]  # [B, K, K], symmetric: sums and minima run over the axis that vectorises
    linked = weight > 0

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        label, _ = state
        lowest = jnp.minimum(label, jnp.where(linked, label[:, :, None], nodes).min(1))
        lowest = jnp.take_along_axis(lowest, lowest, axis=1)
        return lowest, (lowest != label).any()

    label = jnp.broadcast_to(jnp.arange(nodes, dtype=jnp.int32), (len(excess), nodes))
    label, _ = jax.lax.while_loop(lambda state: state[1], spread, (label, jnp.array(True)))
    to = jnp.arange(len(excess))[:, None]

    def gathered(per_node: Float[Array, "B K"]) -> Float[Array, "B K"]:
        return jnp.zeros_like(per_node).at[to, label].add(per_node) / 2

    return label, gathered(linked.sum(1, dtype=excess.dtype)), gathered(weight.sum(1))
