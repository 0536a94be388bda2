"""Measurement of one case on this device: time to lower, compile and run, memory, and work."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pnet_jax.bench import hlo
from pnet_jax.bench.cases import Case
from pnet_jax.bench.inputs import Inputs
from pnet_jax.bench.roofline import Roofline
from pnet_jax.bench.timing import spread, time_call
from pnet_jax.ops.shapes import Shape

MEMORY_SHARE = 0.9  # largest share of free memory that a case may need


def measure(case: Case, implementation: str, shape: Shape, dtype: str, *, repeats: int = 7, budget: float = 30.0) -> dict[str, Any]:
    """Measure one implementation of an op.

    Args:
      case: Case to measure.
      implementation: Name of the implementation.
      shape: Sizes of the inputs.
      dtype: Type of the floating-point inputs.
      repeats: Number of samples.
      budget: Seconds after which sampling stops, once there are 3 samples.

    Returns:
      A row of the results, without its share of the roofline (`against`). `status` is `"ok"`, `"unavailable"` if the backend lacks the
      implementation or the memory, or `"failed"` if an exception was raised; `reason` gives the cause. Exceptions of the case are never
      propagated.
    """
    row: dict[str, Any] = {"op": case.op, "implementation": implementation, "shape": shape.name, "dtype": dtype}
    try:
        return row | {"status": "ok", "reason": ""} | _figures(case, implementation, shape, dtype, repeats, budget)
    except (NotImplementedError, MemoryError) as error:
        return row | {"status": "unavailable", "reason": one_line(error)}
    except Exception as error:  # noqa: BLE001  whatever the error, the other cases are measured
        return row | {"status": "failed", "reason": one_line(error)}


def against(row: dict[str, Any], roofline: Roofline) -> dict[str, Any]:
    """Add to a row the share of its run's roofline that it reaches."""
    if row["status"] != "ok":
        return row
    ideal, bound = roofline.seconds(row["flop"]["formula"], row["bytes"]["formula"], row["dtype"])
    return row | {"roofline": {"seconds": ideal, "bound": bound, "fraction": ideal / row["seconds"]["median"]}}


def one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"


def _figures(case: Case, implementation: str, shape: Shape, dtype: str, repeats: int, budget: float) -> dict[str, Any]:
    work = case.build(shape, Inputs(dtype))
    step = jax.jit(functools.partial(work.run, implementation))
    with without_compilation_cache():
        start = time.perf_counter()
        lowered = step.lower(*work.arguments)
        between = time.perf_counter()
        compiled = lowered.compile()
        end = time.perf_counter()
    memory = memory_of(compiled)
    _check_memory(memory["peak"])
    arguments = jax.block_until_ready(jax.device_put(work.arguments))
    samples = time_call(lambda: compiled(*arguments), repeats, budget)
    del arguments
    median = statistics.median(samples)
    counts, said = hlo.read(compiled), cost_of(compiled)
    flop, moved = float(case.flop(shape)), float(case.bytes(shape, np.dtype(Inputs(dtype).dtype).itemsize))
    return {
        "seconds": {
            "lower": between - start,
            "compile": end - between,
            "run": samples,
            "median": median,
            "spread": spread(samples),
        },
        "memory": memory,
        "flop": {"formula": flop, "compiled": counts.flop, "matmul": counts.matmul, "xla": said.get("flops")},
        "bytes": {"formula": moved, "xla": said.get("bytes accessed")},
        "rate": {"flop": flop / median, "bytes": moved / median},
    }


def memory_of(compiled: Any) -> dict[str, int]:
    """Return the memory of a compiled step in bytes: arguments, outputs, temporary, and their sum minus shared buffers."""
    said = compiled.memory_analysis()
    if said is None:
        raise NotImplementedError(f"the backend {jax.default_backend()} does not report the memory of a step")
    parts = {
        "arguments": int(said.argument_size_in_bytes),
        "outputs": int(said.output_size_in_bytes),
        "temporary": int(said.temp_size_in_bytes),
    }
    return parts | {"peak": sum(parts.values()) - int(said.alias_size_in_bytes)}


def cost_of(compiled: Any) -> dict[str, float]:
    """Return XLA's own count, in which the body of a loop counts once."""
    said = compiled.cost_analysis()
    said = said[0] if isinstance(said, list | tuple) else said
    return {name: float(said[name]) for name in ("flops", "bytes accessed") if said and name in said}


def free_memory() -> int | None:
    """Return the free memory of the device in bytes, or None if it is unknown."""
    said = jax.devices()[0].memory_stats()
    if said and "bytes_limit" in said:
        return int(said["bytes_limit"] - said.get("bytes_in_use", 0))
    if jax.default_backend() == "cpu" and os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    return None


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Disable the compilation cache, so that compile times do not reflect results of earlier runs."""
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def _check_memory(needed: int) -> None:
    free = free_memory()
    if free is not None and needed > MEMORY_SHARE * free:
        raise MemoryError(f"needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free")
