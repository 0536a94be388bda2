"""Worker processes: the death of one is the fault of its task alone; clusters are the same to the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pnet_jax.errors import SettingsError
from pnet_jax.execution import WorkerDiedError, Workers, check_workers, cluster, in_blocks, run_tasks


def square(number: int) -> int:
    if number == 13:
        os._exit(9)
    if number == 7:
        raise ValueError("seven")
    return number * number


def own_process(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("processes", [0, 2])
def test_results_are_those_of_the_function(processes):
    with Workers(processes) as workers:
        for number in range(5):
            workers.submit(number, square, number)
        found = {}
        while len(workers):
            found |= {done.key: done.value for done in workers.take()}
    assert found == {number: number**2 for number in range(5)}


def test_a_death_costs_one_task_and_the_pool_goes_on():
    with Workers(2) as workers:
        for number in (2, 13, 4, 7, 5, 6):
            workers.submit(number, square, number)
        found = {}
        while len(workers):
            found |= {done.key: done for done in workers.take()}
        assert {key: done.value for key, done in found.items() if not done.error} == {2: 4, 4: 16, 5: 25, 6: 36}
        assert isinstance(found[13].error, WorkerDiedError)
        assert isinstance(found[7].error, ValueError)
        workers.submit(3, square, 3)
        assert workers.take()[0].value == 9


def test_run_tasks_draws_no_more_than_it_can_run():
    drawn = []

    def tasks():
        for number in range(6):
            drawn.append(number)
            yield number

    results = {}
    for task, result in run_tasks(square, tasks(), 2):
        results[task] = result
        assert len(drawn) <= len(results) + 3
    assert results == {number: number**2 for number in range(6)}


def test_what_a_task_raises_ends_run_tasks():
    with pytest.raises(ValueError, match="seven"):
        list(run_tasks(square, [7], 2))


def test_workers_end_with_their_parent(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(  # no `if __name__ == "__main__"`: users' scripts have none
        "import os, time\nfrom pnet_jax.execution import Workers\nworkers = Workers(1)\nworkers.submit(0, os.getpid)\n"
        "print(workers.take()[0].value, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end, "the worker outlived its parent"
        time.sleep(0.1)


def test_more_workers_than_make_sense_are_refused():
    with pytest.raises(SettingsError, match="workers: expected at most"):
        check_workers(100_000, "workers")


def test_blocks_keep_the_order():
    assert [list(block) for block in in_blocks(range(5), 2)] == [[0, 1], [2, 3], [4]]


def test_an_unknown_cluster_is_refused():
    with pytest.raises(SettingsError, match="expected one of local, slurm"), cluster("gnu"):
        pass
    with pytest.raises(SettingsError, match="no Dask scheduler at tcp://127"), cluster(scheduler="tcp://127.0.0.1:1"):
        pass


def test_dask_workers_run_tasks():
    pytest.importorskip("distributed")
    with cluster("local", jobs=1) as executor:
        assert executor.submit(square, 3).result(timeout=60) == 9
        assert executor.submit(own_process, 0).result(timeout=60) != os.getpid()
