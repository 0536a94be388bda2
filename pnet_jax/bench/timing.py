"""Wall-clock time of a call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

LEAST_SAMPLE = 0.005  # seconds; faster functions are called several times per sample
LEAST_REPEATS = 3


def time_call(call: Callable[[], Any], repeats: int, budget: float) -> list[float]:
    """Measure the seconds of one call `repeats` times, after a warm-up call."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(1, math.ceil(LEAST_SAMPLE / max(time.perf_counter() - start, 1e-7)))
    samples: list[float] = []
    while len(samples) < repeats and (len(samples) < LEAST_REPEATS or time.perf_counter() - began < budget):
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(call())
        samples.append((time.perf_counter() - start) / calls)
    return samples


def spread(samples: list[float]) -> float:
    """Return the interquartile range relative to the median."""

    low, middle, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return float((high - low) / middle)
