"""The cohort store: written in blocks by many processes, readable while it grows, and no damaged value is ever read."""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import reduce

import numpy as np
import pytest

import pnet_jax
from pnet_jax.cohort import cohort_of
from pnet_jax.errors import InputError, SettingsError
from pnet_jax.outputs import cohort as store
from pnet_jax.outputs.cohort import Entry, create, extend, join_layouts, layout_of, write_block
from pnet_jax.outputs.cohort_reading import check_block, read_store, stored_results
from pnet_jax.scan import scan_label
from tests.outputs.cohorts import assert_same, make_networks
from tests.outputs.helpers import K, cifti_network, points_network

pytest.importorskip("zarr")
BLOCK = 2


def label(network):
    return scan_label(network.subject, network.entities)


def room(networks):
    return reduce(join_layouts, map(layout_of, networks))


def fill(path, networks, blocks=None):
    labels = [label(network) for network in networks]
    for number in range(-(-len(networks) // BLOCK)) if blocks is None else blocks:
        own = slice(number * BLOCK, (number + 1) * BLOCK)
        write_block(path, number, {scan: Entry(network) for scan, network in zip(labels[own], networks[own], strict=True)})


def made(path, networks, blocks=None, **covariates):
    create(path, [label(network) for network in networks], room(networks), covariates, block=BLOCK)
    fill(path, networks, blocks)
    return path


def read(path, **options):
    """The cohort, without the scans that were left out."""
    cohort = read_store(path, **options)
    cohort.provenance.pop("left_out")
    return cohort


@pytest.fixture(scope="module")
def networks():
    return make_networks(5)


@pytest.mark.parametrize("where", ["{}/cohort.zarr", "file://{}/with space.zarr", "memory://{}/cohort.zarr"])
def test_what_is_read_is_what_was_written(networks, tmp_path, where):
    ages, sites = np.arange(5.0), np.array(["A", "", "B", "Zürich", "A"])
    path = made(where.format(tmp_path), networks, blocks=(2, 0, 1), age=ages, site=sites)
    found, expected = read(path), cohort_of(networks, {"age": ages, "site": sites})
    assert_same(found, expected)
    assert found.provenance == expected.provenance


@pytest.mark.parametrize("make", [cifti_network, points_network])
def test_other_spaces_come_back(make, tmp_path):
    networks = [dataclasses.replace(make(), subject=subject) for subject in ("01", "02")]
    found = read(made(tmp_path / "cohort.zarr", networks))
    assert_same(found, cohort_of(networks))
    models = networks[0].space.grid and networks[0].space.grid.brain_models
    assert found.space.names == networks[0].space.names
    assert models is None or found.space.grid.brain_models == models


def test_of_two_spaces_there_are_no_labels(networks, tmp_path):
    other = dataclasses.replace(points_network(), subject="99", names=networks[0].names, edges=networks[0].edges)
    path = made(tmp_path / "cohort.zarr", [networks[0], other])
    assert_same(read(path), cohort_of([networks[0], other]))
    assert read(path).labels is None


def test_xarray_opens_it_with_named_dimensions(networks, tmp_path):
    xarray = pytest.importorskip("xarray")
    path = made(tmp_path / "cohort.zarr", networks, age=np.arange(5.0))
    with xarray.open_zarr(path, chunks=None) as data:
        assert data["edges_pearson"].dims == ("scan", "parcel", "parcel_to")
        assert data["signals"].dims == ("scan", "parcel", "frame") and data["labels"].dims == ("scan", "location")
        assert {"scan", "subject", "session", "parcel", "parcel_to", "qc_column", "age", "location_xyz"} <= set(data.coords)
        one = data["edges_pearson"].sel(scan="sub-01_ses-a_task-rest", parcel="area 0", parcel_to="area 1").item()
        assert one == networks[2].edges["pearson"][0, 1]
        assert data["qc"].sel(qc_column="minutes").values.tolist() == [1, 2, 3, 4, 5]
        assert data["edges_pearson"].attrs["meant_for"] == "inference, diagnosis, circuits"
        assert data["status"].values.tolist() == [store.DONE] * 5
        assert data["edges_pearson"].where(data["age"] > 2, drop=True).sizes["scan"] == 2


def test_each_array_has_one_file_a_block(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks)
    for name in ("edges_pearson", "signals", "labels", "confidence", "coverage", "frames", "qc", "text", "status", "revision"):
        assert sum(file.is_file() for file in (path / name / "c").rglob("*")) == 3, name


def test_it_is_read_while_it_grows(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks, blocks=())
    with pytest.raises(InputError, match="no scan is done; 5 are pending or failed"):
        read_store(path)
    fill(path, networks, blocks=(1,))
    found = read_store(path)
    assert found.table["scan"].tolist() == [label(network) for network in networks[2:4]]
    assert found.provenance["left_out"] == {label(networks[at]): "pending" for at in (0, 1, 4)}
    fill(path, networks, blocks=(0, 2))
    assert_same(read(path), cohort_of(networks))


def test_several_processes_write_different_blocks(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks, blocks=())
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(fill, [path] * 3, [networks] * 3, [(2,), (0,), (1,)]))
    assert_same(read(path), cohort_of(networks))


def test_a_scan_that_failed_and_succeeds_later(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks, blocks=(1, 2))
    write_block(path, 0, {label(networks[0]): Entry(networks[0]), label(networks[1]): Entry(None, "mask.nii.gz is empty", "a1")})
    assert read_store(path).provenance["left_out"] == {label(networks[1]): "mask.nii.gz is empty"}
    assert stored_results(path)[label(networks[1])] == (store.FAILED, "a1")
    write_block(path, 0, {label(networks[1]): Entry(networks[1])})  # the other scan of the block stays
    assert_same(read(path), cohort_of(networks))
    write_block(path, 0, {label(networks[1]): Entry(None, "refused")})
    assert read_store(path).table["scan"].tolist() == [label(networks[at]) for at in (0, 2, 3, 4)]


def test_an_interrupted_block_is_pending(networks, tmp_path, monkeypatch):
    path = made(tmp_path / "cohort.zarr", networks)
    arrays, calls = store.block_arrays, []

    def stops(group):
        calls.append(group)
        yield from list(arrays(group))[: 4 if len(calls) == 2 else None]  # the first call is for the layout
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "block_arrays", stops)
    with pytest.raises(KeyboardInterrupt):
        write_block(path, 0, {label(networks[1]): Entry(networks[1])})
    monkeypatch.undo()
    found = read_store(path)
    assert found.provenance["left_out"] == {label(networks[1]): "pending"}
    assert_same(found, cohort_of([networks[at] for at in (0, 2, 3, 4)]))
    fill(path, networks, blocks=(0,))
    assert_same(read(path), cohort_of(networks))


