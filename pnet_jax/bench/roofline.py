"""Limits of the device, measured in the same run: largest rate of matrix products, and memory bandwidth."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pnet_jax.bench.timing import time_call

BUDGET = 0.5  # longest duration of one call in seconds; larger sizes are skipped
PRODUCTS = (1024, 2048, 4096, 8192)
COPIES = (2**25, 2**26, 2**27, 2**28)  # float32 values; the smallest exceeds the cache of a processor
PASSES = 16  # passes over an array per call, in place: allocating memory for a result would take longer than writing it
KINDS = {"float32": ("float32", "highest"), "float32_fast": ("float32", "default"), "bfloat16": ("bfloat16", "default")}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Peak rates of one device.

    Attributes:
      matmul: Operations per second: `"float32"` in full precision, `"float32_fast"` with the backend's default precision, `"bfloat16"`.
      copy: Bytes per second, read and written.
    """

    matmul: dict[str, float]
    copy: float

    def seconds(self, flop: float, moved: float, dtype: str = "float32") -> tuple[float, str]:
        """Return the least time for some work in seconds, and its limiting factor: `"matmul"` or `"copy"`.

        >>> Roofline({"float32": 100.0}, 10.0).seconds(200, 10)
        (2.0, 'matmul')
        >>> Roofline({"float32": 100.0}, 10.0).seconds(200, 30)
        (3.0, 'copy')
        """
        products, copies = flop / self.matmul[dtype], moved / self.copy
        return (products, "matmul") if products >= copies else (copies, "copy")

    def larger(self, other: Roofline) -> Roofline:
        """Return the better of two measurements, since lower rates are due to other work on the machine."""
        return Roofline({kind: max(rate, other.matmul[kind]) for kind, rate in self.matmul.items()}, max(self.copy, other.copy))


def measure_roofline(*, products: tuple[int, ...] = PRODUCTS, copies: tuple[int, ...] = COPIES, repeats: int = 5) -> Roofline:
    """Measure square products and copies of increasing size; the best sample counts."""
    return Roofline({kind: matmul_rate(kind, products, repeats) for kind in KINDS}, _copies(copies, repeats))


def matmul_rate(kind: str, sizes: tuple[int, ...] = PRODUCTS, repeats: int = 5) -> float:
    """Measure the operations per second of square products of one of the `KINDS`."""
    dtype, precision = KINDS[kind]
    product = jax.jit(functools.partial(jnp.matmul, precision=precision, preferred_element_type=jnp.float32))

    def rate(size: int) -> tuple[float, float]:
        left, right = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) for key in jax.random.split(jax.random.key(size)))
        seconds = min(time_call(lambda: product(left, right), repeats, BUDGET))
        return 2 * size**3 / seconds, seconds

    return _largest(rate, sizes, growth=8)


def _copies(sizes: tuple[int, ...], repeats: int) -> float:
    @functools.partial(jax.jit, donate_argnums=0)
    def passes(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, PASSES, lambda _, x: x + 1, x)

    def rate(size: int) -> tuple[float, float]:
        x = jnp.zeros(size, jnp.float32)

        def call() -> jax.Array:
            nonlocal x
            x = passes(x)
            return x

        seconds = min(time_call(call, repeats, BUDGET))
        return PASSES * 2 * x.nbytes / seconds, seconds

    return _largest(rate, sizes, growth=2)


def _largest(rate: Callable[[int], tuple[float, float]], sizes: tuple[int, ...], growth: float) -> float:
    """Return the largest rate over increasing sizes, up to the first size whose successor would take too long."""
    best = 0.0
    for size in sizes:
        found, seconds = rate(size)
        best = max(best, found)
        if seconds * growth > BUDGET:
            break
    return best
