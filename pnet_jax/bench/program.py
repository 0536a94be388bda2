"""`pnet bench`: options, loop over cases, and output."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pnet_jax.bench import results, scaling
from pnet_jax.bench.cases import CASES, Case
from pnet_jax.bench.measure import against, measure
from pnet_jax.bench.roofline import COPIES, PRODUCTS, Roofline, measure_roofline
from pnet_jax.config import nearest
from pnet_jax.ops.shapes import SHAPES, TINY, Shape

SCALING = ("sizes", "devices", "both", "none")
DTYPES = ("float32", "bfloat16")
QUICK_PRODUCTS, QUICK_COPIES = (512,), (2**22,)  # for tests: too small for valid measurements


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks, and print and write the results; returns 1 if a case failed."""
    args = _arguments(sys.argv[1:] if argv is None else argv)
    result = run(args)
    print(results.markdown(result))
    for file in _write(args, result):
        print(f"written: {file}")
    rows = (*result["cases"], *result["scaling"]["sizes"], *result["scaling"]["devices"])
    return 1 if any(row["status"] == "failed" for row in rows) else 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure roofline, cases and scaling on one device; results are written after each case, so that an interrupted run keeps them."""
    wanted = list(_wanted(args))
    sizes = {"products": QUICK_PRODUCTS, "copies": QUICK_COPIES} if args.quick else {"products": PRODUCTS, "copies": COPIES}
    header: dict[str, Any] = {
        "program": "pnet bench",
        "date": results.today(),
        "arguments": {key: value for key, value in vars(args).items() if key != "out"},
        "versions": results.describe_versions(),
        "device": results.describe_device(),
    }
    file, kept = _files(args, header)
    baseline = results.read(kept)
    before, cases = measure_roofline(**sizes), []
    for number, (case, implementation, shape, dtype) in enumerate(wanted):
        _say(f"{number + 1}/{len(wanted)} {case.op} {implementation} {shape.name} {dtype}")
        cases.append(measure(case, implementation, shape, dtype, repeats=args.repeats, budget=args.budget))
        results.write(header | _figures(cases, before, before, baseline), file)
    after = measure_roofline(**sizes)
    pairs = list(dict.fromkeys((case.op, implementation) for case, implementation, _, _ in wanted))
    scaled = {
        "sizes": _scale_sizes(pairs) if args.scaling in ("sizes", "both") else [],
        "devices": _scale_devices(pairs) if args.scaling in ("devices", "both") else [],
    }
    return header | _figures(cases, before, after, baseline) | {"scaling": scaled}


def _figures(cases: Sequence[dict[str, Any]], before: Roofline, after: Roofline, baseline: dict[str, Any] | None) -> dict[str, Any]:
    roofline = before.larger(after)
    rows = [against(row, roofline) for row in cases]
    results.compare(rows, baseline)
    return {
        "roofline": dataclasses.asdict(roofline) | {"before": dataclasses.asdict(before), "after": dataclasses.asdict(after)},
        "cases": rows,
        "scaling": {"sizes": [], "devices": []},
    }


def _files(args: argparse.Namespace, result: dict[str, Any]) -> tuple[Path, Path]:
    """Return the files for the results of this device, and for its baseline."""
    name = results.device_name(result["device"])
    return args.out / f"kernels_{name}.json", args.out / f"kernels_{name}_baseline.json"


def _scale_sizes(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    rows = []
    for op, implementation in pairs:
        _say(f"sizes of {op} {implementation}")
        case = CASES[op]
        rows += [scaling.with_size(case, implementation, letter, case.base) for letter in case.grows]
    return rows


def _scale_devices(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    _say("fake devices")
    return scaling.over_fake_devices(pairs)


def _wanted(args: argparse.Namespace) -> Iterator[tuple[Case, str, Shape, str]]:
    for case in (CASES[op] for op in args.ops or CASES):
        for name in args.shapes or [name for name in case.shapes if name not in TINY]:
            if name in case.shapes:
                for implementation in case.implementations:
                    if args.implementations is None or implementation in args.implementations:
                        yield from ((case, implementation, SHAPES[name], dtype) for dtype in args.dtypes if dtype in case.dtypes)


def _write(args: argparse.Namespace, result: dict[str, Any]) -> Iterator[Path]:
    file, baseline = _files(args, result)
    results.write(result, file)
    yield file
    file.with_suffix(".md").write_text(results.markdown(result), "utf-8")
    yield file.with_suffix(".md")
    if results.plot(result, file.with_suffix(".png")):
        yield file.with_suffix(".png")
    if args.rebaseline:
        results.write(result, baseline)
        yield baseline


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pnet bench",
        description="Seconds to lower, compile and run each op, its memory, and its share of what this device can do in the same run.",
    )
    known = sorted({name for case in CASES.values() for name in case.implementations})
    add = parser.add_argument
    add("--ops", type=_some(CASES), metavar="A,B", help=f"ops to measure; all by default: {', '.join(CASES)}")
    add("--shapes", type=_some(SHAPES), metavar="A,B", help=f"shapes to measure; all but the tiny ones by default: {', '.join(SHAPES)}")
    add("--implementations", type=_some(known), metavar="A,B", help=f"implementations to measure; all by default: {', '.join(known)}")
    add(
        "--dtypes",
        type=_some(DTYPES),
        metavar="A,B",
        default=list(DTYPES),
        help="types of the inputs: float32,bfloat16, if the op supports them",
    )
    add("--repeats", type=_count, default=7, help="number of timed runs per case")
    add("--budget", type=float, default=30.0, metavar="SECONDS", help="time after which a case is not repeated, once it has three runs")
    add("--scaling", choices=SCALING, default="both", help="scaling with problem size, over simulated devices, both or none")
    add(
        "--out",
        type=Path,
        default=Path("benchmarks/results"),
        metavar="FOLDER",
        help="folder for kernels_DEVICE.json, .md, .png and the baseline",
    )
    add("--rebaseline", action="store_true", help="make this run the baseline for later runs")
    add("--quick", action="store_true", help="measure the roofline with few samples, for tests of this command")
    return parser.parse_args(list(argv))


def _some(known: Any) -> Any:
    """Return a parser for a comma-separated list of known names."""

    def names(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",") if name.strip()]
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
        return found

    return names


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)
