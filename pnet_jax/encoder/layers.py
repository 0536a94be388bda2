"""Layers of the neural encoder. Each works on rows, `[n, width]`; how many there are is in no parameter's shape."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

LOWEST = -1e30  # below any logit, and no NaN where two of them are subtracted


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(a: Float[Array, "*b n m"], b: Float[Array, "*b m k"], dtype: str) -> Float[Array, "*b n k"]:
    """a @ b with factors in `dtype` and sums in float32, in the backward pass too (where JAX would mix the two types)."""
    return _matmul(a.astype(dtype), b.astype(dtype))


def _forward(a: Array, b: Array, dtype: str) -> tuple[Array, tuple[Array, Array]]:
    a, b = a.astype(dtype), b.astype(dtype)
    return _matmul(a, b), (a, b)


def _backward(dtype: str, factors: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    a, b = factors
    slope = slope.astype(dtype)
    return _matmul(slope, b.mT), _matmul(a.mT, slope)


def _matmul(a: Array, b: Array) -> Array:
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)


product.defvjp(_forward, _backward)


class Dense(nnx.Module):
    """x W + b; `zero` starts it at 0.

    Without a bias where a constant would change nothing: its gradient were rounding alone, of which Adam makes full steps.
    """

    def __init__(self, inputs: int, outputs: int, dtype: str, *, rngs: nnx.Rngs, zero: bool = False, bias: bool = True):
        start = nnx.initializers.zeros_init() if zero else nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(start(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n i"]) -> Float[Array, "n o"]:
        found = product(x, self.kernel[...], self.dtype)
        return found if self.bias is None else found + self.bias[...][None, :]


class Norm(nnx.LayerNorm):
    """Layer norm in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, use_fast_variance=False, rngs=rngs)


class Mlp(nnx.Module):
    """x + W GELU(V norm(x))."""

    def __init__(self, width: int, ratio: int, dtype: str, *, rngs: nnx.Rngs):
        self.norm = Norm(width, rngs=rngs)
        self.widen = Dense(width, ratio * width, dtype, rngs=rngs)
        self.narrow = Dense(ratio * width, width, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n w"]) -> Float[Array, "n w"]:
        return x + self.narrow(nnx.gelu(self.widen(self.norm(x))))


class Pooled(NamedTuple):
    """A softmax average under way: what has been seen of the rows to attend to.

    Attributes:
      peak: largest logit, `[H, n, 1]`.
      mass: Σ exp(logit − peak), `[H, n, 1]`.
      total: Σ exp(logit − peak) · value, `[H, n, d]`.
    """

    peak: Float[Array, "H n 1"]
    mass: Float[Array, "H n 1"]
    total: Float[Array, "H n d"]


def merged(seen: Pooled) -> Pooled:
    """One average of several that saw parts of the rows, which are the first axis of each array."""
    if len(seen.peak) == 1:
        return jax.tree.map(lambda one: one[0], seen)
    peak = seen.peak.max(0)
    share = jnp.exp(seen.peak - peak[None])
    return Pooled(peak, (share * seen.mass).sum(0), (share * seen.total).sum(0))


class Attention(nnx.Module):
    """Attention block: x + average of the context's values, then an MLP.

    The average is a running one (`start`, any number of `pool`, `finish`), so that a context of any size is seen in blocks.
    """

    def __init__(self, width: int, heads: int, ratio: int, dtype: str, *, rngs: nnx.Rngs):
        self.norm, self.context_norm = Norm(width, rngs=rngs), Norm(width, rngs=rngs)
        self.query, self.value, self.output = (Dense(width, width, dtype, rngs=rngs) for _ in range(3))
        self.key = Dense(width, width, dtype, rngs=rngs, bias=False)  # one number more for all keys of a query
        self.mlp = Mlp(width, ratio, dtype, rngs=rngs)
        self.heads, self.dtype = heads, dtype

    def __call__(
        self, x: Float[Array, "n w"], context: Float[Array, "m w"] | None = None, counted: Bool[Array, " m"] | None = None
    ) -> Float[Array, "n w"]:
        """One block over the whole context; x attends to itself where none is given."""
        context = x if context is None else context
        counted = jnp.ones(len(context), bool) if counted is None else counted
        return self.finish(x, self.pool(x, self.start(x), context, counted))

    def start(self, x: Float[Array, "n w"]) -> Pooled:
        rows, width = x.shape
        one = jnp.zeros((self.heads, rows, 1), jnp.float32)
        return Pooled(one + LOWEST, one, jnp.zeros((self.heads, rows, width // self.heads), jnp.float32))

    def pool(self, x: Float[Array, "n w"], seen: Pooled, context: Float[Array, "m w"], counted: Bool[Array, " m"]) -> Pooled:
        """What was seen, and this part of the context; rows of it that do not count have no weight."""
        context = self.context_norm(context)
        queries, keys, values = (self._split(y) for y in (self.query(self.norm(x)), self.key(context), self.value(context)))
        logits = product(queries / jnp.sqrt(queries.shape[-1]), keys.mT, self.dtype)  # [H, n, m]
        logits = jnp.where(counted[None, None, :], logits, LOWEST)
        peak = jnp.maximum(seen.peak, jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        weight = jnp.where(counted[None, None, :], jnp.exp(logits - peak), 0.0)
        past = jnp.exp(seen.peak - peak)
        return Pooled(peak, past * seen.mass + weight.sum(-1, keepdims=True), past * seen.total + product(weight, values, self.dtype))

    def finish(self, x: Float[Array, "n w"], seen: Pooled) -> Float[Array, "n w"]:
        average = seen.total / jnp.where(seen.mass > 0, seen.mass, 1.0)
        return self.mlp(x + self.output(average.swapaxes(0, 1).reshape(x.shape)))

    def _split(self, x: Float[Array, "n w"]) -> Float[Array, "H n d"]:
        return x.reshape(len(x), self.heads, -1).swapaxes(0, 1)
