"""Cost of a training step over devices, and its speed on this machine.

The table is derived from the step compiled for simulated CPU devices: matrix products, bytes and collectives per device, with weights and
batch sharded according to the configuration. With --steps, steps are run on all real devices, on one random batch in host memory (no store
and no reader are needed): scans and tokens per second, model FLOP utilisation, peak memory, and share of time for the transfer of the
batch. Requires only jax, flax, optax and numpy.

    python benchmarks/pretraining.py --config configs/pretrain_small.toml --devices 1 2 4 8 --out benchmarks/results/pretraining.json
    python benchmarks/pretraining.py --config configs/pretrain_small.toml --devices --steps 20
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, parser, table, write

HIDDEN = "--only-table"  # option of the process with simulated devices


def main() -> None:
    args = _arguments()
    if args.only_table:
        _fake_devices(max(args.devices))
        print(json.dumps(over_devices(read_config(args), args.devices)))
        return
    figures: dict[str, object] = {}
    if args.devices:
        figures["devices"] = rows = _in_a_process_of_its_own()
        kinds = sorted({kind for row in rows for kind in row["collectives"]})
        head = ("devices", "GFLOP of products", "arguments MB", "temporary MB", *kinds)
        table(head, [(r["devices"], r["matmul"] / 1e9, *_megabytes(r), *(r["collectives"].get(k, 0) for k in kinds)) for r in rows])
    if args.steps:
        figures["run"] = run = take_steps(read_config(args), args.steps)
        table(tuple(run), [tuple(run.values())])
    write(args, figures)


def over_devices(config, counts: list[int]) -> list[dict[str, Any]]:
    """Count work, memory and collectives per device, for each number of devices; compiled, not run."""
    import jax

    from pnet_jax.bench import hlo
    from pnet_jax.bench.measure import memory_of
    from pnet_jax.pretraining.spread import batch_shapes

    # The machine code is not executed and need not be optimised; the program is the same.
    hurry = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    rows = []
    for count in counts:
        _, made = _spread(config, count)
        arguments = jax.eval_shape(made.initial), batch_shapes(config.input, config.perceiver.references)
        compiled = made.step.lower(*arguments).compile(compiler_options=hurry)
        found, memory = hlo.read(compiled), memory_of(compiled)
        rows.append({"devices": count, "matmul": found.matmul, **memory, "collectives": found.collectives})
    return rows


def take_steps(config, steps: int) -> dict[str, Any]:
    """Measure rates over `steps` steps, after two warm-up steps."""
    import jax

    from pnet_jax import parallel
    from pnet_jax.bench import hlo
    from pnet_jax.bench.measure import memory_of
    from pnet_jax.bench.roofline import matmul_rate
    from pnet_jax.pretraining.spread import BATCH, by_field

    mesh, made = _spread(config, len(jax.devices()))
    state = jax.jit(made.initial, out_shardings=made.layout)()
    local = random_batch(config.input, config.perceiver.references)

    def place():
        return by_field(lambda name: parallel.place(getattr(local, name), mesh, *BATCH[name]))

    began = time.perf_counter()
    compiled = made.step.lower(state, place()).compile()
    compiling = time.perf_counter() - began
    for _ in range(2):
        state, numbers = compiled(state, place())
    jax.block_until_ready(state)
    waited, began = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = jax.block_until_ready(place())
        waited += time.perf_counter() - asked
        state, numbers = compiled(state, batch)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - began) / steps
    rate = matmul_rate(config.perceiver.dtype)
    held = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", memory_of(compiled)["peak"])
    return {
        "loss": float(numbers["loss"]),
        "compile s": compiling,
        "step s": seconds,
        "scans/s": config.input.batch / seconds,
        "tokens/s": config.input.batch * 2 * config.input.locations / seconds,
        "MFU": hlo.read(compiled).matmul / seconds / rate,
        "TFLOP/s at best": rate / 1e12,
        "memory GB": held / 1e9,
        "data wait": waited / steps / seconds,
    }


def random_batch(config, references: int):
    """Make a batch in the format of a store: noise on a few common signals, so that no objective is degenerate."""
    from pnet_jax.encoder.tokens import Segments

    rng, (b, v, t) = np.random.default_rng(0), (config.batch, config.locations, config.frames)
    common = rng.normal(size=(b, 2, 20, t)).astype(np.float32)
    weights = rng.normal(size=(b, 1, v + references, 20)).astype(np.float32)
    y = weights @ common
    y[:, :, :v] += 2 * rng.normal(size=(b, 2, v, t)).astype(np.float32)
    y -= y.mean(-1, keepdims=True)
    y /= y.std(-1, keepdims=True)
    xyz = rng.uniform(-70, 70, (b, v, 3)).astype(np.float32)
    return Segments(
        y=y[:, :, :v].astype(np.float16),
        kept=np.ones((b, 2, t), bool),
        frames=np.broadcast_to(np.arange(t, dtype=np.int32), (b, 2, t)),
        references=y[:, :, v:],
        xyz=xyz,
        hemisphere=(xyz[..., 0] > 0).astype(np.int32),
        counted=np.ones((b, v), bool),
        log_tsnr=np.full((b, 2, v), 4, np.float32),
        tr=np.full((b, 2), 2, np.float32),
        record=np.arange(b, dtype=np.int32),
    )


def read_config(args):
    """Read the configuration file without the command-line parser, which may not be installed here."""
    from pnet_jax.config import PretrainConfig

    table = tomllib.loads(args.config.read_text("utf-8"))
    for name, value in (("batch", args.batch), ("locations", args.locations)):
        if value is not None:
            table.setdefault("input", {})[name] = value
    if args.dtype is not None:
        table.setdefault("perceiver", {})["dtype"] = args.dtype
    return _filled(PretrainConfig(), table)


def _filled(config, table: dict[str, Any]):
    """Return the configuration with the values of a table, group by group."""
    known = {name: getattr(config, name) for name in table}
    values = {name: _filled(known[name], value) if dataclasses.is_dataclass(known[name]) else value for name, value in table.items()}
    return dataclasses.replace(config, **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _spread(config, count: int):
    """Build the step over the first `count` devices, on a linear encoder with random weights."""
    import jax

    from pnet_jax import parallel
    from pnet_jax.config import ParallelConfig
    from pnet_jax.encoder.linear import LinearEncoder
    from pnet_jax.pretraining.spread import check_divides, spread

    mesh = parallel.make_mesh(ParallelConfig(subject=count, location=1), jax.devices()[:count])
    check_divides(config, mesh)
    rng, (r, d) = np.random.default_rng(0), (config.perceiver.references, config.perceiver.dimensions)
    points = rng.uniform(-70, 70, (r, 3)).astype(np.float32)
    shapes = ((r,), (r, d), (d,), (d, r))
    linear = LinearEncoder(points, *(rng.normal(size=shape).astype(np.float32) / np.sqrt(r) for shape in shapes))
    return mesh, spread(linear, config, mesh)


def _fake_devices(count: int) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def _in_a_process_of_its_own() -> list[dict[str, Any]]:
    """Compute the table in a separate process, since the devices of this one may differ or be in use."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, __file__, *sys.argv[1:], HIDDEN]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def _megabytes(row: dict[str, Any]) -> tuple[float, float]:
    return row["arguments"] / 1e6, row["temporary"] / 1e6


def _arguments():
    arguments = parser(__doc__, data=False)
    arguments.add_argument("--config", type=Path, default=ROOT / "configs" / "pretrain_small.toml", help="TOML file of `pnet pretrain`")
    arguments.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4, 8], help="rows of the table; none leaves it out")
    arguments.add_argument("--steps", type=int, default=0, help="number of steps to run and time on the devices of this machine")
    arguments.add_argument("--batch", type=int, help="scans of a batch, instead of the configuration's")
    arguments.add_argument("--locations", type=int, help="locations of a scan, instead of the configuration's")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), help="of products, instead of the configuration's")
    arguments.add_argument(HIDDEN, action="store_true", help="print the table as JSON")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
