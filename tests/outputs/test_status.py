"""Records of scans, the table made from them, names that stay inside the folder, and locks."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnet_jax.errors import InputError
from pnet_jax.ingest import ScanSource
from pnet_jax.ingest.fingerprint import EDGE, file_fingerprint, inputs_fingerprint
from pnet_jax.outputs import output_stem, page_name, read_record, read_records, write_record, write_table
from pnet_jax.outputs.atomic import sweep
from pnet_jax.outputs.lock import alongside
from pnet_jax.outputs.names import safe_label, safe_name
from pnet_jax.outputs.overview import overview
from pnet_jax.outputs.status import (
    RECORDS,
    check_command,
    check_intact,
    digests,
    missing_files,
    read_submissions,
    remove_files,
    write_submission,
)

COMMAND = "pnet construct"


def test_a_record_comes_back_and_the_table_has_a_row_for_each_scan_and_atlas(tmp_path):
    write_record(tmp_path, {"scan": "sub-02", "atlas": "B", "status": "failed", "error": "too\tfew\nframes"}, {}, COMMAND)
    write_record(tmp_path, {"scan": "sub-01", "atlas": "A", "status": "failed"}, {}, COMMAND)
    made = write_record(tmp_path, {"scan": "sub-01", "atlas": "A", "status": "ok", "seconds": 12.5, "report": "x"}, {"a": "b"}, COMMAND)
    write_record(tmp_path, {"scan": "sub-01", "atlas": "B", "status": "ok", "minutes": float("nan")}, {}, COMMAND)
    assert read_record(tmp_path, "sub-01", "A") == made and read_record(tmp_path, "sub-01") == {}
    table = pd.read_csv(write_table(tmp_path), sep="\t", na_values="n/a")
    assert table[["scan", "atlas", "status"]].agg(" ".join, axis=1).tolist() == ["sub-01 A ok", "sub-01 B ok", "sub-02 B failed"]
    assert table["seconds"][0] == 12.5 and table["report"][0] == "x" and table["error"][2] == "too few frames"
    assert "files" not in table and "command" not in table
    with pytest.raises(ValueError, match="needs the label of its scan"):
        write_record(tmp_path, {"status": "ok"}, {}, COMMAND)


DAMAGED = ("", "{", "[]", '{"scan": "sub-01"}', "[" * 100_000, '{"scan": "s", "status": "ok", "files": {}}')


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_counts_as_none(content, tmp_path):
    write_record(tmp_path, {"scan": "sub-01", "status": "ok"}, {}, COMMAND)
    next((tmp_path / RECORDS).glob("*.json")).write_text(content)
    assert read_record(tmp_path, "sub-01") == {} and read_records(tmp_path) == []


def test_a_record_that_names_files_outside_its_folder_counts_as_none(tmp_path):
    write_record(tmp_path, {"scan": "sub-01", "status": "ok"}, {"../../x": "0"}, COMMAND)
    assert read_record(tmp_path, "sub-01") == {}


def test_a_record_with_one_other_digit_is_named_and_not_used(tmp_path):
    write_record(tmp_path, {"scan": "sub-01", "status": "ok", "minutes": 8.5}, {}, COMMAND)
    (file,) = (tmp_path / RECORDS).glob("*.json")
    file.write_text(file.read_text().replace("8.5", "9.5"))
    assert read_record(tmp_path, "sub-01") == {} and read_records(tmp_path) == []
    (state,) = overview(tmp_path)
    assert (state.scan, state.state) == ("sub-01", "stale") and f"{file} is damaged" in state.reason


def source(folder: Path, subject: str) -> ScanSource:
    return ScanSource(folder / f"sub-{subject}_bold.nii.gz", None, None, subject, {"task": "rest"})


def test_the_last_list_of_scans_counts_whatever_the_clock_says(tmp_path):
    one, other = source(tmp_path, "01"), source(tmp_path, "02")
    first = write_submission(tmp_path, [one], "first", "A")
    os.utime(first, (2**32, 2**32))
    second = write_submission(tmp_path, [one, other], "second", "A")
    assert [found["job"] for found in read_submissions(tmp_path)] == ["first", "second"]
    before = second.stat().st_mtime_ns
    assert write_submission(tmp_path, [one, other], "second", "A") == second and second.stat().st_mtime_ns == before
    write_submission(tmp_path, [one], "first", "A")
    assert [found["job"] for found in read_submissions(tmp_path)] == ["second", "first"]


def test_a_damaged_list_of_scans_is_named_and_written_again(tmp_path):
    file = write_submission(tmp_path, [source(tmp_path, "01")], "job", "A")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"job", b"jab"))
    with pytest.warns(UserWarning, match=f"{file}: damaged"):
        assert overview(tmp_path) == []
    again = write_submission(tmp_path, [source(tmp_path, "01")], "job", "A")
    assert again.read_bytes() == whole and [one.state for one in overview(tmp_path)] == ["waiting"]


def test_one_other_byte_in_the_middle_of_a_large_file_is_noticed(tmp_path):
    file = tmp_path / "relmat.tsv"
    file.write_bytes(b"1" * 8 * EDGE)
    record = {"scan": "sub-01", "files": digests(tmp_path, [file])}
    with open(file, "r+b") as opened:
        opened.seek(4 * EDGE)
        opened.write(b"2")
    assert missing_files(tmp_path, record) == ["relmat.tsv"]
    with pytest.raises(InputError, match=r"relmat.tsv: missing, or changed after it was written; construct sub-01 again"):
        check_intact(tmp_path, record)


def test_files_of_a_record_are_known_by_their_content(tmp_path):
    for name, text in (("a", "one"), ("b_dseg.tsv", "two"), ("c", "x" * 3 * EDGE)):
        (tmp_path / name).write_text(text)
    record = {"files": digests(tmp_path, sorted(tmp_path.iterdir()))}
    assert missing_files(tmp_path, record) == []
    (tmp_path / "a").write_text("onf")
    (tmp_path / "c").write_text("x" * (3 * EDGE - 1))
    (tmp_path / "b_dseg.tsv").unlink()
    assert missing_files(tmp_path, record) == ["a", "b_dseg.tsv", "c"]
    remove_files(tmp_path, record)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_one_commands(tmp_path):
    check_command(tmp_path, COMMAND)
    write_record(tmp_path, {"scan": "sub-01", "status": "ok"}, {}, "pnet personalize")
    with pytest.raises(ValueError, match=r"contains results of `pnet personalize`; use another folder for `pnet construct`"):
        check_command(tmp_path, COMMAND)


def test_inputs_are_known_by_their_content_and_by_when_they_changed(tmp_path):
    file = tmp_path / "bold.nii"
    file.write_bytes(bytes(4 * EDGE))
    quick, full = inputs_fingerprint([file, None]), inputs_fingerprint([file, None], whole=True)
    assert quick == inputs_fingerprint([file, None]) != inputs_fingerprint([None, file])
    with file.open("r+b") as stream:  # in the middle, which only the time of the change and the whole digest can tell
        stream.seek(2 * EDGE)
        stream.write(b"1")
    os.utime(file, ns=(0, 1))
    assert inputs_fingerprint([file, None]) != quick and inputs_fingerprint([file, None], whole=True) != full
    assert file_fingerprint(file) != file_fingerprint(file, whole=True)
    file.unlink()
    assert inputs_fingerprint([file, None]) != quick


@given(st.text(max_size=400), st.text(max_size=400), st.text(min_size=1, max_size=60))
def test_no_label_leads_out_of_the_folder(subject, session, atlas):
    entities = {"ses": session, "task": session, "run": subject}
    stem = output_stem("out", subject, entities, 200, safe_label(atlas))
    page = Path("out") / page_name(f"sub-{subject}_ses-{session}", safe_label(atlas))
    for path in (stem, page):
        assert path.parts[0] == "out" and ".." not in path.parts and "\0" not in str(path)
        assert all(len(part.encode()) < 256 and not part.startswith((".", "-")) for part in path.parts)


@given(st.text(max_size=30), st.text(max_size=30))
def test_two_labels_never_share_a_name(one, other):
    assert (safe_label(one) == safe_label(other)) == (one == other)
    assert (safe_name(one) == safe_name(other)) == (one == other)


def test_what_killed_writers_left_is_removed_by_whoever_works_alone(tmp_path):
    left, own = tmp_path / ".0123abcd-sub-01_dseg.tsv", tmp_path / ".bidsignore"
    lock = tmp_path / RECORDS / ".runs.lock"
    for file in (left, own):
        file.touch()
    with alongside(lock, lambda: sweep([tmp_path, tmp_path / "none"])):
        assert own.exists() and not left.exists()
        left.touch()
        process = multiprocessing.get_context("spawn").Process(target=_beside, args=(lock, tmp_path))
        process.start()
        process.join()
        assert process.exitcode == 0 and left.exists()


def _beside(lock, folder):
    with alongside(lock, lambda: sweep([folder])):
        pass
