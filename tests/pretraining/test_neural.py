"""Training on a store: it learns, it goes on where it was killed, and devices and processes do not change what it finds."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.checkpoint import load_model, save_model
from pnet_jax.cli import main
from pnet_jax.config import InputConfig, ObjectiveConfig, OptimiserConfig, ParallelConfig, PerceiverConfig, PrepareConfig, PretrainConfig
from pnet_jax.outputs.lock import only_here
from pnet_jax.pretraining import neural, spread
from pnet_jax.pretraining.log import read_log
from pnet_jax.records import open_store, prepare

pytestmark = pytest.mark.usefixtures("float16")  # of which batches are

STEPS, SAVE_EVERY = 8, 4  # a state takes longer to save than a step to take
SOME_TERMS = ObjectiveConfig(anchors=16, negatives=16, mae=0, dyn=0)  # compile in half the time of all five
CONFIG = """
encoder = "perceiver"
name = "tiny"
start = "{start}"
save_every = 2
log_every = 1
[perceiver]
width = 16
latents = 4
depth = 1
heads = 2
mlp = 2
dimensions = 10
references = 24
dtype = "float32"
[input]
batch = 8
locations = 64
frames = 40
min_seconds = 60
max_seconds = 80
ball_count = 2
[objectives]
anchors = 16
negatives = 16
mae = 0
dyn = 0
[optimiser]
steps = {steps}
rate = 1e-3
"""


@pytest.fixture(scope="module", autouse=True)
def quick_peak():
    """What the machine can do is measured at the start of each run; here a rough number will do. Processes of their own do it in full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neural, "PEAK_SIZES", (128,))
        yield


