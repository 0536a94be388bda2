"""Meshes on eight fake devices, padding, and two real processes that make one array."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from numpy.testing import assert_array_equal

import pnet_jax
from pnet_jax import parallel
from pnet_jax.config import ParallelConfig


@pytest.mark.parametrize(
    ("subject", "location", "shape"),
    [(None, None, (8, 1)), (None, 8, (1, 8)), (2, None, (2, 4)), (4, 2, (4, 2))],
)
def test_an_axis_that_is_not_given_takes_the_devices_that_are_left(subject, location, shape):
    mesh = parallel.make_mesh(ParallelConfig(subject=subject, location=location))
    assert (mesh.axis_names, mesh.devices.shape) == (("subject", "location"), shape)
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(("subject", "location"), [(3, None), (None, 3), (4, 4), (16, None)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(subject, location):
    with pytest.raises(ValueError, match=rf"number of devices, 8; got subject={subject}, location={location}"):
        parallel.make_mesh(ParallelConfig(subject=subject, location=location))


def test_a_mesh_can_use_some_of_the_devices():
    assert parallel.make_mesh(ParallelConfig(location=2), jax.devices()[2:6]).devices.shape == (2, 2)


@pytest.mark.parametrize(
    ("axes", "message"),
    [(("subjects",), "mesh axes are subject, location; got 'subjects'"), (("subject", "subject"), "splits one dimension at most")],
)
def test_shardings_that_no_mesh_has_are_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        parallel.sharding(parallel.make_mesh(), *axes)


def test_padding_fills_up_to_the_mesh_and_the_mask_says_what_is_real():
    mesh = parallel.make_mesh()
    (x, table), real = parallel.pad((np.ones((10, 3), np.float32), jnp.zeros((10, 2), jnp.int32)), mesh, fill=-1)
    assert (x.shape, table.shape, real.sum()) == ((16, 3), (16, 2), 10)
    assert isinstance(x, np.ndarray)
    assert isinstance(table, jax.Array)
    assert_array_equal(np.asarray(table)[10:], -1)
    assert_array_equal(x[real], 1)


def test_padding_along_another_dimension():
    x, real = parallel.pad(np.ones((2, 9)), parallel.make_mesh(ParallelConfig(location=4)), "location", dim=1)
    assert (x.shape, real.tolist()) == ((2, 12), [True] * 9 + [False] * 3)


def test_arrays_of_several_sizes_cannot_be_padded_together():
    with pytest.raises(ValueError, match=r"one size along dimension 0, got sizes \[3, 4\]"):
        parallel.pad((np.ones(3), np.ones(4)), parallel.make_mesh())


def test_a_masked_mean_of_padded_rows_is_the_mean_of_the_real_ones():
    mesh, rows = parallel.make_mesh(), np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    x, real = parallel.pad(rows, mesh)
    mean = jax.jit(lambda x, real: jnp.where(real[:, None], x, 0.0).sum(0) / real.sum(dtype=x.dtype))
    placed = parallel.place(x, mesh, "subject"), parallel.place(real, mesh, "subject")
    assert placed[0].sharding.shard_shape(placed[0].shape) == (2, 3)
    np.testing.assert_allclose(mean(*placed), rows.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((10, 3), ("subject",), r"dimension 0 of an array is split along 'subject' into 8 parts: expected a multiple of 8, got 10"),
        ((8,), ("subject", None), r"2 dimensions are named \(subject, None\), but an array has shape \(8,\)"),
    ],
)
def test_arrays_that_do_not_divide_are_refused(shape, axes, message):
    with pytest.raises(ValueError, match=message):
        parallel.place(np.ones(shape), parallel.make_mesh(), *axes)


def test_one_process_holds_all_of_a_global_array():
    mesh, rows = parallel.make_mesh(ParallelConfig(subject=4)), np.arange(16.0, dtype=np.float32).reshape(8, 2)
    array = parallel.global_array(rows, mesh, "subject", "location")
    assert array.sharding.shard_shape(array.shape) == (2, 1)
    assert_array_equal(parallel.to_host(array), rows)
    with pytest.raises(ValueError, match=r"part of a process is split along 'subject' into 4 parts: expected a multiple of 4, got 6"):
        parallel.global_array(rows[:6], mesh, "subject")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "host:1234"}, "together or none of them, got no processes and no process"),
        ({"processes": 2, "process": 0}, "together or none of them, got no coordinator"),
        ({"coordinator": "host:1234", "processes": 2, "process": 2}, r"number below 2 \(processes\), got 2"),
        ({"coordinator": "host", "processes": 2, "process": 1}, "expected host:port, got 'host'"),
        ({"subject": 0}, "ParallelConfig.subject: expected 1 or more, got 0"),
    ],
)
def test_settings_that_start_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**settings)


PROGRAM = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from pnet_jax import parallel
from pnet_jax.config import ParallelConfig

explicit = dict(coordinator=sys.argv[1], processes=2, process=int(sys.argv[2])) if len(sys.argv) > 2 else {}
process = parallel.start(ParallelConfig(**explicit), timeout=30)
assert parallel.start() == process
mesh = parallel.make_mesh(ParallelConfig(location=1))
mine = np.arange(4, dtype=np.float32).reshape(4, 1) + 10 * process.number
whole = parallel.global_array(mine, mesh, "subject", None)
total = jax.jit(lambda x: x.sum(), out_shardings=parallel.sharding(mesh))(whole)
square = parallel.make_mesh(ParallelConfig(location=2))  # subjects over processes, locations inside each
both = parallel.global_array(np.full((3, 2), process.number, np.float32), square, "subject", "location")
wide = parallel.make_mesh(ParallelConfig(subject=1))  # locations over all devices: each process holds a part of every row
halves = parallel.global_array(np.full((1, 2), process.number, np.float32), wide, None, "location")
others = [parallel.to_host(array).tolist() for array in (both, halves)]
try:
    parallel.global_array(mine[: 4 - 2 * process.number], mesh, "subject")
    refused = ""
except ValueError as error:
    refused = str(error)
rows = parallel.to_host(whole).ravel().tolist()
told = {"process": list(process), "shape": whole.shape, "rows": rows, "sum": float(total), "refused": refused, "others": others}
print(json.dumps(told), flush=True)
"""


