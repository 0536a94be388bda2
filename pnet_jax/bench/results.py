"""Results of a run as JSON, Markdown table and plot, compared with the baseline of the same device."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import pnet_jax

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "chex")
SIGNIFICANT = 5  # significant digits

NUMBER = (int, float)
MAYBE = (int, float, type(None))
_STATUS = {"status": ("ok", "unavailable", "failed"), "reason": str}
_OK_CASE = {
    "seconds": {"lower": NUMBER, "compile": NUMBER, "run": [NUMBER], "median": NUMBER, "spread": NUMBER},
    "memory": dict.fromkeys(("arguments", "outputs", "temporary", "peak"), NUMBER),
    "flop": {"formula": NUMBER, "compiled": NUMBER, "matmul": NUMBER, "xla": MAYBE},
    "bytes": {"formula": NUMBER, "xla": MAYBE},
    "roofline": {"seconds": NUMBER, "bound": ("matmul", "copy"), "fraction": NUMBER},
    "rate": {"flop": NUMBER, "bytes": NUMBER},
    "baseline_ratio": MAYBE,
}
_RATES = {"matmul": {"float32": NUMBER, "float32_fast": NUMBER, "bfloat16": NUMBER}, "copy": NUMBER}
SCHEMA: dict[str, Any] = {
    "program": str,
    "date": str,
    "arguments": dict,
    "versions": dict,
    "device": {"platform": str, "kind": str, "processor": str, "count": int, "cores": int, "load_average": MAYBE, "memory": MAYBE},
    "roofline": {**_RATES, "before": _RATES, "after": _RATES},
    "cases": [{"op": str, "implementation": str, "shape": str, "dtype": str, **_STATUS}],
    "scaling": {
        "sizes": [{"op": str, "implementation": str, "letter": str, **_STATUS}],
        "devices": [{"op": str, "implementation": str, "shape": str, **_STATUS}],
    },
}


def check(result: Any, schema: Any = None, at: str = "result") -> None:
    """Check that a result conforms to `SCHEMA`.

    A type stands for its values, a tuple of types or strings for any of them, `[x]` for a list of x, and a mapping for one with these keys.

    Raises:
      ValueError: Where the result differs, what is expected and what was found.

    >>> check({"a": [1]}, {"a": [str]})
    Traceback (most recent call last):
      ...
    ValueError: result.a[0]: expected str, got 1
    """
    schema = SCHEMA if schema is None else schema
    if isinstance(schema, Mapping):
        missing = schema.keys() - result.keys() if isinstance(result, Mapping) else schema.keys()
        if missing:
            raise ValueError(f"{at}: expected keys {sorted(schema)}, got no {sorted(missing)}")
        for key, inner in schema.items():
            check(result[key], inner, f"{at}.{key}")
        if at.startswith("result.cases[") and result.get("status") == "ok" and schema is not _OK_CASE:
            check(result, _OK_CASE, at)
    elif isinstance(schema, list):
        if not isinstance(result, list):
            raise ValueError(f"{at}: expected a list, got {result!r}")
        for position, item in enumerate(result):
            check(item, schema[0], f"{at}[{position}]")
    elif isinstance(schema, tuple) and isinstance(schema[0], str):
        if result not in schema:
            raise ValueError(f"{at}: expected one of {', '.join(schema)}, got {result!r}")
    elif not isinstance(result, schema):
        names = " or ".join(kind.__name__ for kind in (schema if isinstance(schema, tuple) else (schema,)))
        raise ValueError(f"{at}: expected {names}, got {result!r}")


def describe_device() -> dict[str, Any]:
    """Describe the device of the measurements."""
    device = jax.devices()[0]
    said = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "processor": _processor(),
        "count": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "memory": said.get("bytes_limit"),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the packages that it measures with."""
    found = {"python": platform.python_version(), "pnet_jax": pnet_jax.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def today() -> str:
    return datetime.date.today().isoformat()


def device_name(device: Mapping[str, Any]) -> str:
    """Return a name for use in file names: `cpu-2`, `nvidia-h100-80gb-hbm3`.

    >>> device_name({"platform": "cpu", "kind": "cpu", "cores": 2}), device_name({"platform": "gpu", "kind": "NVIDIA H100 80GB"})
    ('cpu-2', 'nvidia-h100-80gb')
    """
    name = f"cpu {device['cores']}" if device["platform"] == "cpu" else str(device["kind"])
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def compare(cases: Sequence[dict[str, Any]], baseline: Mapping[str, Any] | None) -> None:
    """Add to each case its median time relative to that of the baseline, or None if the baseline lacks it."""
    before = {_key(row): row["seconds"]["median"] for row in (baseline or {}).get("cases", ()) if row["status"] == "ok"}
    for row in cases:
        if row["status"] == "ok":
            row["baseline_ratio"] = row["seconds"]["median"] / before[_key(row)] if _key(row) in before else None


def read(file: Path) -> dict[str, Any] | None:
    """Read the result of an earlier run, or return None if there is none.

    Raises:
      ValueError: If the file is not a result; names the file.
    """
    if not file.is_file():
        return None
    try:
        result = json.loads(file.read_text("utf-8"))
        check(result)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return result


def write(result: Mapping[str, Any], file: Path) -> None:
    """Write a result as JSON with five significant digits."""
    check(result)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(_rounded(result), indent=1) + "\n", "utf-8")


