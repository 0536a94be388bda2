"""Portrait divergences on several devices.

The graph and paths of each network are computed on one device, the data needed for comparisons are gathered on all devices, and each pair
is compared on one device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from pnet_jax.ops.portrait import chunked
from pnet_jax.ops.portrait.settings import PortraitSettings

SUBJECT = "subject"


def check(mesh: Mesh | None, networks: int, implementation: str | None) -> None:
    if mesh is None:
        return
    if SUBJECT not in mesh.axis_names:
        raise ValueError(f"expected a mesh with an axis {SUBJECT}, got {mesh.axis_names}")
    if networks % mesh.shape[SUBJECT]:
        parts = mesh.shape[SUBJECT]
        raise ValueError(
            f"the mesh splits networks over {parts} devices: expected a multiple of {parts} networks, got {networks}; "
            "pad with networks of NaN"
        )
    if implementation == "reference":
        raise ValueError("a mesh needs the implementation 'chunked', got 'reference'")


def each(mesh: Mesh | None, function: Callable[..., Any], *settings: Any) -> Callable[[Array], Any]:
    """Return a function that applies `function` to the networks on each device."""
    if mesh is None:
        return lambda networks: function(networks, *settings)
    return _on_each(mesh, function, settings)


@functools.cache  # avoids recompilation at every call
def _on_each(mesh: Mesh, function: Callable[..., Any], settings: tuple[Any, ...]) -> Callable[[Array], Any]:
    own = P(SUBJECT)
    return jax.jit(jax.shard_map(lambda x: function(x, *settings), mesh=mesh, in_specs=own, out_specs=own, check_vma=False))


def divergences(
    mesh: Mesh,
    distances: Float[Array, "S N N"],
    present: Bool[Array, "S N"],
    pairs: Int[Array, "P 2"],
    edges: Float[Array, " L+1"] | None,
    settings: PortraitSettings,
) -> Float[Array, " P"]:
    """Compute `chunked.divergences` with networks and pairs split over devices; one all-gather per array needed for comparisons."""
    count = len(pairs)
    pairs = jnp.pad(pairs, ((0, -count % mesh.shape[SUBJECT]), (0, 0)))  # padding compares the first network with itself
    edges = None if edges is None else jnp.asarray(edges)

    def part(distances: Array, present: Array, pairs: Array) -> Array:
        networks = chunked.prepared(distances, present, edges, settings)
        networks, present = (
            jax.tree.map(lambda x: jax.lax.all_gather(x, SUBJECT, tiled=True), tree) if mesh.shape[SUBJECT] > 1 else tree
            for tree in (networks, present)
        )
        return chunked.compared(networks, present, pairs, edges, settings)

    own = P(SUBJECT)
    return jax.shard_map(part, mesh=mesh, in_specs=(own, own, own), out_specs=own, check_vma=False)(distances, present, pairs)[:count]
