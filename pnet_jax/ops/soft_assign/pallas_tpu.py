"""Fused TPU kernel: each block of locations is read once and contributes its q and its share of the sums and masses.

Locations lie along the 128 lanes and parcels along the sublanes, so a sum over parcels adds registers and no lane is idle when there
are few candidates. Gathers are replaced by comparisons of the candidates with an iota over the parcels.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pnet_jax.ops.soft_assign import chunked

LANES = 128
BLOCK = 512  # maximum number of locations per block; fewer if they do not fit
VMEM = 12 * 2**20  # bytes; a kernel has 16 MB by default, and the rest is left to the compiler
ABSENT = -1e30


def soft_assign(
    z: Float[Array, "V D"],
    prototypes: Float[Array, "K D"],
    candidates: Int[Array, "V C"],
    bias: Float[Array, "V C"],
    kappa: Float[Array, " V"],
) -> tuple[Float[Array, "V C"], Float[Array, "K D"], Float[Array, " K"]]:
    if (backend := jax.default_backend()) != "tpu":
        # All programs of the grid accumulate into one block: sequentially on a TPU, but concurrently on a GPU.
        raise NotImplementedError(f"soft_assign: the implementation 'pallas' is for tpu only, the backend is {backend!r}")
    return fused(z, prototypes, candidates, bias, kappa, False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def fused(
    z: Float[Array, "V D"],
    prototypes: Float[Array, "K D"],
    candidates: Int[Array, "V C"],
    bias: Float[Array, "V C"],
    kappa: Float[Array, " V"],
    interpret: bool | pltpu.InterpretParams,
) -> tuple[Float[Array, "V C"], Float[Array, "K D"], Float[Array, " K"]]:
    """Run the kernel on any backend: for tests, with `interpret` as in `pallas_call`, or with False to lower it for a TPU.

    Inside `shard_map` it needs `check_vma=False`, because Pallas does not infer how the results vary over devices.
    """
    if not {z.dtype, prototypes.dtype} <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}:
        raise NotImplementedError(f"soft_assign: 'pallas' takes float32 or bfloat16, got {z.dtype} and {prototypes.dtype}")
    (n_locations, dimensions), width, n_parcels = z.shape, candidates.shape[1], len(prototypes)
    rows = _up(n_parcels, 16)  # the sublanes of a bfloat16 tile
    block = min(block_size(n_parcels, dimensions, width), _up(n_locations, LANES))
    padded = _up(n_locations, block)

    def locations(x: Array, value: float = 0) -> Array:
        """Pad the last axis (locations) to whole blocks."""
        return jnp.pad(x, ((0, 0), (0, padded - n_locations)), constant_values=value)

    def whole(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda i: (0, 0))

    def part(n: int) -> pl.BlockSpec:
        return pl.BlockSpec((n, block), lambda i: (0, i))

    q, sums, masses = pl.pallas_call(
        _kernel,
        out_shape=[jax.ShapeDtypeStruct(s, jnp.float32) for s in ((width, padded), (rows, dimensions), (rows, 1))],
        grid=(padded // block,),
        in_specs=[part(dimensions), whole(rows, dimensions), part(width), part(width), part(1)],
        out_specs=[part(width), whole(rows, dimensions), whole(rows, 1)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),  # sequential, because the sums are accumulated
        cost_estimate=pl.CostEstimate(
            flops=4 * padded * rows * dimensions + 5 * padded * rows * width,
            transcendentals=padded * width,
            bytes_accessed=padded * (dimensions * z.dtype.itemsize + 12 * width + 4),
        ),
        interpret=interpret,
        name="soft_assign",
    )(
        locations(z.T),
        jnp.pad(prototypes, ((0, rows - n_parcels), (0, 0))),
        locations(candidates.astype(jnp.int32).T, -1),
        locations(bias.astype(jnp.float32).T),
        locations(kappa.astype(jnp.float32)[None]),
    )
    return q[:, :n_locations].T, sums[:n_parcels], masses[:n_parcels, 0]


def _kernel(z_ref, prototypes_ref, candidates_ref, bias_ref, kappa_ref, q_ref, sums_ref, masses_ref) -> None:  # type: ignore[no-untyped-def]
    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        sums_ref[...] = jnp.zeros_like(sums_ref)
        masses_ref[...] = jnp.zeros_like(masses_ref)

    z, candidates = z_ref[...], candidates_ref[...]
    similarity = _product(prototypes_ref[...], z, 0)  # [K, block]
    parcel = jax.lax.broadcasted_iota(jnp.int32, similarity.shape, 0)
    found = [jnp.sum(jnp.where(parcel == c, similarity, 0.0), axis=0, keepdims=True) for c in _rows(candidates)]
    there = candidates >= 0
    logits = jnp.where(there, kappa_ref[...] * jnp.concatenate(found) + bias_ref[...], ABSENT)  # [C, block]
    weight = jnp.where(there, jnp.exp(logits - jnp.max(logits, axis=0, keepdims=True)), 0.0)
    # The weight of the best candidate is 1, so the sum is below 1 only if there is no candidate.
    q = weight / jnp.maximum(jnp.sum(weight, axis=0, keepdims=True), 1.0)
    q_ref[...] = q
    dense = jnp.zeros_like(similarity)
    for c, share in zip(_rows(candidates), _rows(q), strict=True):
        dense = jnp.where(parcel == c, share, dense)
    sums_ref[...] += _product(dense, z.astype(jnp.float32), 1)  # [K, D]
    masses_ref[...] += jnp.sum(dense, axis=1, keepdims=True)


def _product(a: Array, b: Array, axis: int) -> Array:
    """Contract the last axis of `a` with `axis` of `b` in float32; highest precision only if an input is float32."""
    if a.dtype != b.dtype:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _rows(x: Array) -> list[Array]:
    return [x[c : c + 1] for c in range(len(x))]


def block_size(n_parcels: int, dimensions: int, width: int) -> int:
    """Return the largest block size, at most `BLOCK`, for which the kernel fits in memory.

    Raises:
      NotImplementedError: If not even 128 locations fit.
    """
    block = BLOCK
    while (needed := vmem_bytes(block, n_parcels, dimensions, width)) > VMEM:
        if block == LANES:
            raise NotImplementedError(
                f"soft_assign: 'pallas' holds all parcels in at most {VMEM} bytes, "
                f"but K = {n_parcels}, D = {dimensions}, C = {width} need {needed}"
            )
        block //= 2  # V is a multiple of 4096 in practice, so no copy is needed for padding
    return block


def vmem_bytes(block: int, n_parcels: int, dimensions: int, width: int) -> int:
    """Return the memory of a program: two buffers per input and output block and the `[K, block]` tables, in whole float32 tiles."""
    rows = _up(n_parcels, 16)
    moved = (_up(dimensions, 8) + 3 * _up(width, 8) + 8) * block + (2 * _up(dimensions, LANES) + LANES) * rows
    return 4 * (2 * moved + 5 * rows * block)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _forward(z, prototypes, candidates, bias, kappa, interpret):  # type: ignore[no-untyped-def]
    return fused(z, prototypes, candidates, bias, kappa, interpret), (z, prototypes, candidates, bias, kappa)


def _backward(interpret, given, cotangents):  # type: ignore[no-untyped-def]
    """Compute the gradient with the chunked implementation, because Pallas kernels are not differentiated automatically.

    It is blocked like the kernel: it stores only the inputs and no `[V, K]` table. It recomputes q, as a dedicated kernel would.
    """
    z, prototypes, candidates, bias, kappa = given

    def forward(*given: Array) -> tuple[Array, Array, Array]:
        z, prototypes, bias, kappa = (x.astype(jnp.float32) for x in given)
        return chunked.soft_assign(z, prototypes, candidates, bias, kappa)

    z, prototypes, bias, kappa = jax.vjp(forward, z, prototypes, bias, kappa)[1](cotangents)
    return z, prototypes, None, bias, kappa


fused.defvjp(_forward, _backward)
