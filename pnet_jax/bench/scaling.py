"""Scaling of cost: with problem size, as fitted exponents, and over devices, as work and collectives per device."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pnet_jax import parallel
from pnet_jax.bench import hlo
from pnet_jax.bench.cases import CASES, Case, Work
from pnet_jax.bench.inputs import Inputs
from pnet_jax.bench.measure import memory_of, one_line
from pnet_jax.bench.timing import time_call
from pnet_jax.config import ParallelConfig
from pnet_jax.ops.shapes import Shape

FACTORS = (1, 2, 4)
DEVICES = (1, 2, 4, 8)
QUANTITIES = ("flop", "temporary", "seconds")
TIMEOUT = 600  # seconds for the process with simulated devices


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Fit p in value ∝ size^p by least squares on logarithms; None if any value is 0.

    >>> exponent([1, 2, 4], [3, 12, 48])
    2.0
    """
    if min(values) <= 0:
        return None
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 3) + 0.0  # no −0


def with_size(case: Case, implementation: str, letter: str, base: Shape, factors: Sequence[int] = FACTORS) -> dict[str, Any]:
    """Fit the exponents of one size, all others as in `base`, for compiled operations, temporary bytes and seconds."""
    row: dict[str, Any] = {"op": case.op, "implementation": implementation, "letter": letter}
    try:
        sizes = [getattr(base, letter) * factor for factor in factors]
        points = [_point(case, implementation, dataclasses.replace(base, **{letter: size})) for size in sizes]
    except Exception as error:  # noqa: BLE001  whatever the error, the other cases are measured
        return row | {"status": "failed", "reason": one_line(error)}
    values = {name: [point[name] for point in points] for name in QUANTITIES}
    exponents = {name: exponent(sizes, values[name]) for name in QUANTITIES}
    return row | {"status": "ok", "reason": "", "sizes": sizes, "values": values, "exponents": exponents}


def _point(case: Case, implementation: str, shape: Shape) -> dict[str, float]:
    work = case.build(shape, Inputs())
    compiled = jax.jit(functools.partial(work.run, implementation)).lower(*work.arguments).compile()
    arguments = jax.device_put(work.arguments)
    return {
        "flop": hlo.read(compiled).flop,
        "temporary": memory_of(compiled)["temporary"],
        "seconds": statistics.median(time_call(lambda: compiled(*arguments), 3, 1.0)),
    }


def over_devices(case: Case, implementation: str, shape: Shape, counts: Sequence[int] = DEVICES) -> dict[str, Any]:
    """Count work and collectives per device when a case is distributed over several; compiled, not run."""
    row: dict[str, Any] = {"op": case.op, "implementation": implementation, "shape": shape.name}
    try:
        work = case.build(shape, Inputs())
        if work.spread is None:
            return row | {"status": "unavailable", "reason": "the case does not define a distribution over devices"}
        found = [hlo.read(_compiled_over(work, implementation, count)) for count in counts]
    except Exception as error:  # noqa: BLE001  as above
        return row | {"status": "failed", "reason": one_line(error)}
    return row | {
        "status": "ok",
        "reason": "",
        "axis": work.spread.axis,
        "devices": list(counts),
        "flop": [one.flop for one in found],
        "share": [one.flop / found[0].flop for one in found],
        "collectives": [one.collectives for one in found],
        "written": [one.written for one in found],
    }


def _compiled_over(work: Work, implementation: str, count: int) -> Any:
    spread = work.spread
    assert spread is not None
    devices = jax.devices()[:count]
    if len(devices) < count:
        raise ValueError(f"expected {count} devices, got {len(devices)}")
    parts = ParallelConfig(subject=count) if spread.axis == "subject" else ParallelConfig(location=count)
    mesh = parallel.make_mesh(parts, devices)
    step = functools.partial(spread.local or work.run, implementation)
    if spread.over is not None:
        step = functools.partial(spread.over, implementation, mesh)
    if spread.outputs is not None:
        step = jax.shard_map(step, mesh=mesh, in_specs=spread.inputs, out_specs=spread.outputs, check_vma=False)
    shardings = tuple(jax.tree.map(lambda spec: parallel.sharding(mesh, *spec), spec, is_leaf=_is_spec) for spec in spread.inputs)
    with jax.set_mesh(mesh):
        return jax.jit(step, in_shardings=shardings).lower(*work.arguments).compile()


def _is_spec(x: Any) -> bool:
    return isinstance(x, jax.sharding.PartitionSpec)


def over_fake_devices(wanted: Sequence[tuple[str, str]], counts: Sequence[int] = DEVICES) -> list[dict[str, Any]]:
    """Run `over_devices` for (op, implementation) pairs in a separate process with simulated CPU devices, since this one's are in use."""
    request = json.dumps({"wanted": [list(pair) for pair in wanted], "counts": list(counts)})
    # The package may not be installed: the other process must find it in the same place.
    folder = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pnet_jax.bench.scaling", request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return [_lost(pair, f"no answer within {TIMEOUT} s") for pair in wanted]
    if done.returncode:
        return [_lost(pair, (done.stderr.strip().splitlines() or ["no message"])[-1][:200]) for pair in wanted]
    return json.loads(done.stdout.splitlines()[-1])


def _lost(pair: tuple[str, str], reason: str) -> dict[str, Any]:
    return {"op": pair[0], "implementation": pair[1], "shape": "", "status": "failed", "reason": reason}


def device_shape(case: Case) -> Shape:
    """Return the case's base shape, enlarged so that each of the largest number of devices has a block of locations."""
    return dataclasses.replace(case.base, V=2 * case.base.V) if case.base.V else case.base


def main(request: str) -> None:
    asked = json.loads(request)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", math.lcm(*asked["counts"]))
    rows = [over_devices(CASES[op], name, device_shape(CASES[op]), asked["counts"]) for op, name in asked["wanted"]]
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1])
