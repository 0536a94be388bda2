"""The examples for clusters, each run by local processes as far as it can be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import yaml

from pnet_jax.batch.run import construct_cohort
from pnet_jax.checkpoint import save_model
from pnet_jax.config import CleaningConfig, ConstructConfig
from pnet_jax.ingest import find_scans
from pnet_jax.outputs.overview import overview

EXAMPLES = Path(__file__).parents[1] / "configs" / "clusters"


class Four(NamedTuple):
    """Four scans in a folder, options of `pnet construct`, and the label images that one process makes of them."""

    folder: Path
    options: tuple[str, ...]
    labels: dict[str, bytes]


@pytest.fixture(scope="module")
def four(toy, toy_model, tmp_path_factory) -> Four:
    folder = tmp_path_factory.mktemp("derivatives")
    atlas, mask, checkpoint = folder / "toy_space-MNI152NLin6Asym_dseg.nii.gz", folder / "mask.nii.gz", folder / "checkpoint"
    nib.save(nib.Nifti1Image(toy.labels_volume(), toy.affine), atlas)
    nib.save(nib.Nifti1Image(toy.mask.astype(np.uint8), toy.affine), mask)
    save_model(toy_model, checkpoint)
    for number in range(1, 5):
        image = nib.Nifti1Image(toy.volume(number, 100), toy.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((8, 8, 8, 2))
        file = folder / f"sub-0{number}" / "func" / f"sub-0{number}_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        file.parent.mkdir(parents=True)
        nib.save(image, file)
    given = {"atlas": str(atlas), "checkpoint": str(checkpoint), "kappa": 10.0, "beta": 0.4, "report": False, "probabilities": False}
    config = ConstructConfig(**given, cleaning=CleaningConfig(strategy=()), workers=0)
    out = tmp_path_factory.mktemp("expected")
    construct_cohort(find_scans(folder, mask=mask), out, config)
    options = [word for name, value in given.items() for word in ([f"--no-{name}"] if value is False else [f"--{name}", str(value)])]
    labels = {file.name: file.read_bytes() for file in out.rglob("*_dseg.nii.gz")}
    return Four(folder, (*options, "--mask", str(mask), "--cleaning.strategy"), labels)


def test_parts_in_several_processes_are_the_whole(four, tmp_path):
    run("shards.sh", four.folder, tmp_path / "out", "2", *four.options)
    check(four, tmp_path / "out")


def test_tasks_of_an_array_are_the_whole(four, tmp_path):
    for task in ("5", "6"):
        about = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "2"}
        run("slurm_array.sh", four.folder, tmp_path / "out", *four.options, **about)
    check(four, tmp_path / "out")


@pytest.mark.parametrize("job", ["slurm", "mpi"])
def test_processes_of_a_job_each_take_their_part(four, tmp_path, job):
    number, total = {"slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")}[job]
    command = (sys.executable, "-m", "pnet_jax", "construct", four.folder, tmp_path / "out", "--shard", "auto", *four.options)
    environments = [environment(**{number: str(own), total: "2"}) for own in (0, 1)]
    running = [subprocess.Popen([*map(str, command)], env=one, stderr=subprocess.PIPE) for one in environments]
    for process in running:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told.decode()
    check(four, tmp_path / "out")


def test_a_cluster_of_dask_workers_makes_the_whole(four, tmp_path):
    pytest.importorskip("distributed")
    command = (sys.executable, "-m", "pnet_jax", "construct", four.folder, tmp_path / "out", "--cluster", "local", "--jobs", "2")
    subprocess.run([*map(str, command), *four.options], env=environment(), check=True, capture_output=True, timeout=300)
    check(four, tmp_path / "out")


def test_ranks_of_mpi_make_the_whole(four, tmp_path):
    pytest.importorskip("mpi4py")
    launcher = Path(sys.executable).with_name("mpiexec")
    if not launcher.exists():
        pytest.skip("no mpiexec beside this Python")
    python = (sys.executable, "-m", "mpi4py.futures", "-m", "pnet_jax")
    command = (launcher, "-n", "2", *python, "construct", four.folder, tmp_path / "out", "--cluster", "mpi", *four.options)
    done = subprocess.run([*map(str, command)], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    check(four, tmp_path / "out")


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.glob("*.sh")))
def test_every_script_is_valid_and_its_options_exist(name):
    subprocess.run(["bash", "-n", EXAMPLES / name], check=True)
    told = subprocess.run([sys.executable, "-m", "pnet_jax", "construct", "--help"], capture_output=True, text=True, check=True).stdout
    for line in (EXAMPLES / name).read_text("utf-8").splitlines():
        for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", line.partition("pnet construct")[2]):
            assert re.search(rf"{option}[ ,\n]", told), f"{name}: {option}"


def test_the_kubernetes_job_names_a_part_for_every_pod():
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text("utf-8"))["spec"]
    (command,) = job["template"]["spec"]["containers"][0]["args"]
    assert f"/{job['completions']} " in command and job["completionMode"] == "Indexed"


def environment(**more: str) -> dict[str, str]:
    """Without the variables that a test runner under a scheduler would have, and with `pnet` on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "JAX_PLATFORMS": "cpu"} | more


def run(name: str, *arguments: object, **variables: str) -> None:
    command = ["bash", str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def check(four, out: Path) -> None:
    """Every scan is done, and its parcels are those that one process makes."""
    assert [one.state for one in overview(out)] == ["done"] * 4
    assert {file.name: file.read_bytes() for file in out.rglob("*_dseg.nii.gz")} == four.labels
