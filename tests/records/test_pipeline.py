"""Batches: the same whoever reads them and wherever a run was resumed, from the right people, with masks that are right."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial import cKDTree

from pnet_jax.config import InputConfig
from pnet_jax.encoder.tokens import Segments, nearest_reference
from pnet_jax.pretraining import reference_points
from pnet_jax.records import batches, open_store, prepare, read_scan, split_subjects, split_validation
from pnet_jax.records.pipeline import Examples
from pnet_jax.records.sampling import draw_length, draw_locations, draw_parts, stream
from pnet_jax.scan import make_scan

from .helpers import mixed_scans, rois, scan_of

R, V, T = 24, 128, 64
CONFIG = InputConfig(batch=4, locations=V, frames=T, min_seconds=30, max_seconds=200, held_out=0.3, seed=5)
LONG = InputConfig(batch=4, locations=V, frames=256, min_seconds=60, max_seconds=400, held_out=0)


@pytest.fixture(scope="module")
def store(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    scans = mixed_scans(toy)
    scans[0].y[7] = 0
    scans[0].valid[7] = False
    scans.append(scan_of(rois(3, 40), 60, frames=120, subject="table", mean=np.zeros(40, np.float32)))
    prepare(scans, folder)
    return open_store(folder)


@pytest.fixture(scope="module")
def references(toy):
    return reference_points(toy.space, R)


@pytest.fixture(scope="module")
def examples(store, references):
    return Examples(store, LONG, references, store.subjects)


@pytest.fixture(scope="module")
def many(examples):
    return [examples(number) for number in range(60)]


def read(store, references, count, **options) -> list[Segments]:
    with batches(store, CONFIG, references, **options) as data:
        return [next(data) for _ in range(count)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for name, x, y in zip(Segments._fields, a, b, strict=True):
            assert x.dtype == y.dtype, name
            assert_array_equal(x, y, err_msg=name)


def test_shapes_and_types_are_those_of_the_configuration(store, references):
    (batch,) = read(store, references, 1)
    shapes = {name: value.shape for name, value in batch._asdict().items()}
    assert shapes == {
        "y": (4, 2, V, T),
        "kept": (4, 2, T),
        "frames": (4, 2, T),
        "references": (4, 2, R, T),
        "xyz": (4, V, 3),
        "hemisphere": (4, V),
        "counted": (4, V),
        "log_tsnr": (4, 2, V),
        "tr": (4, 2),
        "record": (4,),
    }
    assert (batch.y.dtype, batch.references.dtype, batch.kept.dtype, batch.record.dtype) == (np.float16, np.float32, bool, np.int32)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_read_what_one_reads(store, references, processes):
    whole = read(store, references, 2)
    parts = [read(store, references, 2, process=p, processes=processes) for p in range(processes)]
    for step, batch in enumerate(whole):
        joined = Segments(
            *(np.stack(rows, 1).reshape(-1, *rows[0].shape[1:]) for rows in zip(*(part[step] for part in parts), strict=True))
        )
        assert_same([joined], [batch])


def test_two_workers_read_what_none_reads_also_from_a_later_step(store, references):
    whole = read(store, references, 5)
    assert_same(read(store, references, 3, step=2, workers=2), whole[2:])
    assert_same(read(store, references, 3, step=2), whole[2:])


def test_reading_ahead_ends_when_it_is_told_to(store, references):
    data = batches(store, CONFIG, references)
    next(data)
    data.close()
    data.close()
    assert list(data) == []


def test_an_example_depends_on_its_number_and_the_seed_only(store, references, examples):
    other = pickle.loads(pickle.dumps(examples))
    for number in (11, 3):  # another order, empty caches
        assert_same([other(number)], [examples(number)])
    small = Examples(store, InputConfig(**{**LONG.__dict__, "cache_mb": 0}), references, store.subjects)
    assert_same([small(3)], [examples(3)])
    reseeded = Examples(store, InputConfig(**{**LONG.__dict__, "seed": 1}), references, store.subjects)
    assert not np.array_equal(reseeded(3).y, examples(3).y)
    assert not np.array_equal(examples(4).y, examples(3).y)


def test_validation_takes_subjects_by_their_label_and_none_of_a_few():
    subjects = [f"{number:02d}" for number in range(40)]
    training, validation = split_validation(subjects, 0.2, 3)
    assert set(training) | set(validation) == set(subjects) and not set(training) & set(validation)
    assert split_validation(subjects[::-1], 0.2, 3) == (training, validation)
    fewer = [subject for subject in subjects if subject not in training[:5]]
    assert split_validation(fewer, 0.2, 3)[1] == validation  # who else is there changes nobody's side
    assert split_validation(subjects, 0.2, 4)[1] != validation
    assert len(split_validation(subjects, 1e-9, 3)[1]) == 1
    assert split_validation(subjects[:9], 0.2) == (tuple(subjects[:9]), ()) and split_validation(subjects, 0) == (tuple(subjects), ())


def test_nothing_of_a_held_out_subject_is_trained_on(store, references):
    training, held_out = split_subjects(store, CONFIG.held_out, CONFIG.seed)
    assert held_out
    assert set(training) | set(held_out) == set(store.subjects)
    assert not set(training) & set(held_out)
    for part, allowed in (("training", training), ("held out", held_out), ("all", store.subjects)):
        seen = {store.records[i].subject for batch in read(store, references, 4, part=part) for i in batch.record}
        assert seen == set(allowed)


def test_the_split_is_stable_and_both_sides_have_somebody(store, tmp_path):
    assert split_subjects(store, 0.3, 1) == split_subjects(store, 0.3, 1)
    assert len({split_subjects(store, 0.3, seed)[1] for seed in range(20)}) > 3
    assert split_subjects(store, 0) == (store.subjects, ())
    for share in (1e-6, 0.999):
        assert all(split_subjects(store, share))
    prepare([scan_of(rois(), i, frames=40, subject=f"{i}") for i in range(60)], tmp_path / "a")
    prepare([scan_of(rois(), i, frames=40, subject=f"{i}") for i in range(0, 60, 2)], tmp_path / "b")
    large, small = (split_subjects(open_store(tmp_path / name), 0.3)[1] for name in "ab")
    assert set(small) == set(large) & {f"{i}" for i in range(0, 60, 2)}  # who else is there changes no one's side
    assert 8 < len(large) < 30


def test_subjects_are_drawn_evenly_and_their_scans_too(store, many):
    subjects = [store.records[int(example.record)].subject for example in many]
    everyone = sorted(store.subjects)
    for epoch in range(len(many) // len(everyone)):
        assert sorted(subjects[epoch * len(everyone) : (epoch + 1) * len(everyone)]) == everyone
    assert len({tuple(subjects[i : i + 7]) for i in range(0, 56, 7)}) > 4
    assert len({int(example.record) for example in many}) == len(store)


def test_padding_is_zero_and_not_counted(store, many):
    for example in many:
        record = store.records[int(example.record)]
        locations = {"roi": 60, "table": 40}.get(record.subject, V)
        assert example.counted.sum() == locations
        assert not example.counted[locations:].any()
        for values in (example.xyz, example.hemisphere):
            assert_array_equal(values[locations:], 0)
        assert_array_equal(example.log_tsnr[:, locations:], 0)
        assert_array_equal(example.y[:, ~example.counted], 0)
        for side in range(2):
            kept = example.kept[side]
            assert kept[: kept.sum()].all()  # padding is at the end
            assert_array_equal(example.y[side][:, ~kept], 0)
            assert_array_equal(example.references[side][:, ~kept], 0)


def test_signals_are_standardised_over_the_kept_frames(many):
    for example in many:
        for y, kept in zip(example.y, example.kept, strict=True):
            inside = y[example.counted][:, kept].astype(np.float64)
            assert_allclose(inside.mean(1), 0, atol=1e-3)
            assert_allclose(inside.std(1), 1, atol=1e-3)


def find(example, scan, side):
    """Where a segment begins in its scan, by its first counted location."""
    kept = int(example.kept[side].sum())
    v = int(np.flatnonzero((scan.space.xyz == example.xyz[0]).all(1))[0])
    wanted = example.y[side, 0, :kept].astype(np.float64)
    scores = [np.corrcoef(scan.y[v, s : s + kept], wanted)[0, 1] for s in range(scan.y.shape[1] - kept + 1)]
    best = int(np.argmax(scores))
    return (v, best, kept) if scores[best] > 0.999 else None


def test_segments_are_pieces_of_the_scan_with_a_gap_or_of_two_sessions(store, many):
    pairs, halves = 0, 0
    for example in many[:40]:
        number = int(example.record)
        record, scan = store.records[number], read_scan(store, number)
        found = [find(example, scan, side) for side in range(2)]
        assert found[0] is not None
        if found[1] is None:  # of another session
            others = [i for i, other in enumerate(store.records) if other.subject == record.subject and i != number]
            assert any(find(example, read_scan(store, i), 1) for i in others)
            pairs += 1
            continue
        halves += 1
        (_, first, n), (_, second, m) = sorted(found, key=lambda one: one[1])
        assert second - (first + n) >= min(30 / record.tr, record.frames / 10) - 1e-6
        assert second + m <= record.frames
    assert pairs > 3
    assert halves > 10


def test_frames_say_where_a_segment_was_in_its_recording(toy, references, tmp_path):
    left = np.delete(np.arange(200), [20, 21, 22, 90, 140, 141])
    scan = make_scan(toy.signals(0, 200)[:, left], toy.space, tr=2.0, frames=left + 5, recorded=210, subject="01")
    prepare([scan], tmp_path)
    store = open_store(tmp_path)
    examples = Examples(store, LONG, references, store.subjects)
    seen = 0
    for number in range(8):
        example = examples(number)
        for side in range(2):
            found = find(example, scan, side)
            _, start, kept = found
            assert_array_equal(example.frames[side, :kept], scan.frames[start : start + kept] - scan.frames[start])
            assert_array_equal(example.frames[side, kept:], 0)
            seen += int(np.diff(example.frames[side, :kept]).max() > 1)
    assert seen > 4


def test_references_are_means_over_all_locations_of_the_scan(store, many, references):
    checked = 0
    for example in many[:15]:
        scan = read_scan(store, int(example.record))
        _, start, kept = find(example, scan, 0)
        region = np.where(scan.valid, nearest_reference(scan.space.xyz, references), -1)
        for r in range(R):
            inside = scan.y[region == r, start : start + kept]
            expected = inside.mean(0) - inside.mean() if len(inside) else np.zeros(kept)
            assert_allclose(example.references[0, r, :kept], expected, atol=1e-4)
            checked += len(inside) > 0
    assert checked > 100


def test_log_tsnr_is_known_where_the_scan_has_a_level(store, many):
    for example in many:
        subject = store.records[int(example.record)].subject
        known = example.log_tsnr[:, example.counted]
        assert_allclose(known, 0 if subject == "table" else np.log(100), atol=0 if subject == "table" else 0.5)


def test_dead_locations_are_not_drawn(store, references):
    number = next(i for i, record in enumerate(store.records) if record.subject == "00" and record.session == "1")
    dead = read_scan(store, number).space.xyz[7]
    everything = InputConfig(batch=1, locations=2048, frames=T, held_out=0, pairs=0)
    example = next(e for e in map(Examples(store, everything, references, ["00"]), range(20)) if e.record == number)
    assert example.counted.sum() == len(read_scan(store, number).space.xyz) - 1
    assert not (example.xyz[example.counted] == dead).all(1).any()


def test_both_repetition_times_are_there(store, many):
    assert {float(value) for example in many for value in example.tr} == {2.0, np.float32(0.72)}


@pytest.mark.parametrize("frames", [30, 31, 101, 400])
@pytest.mark.parametrize("lengths", [(1, 1), (10, 300), (200, 200)])
def test_two_parts_fit_and_keep_the_gap(frames, lengths):
    for seed in range(30):
        parts = draw_parts(stream(seed), frames, 2.0, lengths, 30.0)
        (a, b), (c, d) = sorted(parts)
        assert 0 <= a < b < c < d <= frames
        assert c - b >= min(15, frames / 10)
        assert (b - a) + (d - c) == min(sum(lengths), frames - int(np.ceil(min(15, frames / 10))))
    orders = {parts[0] < parts[1] for parts in (draw_parts(stream(seed), frames, 2.0, lengths, 30.0) for seed in range(30))}
    assert orders == {True, False}


def test_lengths_cover_the_range_in_seconds_whatever_the_repetition_time():
    config = InputConfig(frames=10_000)
    for tr in (0.72, 2.0, 3.0):
        seconds = np.array([tr * draw_length(stream(seed), tr, config) for seed in range(400)])
        assert 149 - tr < seconds.min() < 165
        assert 570 < seconds.max() < 601 + tr
        assert abs(np.median(seconds) - 300) < 25  # log-uniform


def test_half_of_the_locations_have_company():
    xyz = 4 * np.stack(np.meshgrid(np.arange(30), np.arange(36), np.arange(28), indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
    usable = np.ones(len(xyz), bool)
    usable[::7] = False
    tree = cKDTree(xyz)
    config = InputConfig(locations=1024)
    drawn = draw_locations(stream(0), tree, xyz, usable, config)
    assert len(drawn) == 1024
    assert (np.diff(drawn) > 0).all()
    assert usable[drawn].all()

    def neighbours(chosen, share):
        return np.quantile([len(found) - 1 for found in cKDTree(xyz[chosen]).query_ball_point(xyz[chosen], 24)], share)

    alone = draw_locations(stream(0), tree, xyz, usable, InputConfig(locations=1024, balls=0))
    assert neighbours(drawn, 0.75) > 1.5 * neighbours(alone, 0.75)
    assert neighbours(drawn, 0.1) < neighbours(alone, 0.5)  # the other half lies everywhere
    assert cKDTree(xyz[drawn]).query(xyz)[0].max() < 40  # mm: no part of the brain is left out


def test_a_scan_with_fewer_locations_gives_all_of_them(toy):
    xyz = toy.space.xyz[:50]
    assert_array_equal(draw_locations(stream(0), cKDTree(xyz), xyz, np.ones(50, bool), InputConfig(locations=50)), np.arange(50))


def test_one_subject_cannot_be_split(tmp_path, references):
    prepare([scan_of(rois(), i, session=str(i)) for i in range(2)], tmp_path)
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match=r"has one subject \(01\) in 2 scans: at least two are needed to hold out a share of 0.3"):
        batches(store, CONFIG, references)
    with batches(store, InputConfig(batch=1, locations=V, frames=T, held_out=0), references) as data:
        assert next(data).counted.sum() == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 3}, "a number of processes that divides the batch size 4, got process 0 of 3"),
        ({"process": 2, "processes": 2}, "got process 2 of 2"),
        ({"step": -1}, "step and workers of 0 or more, got step -1"),
    ],
)
def test_readers_that_cannot_share_a_batch_are_refused(store, references, options, message):
    with pytest.raises(ValueError, match=message):
        batches(store, CONFIG, references, **options)


def test_references_must_be_points(store):
    with pytest.raises(ValueError, match=r"references must be points in mm, \[R, 3\], got shape \(3,\)"):
        batches(store, CONFIG, np.zeros(3))