def markdown(result: Mapping[str, Any]) -> str:
    """Format a run as Markdown tables."""
    device, rates = result["device"], result["roofline"]
    products = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in rates["matmul"].items())
    head = [
        f"{device['kind']} ({device['processor']}, {device['cores']} cores), jax {result['versions']['jax']}, {result['date']}.",
        f"Roofline of this run: matrix products {products} GFLOP/s; copy {rates['copy'] / 1e9:,.0f} GB/s. {_steadiness(rates)}",
    ]
    parts = ["\n".join(head), _table(_CASE_HEAD, [_case_cells(row) for row in result["cases"]])]
    if rows := result["scaling"]["sizes"]:
        parts += ["Fitted exponents: cost ∝ size^p, one letter at a time.", _table(_SIZE_HEAD, [_size_cells(row) for row in rows])]
    if rows := result["scaling"]["devices"]:
        told = "Over simulated CPU devices (compiled, not timed): operations per device relative to one device, and collectives executed."
        parts += [told, _table(_DEVICE_HEAD, [_device_cells(row) for row in rows])]
    return "\n\n".join(parts) + "\n"


def _steadiness(rates: Mapping[str, Any]) -> str:
    first, last = (rates[when]["matmul"]["float32"] / 1e9 for when in ("before", "after"))
    warning = "" if 0.8 < first / last < 1.25 else "; the machine was busy with other work, so the shares are unreliable"
    return f"Float32 products before and after the cases: {first:,.0f} and {last:,.0f}{warning}."


_CASE_HEAD = (
    "op", "implementation", "shape", "dtype", "lower s", "compile s", "run ms", "± %", "GFLOP", "MB moved", "temp MB", "peak MB",
    "GFLOP/s", "of roofline", "bound", "× baseline",
)  # fmt: skip
_SIZE_HEAD = ("op", "implementation", "letter", "sizes", "operations", "temp bytes", "seconds")
_DEVICE_HEAD = ("op", "implementation", "axis", "devices", "share of the work", "collectives")


def _case_cells(row: Mapping[str, Any]) -> list[str]:
    names = [row["op"], row["implementation"], row["shape"], row["dtype"]]
    if row["status"] != "ok":
        return [*names, f"not measured: {row['reason']}"]
    seconds, ratio = row["seconds"], row.get("baseline_ratio")
    return [
        *names, f"{seconds['lower']:.2f}", f"{seconds['compile']:.2f}", f"{1e3 * seconds['median']:.3g}", f"{100 * seconds['spread']:.0f}",
        f"{row['flop']['formula'] / 1e9:.3g}", f"{row['bytes']['formula'] / 1e6:.3g}", f"{row['memory']['temporary'] / 1e6:.3g}",
        f"{row['memory']['peak'] / 1e6:.3g}", f"{row['rate']['flop'] / 1e9:.3g}", f"{row['roofline']['fraction']:.2f}",
        row["roofline"]["bound"], "-" if ratio is None else f"{ratio:.2f}",
    ]  # fmt: skip


def _size_cells(row: Mapping[str, Any]) -> list[str]:
    names = [row["op"], row["implementation"], row["letter"]]
    if row["status"] != "ok":
        return [*names, f"not measured: {row['reason']}"]
    found = [row["exponents"][name] for name in ("flop", "temporary", "seconds")]
    return [*names, " ".join(map(str, row["sizes"])), *("-" if p is None else f"{p:.2f}" for p in found)]


def _device_cells(row: Mapping[str, Any]) -> list[str]:
    names = [row["op"], row["implementation"]]
    if row["status"] != "ok":
        return [*names, f"not measured: {row['reason']}"]
    last = row["collectives"][-1]
    told = ", ".join(f"{count} {kind}" for kind, count in last.items()) or "none"
    return [*names, row["axis"], " ".join(map(str, row["devices"])), " ".join(f"{share:.3f}" for share in row["share"]), told]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def plot(result: Mapping[str, Any], file: Path) -> bool:
    """Plot the roofline share of every case as bars; returns False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = [row for row in result["cases"] if row["status"] == "ok"]
    figure = Figure(figsize=(9, 1.2 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row['op']} · {row['implementation']} · {row['shape']} · {row['dtype']}" for row in rows]
    colours = ["tab:blue" if row["roofline"]["bound"] == "matmul" else "tab:orange" for row in rows]
    places = range(len(rows))
    axes.barh(places, [row["roofline"]["fraction"] for row in rows], color=colours)
    for place, row in zip(places, rows, strict=True):
        axes.text(row["roofline"]["fraction"], place, f" {1e3 * row['seconds']['median']:.3g} ms", va="center", fontsize=7)
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("share of the roofline of the same run; blue: bound by products, orange: by memory")
    axes.set_title(f"{result['device']['kind']}, {result['date']}")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    return True


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["op"], row["implementation"], row["shape"], row["dtype"]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.{SIGNIFICANT}g}") if isinstance(value, float) else value


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text("utf-8")) if info.is_file() else []
    return names[0].strip() if names else platform.processor() or platform.machine()