@pytest.fixture(scope="module")
def store(toy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    scans = []
    for person in range(6):
        for session in "12":
            scan = toy.scan(10 * person + int(session), subject=f"{person:02d}")
            scans.append(dataclasses.replace(scan, entities={"ses": session, "task": "rest"}))
    prepare(scans, folder)
    return folder


@pytest.fixture(scope="module")
def start(toy_model, tmp_path_factory) -> Path:
    return save_model(toy_model, tmp_path_factory.mktemp("start") / "linear")


@pytest.fixture(scope="module")
def config(start) -> PretrainConfig:
    return PretrainConfig(
        encoder="perceiver",
        name="tiny",
        start=str(start),
        save_every=SAVE_EVERY,
        log_every=1,
        perceiver=PerceiverConfig(16, 4, 1, 2, 2, 10, 24, dtype="float32"),
        input=InputConfig(batch=8, locations=64, frames=40, min_seconds=60, max_seconds=80, ball_count=2),
        objectives=SOME_TERMS,
        optimiser=OptimiserConfig(steps=STEPS, rate=1e-3),
        parallel=ParallelConfig(subject=8, location=1),
    )


@pytest.fixture(scope="module")
def whole(store, config, tmp_path_factory):
    """A run of all steps, which may trace its step once."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        chex.clear_trace_counter()
        make_step = spread.make_step
        patch.setattr(spread, "make_step", lambda *given: chex.assert_max_traces(make_step(*given), n=1))
        return neural.train(store, out, config, progress=False), out


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_log(out / "metrics.jsonl")]


def weights(finished: neural.Finished) -> list[np.ndarray]:
    return jax.tree.leaves(finished.model.encoder.params)


def test_every_step_is_logged_and_curves_are_written(whole):
    finished, out = whole
    rows = read_log(out / "metrics.jsonl")
    assert finished.step == STEPS and [row["step"] for row in rows] == list(range(1, STEPS + 1))
    names = {"loss", "split", "split_r2", "nce", "vic", "gradient_norm"}
    names |= {"scans_per_second", "tokens_per_second", "model_flop_utilisation", "data_wait"}
    assert names <= rows[0].keys() and all(np.isfinite(list(row.values())).all() for row in rows)
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))


def test_the_loss_falls_on_people_it_learns_from(store, config, tmp_path):
    terms = ObjectiveConfig(anchors=16, negatives=16)
    longer = dataclasses.replace(config, objectives=terms, optimiser=OptimiserConfig(steps=60, rate=3e-3), save_every=60)
    neural.train(store, tmp_path, longer, progress=False)
    assert {"split", "nce", "mae", "vic", "dyn"} <= read_log(tmp_path / "metrics.jsonl")[0].keys()
    found = losses(tmp_path)
    assert np.mean(found[-8:]) < np.mean(found[:8]) - 0.1


def test_the_exported_model_comes_back_and_says_what_it_was_made_from(whole, tmp_path, toy):
    model = whole[0].model
    back = load_model(save_model(model, tmp_path / "model"))
    assert back.sha256 == model.sha256 and back.encoder.config == model.encoder.config
    assert back.card["held_out"] and back.card["subjects"] + len(back.card["held_out"]) == 6
    own = {("", f"{person:02d}") for person in range(6)} - {("", subject) for subject in back.card["held_out"]}
    assert back.trained_on == own | {("", "01")}  # the linear encoder that it starts from was trained on a 01 too
    z = back.embed(toy.scan(3))
    assert z.shape == (len(toy.space), 10)
    assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def larger(toy, tmp_path_factory) -> Path:
    """Two data sets of seven people each, whose labels are the same."""
    folder = tmp_path_factory.mktemp("larger")
    for number, dataset in enumerate(("one", "two")):
        scans = [toy.scan(20 * number + person, subject=f"{person:02d}") for person in range(7)]
        prepare(scans, folder, PrepareConfig(dataset=dataset))
    return folder


def test_a_validation_curve_is_of_participants_that_are_not_trained_on(larger, config, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(config, validation=0.3, validate_every=3, log_every=2)
    read: list[tuple[str, ...]] = []
    honest = neural.batches
    monkeypatch.setattr(neural, "batches", lambda *a, **k: read.append(k["subjects"]) or honest(*a, **k))
    finished = neural.train(larger, tmp_path / "whole", config, progress=False)
    card, (training, validation) = finished.model.card, read
    assert re.search(r"^validation: \d of \d+ participants, not trained on$", capsys.readouterr().out, re.MULTILINE)
    parts = [set(training), set(validation), set(card["held_out"])]
    assert all(parts) and sum(map(len, parts)) == 14 and set.union(*parts) == set(open_store(larger).subjects)
    assert card["validation"] == list(validation)
    assert {"/".join(one) for one in finished.model.trained_on if one[0]} == set(training)
    rows = read_log(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in rows if "validation/loss" in row] == [3, 6, 8]
    assert {"validation/split", "validation/nce", "validation/vic"} <= rows[1].keys()
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    # A run that was stopped goes on with the same curve, and a mesh of another shape has the same.
    stop = iter([False] * 3 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(neural.parallel, "any_process", lambda _: next(stop))
        neural.train(larger, tmp_path / "stopped", config, progress=False)
    again = neural.train(larger, tmp_path / "stopped", config, progress=False)
    assert again.model.sha256 == finished.model.sha256
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    other = dataclasses.replace(config, parallel=ParallelConfig(subject=4, location=2))
    neural.train(larger, tmp_path / "mesh", other, progress=False)
    assert_allclose(curve(tmp_path / "mesh"), curve(tmp_path / "whole"), rtol=1e-4)


def curve(out: Path) -> list[float]:
    return [row["validation/loss"] for row in read_log(out / "metrics.jsonl") if "validation/loss" in row]


def test_how_often_is_validated_changes_no_bit_of_the_weights(larger, config, tmp_path):
    digests = [
        neural.train(larger, tmp_path / str(every), dataclasses.replace(config, validate_every=every), progress=False).model.sha256
        for every in (2, 1000)
    ]
    assert digests[0] == digests[1]


def test_a_small_store_has_no_validation_and_it_is_said(store, config, tmp_path, capsys):
    config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, steps=1))
    finished = neural.train(store, tmp_path, config, progress=False)
    assert "no validation curve: at least 10 participants are needed besides those held out, found 5" in capsys.readouterr().out
    assert finished.model.card["validation"] == [] and not curve(tmp_path)


def test_a_run_stopped_and_resumed_ends_with_the_same_bits(whole, store, config, tmp_path, monkeypatch, capsys):
    first_half = iter([False] * 4 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(neural.parallel, "any_process", lambda _: next(first_half))
        stopped = neural.train(store, tmp_path, config, progress=False)
    assert stopped.model is None and stopped.step == 5
    finished = neural.train(store, tmp_path, config, progress=False)
    assert "resumed from step 5" in capsys.readouterr().out
    assert finished.model.sha256 == whole[0].model.sha256
    assert losses(tmp_path) == losses(whole[1])


@pytest.mark.parametrize(
    ("change", "exact"),
    [
        ({"parallel": ParallelConfig(subject=4, location=2)}, False),
        ({"sharding": "fsdp"}, False),
        ({"workers": 1}, True),
    ],
)
def test_meshes_shardings_and_readers_do_not_change_the_weights(whole, store, config, tmp_path, change, exact):
    finished = neural.train(store, tmp_path, dataclasses.replace(config, **change), progress=False)
    assert_allclose(losses(tmp_path), losses(whole[1]), rtol=0 if exact else 1e-5)
    for found, expected in zip(weights(finished), weights(whole[0]), strict=True):
        assert_array_equal(found, expected) if exact else assert_allclose(found, expected, atol=1e-5)


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(store, config, tmp_path):
    """Terms are means over scans, but for the split term, which weighs references by the noise of those it sees together."""
    terms = ObjectiveConfig(split=0, mae=0, nce=0, dyn=0, vic=1)
    mesh = ParallelConfig(subject=4, location=2)
    one = dataclasses.replace(config, objectives=terms, parallel=mesh)
    two = dataclasses.replace(one, optimiser=dataclasses.replace(config.optimiser, accumulate=2))
    found = [neural.train(store, tmp_path / name, c, progress=False) for name, c in (("one", one), ("two", two))]
    for a, b in zip(weights(found[0]), weights(found[1]), strict=True):
        assert_allclose(a, b, atol=2e-5)


def test_states_restore_on_fewer_devices(whole, store, config, tmp_path, monkeypatch):
    stop = iter([False] * 3 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(neural.parallel, "any_process", lambda _: next(stop))
        neural.train(store, tmp_path, config, progress=False)
    make = neural.parallel.make_mesh
    monkeypatch.setattr(neural.parallel, "make_mesh", lambda c: make(ParallelConfig(subject=2, location=1), jax.devices()[:2]))
    finished = neural.train(store, tmp_path, config, progress=False)
    for found, expected in zip(weights(finished), weights(whole[0]), strict=True):
        assert_allclose(found, expected, atol=1e-5)


def test_a_loss_that_is_no_number_stops_and_names_the_scans(store, config, tmp_path, monkeypatch):
    honest = spread.objectives.total

    def broken(encoder, batch, key, weights):
        loss, terms = honest(encoder, batch, key, weights)
        return loss / (batch.record >= 0).sum(dtype=np.int32).astype(np.float32) * np.float32("nan"), terms

    monkeypatch.setattr(spread.objectives, "total", broken)
    with pytest.raises(FloatingPointError, match=r"step 1: .*loss nan.*sub-0\d_ses-[12]"):
        neural.train(store, tmp_path, config, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": OptimiserConfig(steps=STEPS, rate=2e-3)}, r"optimiser.rate = 0.001, this run has 0.002"),
        ({"objectives": dataclasses.replace(SOME_TERMS, vic=0)}, r"objectives.vic = 0.1, this run has 0"),
    ],
)
def test_a_folder_holds_one_run(whole, store, config, change, message):
    with pytest.raises(ValueError, match=message):
        neural.train(store, whole[1], dataclasses.replace(config, **change), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": InputConfig(batch=6)}, "input.batch is 6: expected a multiple of 8"),
        ({"perceiver": PerceiverConfig(16, 4, 1, 2, 2, 12, 24)}, r"expected a linear encoder with \(24, 12\)"),
        ({"start": "pnet-liner"}, "did you mean 'pnet-linear'"),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_first_step(store, config, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        neural.train(store, tmp_path, dataclasses.replace(config, **change), progress=False)


def test_a_full_disk_is_said_and_the_state_before_it_stays(whole, store, config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    left = iter([usage.free] + [0] * 20)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(left)))
        with pytest.raises(OSError, match="No space left on device"):
            neural.train(store, tmp_path, config, progress=False)
    finished = neural.train(store, tmp_path, config, progress=False)
    assert finished.model.sha256 == whole[0].model.sha256


# The command, in processes of its own


def command(store: Path, out: Path, start: Path, *more: str, devices: int = 1, steps: int = STEPS) -> subprocess.Popen:
    file = out.parent / f"{out.name}.toml"
    file.write_text(CONFIG.format(start=start, steps=steps))
    compiled = jax.config.values["jax_compilation_cache_dir"] or str(start.parent / "cache")  # steps of this process are read back
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": compiled}
    arguments = ["pretrain", str(store), str(out), "--config", str(file), *more]
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from pnet_jax.cli import main; sys.exit(main())", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def done(process: subprocess.Popen, timeout: float = 300) -> str:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-3000:]
    return out


def digest(said: str) -> str:
    found = re.search(r"^weights digest: ([0-9a-f]{64})$", said, re.MULTILINE)
    assert found, said
    return found[1]


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(6000):
        if process.poll() is not None or any(row["step"] >= step for row in read_log(out / "metrics.jsonl")):
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} in {out}")


@pytest.mark.slow
def test_kills_change_no_bit_of_the_weights(whole, store, start, tmp_path):
    out, expected = tmp_path / "killed", whole[0].model.sha256
    for step in (3, 6):
        process = command(store, out, start, devices=8)
        wait_for_step(out, step, process)
        process.kill()
        process.communicate()
    said = done(command(store, out, start, devices=8))
    assert re.search(r"^resumed from step \d+$", said, re.MULTILINE)
    assert digest(said) == expected
    said = done(command(store, out, start, devices=8))  # nothing is left to do
    assert f"resumed from step {STEPS}" in said and digest(said) == expected
    assert load_model(out).sha256 == expected


def test_sigterm_saves_and_ends_well(store, start, tmp_path):
    out = tmp_path / "run"
    process = command(store, out, start, steps=400)
    wait_for_step(out, 2, process)
    process.send_signal(signal.SIGTERM)
    said = done(process)
    step = int(re.search(r"stopped after step (\d+) of 400", said)[1])
    assert step >= 2 and (out / "states" / str(step)).is_dir()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def two(store: Path, out: Path, start: Path, *more: str, steps: int = STEPS) -> list[subprocess.Popen]:
    port = free_port()
    places = [("--parallel.coordinator", f"127.0.0.1:{port}", "--parallel.processes", "2", "--parallel.process", str(r)) for r in (0, 1)]
    return [command(store, out, start, *place, *more, devices=4, steps=steps) for place in places]


def test_two_processes_of_four_devices_are_one_of_eight(whole, store, start, tmp_path):
    out = tmp_path / "two"
    first, second = [done(process) for process in two(store, out, start)]
    assert "weights digest" in first and "weights digest" not in second
    assert_allclose(losses(out), losses(whole[1]), rtol=1e-5)
    for found, expected in zip(jax.tree.leaves(load_model(out).encoder.params), weights(whole[0]), strict=True):
        assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_a_dead_process_stops_the_other_which_says_so_and_the_run_goes_on(store, start, tmp_path):
    out = tmp_path / "dead"
    one, other = two(store, out, start, "--parallel.heartbeat", "5", steps=24)
    wait_for_step(out, 4, one)
    other.kill()
    other.communicate()
    begun = time.time()
    _, err = one.communicate(timeout=60)
    assert one.returncode != 0 and time.time() - begun < 30
    assert re.search("process 1 has been silent for 5 s|another process was lost", err)
    assert "resumes from the last saved state" in err, err[-999:]
    said, _ = (done(process) for process in two(store, out, start, steps=24))
    rows = [row["step"] for row in read_log(out / "metrics.jsonl")]
    assert "resumed from step" in said and digest(said)
    assert rows == list(range(1, 25))


def test_numbers_of_the_log_are_json_a_line(whole):
    for line in (whole[1] / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["step"] >= 1


def test_a_folder_is_trained_in_once_at_a_time(store, config, tmp_path):
    with only_here(tmp_path, "pnet pretrain"), pytest.raises(ValueError, match="in use by pnet pretrain, process"):
        neural.train(store, tmp_path, config, progress=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in test_checkpoint
def test_a_damaged_state_is_named_with_the_way_back(whole, store, config, tmp_path):
    shutil.copytree(whole[1] / "states", tmp_path / "states")
    (data,) = (tmp_path / "states" / str(STEPS)).glob("*/ocdbt.process_0/d/*")
    data.write_bytes(data.read_bytes()[:100])
    way_back = f"remove the folder .*{STEPS} to resume from state {STEPS - SAVE_EVERY}"
    with pytest.raises(ValueError, match=f"state {STEPS} .* is damaged.*{way_back}"):
        neural.train(store, tmp_path, config, progress=False)
    shutil.rmtree(tmp_path / "states" / str(STEPS))
    assert neural.train(store, tmp_path, config, progress=False).model.sha256 == whole[0].model.sha256


def test_workers_beyond_all_measure_are_refused(store, config, tmp_path):
    with pytest.raises(ValueError, match=r"PretrainConfig.workers: expected at most \d+ on this machine with \d+ cores, got 100000"):
        neural.train(store, tmp_path, dataclasses.replace(config, workers=100_000), progress=False)


def test_scans_and_stores_taken_for_each_other_are_named(store, tmp_path, capsys):
    assert main(["pretrain", str(store), str(tmp_path / "out")]) == 1
    assert "is a store of records, which encoder = perceiver reads" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=f"`pnet prepare {tmp_path} STORE`"):
        open_store(tmp_path)
