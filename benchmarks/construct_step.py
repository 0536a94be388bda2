"""Networks per second of the construction step alone, for several wave sizes, with scans in memory.

Synthetic scans have V locations (grey matter at 3 mm), T frames and K parcels, each with an independent signal plus noise. The step is
compiled for each wave size. `step`: seconds per wave with scans on the device. `streamed`: seconds per wave while the scans of the next one
are transferred to the device, including transfer of outputs to the host. `idle`: share of that time in which the device waits. FLOPs are
counted in the compiled program, including loop iterations. `of roofline`: the minimum time of its matrix products on this device relative
to the time of the step.

    python benchmarks/construct_step.py --waves 8 16 32 64 --out benchmarks/results/construct_step_gpu.json
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from common import parser, table, write

from pnet_jax import parallel
from pnet_jax.bench.hlo import read
from pnet_jax.bench.roofline import measure_roofline
from pnet_jax.config import ConstructConfig
from pnet_jax.construction import Builder, Ready, resolve
from pnet_jax.construction.wave import compiled, stacked
from pnet_jax.parcellation.atlas import on_space
from pnet_jax.scan import make_scan
from pnet_jax.simulate.space import grey_matter_space

STREAMED = 8  # number of waves


def main() -> None:
    args = _arguments()
    plan = resolve(ConstructConfig(parcels=args.parcels))
    builder = Builder(plan, parallel.make_mesh(devices=jax.devices()[:1]))
    space = grey_matter_space(args.resolution)
    start = time.perf_counter()
    scans = [builder.ready(make_synthetic(space, plan.atlas, args.frames, seed)) for seed in range(2)]
    locations = len(space)
    print(f"{locations} locations, {args.frames} frames, {args.parcels} parcels; made in {time.perf_counter() - start:.0f} s", flush=True)
    roofline = measure_roofline(repeats=3)
    figures: dict[str, object] = {"locations": locations, "frames": args.frames, "parcels": args.parcels}
    figures["roofline"] = {"float32 FLOP/s": roofline.matmul["float32"], "bytes/s": roofline.copy}
    rows = []
    for size in args.waves:
        try:
            figures[f"wave of {size}"] = row = one_size(builder, scans, size, roofline, args.repeats)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            figures[f"wave of {size}"] = {"failed": str(error).splitlines()[0][:200]}
            print(f"wave of {size}: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        rows.append((f"wave of {size}", *row.values()))
        print({"wave": size} | row, flush=True)
        write(args, figures)  # after each size, so that an interrupted run keeps its results
    if rows:
        table(("step", *row), rows)


def one_size(builder: Builder, scans: list[Ready], size: int, roofline, repeats: int) -> dict[str, float]:
    """Measure waves of one size."""
    shared, mesh, start = scans[0].shared, builder.mesh, time.perf_counter()
    waves = [[scan.subject] * size for scan in scans]
    here = jax.block_until_ready(stacked(waves[0], mesh))
    step = compiled(builder.plan.settings, mesh).lower(shared, here).compile()
    compiling = time.perf_counter() - start
    counts, memory = read(step), step.memory_analysis()
    device = mesh.local_devices[0]
    tables = jax.device_put(shared, device)
    jax.block_until_ready(step(tables, here))
    alone = min(_seconds(lambda: jax.block_until_ready(step(tables, here))) for _ in range(repeats))
    put = min(_seconds(lambda: jax.block_until_ready(stacked(waves[1], mesh))) for _ in range(2))
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as thread:  # as in the loop over scans: on a GPU, the call returns when the step has finished
        for number in range(STREAMED):
            found = thread.submit(step, tables, here)
            here = stacked(waves[(number + 1) % 2], mesh)  # while the step runs
            jax.device_get(found.result())
    streamed = (time.perf_counter() - start) / STREAMED
    least, _ = roofline.seconds(counts.matmul, 0.0)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", memory.temp_size_in_bytes + memory.argument_size_in_bytes)
    return {
        "step, s": alone,
        "networks/s": size / alone,
        "streamed, s": streamed,
        "streamed networks/s": size / streamed,
        "idle": max(0.0, 1 - alone / streamed),
        "put, s": put,
        "compile, s": compiling,
        "matmul GFLOP a scan": counts.matmul / size / 1e9,
        "other GFLOP a scan": counts.arithmetic / size / 1e9,
        "of roofline": least / alone,
        "peak GiB": peak / 2**30,
    }


def make_synthetic(space, atlas, frames: int, seed: int):
    """Make a scan whose parcels have independent signals."""
    rng = np.random.default_rng(seed)
    nearest = on_space(atlas, space).labels
    signals = rng.standard_normal((atlas.n_parcels, frames), np.float32)
    y = rng.standard_normal((len(space), frames), np.float32)
    y += 0.7 * np.where((nearest >= 0)[:, None], signals[nearest], 0)
    return make_scan(y, space, tr=0.72, subject=f"{seed}")


def _seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _arguments():
    arguments = parser(__doc__, data=False)
    arguments.add_argument("--waves", type=int, nargs="+", default=[8, 16, 32, 64])
    arguments.add_argument("--resolution", type=int, default=3, help="mm: 2, 3 or 4")
    arguments.add_argument("--frames", type=int, default=1200)
    arguments.add_argument("--parcels", type=int, default=400)
    arguments.add_argument("--repeats", type=int, default=3)
    return arguments.parse_args()


if __name__ == "__main__":
    main()
