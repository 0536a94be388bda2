"""Default implementation: blocks of permutations, of which only counts and maxima are kept; components by label propagation."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pnet_jax.ops.permutation.asked import Asked, Kept
from pnet_jax.ops.permutation.model import PermutationModel, correlations, rearranged, sided, slack
from pnet_jax.ops.permutation.reference import beyond, kept

SUBJECT = "subject"  # the mesh axis
NUMBERS = 1 << 22  # maximum number of elements in the largest array of a block


def test(
    model: PermutationModel,
    key: PRNGKeyArray,
    permutations: int,
    tail: str,
    asked: Asked,
    begin: Int[Array, ""] | int = 0,
    end: int | None = None,
) -> tuple[Int[Array, " E"], Kept]:
    """Run `reference.test` on the permutations numbered `begin`, `begin` + 1, …; those from `end` on are not counted."""
    own_end = jnp.minimum(begin + permutations, permutations if end is None else end)
    observed = sided(correlations(model, model.rows[None])[0], tail) - slack(model.data.dtype)
    block = block_size(model, permutations, asked.table.size if asked.graph else 0)

    def step(exceeded: Int[Array, " E"], first: Int[Array, ""]) -> tuple[Int[Array, " E"], Kept]:
        numbers = begin + first + jnp.arange(block, dtype=first.dtype)
        r = correlations(model, jax.vmap(lambda number: rearranged(model, key, number))(numbers))  # [B, E]
        reached = (beyond(r, model, tail) >= observed[None, :]) & (numbers < own_end)[:, None]
        return exceeded + reached.sum(0, dtype=jnp.int32), kept(r, model, tail, asked, components, enhanced)

    start = jnp.zeros(model.data.shape[1], jnp.int32)
    exceeded, rows = jax.lax.scan(step, start, jnp.arange(0, permutations, block, dtype=jnp.int32))
    return exceeded, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:permutations], rows)


def over(
    mesh: Mesh, model: PermutationModel, key: PRNGKeyArray, permutations: int, tail: str, asked: Asked
) -> tuple[Int[Array, " E"], Kept]:
    """Run `test` with permutations split over the mesh axis "subject" and edges replicated; one all-reduce of the counts."""
    share = -(-permutations // mesh.shape[SUBJECT])

    def part(model: PermutationModel, key: PRNGKeyArray, asked: Asked) -> tuple[Array, Kept]:
        begin = jax.lax.axis_index(SUBJECT) * share
        exceeded, rows = test(model, key, share, tail, asked, begin, permutations)
        return (jax.lax.psum(exceeded, SUBJECT) if mesh.shape[SUBJECT] > 1 else exceeded), rows

    whole, own = P(), P(SUBJECT)
    run = jax.shard_map(part, mesh=mesh, in_specs=(whole, whole, whole), out_specs=(whole, own), check_vma=False)
    exceeded, rows = run(model, key, asked)
    return exceeded, jax.tree.map(lambda x: x[:permutations], rows)


def block_size(model: PermutationModel, permutations: int, cells: int) -> int:
    return max(1, min(permutations, NUMBERS // max(model.data.shape[1] * len(model.rows), cells)))


def components(excess: Float[Array, "B E"], table: Int[Array, "K K"]) -> tuple[Int[Array, "B K"], Float[Array, "B K"], Float[Array, "B K"]]:
    """Propagate the lowest label among neighbours, then the label of that node, until nothing changes in the block."""
    weight = jnp.pad(excess, ((0, 0), (0, 1)))[:, table]  # [B, K, K], symmetric: sums and minima run over the axis that vectorises best
    linked = weight > 0
    label = labelled(linked, jnp.broadcast_to(jnp.arange(len(table), dtype=jnp.int32), weight.shape[:2]))
    return label, gathered(linked.sum(1, dtype=excess.dtype), label), gathered(weight.sum(1), label)


def labelled(linked: Bool[Array, "B K K"], label: Int[Array, "B K"]) -> Int[Array, "B K"]:
    """Return the lowest node of each node's component, starting from the lowest nodes of parts of it."""
    nodes = linked.shape[-1]

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        label, _ = state
        lowest = jnp.minimum(label, jnp.where(linked, label[:, :, None], nodes).min(1))
        lowest = jnp.take_along_axis(lowest, lowest, axis=1)
        return lowest, (lowest != label).any()

    return jax.lax.while_loop(lambda state: state[1], spread, (label, jnp.array(True)))[0]


def gathered(per_node: Float[Array, "B K"], label: Int[Array, "B K"]) -> Float[Array, "B K"]:
    """Return half the sum over the nodes of each component, at its lowest node; half because every edge has two nodes."""
    return jnp.zeros_like(per_node).at[jnp.arange(len(label))[:, None], label].add(per_node) / 2


def enhanced(t: Float[Array, "B E"], asked: Asked) -> Float[Array, "B E"]:
    """Compute `reference.enhanced` from the highest level down, where components of one level are parts of those of the next."""
    assert asked.levels is not None
    power, height = asked.powers[0], asked.powers[1] + 1
    dense = jnp.pad(t, ((0, 0), (0, 1)))[:, asked.table]  # [B, K, K]
    integral, limits = dense**height / height, asked.levels**height / height
    upper = jnp.concatenate([limits[1:], jnp.full(1, jnp.inf, limits.dtype)])

    def step(state: tuple[Array, Array], level: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        label, total = state
        low, begin, end = level
        linked = dense > low
        label = labelled(linked, label)
        size = jnp.take_along_axis(gathered(linked.sum(1, dtype=t.dtype), label), label, axis=1) ** power
        return (label, total + jnp.where(linked, size[:, :, None] * (jnp.minimum(integral, end) - begin), 0)), None

    start = jnp.broadcast_to(jnp.arange(len(asked.table), dtype=jnp.int32), dense.shape[:2]), jnp.zeros_like(dense)
    (_, total), _ = jax.lax.scan(step, start, (asked.levels, limits, upper), reverse=True)
    return total[:, asked.ends[:, 0], asked.ends[:, 1]]
