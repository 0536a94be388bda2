"""One flipped byte in any file that the package writes: the same numbers, or an error that names folder and file."""

from __future__ import annotations

import gc
import shutil
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pnet_jax import parallel
from pnet_jax.checkpoint import Saves, load_arrays, load_group, load_model, save_arrays, save_group, save_model
from pnet_jax.checkpoint.states import _checksums
from pnet_jax.config import ParallelConfig
from pnet_jax.dynamics.fit import Hierarchy
from pnet_jax.dynamics.linear_stochastic import Params
from pnet_jax.encoder.adapter import Adapter
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.group.fit import Group
from pnet_jax.outputs import write_record
from pnet_jax.personalization import load_personal
from pnet_jax.records import open_store, prepare, read_scan
from pnet_jax.scan import make_scan
from pnet_jax.space import point_space

# Where orbax gives up on damaged files, it leaves callbacks behind that find their event loop closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FLIPS = 12  # in each file
K = 5


@pytest.fixture(scope="module", autouse=True)
def small_heap():
    """As in test_checkpoint: damage that orbax meets is followed by a search for garbage."""
    gc.freeze()
    yield
    gc.unfreeze()


def numbers_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def write_group(folder, rng):
    params = Params(rng.normal(size=(K, K)).astype(np.float32), *rng.normal(size=3).astype(np.float32))
    hierarchy = Hierarchy(params, rng.normal(size=(1, K, K)), rng.random((K, K)), rng.random((K, K)))
    save_group(Group("atlas", ("01", "02", "03"), hierarchy=hierarchy), folder)


def read_group(folder):
    group = load_group(folder)
    return [group.atlas, group.subjects, *numbers_of(group.hierarchy)]


def write_adapters(folder, rng):
    save_arrays(
        {"adapter": {"up": rng.normal(size=(3, 4, K)), "down": rng.normal(size=(3, K, 4))}},
        folder,
        kind="adapters",
        metadata={"scans": ["a"]},
    )


def write_personal(folder, rng):
    own = {"adapter": Adapter(*rng.normal(size=(3, 2, 4, K)))._asdict(), "dynamics": Params(*rng.normal(size=(4, 2, 1)))._asdict()}
    scans = ["sub-01", "sub-02"]
    verdict = {"signals": "0", "round": 2, "kept": True, "score": 0.5, "without": None, "reason": "so"}
    save_arrays(
        own, folder / "adapters" / "wave-00000", kind="adapters", metadata={"scans": scans, "verdicts": dict.fromkeys(scans, verdict)}
    )
    for scan in scans:
        write_record(folder, {"scan": scan, "status": "ok", "wave": "wave-00000", "round": 2}, {}, "pnet personalize")


def read_personal(folder):
    return [
        [one.round, one.verdict.kept, one.verdict.reason, *numbers_of(one.own)]
        for one in (load_personal(folder, name) for name in ("sub-01", "sub-02"))
    ]


def read_adapters(folder):
    arrays, about = load_arrays(folder, kind="adapters")
    return [about["scans"], *numbers_of(arrays)]


def write_store(folder, rng):
    space = point_space(rng.uniform(-50, 50, (8, 3)))
    prepare([make_scan(rng.normal(size=(8, 120)), space, tr=2.0, subject=name) for name in ("01", "02")], folder)


def read_store(folder):
    store = open_store(folder)
    scans = [read_scan(store, number) for number in range(len(store))]
    plain = [(one.tr, one.subject, one.source, one.cleaning, one.space.name) for one in scans]
    return [
        store.digest,
        plain,
        *numbers_of([(one.y, one.mean, one.std, one.valid, one.frames, one.space.xyz, one.space.neighbours) for one in scans]),
    ]


@pytest.fixture(params=["group model", "adapters", "individual parameters", "checkpoint", "store"])
def written(request, tmp_path, toy_model):
    """A folder, and what reads all numbers in it."""
    rng, folder = np.random.default_rng(0), tmp_path / "whole"
    if request.param == "checkpoint":
        save_model(toy_model, folder)
        return folder, lambda folder: [
            (model := load_model(folder)).sha256,
            *numbers_of(model.encoder),
            *numbers_of(list(map(vars, model.atlases.values()))),
        ]
    write, read = {
        "group model": (write_group, read_group),
        "adapters": (write_adapters, read_adapters),
        "individual parameters": (write_personal, read_personal),
        "store": (write_store, read_store),
    }[request.param]
    write(folder, rng)
    return folder, read


def test_a_flipped_byte_is_harmless_or_named(written, tmp_path):
    folder, read = written
    whole, refused = read(folder), 0
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size):
        name, data = file.relative_to(copy).as_posix(), file.read_bytes()
        rng = np.random.default_rng(zlib.crc32(file.suffix.encode()))
        for place in (0, len(data) - 1, *rng.integers(0, len(data), FLIPS).tolist()):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :])
            try:
                found = read(copy)
            except (InputError, SettingsError) as error:
                refused += 1
                assert str(copy) in str(error) and file.name in str(error) and "\n" not in str(error)
            else:
                assert found == whole, f"byte {place} of {name}: other numbers"
        file.write_bytes(data)
    assert refused > FLIPS and read(copy) == whole


class State(NamedTuple):
    step: jax.Array
    average: dict[str, jax.Array]
    steps: jax.Array


def test_a_flipped_byte_of_a_training_state_is_harmless_or_named(tmp_path):
    """Its files have no digests, for they are written while training goes on; its arrays have."""
    rng = np.random.default_rng(0)
    state = State(jnp.int32(7), {"w": jnp.asarray(rng.normal(size=(30, 5)), jnp.float32)}, jnp.asarray(rng.integers(0, 9, 40), jnp.int8))
    saves = Saves(tmp_path / "states", keep=2, config={"seed": 1})
    saves.save(7, state)
    saves.close()
    whole, refused = numbers_of(state), 0
    for file in sorted(path for path in (tmp_path / "states" / "7").rglob("*") if path.is_file() and path.stat().st_size):
        data = file.read_bytes()
        for place in rng.integers(0, len(data), 2):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :])
            again = Saves(tmp_path / "states", keep=2, config={"seed": 1})
            try:
                found = again.restore(state), again.weights(state.average)
            except SettingsError as error:
                refused += 1
                assert f"state 7 in {tmp_path / 'states'}" in str(error) and "\n" not in str(error)
            else:
                assert numbers_of(found) == [*whole, *numbers_of(state.average)]
            again.close()
        file.write_bytes(data)
    assert refused > 4


def test_checksums_see_every_bit_of_every_type():
    rng = np.random.default_rng(0)
    kinds = (jnp.float32, jnp.bfloat16, jnp.int32, jnp.int8, jnp.bool_)
    arrays = {str(jnp.dtype(kind)): jnp.asarray(rng.integers(0, 2, (3, 4)), kind) for kind in kinds}
    before = _checksums(arrays)
    for name, array in arrays.items():
        other = np.asarray(array).copy()
        other[2, 1] = other[2, 1] == 0
        assert [key for key, value in _checksums(arrays | {name: jnp.asarray(other)}).items() if value != before[key]] == [name]


def test_checksums_do_not_depend_on_how_arrays_are_spread():
    mesh = parallel.make_mesh(ParallelConfig(subject=4, location=2))
    array = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    spread = [
        jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
        for axes in ((), ("subject",), ("location", None), (None, "location"), (("subject", "location"),))
    ]
    assert len({tuple(_checksums({"array": one}).values()) for one in [jnp.asarray(array), *spread]}) == 1
