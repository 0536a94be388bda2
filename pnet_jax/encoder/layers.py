"""Layers of the neural encoder. They operate on rows, `[n, width]`; no parameter shape depends on the number of rows."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

LOWEST = -1e30  # below any logit, but finite, so that differences are not NaN


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(a: Float[Array, "*b n m"], b: Float[Array, "*b m k"], dtype: str) -> Float[Array, "*b n k"]:
    """Compute a @ b with factors in `dtype` and accumulation in float32, also in the backward pass (in which JAX would mix dtypes)."""
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
    """Dense layer x W + b; `zero` initialises W with 0.

    Use `bias=False` if a constant has no effect: the gradient of the bias would be rounding error, which Adam scales to full steps.
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
    """Layer normalisation in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, use_fast_variance=False, rngs=rngs)


class Mlp(nnx.Module):
    """Residual MLP block x + W GELU(V norm(x))."""

    def __init__(self, width: int, ratio: int, dtype: str, *, rngs: nnx.Rngs):
        self.norm = Norm(width, rngs=rngs)
        self.widen = Dense(width, ratio * width, dtype, rngs=rngs)
        self.narrow = Dense(ratio * width, width, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n w"]) -> Float[Array, "n w"]:
        return x + self.narrow(nnx.gelu(self.widen(self.norm(x))))


class Pooled(NamedTuple):
    """Running softmax average over a context that is processed in blocks.

    Attributes:
      peak: largest logit so far, `[H, n, 1]`.
      mass: Σ exp(logit − peak), `[H, n, 1]`.
      total: Σ exp(logit − peak) · value, `[H, n, d]`.
    """

    peak: Float[Array, "H n 1"]
    mass: Float[Array, "H n 1"]
    total: Float[Array, "H n d"]


def merged(seen: Pooled) -> Pooled:
    """Merge running averages over parts of the context, which are stacked along the first axis."""
    if len(seen.peak) == 1:
        return jax.tree.map(lambda one: one[0], seen)
    peak = seen.peak.max(0)
    share = jnp.exp(seen.peak - peak[None])
    return Pooled(peak, (share * seen.mass).sum(0), (share * seen.total).sum(0))


class Attention(nnx.Module):
    """Attention block: x plus the attention-weighted values of the context, followed by an MLP.

    The average is a running one (`start`, any number of `pool`, `finish`), so that a context of any size can be processed in blocks.
    """

    def __init__(self, width: int, heads: int, ratio: int, dtype: str, *, rngs: nnx.Rngs):
        self.norm, self.context_norm = Norm(width, rngs=rngs), Norm(width, rngs=rngs)
        self.query, self.value, self.output = (Dense(width, width, dtype, rngs=rngs) for _ in range(3))
        self.key = Dense(width, width, dtype, rngs=rngs, bias=False)  # a bias would add a constant to all logits of a query
        self.mlp = Mlp(width, ratio, dtype, rngs=rngs)
        self.heads, self.dtype = heads, dtype

    def __call__(
        self, x: Float[Array, "n w"], context: Float[Array, "m w"] | None = None, counted: Bool[Array, " m"] | None = None
    ) -> Float[Array, "n w"]:
        """Attend to the whole context, by default to x itself."""
        context = x if context is None else context
        counted = jnp.ones(len(context), bool) if counted is None else counted
        return self.finish(x, self.pool(x, self.start(x), context, counted))

    def start(self, x: Float[Array, "n w"]) -> Pooled:
        rows, width = x.shape
        one = jnp.zeros((self.heads, rows, 1), jnp.float32)
        return Pooled(one + LOWEST, one, jnp.zeros((self.heads, rows, width // self.heads), jnp.float32))

    def pool(self, x: Float[Array, "n w"], seen: Pooled, context: Float[Array, "m w"], counted: Bool[Array, " m"]) -> Pooled:
        """Update the running average with a part of the context; excluded rows have no weight."""
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
