"""The store: what goes in comes out, and a store that is not what its manifest says is refused by name."""

from __future__ import annotations

import dataclasses
import errno
import json
import resource
import shutil

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pnet_jax.config import PrepareConfig
from pnet_jax.errors import InputError
from pnet_jax.records import open_store, prepare, read_scan
from pnet_jax.records.scans import write_scan
from pnet_jax.records.spaces import space_hash
from pnet_jax.records.store import read_windows
from pnet_jax.space import point_space

from .helpers import CLEANED, mixed_scans, rois, scan_of


@pytest.fixture(scope="module")
def scans(toy):
    return mixed_scans(toy)


@pytest.fixture(scope="module")
def folder(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records") / "store"
    prepare(scans, folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "store")


def edit(folder, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def test_signals_come_back_within_what_float16_costs(folder, scans):
    store = open_store(folder, verify=True)
    assert len(store) == len(scans) == 11
    by_label = {scan.label: scan for scan in scans}
    for number, record in enumerate(store.records):
        scan, back = by_label[record.scan], read_scan(store, number)
        assert_allclose(back.y, scan.y, atol=2e-3)
        assert_allclose(np.corrcoef(back.y[:40]), np.corrcoef(scan.y[:40]), atol=1e-3)
        for name in ("mean", "std", "valid", "frames"):
            assert_array_equal(getattr(back, name), getattr(scan, name))
        for name in ("tr", "recorded", "subject", "entities", "source", "cleaning", "warnings", "label"):
            assert getattr(back, name) == getattr(scan, name)


def test_spaces_of_several_kinds_and_sizes_come_back(folder, scans, toy):
    store = open_store(folder)
    assert {space["locations"] for space in store.spaces.values()} == {60, len(toy.space)}
    for number, record in enumerate(store.records):
        space = read_scan(store, number).space
        given = rois() if record.subject == "roi" else toy.space
        assert space_hash(space) == space_hash(given) == record.space
        for name in ("xyz", "hemisphere", "structure", "neighbours"):
            assert_array_equal(getattr(space, name), getattr(given, name))
        assert (space.kind, space.name, space.names) == (given.kind, given.name, given.names)
        assert (space.grid is None) == (given.grid is None)


def test_the_hash_of_a_space_tells_other_locations_order_and_names_apart():
    xyz = rois().xyz
    spaces = [
        rois(),
        point_space(xyz[::-1]),
        point_space(xyz + 1),
        point_space(xyz, names=[str(i) for i in range(60)]),
        point_space(xyz[1:]),
    ]
    assert len({space_hash(space) for space in spaces}) == 5
    assert space_hash(rois()) == space_hash(point_space(xyz.copy(), name="MNI152NLin6Asym"))


def test_windows_are_equal_cover_every_frame_and_a_short_scan_is_one(folder):
    store = open_store(folder)
    bounds = {record.subject: record.bounds for record in store.records}
    assert bounds["short"] == (0, 60)
    assert bounds["roi"] == (0, 100, 200, 300, 400)
    assert bounds["00"] == (0, 76, 153, 230)
    number = next(i for i, record in enumerate(store.records) if record.subject == "00")
    (last,) = read_windows(store, number, [2])
    assert last.dtype == np.float16
    assert_array_equal(last, read_scan(store, number).y[:, 153:])


def test_frames_of_a_scrubbed_scan_and_dead_locations_are_kept(toy, tmp_path):
    scan = scan_of(toy.space, 3, frames=100)
    y = scan.y.copy()
    y[5] = 0
    kept = np.setdiff1d(np.arange(130), np.arange(40, 70))
    scan = dataclasses.replace(scan, y=y, valid=np.arange(len(y)) != 5, frames=kept, recorded=130)
    prepare([scan], tmp_path)
    back = read_scan(open_store(tmp_path), 0)
    assert_array_equal(back.frames, kept)
    assert (back.recorded, back.valid[5], back.valid.sum()) == (130, False, len(y) - 1)
    assert_array_equal(back.y[5], 0)


def test_signals_before_the_low_pass_come_back_and_are_not_read_with_the_others(toy, tmp_path):
    scan = scan_of(toy.space, 3, frames=130)
    wide = np.random.default_rng(0).normal(size=scan.y.shape).astype(np.float16)
    prepare([dataclasses.replace(scan, wide=wide)], tmp_path, PrepareConfig(window=50))
    store = open_store(tmp_path)
    back = read_scan(store, 0)
    assert back.wide.dtype == np.float16
    assert_array_equal(back.wide, wide)
    assert_array_equal(np.concatenate(read_windows(store, 0, range(3)), axis=1), back.y)


def test_the_manifest_counts_what_is_there(folder, scans):
    counts = json.loads((folder / "manifest.json").read_text("utf-8"))["counts"]
    assert counts["scans"] == 11
    assert counts["subjects"] == 6
    assert counts["frames"] == sum(scan.y.shape[1] for scan in scans)
    assert counts["windows"] == 9 * 3 + 4 + 1
    assert counts["spaces"] == 2


def test_no_store_and_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no manifest.json; expected a folder written by `pnet prepare`"):
        open_store(tmp_path / "nowhere")
    prepare([scan_of(rois(), 0, frames=20)], tmp_path, PrepareConfig())
    with pytest.raises(ValueError, match="is empty: expected at least one scan; 1 scans were skipped, the first: .*too short.*got 20"):
        open_store(tmp_path)


def test_another_version_is_refused(copy):
    edit(copy, lambda manifest: manifest.pop("sha256") and manifest.update(version=99, made_with="9.9"))
    with pytest.raises(ValueError, match=r"another version \(pnet_jax 9.9\): expected format version 1, found 99"):
        open_store(copy)


def test_a_damaged_or_foreign_manifest_is_refused(copy):
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        open_store(copy)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a manifest of records"):
        open_store(copy)


def test_a_file_that_was_changed_or_is_missing_is_named(copy):
    file = copy / open_store(copy).records[2].file
    data = bytearray(file.read_bytes())
    data[70_000] ^= 1
    file.write_bytes(data)
    open_store(copy)  # sizes only
    with pytest.raises(ValueError, match=rf"{file.name} was changed after it was written: expected SHA-256 \w+, found"):
        open_store(copy, verify=True)
    file.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=rf"{file.name} has changed in size: expected \d+ bytes, found"):
        open_store(copy)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file.name} is missing"):
        open_store(copy)