def run_together(*arguments: tuple[str, ...], environments: tuple[dict[str, str], ...] = ({}, {}), timeout: int = 60) -> list[dict]:
    """Runs PROGRAM once for each entry at the same time; whatever happens, none outlives the test."""
    folder = str(Path(pnet_jax.__file__).parents[1])
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *given],
            env={**os.environ, "PYTHONPATH": folder, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for given, environment in zip(arguments, environments, strict=False)
    ]
    try:
        said = [program.communicate(timeout=timeout) for program in programs]
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    for program, (_, error) in zip(programs, said, strict=True):
        assert program.returncode == 0, error
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def check_two_processes(said: list[dict]) -> None:
    rows = [0, 1, 2, 3, 10, 11, 12, 13]
    for index, one in enumerate(said):
        assert one["process"] == [index, 2]
        assert (one["shape"], one["rows"], one["sum"]) == ([8, 1], rows, sum(rows))
        assert "process 0 (4, 1), process 1 (2, 1)" in one["refused"]
        assert one["others"] == [[[0, 0]] * 3 + [[1, 1]] * 3, [[0, 0, 1, 1]]]


def test_two_processes_given_by_flags_make_one_array():
    address = f"127.0.0.1:{free_port()}"
    check_two_processes(run_together((address, "0"), (address, "1")))


@pytest.mark.parametrize(
    ("same", "number"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, "SLURM_PROCID"),
        (
            {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            "OMPI_COMM_WORLD_RANK",
        ),
    ],
    ids=["slurm", "open-mpi"],
)
def test_two_processes_that_a_cluster_started_find_each_other(same, number):
    same = {**same, "JAX_COORDINATOR_PORT": str(free_port())}
    check_two_processes(run_together((), (), environments=tuple({**same, number: str(index)} for index in range(2))))


def test_a_process_outside_any_cluster_is_the_only_one():
    [said] = run_together(())
    assert (said["process"], said["shape"], said["refused"]) == ([0, 1], [4, 1], "")


def test_no_other_module_builds_meshes_or_shardings_or_starts_processes():
    package = Path(pnet_jax.__file__).parent
    pattern = re.compile(r"make_mesh\(|NamedSharding\(|jax\.distributed\.|from jax\.sharding import[^\n]*\bMesh\b(?s:.)*= Mesh\(")
    found = [str(f.relative_to(package)) for f in package.rglob("*.py") if pattern.search(f.read_text("utf-8")) and f.name != "parallel.py"]
    # The bench asks `parallel` for its meshes by the same name.
    assert [f for f in found if "parallel.make_mesh(" not in (package / f).read_text("utf-8")] == []
