"""Worker processes: the death of one is the fault of its task alone; clusters are the same to the caller."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pnet_jax.errors import SettingsError
from pnet_jax.execution import WorkerDiedError, Workers, check_workers, cluster, in_blocks, run_tasks

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no process of its parent's end")


def square(number: int) -> int:
    if number == 13:
        os._exit(9)
    if number == 7:
        raise ValueError("seven")
    return number * number


def die_once(file: str) -> str:
    """Ends its process the first time."""
    if not Path(file).exists():
        Path(file).touch()
        os._exit(9)
    return "done"


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


def test_a_task_whose_process_died_once_is_tried_again(tmp_path):
    """Whoever killed it: the operating system for want of memory, or somebody else."""
    with Workers(2) as workers:
        workers.submit("alone", die_once, str(tmp_path / "mark"))
        found = []
        while len(workers):
            found += workers.take()
    assert [(done.key, done.value, done.error) for done in found] == [("alone", "done", None)]


def test_a_task_for_a_pool_that_has_just_broken_goes_to_a_new_one_which_is_kept(tmp_path):
    with Workers(1) as workers:
        workers.submit("first", die_once, str(tmp_path / "mark"))
        concurrent.futures.wait(list(workers._running))
        workers.submit("second", square, 3)
        new = workers._pool
        found = []
        while len(workers):
            found += workers.take()
            assert workers._pool is new
    assert {done.key: done.value for done in found} == {"first": "done", "second": 9}


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


# A regular expression keeps the interpreter's lock for hours, so that no thread of the worker can look after its parent.
@pytest.mark.parametrize("more", ["", pytest.param("workers.submit(1, re.match, '(a+)+$', 'a' * 60 + 'b')\n", marks=LINUX)])
def test_workers_end_with_their_parent(tmp_path, more):
    program = tmp_path / "program.py"
    program.write_text(  # no `if __name__ == "__main__"`: users' scripts have none
        "import os, re, time\nfrom pnet_jax.execution import Workers\nworkers = Workers(1)\nworkers.submit(0, os.getpid)\n"
        f"print(workers.take()[0].value, flush=True)\n{more}time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        time.sleep(1.0 if more else 0.0)
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end, "the worker outlived its parent"
        time.sleep(0.1)


def test_a_worker_whose_parent_ended_before_it_began_ends_too():
    program = f"import time\nfrom pnet_jax.execution import _begin\n_begin({2**22 + 1})\ntime.sleep(60)\n"
    assert subprocess.run([sys.executable, "-c", program], timeout=50, check=False).returncode == 1


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])
def test_what_a_terminal_sends_is_told_of_once(tmp_path, sent):
    """It reaches all processes of the terminal, also those that are only starting."""
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, time\nfrom pnet_jax.execution import Workers\n"
        "signal.signal(signal.SIGHUP, signal.default_int_handler)\n"
        "try:\n    with Workers(2) as workers:\n        workers.submit(0, time.sleep, 60)\n"
        "        print('begun', flush=True)\n        workers.take()\n"
        "except KeyboardInterrupt:\n    print('stopped')\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, program], **pipes) as parent:
        parent.stdout.readline()
        time.sleep(0.05)
        os.killpg(parent.pid, sent)
        assert parent.communicate(timeout=50) == ("stopped\n", "")


def test_more_workers_than_make_sense_are_refused():
    with pytest.raises(SettingsError, match="workers: expected at most"):
        check_workers(100_000, "workers")


def test_blocks_keep_the_order():
    assert [list(block) for block in in_blocks(range(5), 2)] == [[0, 1], [2, 3], [4]]


def test_an_unknown_cluster_is_refused():
    with pytest.raises(SettingsError, match="expected one of local, slurm"), cluster("gnu"):
        pass
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")  # its defaults are set when it is imported, and would go with the setting below
    brief = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with brief, pytest.raises(SettingsError, match="no Dask scheduler at tcp://127"), cluster(scheduler="tcp://127.0.0.1:1"):
        pass


def test_dask_workers_run_tasks():
    pytest.importorskip("distributed")
    with cluster("local", jobs=1) as executor:
        assert executor.submit(square, 3).result(timeout=60) == 9
        assert executor.submit(own_process, 0).result(timeout=60) != os.getpid()
