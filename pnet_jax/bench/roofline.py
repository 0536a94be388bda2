"""What the device can do at best: its largest rate of matrix products and its bandwidth, measured in the same run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pnet_jax.bench.timing import time_call

BUDGET = 0.5  # seconds of one call; what would take longer is not tried
PRODUCTS = (1024, 2048, 4096, 8192)
COPIES = (2**25, 2**26, 2**27, 2**28)  # float32 values; the smallest is larger than a processor's cache
PASSES = 16  # over an array in one call, in place: taking fresh memory for a result would cost more than writing it
KINDS = {"float32": ("float32", "highest"), "float32_fast": ("float32", "default"), "bfloat16": ("bfloat16", "default")}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Rates of one device.

    Attributes:
      matmul: operations a second: `"float32"` in full precision, `"float32_fast"` as the backend likes it, `"bfloat16"`.
      copy: bytes a second, read and written.
    """

    matmul: dict[str, float]
    copy: float

    def seconds(self, flop: float, moved: float, dtype: str = "float32") -> tuple[float, str]:
        """The least time that work can take, and what sets it: `"matmul"` or `"copy"`.

        >>> Roofline({"float32": 100.0}, 10.0).seconds(200, 10)
        (2.0, 'matmul')
        >>> Roofline({"float32": 100.0}, 10.0).seconds(200, 30)
        (3.0, 'copy')
        """
        products, copies = flop / self.matmul[dtype], moved / self.copy
        return (products, "matmul") if products >= copies else (copies, "copy")

    def larger(self, other: Roofline) -> Roofline:
        """The best of two measurements: what one did not reach, other work on the machine kept it from."""
        return Roofline({kind: max(rate, other.matmul[kind]) for kind, rate in self.matmul.items()}, max(self.copy, other.copy))


def measure_roofline(*, products: tuple[int, ...] = PRODUCTS, copies: tuple[int, ...] = COPIES, repeats: int = 5) -> Roofline:
    """Square products and copies of growing size; the best sample of any counts."""
    return Roofline({kind: matmul_rate(kind, products, repeats) for kind in KINDS}, _copies(copies, repeats))


def matmul_rate(kind: str, sizes: tuple[int, ...] = PRODUCTS, repeats: int = 5) -> float:
    """Operations a second of square products, `kind` one of `KINDS`."""
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
    """The largest rate over growing sizes, up to one whose next would take too long."""
    best = 0.0
    for size in sizes:
        found, seconds = rate(size)
        best = max(best, found)
        if seconds * growth > BUDGET:
            break
    return best
