"""Commands that inspect the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from pnet_jax.commands.options import Done

REQUIRED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "nibabel", "nilearn", "scikit-learn", "pandas")
# Extras of the package, and their purpose.
EXTRAS = {
    "report": (("jinja2",), "HTML pages"),
    "cohort": (("zarr", "fsspec"), "cohort stores"),
    "cluster": (("dask", "distributed", "dask-jobqueue"), "SLURM, PBS, SGE and LSF clusters"),
    "harmonize": (("combatlearn",), "ComBat harmonisation in folds"),
    "interop": (("matplotlib", "networkx", "xarray"), "plots, graphs and datasets of networks"),
    "surfaces": (("templateflow",), "surfaces of templates"),
}
CHECKED = 64  # size of the matrix product that checks a device


def doctor() -> Done:
    """Show devices, memory, versions and what works on this machine. The exit code is 1 if networks cannot be constructed."""
    problems: list[str] = []
    data: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in ("pnet_jax", *REQUIRED)},
        "extras": {name: all(_version(one) for one in packages) for name, (packages, _) in EXTRAS.items()},
        "memory": _memory(),
        "folders": _folders(problems),
        "devices": _devices(problems),
        "checkpoints": _checkpoints(problems),
    }
    problems += [f"package {name} is not installed" for name, version in data["packages"].items() if version is None]
    return Done("\n".join(_lines(data, problems)), data | {"problems": problems}, 1 if problems else 0)


def _lines(data: dict[str, Any], problems: list[str]) -> list[str]:
    memory, packages = data["memory"], data["packages"]
    rows = [
        ("System", f"{data['system']}, Python {data['python']}"),
        ("Packages", ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items())),
        ("Processor", f"{memory['cores']} cores, {memory['available']:.1f} of {memory['all']:.1f} GiB of memory available"),
        *(("Device", one) for one in data["devices"]),
        *(("Extra", f"{name} ({EXTRAS[name][1]}): {'installed' if there else 'not installed'}") for name, there in data["extras"].items()),
        ("Models", ", ".join(data["checkpoints"]) or "none"),
        *(("Folder", one) for one in data["folders"]),
    ]
    lines = [f"{name:<10}{text}" for name, text in rows]
    return [
        *lines,
        *(f"Problem: {one}" for one in problems),
        "Networks cannot be constructed." if problems else "Networks can be constructed.",
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> dict[str, float]:
    from pnet_jax.execution import all_memory, available_memory, cores

    return {"cores": cores(), "available": available_memory() / 2**30, "all": all_memory() / 2**30}


def _folders(problems: list[str]) -> list[str]:
    from pnet_jax.execution import cache_folder

    out = []
    places = {"compilation cache": os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache_folder(), "temporary files": tempfile.gettempdir()}
    for name, place in places.items():
        folder = Path(place)
        there = next(one for one in (folder, *folder.parents) if one.exists())
        out.append(f"{name}: {folder}, {shutil.disk_usage(there).free / 2**30:.1f} GiB free")
        if not os.access(there, os.W_OK):
            problems.append(f"{folder} ({name}) cannot be written to")
    return out


def _devices(problems: list[str]) -> list[str]:
    """Describe each device, with the time of a small matrix product that is compared with the result of numpy."""
    try:
        import jax
        import numpy as np

        x = np.random.default_rng(0).standard_normal((CHECKED, CHECKED)).astype(np.float32)
        out = []
        for device in jax.local_devices():
            begun = time.perf_counter()
            found = np.asarray(jax.jit(lambda x: jax.numpy.matmul(x, x, precision="highest"))(jax.device_put(x, device)))
            seconds = time.perf_counter() - begun
            right = np.allclose(found, x @ x, rtol=1e-3, atol=1e-3)
            limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
            memory = f", {limit / 2**30:.0f} GiB" if limit else ""
            verdict = "passed" if right else "failed"
            out.append(f"{device.platform} {device.id}: {device.device_kind}{memory}, compilation test {verdict} ({seconds:.2f} s)")
            if not right:
                problems.append(f"device {device} gives wrong products")
    except Exception as error:  # noqa: BLE001  the other lines are shown regardless of the error
        problems.append(f"JAX does not work: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return []
    return out


def _checkpoints(problems: list[str]) -> list[str]:
    try:
        from pnet_jax.checkpoint import list_models, load_model

        return [f"{name} ({', '.join(map(str, sorted(load_model(name).atlases)))} parcels)" for name in list_models()]
    except Exception as error:  # noqa: BLE001  the other lines are shown regardless of the error
        problems.append(f"the shipped models cannot be read: {type(error).__name__}: {error}")
        return []
