"""Shared parts of the benchmark programs: arguments, data, scores, tables and result files."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pnet_jax", "jax", "numpy", "scipy", "nilearn", "scikit-learn", "zarr")
BOLD = "bold4d/sub-RAPIDTIDETEST_task-rest_space-MNI152NLin6Asym_res-4_desc-preproc_bold.nii.gz"
MASK = "bold4d/sub-RAPIDTIDETEST_task-rest_space-MNI152NLin6Asym_res-4_desc-brain_mask.nii.gz"
CEREBELLUM = "mdtb_cerebellum/mdtb_s1_condhalf_float16.npz"


def parser(description: str | None, *, data: bool = True) -> argparse.ArgumentParser:
    """Make the arguments of every program: `--out`, and `--data` if it reads real recordings."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        out.add_argument(
            "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets (default: ../shared/data)"
        )
    out.add_argument("--out", type=Path, help="write the figures to this JSON file")
    return out


def need(folder: Path, *names: str) -> list[Path]:
    """Return paths of files in the data folder; ends the program with status 2 if one is missing."""
    paths = [folder / name for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        print(f"data not found: {', '.join(missing)}; give the folder that contains them: --data FOLDER", file=sys.stderr)
        raise SystemExit(2)
    return paths


def atlas(regions: int) -> str:
    """Return the file of the Schaefer atlas with this number of cortical regions, plus 16 subcortical regions of Tian's atlas."""
    return f"atlases/Schaefer{regions}TianS1_res-2_dseg.nii.gz"


def average(rows: Sequence[dict[str, float]], reduce=np.mean) -> dict[str, float]:
    """Compute the mean (or another reduction) of each entry."""
    return {key: float(reduce([row[key] for row in rows])) for key in rows[0]}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with four decimal places."""
    cells = [list(head)] + [[f"{x:.4f}" if isinstance(x, float) else "-" if x is None else str(x) for x in row] for row in rows]
    width = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        print("  ".join([row[0].ljust(width[0])] + [c.rjust(w) for c, w in zip(row[1:], width[1:], strict=True)]))


def write(args: argparse.Namespace, figures: dict[str, object]) -> None:
    """Write figures with a description of the measurement to `args.out`, if given."""
    if args.out is None:
        return
    import jax

    result = {
        "program": Path(sys.argv[0]).name,
        "date": datetime.date.today().isoformat(),
        "arguments": given(args),
        "versions": {"python": platform.python_version()} | _versions(),
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "figures": figures,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(_rounded(result), indent=2) + "\n")
    print(f"written: {args.out.name}")


def given(args: argparse.Namespace) -> dict[str, object]:
    """Return the arguments to record, with file names instead of paths, which describe the machine rather than the measurement."""
    return {key: _names_only(value) for key, value in vars(args).items() if key not in ("out", "data")}


def _versions() -> dict[str, str]:
    """Return the versions of the installed packages; machines with accelerators may have few."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _names_only(value):
    if isinstance(value, list | tuple):
        return [_names_only(v) for v in value]
    return Path(value).name if isinstance(value, str | Path) and os.sep in str(value) else value


def _rounded(value):
    if isinstance(value, dict):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float | np.floating) else int(value) if isinstance(value, np.integer) else value
