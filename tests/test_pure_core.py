"""The core runs where no file library is installed, and the package's name costs nothing to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = (
    "nibabel",
    "nilearn",
    "grain",
    "array_record",
    "orbax",
    "pandas",
    "matplotlib",
    "jinja2",
    "tqdm",
    "jsonargparse",
    "zarr",
    "xarray",
)
CORE = ("space", "scan", "network", "config", "ops", "encoder.linear", "encoder.model", "encoder.tokens", "encoder.objectives")
CORE += tuple(f"ops.{op}" for op in ("correlation", "location_correlation", "partial", "tangent", "distance_correlation"))
CORE += tuple(f"ops.{op}" for op in ("fingerprint", "soft_assign", "potts", "portrait", "permutation"))
CORE += tuple(f"dynamics.{name}" for name in ("spectra", "linear_stochastic", "effective", "hopf", "forecast", "fit"))
CORE += ("finetune", "finetune.person", "encoder.adapter")
CORE += ("edges", *(f"parcellation.{name}" for name in ("mixture", "atlas", "score", "signals", "spatial")))
CORE += tuple(f"parcellation.{name}" for name in ("calibrate", "choose", "decide", "harden", "held_out"))
CORE += ("cohort", "group.fit", "group.spatial", "construction.step")

MIXTURE = """
import jax, numpy as np
from pnet_jax.edges import compute
from pnet_jax.ops.potts.chunked import match_table
from pnet_jax.parcellation.harden import harden
from pnet_jax.parcellation.mixture import Problem, group_prototypes, mixture
from pnet_jax.parcellation.atlas import make_atlas, on_space
from pnet_jax.scan import make_scan
from pnet_jax.space import grid_space

rng = np.random.default_rng(0)
space = grid_space(np.ones((6, 6, 2), bool), np.diag([4.0, 4, 4, 1]))
labels = (space.grid.ijk[:, 0] >= 3).astype(np.int32)
scan = make_scan(rng.normal(size=(2, 40))[labels] + 0.5 * rng.normal(size=(72, 40)), space, tr=2.0)
local = on_space(make_atlas(space.xyz, labels + 1, resolution=4), space)
z = scan.y / np.linalg.norm(scan.y, axis=1, keepdims=True)
table = match_table(local.candidates, space.neighbours, n_parcels=2)
problem = Problem(z, local.candidates, local.log_prior, table, group_prototypes(z, labels, 2))
q = jax.jit(mixture)(problem, np.float32(10), np.float32(0.4)).q
assert (harden(q, local.candidates, table, space.neighbours, local.labels, 2).labels == labels).all()
assert compute("pearson", np.stack([scan.y[labels == k].mean(0) for k in (0, 1)])).shape == (2, 2)
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def blocking(code: str) -> str:
    return f"import sys\nfor name in {BLOCKED}:\n    sys.modules[name] = None\n{code}"


def test_the_core_imports_and_a_mixture_runs_without_any_file_library():
    imports = "import pnet_jax\n" + "".join(f"import pnet_jax.{name}\n" for name in CORE)
    done = python(blocking(imports + MIXTURE + "print('ran')"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ran"


def test_importing_the_package_loads_neither_jax_nor_any_other_library():
    heavy = {"jax", "numpy", "scipy", "nibabel", "pandas"}
    done = python(f"import sys, pnet_jax; print(sorted({{name.partition('.')[0] for name in sys.modules}} & {heavy}))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_had_and_no_other():
    import pnet_jax

    assert dir(pnet_jax) == sorted(pnet_jax.__all__)
    for name in pnet_jax.__all__:
        assert getattr(pnet_jax, name) is not None
    with pytest.raises(AttributeError, match="module 'pnet_jax' has no attribute 'nonsense'"):
        pnet_jax.nonsense  # noqa: B018  the access is what is tested