def test_scans_that_are_replaced_while_they_are_read_are_read_again(networks, tmp_path, monkeypatch):
    from pnet_jax.outputs import cohort_reading

    path, inner, calls = made(tmp_path / "cohort.zarr", networks), cohort_reading._read, []
    changed = dataclasses.replace(networks[0], coverage=networks[0].coverage / 2)

    def meanwhile(*arguments):
        out = inner(*arguments)
        calls.append(out)
        if len(calls) == 1:
            write_block(path, 0, {label(changed): Entry(changed)})
        return out

    monkeypatch.setattr(cohort_reading, "_read", meanwhile)
    np.testing.assert_array_equal(read_store(path).coverage[0], changed.coverage)
    assert len(calls) == 2


def test_a_flipped_byte_is_named_and_not_used(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks, age=np.arange(5.0))
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")
    assert len(files) > 40
    for file in files:
        name, content = file.relative_to(path).parts[0], file.read_bytes()
        for at in {len(content) // 2, len(content) - 1}:
            file.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
            if name not in ("parcel", "parcel_to", "qc_column", "text_column"):  # not read: what they say is known
                with pytest.raises(InputError, match=rf"\b{name}\b"):
                    read_store(path)
        file.write_bytes(content)
    assert_same(read(path), cohort_of(networks, {"age": np.arange(5.0)}))


def test_the_scan_of_a_damaged_chunk_is_named_and_writing_the_block_mends_it(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks)
    file = path / "signals" / "c" / "1" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[-40 - len(content) // 4] ^= 1  # in the chunk of the second scan, before the index
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"signals of sub-01_ses-b_task-rest \(block 1\) is damaged"):
        read_store(path)
    assert len(read(path, signals=False)) == 5, "what is not read does no harm"
    check_block(path, 0)
    with pytest.raises(InputError, match="sub-01_ses-b_task-rest"):
        check_block(path, 1)
    with pytest.raises(InputError, match="sub-01_ses-b_task-rest"):  # the scan that stays could not be kept
        write_block(path, 1, {label(networks[2]): Entry(networks[2])})
    fill(path, networks, blocks=(1,))
    assert_same(read(path), cohort_of(networks))


def test_a_missing_file_is_not_taken_for_absent_parcels(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks)
    for name in ("edges_pearson", "signals", "labels", "coverage", "qc", "text", "frames"):
        file = next(file for file in sorted((path / name / "c").rglob("*")) if file.is_file())
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(InputError, match=rf"{name} of sub-00_ses-a_task-rest is missing"):
            read_store(path)
        file.write_bytes(content)


def test_damage_to_the_description_is_noticed(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks)
    file = path / "zarr.json"
    text = file.read_text()
    for before, after in (
        ("00ff", "00fe"),
        ('"pearson"', '"pearsom"'),
        ("float32", "float64"),
        ("{", ""),
        ("NaN", "0.0"),
        ('"block": 2', '"block": 3'),
    ):
        assert before in text
        file.write_text(text.replace(before, after, 1))
        with pytest.raises(InputError, match=r"cohort\.zarr"):
            read_store(path)
    file.write_text(text)
    assert len(read(path)) == 5


def test_parts_are_read_alone(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks)
    found = pnet_jax.load_cohort(path, edges=["partial"], signals=False, labels=False)
    assert list(found.edges) == ["partial"] and found.signals is None and found.labels is None and found.space is None
    with pytest.raises(SettingsError, match=r"no edges 'parital'.*did you mean 'partial'"):
        read_store(path, edges=["parital"])


def test_a_store_grows_in_scans_frames_locations_and_edges(networks, tmp_path):
    small = [dataclasses.replace(networks[1], edges={"pearson": networks[1].edges["pearson"]})]
    path = made(tmp_path / "cohort.zarr", small, age=np.zeros(1))
    long = np.tile(networks[0].signals, 3)
    more = [*small, dataclasses.replace(networks[0], signals=long, frames=np.arange(120)), networks[4]]
    labels = [label(network) for network in more]
    extend(path, labels, room(more), {"site": np.array(list("ABC"))})
    assert read_store(path).provenance["left_out"] == dict.fromkeys(labels[1:], "pending")
    for number, own in ((0, more[1:2]), (1, more[2:])):
        write_block(path, number, {label(network): Entry(network) for network in own})
    assert_same(read(path), cohort_of(more, {"site": np.array(list("ABC"))}))
    with pytest.raises(SettingsError, match="expected the 3 scans of the store first"):
        extend(path, labels[::-1], room(more))


def test_what_cannot_be_written_is_refused(networks, tmp_path):
    path, first = made(tmp_path / "cohort.zarr", networks[:3], blocks=()), label(networks[0])
    with pytest.raises(SettingsError, match="a cohort store already exists"):
        made(path, networks)
    with pytest.raises(SettingsError, match="block 1 has no scan sub-00_ses-a_task-rest: expected some of sub-01_ses-a_task-rest"):
        write_block(path, 1, {first: Entry(networks[0])})
    with pytest.raises(SettingsError, match=r"expected a block 0…1, got 2"):
        write_block(path, 2, {})
    with pytest.raises(SettingsError, match="expected a network of sub-00_ses-a_task-rest, got one of sub-00_ses-b_task-rest"):
        write_block(path, 0, {first: Entry(networks[1])})
    with pytest.raises(SettingsError, match="no room for edges tangent"):
        write_block(path, 0, {first: Entry(dataclasses.replace(networks[0], edges={"tangent": networks[0].edges["pearson"]}))})
    long = dataclasses.replace(networks[0], signals=np.tile(networks[0].signals, 2), frames=np.arange(80))
    with pytest.raises(SettingsError, match="no room for 80 frames"):
        write_block(path, 0, {first: Entry(long)})
    other = dataclasses.replace(networks[0], provenance={"atlas": {"digest": "11", "source": "Other.nii.gz"}})
    with pytest.raises(InputError, match="all scans of a cohort must have the same atlas"):
        write_block(path, 0, {first: Entry(other)})
    narrow = made(tmp_path / "narrow.zarr", [networks[1]], blocks=())
    beyond = dataclasses.replace(networks[0], entities=networks[1].entities)
    with pytest.raises(SettingsError, match="no room for all of its locations"):
        write_block(narrow, 0, {label(beyond): Entry(beyond)})
    for name in ("edges_x", "minutes", "a b", "labels"):
        with pytest.raises(SettingsError, match=f"covariate {name!r}: the name is reserved"):
            create(tmp_path / "other.zarr", [first], layout_of(networks[0]), {name: np.zeros(1)})
    with pytest.raises(FileNotFoundError, match="cohort store not found"):
        read_store(tmp_path / "nothing.zarr")


def test_a_network_with_impossible_edges_is_written_as_failed(networks, tmp_path):
    path = made(tmp_path / "cohort.zarr", networks[:2], blocks=())
    bad = networks[0].edges["pearson"].copy()
    bad[0, 1] = np.nan
    assert bad.shape == (K, K)
    networks = [dataclasses.replace(networks[0], edges={"pearson": bad}), networks[1]]
    fill(path, networks)
    assert "are NaN between parcels 0 and 1" in read_store(path).provenance["left_out"][label(networks[0])]


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ValueError, match=r"a cohort store needs zarr, which is not installed: pip install 'pnet_jax\[cohort\]'"):
        read_store(tmp_path)