def test_a_store_opens_with_damaged_records_where_that_is_allowed(copy):
    store = open_store(copy)
    first, second = (copy / store.records[number].file for number in (2, 5))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    found = open_store(copy, allow_damaged=True)
    assert set(found.damaged) == {store.records[2].key, store.records[5].key} and not store.damaged
    assert f"{first.name} has changed in size" in found.damaged[store.records[2].key]
    assert f"{second.name} is missing" in found.damaged[store.records[5].key]
    assert (found.digest, len(found)) == (store.digest, len(store))


def test_a_damaged_space_is_named_and_the_scans_on_another_go_on(copy):
    store = open_store(copy)
    space = copy / next(iter(store.spaces.values()))["file"]
    space.write_bytes(space.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{space.name} has changed in size"):
        open_store(copy)
    on_it = {record.key for record in store.records if record.space == space.stem}
    assert 0 < len(on_it) < len(store)
    assert on_it == open_store(copy, allow_damaged=True).damaged.keys()
    with pytest.raises(InputError, match=f"store {copy}: spaces/{space.name} has changed in size"):
        read_scan(store, next(number for number, record in enumerate(store.records) if record.key in on_it))


def test_reading_a_damaged_file_names_it(copy):
    store = open_store(copy)
    file = copy / store.records[0].file
    file.write_bytes(file.read_bytes()[:70_000])
    with pytest.raises(ValueError, match=f"{file.name}: this file of the store is damaged"):
        read_windows(store, 0, [0])


def test_mixed_settings_name_two_scans_and_both_settings(toy, tmp_path):
    scans = [scan_of(rois(), i, frames=80, subject=str(i), cleaning=CLEANED | {"low_pass": 0.1 if i < 2 else None}) for i in range(3)]
    prepare(scans, tmp_path)
    with pytest.raises(
        ValueError, match="sub-0_ses-1_task-rest by low_pass = 0.1, .*sub-2_ses-1_task-rest by low_pass = None, .*allow_mixed"
    ):
        open_store(tmp_path)
    assert len(open_store(tmp_path, allow_mixed=True)) == 3


def test_the_digest_is_that_of_the_signals(scans, folder, tmp_path):
    prepare(scans[::-1], tmp_path)  # another order of writing
    assert open_store(tmp_path).digest == open_store(folder).digest
    prepare(scans[:1], tmp_path / "less")
    assert open_store(tmp_path / "less").digest != open_store(folder).digest


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path):
    scan = scan_of(rois(count=400), 0, frames=300)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a file that cannot grow fails as a full disk does
    try:
        with pytest.raises(OSError, match=r"sub-01_ses-1_task-rest.array_record") as caught:
            write_scan(tmp_path, scan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EIO
    assert [file for file in (tmp_path / "scans").iterdir()] == []
