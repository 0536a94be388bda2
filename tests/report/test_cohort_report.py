"""The report of a cohort: what it says, that hostile text stays text, and that thousands of scans stay one small page."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pnet_jax.construction import qc as construction_qc
from pnet_jax.network import QC, Selection
from pnet_jax.outputs import load_maps, page_name, result_columns, save, scan_label, write_record
from pnet_jax.outputs.status import RECORDS
from pnet_jax.report import group_drawing, write_index
from pnet_jax.report.group import MOST, MapSums, Moments, add_edges, add_maps, sample
from pnet_jax.report.quality import FIGURES, distribution, limits, outliers, ticks
from pnet_jax.report.reasons import DECISIONS, bare, decision, kinds

from .test_report import Page, helpers

ATLAS = "Schaefer12"


class CohortPage(Page):
    """A cohort report; `data` is what its table is drawn from."""

    def column(self, key: str) -> list:
        one = next(one for one in self.data["columns"] if one["key"] == key)
        return [one["levels"][value] for value in one["values"]] if one["kind"] == "choice" else one["values"]

    @property
    def links(self) -> list[str]:
        """Pages that the table leads to."""
        return [link for link in self.data["links"] if link]


def record(folder, number: int, **fields) -> dict:
    """Write the record of a finished scan and an empty page for it."""
    return write_record(folder, row_of(folder, number, **fields), {}, "pnet construct")


def row_of(folder, number: int, **fields) -> dict:
    """The columns of such a record."""
    scan = f"sub-{number:04d}_ses-1_task-rest"
    row = {"scan": scan, "subject": f"{number:04d}", "atlas": ATLAS, "status": "ok", "parcels": "personalised"} | fields
    if row["status"] == "ok":
        (folder / page_name(scan, ATLAS)).touch()
    return row


def test_the_first_lines_say_how_many_failed_why_and_what_to_do(tmp_path):
    record(tmp_path, 1)
    for number, frames in ((2, 30), (3, 55)):
        error = f"sub-000{number}_ses-1_task-rest (/data/a{number}.nii.gz): too short: {frames} frames are left"
        record(tmp_path, number, status="failed", error=error)
    record(tmp_path, 4, status="unavailable", error="sub-0004 (/data/b.nii.gz): no recording")
    page = CohortPage(write_index(tmp_path))
    assert "4 scans of 4 participants: 1 finished, 2 failed, 1 unavailable." in page.text
    assert "Why: “too short: … frames are left” (2 scans); “no recording” (1 scan)." in page.text
    assert f"pnet construct INPUT {tmp_path.name} --retry-failed" in page.text
    # The two that failed alike stand under one heading, each with its own words.
    failures = page.text[page.text.index("Failures Scans that failed") :]
    for said in ("Too short: … frames are left.", "too short: 30 frames are left", "too short: 55 frames are left", "No recording."):
        assert said in failures, said
    assert page.data["reasons"] == ["too short: … frames are left", "no recording"]
    assert page.data["reason"] == {"1": 0, "2": 0, "3": 1}


def test_a_run_without_failures_says_so(tmp_path):
    record(tmp_path, 1)
    page = CohortPage(write_index(tmp_path))
    assert "No scan failed." in page.text and "nothing needs to be repeated" in page.text
    assert "--retry-failed" not in page.text and "Failures" not in page.text


def test_figures_of_the_records_are_in_the_table(tmp_path):
    network = helpers.make_network(subject="0 1")
    label = scan_label(network)
    dseg = save(network, tmp_path, probabilities=False)[-1].relative_to(tmp_path)
    (tmp_path / page_name(label, ATLAS)).touch()
    (tmp_path / "sub-stray.html").touch()
    row = {"scan": label, "subject": "0 1", "atlas": ATLAS, "status": "ok", "seconds": 11.2, "dseg": dseg, **result_columns(network)}
    write_record(tmp_path, row, {}, "pnet construct")
    page = CohortPage(write_index(tmp_path))
    qc = network.qc
    expected = {
        "scan": label,
        "subject": "0 1",
        "session": "a",
        "atlas": ATLAS,
        "status": "ok",
        "parcels": "personalised",
        "moved": round(100 * qc.moved),
        "n_frames": 40,
        "minutes": round(40 * network.tr / 60 if qc.minutes is None else qc.minutes, 1),
        "agreement": round(100 * qc.selection.agreement),
        "expected_agreement": round(100 * qc.calibration.expected_agreement),
        "ece": round(qc.calibration.expected_error, 3),
        "n_absent": 1,
        "coverage": 60,
        "n_warnings": len(qc.warnings),
    }
    for key, value in expected.items():
        assert page.column(key)[0] == value, key
    assert page.column("status")[1] == "no record" and page.links == [page_name(label, ATLAS), "sub-stray.html"]
    assert "1 finished, 0 failed, 1 without a record" in page.text


def test_columns_of_a_result_without_a_choice():
    network = dataclasses.replace(helpers.make_network(), qc=QC(warnings=("of every scan", "short scan")))
    found = result_columns(network, known=("of every scan",))
    assert found["qc_warnings"] == "short scan" and found["n_warnings"] == 1 and found["parcels"] == "fixed"
    for missing in ("moved", "mean_fd", "agreement", "expected_agreement", "ece", "gain"):
        assert found[missing] is None, missing
    json.dumps(found, allow_nan=False)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"


def test_hostile_text_stays_text(tmp_path):
    record(tmp_path, 1, status="failed", error=HOSTILE, subject=HOSTILE)
    record(tmp_path, 2, qc_warnings=HOSTILE, parcels="atlas", reason=HOSTILE)
    record(tmp_path, 3, scan=f"sub-{HOSTILE}", atlas=HOSTILE, status=HOSTILE, error="")
    (tmp_path / "participants.tsv").write_text(f"participant_id\tsite\nsub-0002\t{HOSTILE}\n")
    page = CohortPage(write_index(tmp_path))  # its parser refuses tags that are not the page's own
    assert len(page.script) == 2 and page.images == 0
    assert HOSTILE in page.column("notes")[0] and page.column("site") == ["", HOSTILE, ""]
    assert page.column("scan")[2] == f"sub-{HOSTILE}" and "49" not in page.script[0]
    assert not any(name.startswith("on") for name in page.attributes)


def test_links_are_relative_whatever_a_label_holds(tmp_path):
    record(tmp_path, 1, scan="sub-01", report="javascript:alert(1).html")
    (tmp_path / "javascript:alert(1).html").touch()
    record(tmp_path, 2, scan="sub-02", report="#a b?.html")
    (tmp_path / "#a b?.html").touch()
    record(tmp_path, 3, scan="sub-03", report="../outside.html")
    links = CohortPage(write_index(tmp_path)).data["links"][:3]
    assert links == ["javascript%3Aalert%281%29.html", "%23a%20b%3F.html", ""]


def many(folder, n: int) -> list[dict]:
    """Rows of n scans of a simulated cohort: motion with a tail, one in 50 failed."""
    rng, rows = np.random.default_rng(0), []
    for number in range(n):
        if number % 50 == 49:
            error = f"sub-{number:04d}_ses-1_task-rest (/data/sub-{number:04d}/func/x_bold.nii.gz): too short: {number} frames are left"
            rows.append(row_of(folder, number, status="failed", error=error))
            continue
        motion, agreement = float(rng.gamma(3, 0.05)), float(rng.normal(0.75, 0.04))
        figures = {"mean_fd": motion, "agreement": agreement, "expected_agreement": agreement, "ece": 0.02 * motion, "coverage": 1.0}
        said = "the head moved a lot in this recording, so that the network has to be treated with care" if motion > 0.25 else ""
        figures |= {"minutes": 8.0, "n_frames": 240, "moved": 0.2, "n_absent": 0, "n_warnings": int(bool(said)), "qc_warnings": said}
        rows.append(row_of(folder, number, **figures))
    return rows


def test_five_thousand_scans_are_one_small_page_that_needs_nothing_else(tmp_path):
    file = write_index(tmp_path, many(tmp_path, 5000))
    page = CohortPage(file)
    assert file.stat().st_size < 2_000_000
    assert len(page.data["links"]) == 5000 and len(page.links) == 4900
    pages = {one.name for one in tmp_path.iterdir()}
    assert all(unquote(link) in pages for link in page.links)
    assert all(unquote(link) in pages for link in page.addresses if not link.startswith(("data:", "#")))
    text = file.read_text("utf-8")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert "default-src 'none'" in text
    # 100 scans failed for one reason: a few are named, all are in the table.
    assert page.text.count("frames are left") < 20 and "Show all 100 in the table" in page.text
    assert len(page.data["reason"]) == 100
    assert page.tags.count("tr") < 100 and page.tags.count("svg") == 6
    assert set(page.data["outliers"]) and "outliers" in page.text


def test_figures_in_which_scans_stand_out(tmp_path):
    rows = many(tmp_path, 60)
    rows[7] |= {"mean_fd": 2.5, "minutes": 3.0}
    page = CohortPage(write_index(tmp_path, rows))
    assert page.data["outliers"]["7"] == ["minutes", "mean_fd"]
    assert "sub-0007_ses-1_task-rest Minutes of signal kept 3.0 min (below" in page.text
    assert "Mean framewise displacement 2.50 mm (above" in page.text and "median ± 3 MAD" in page.text
    assert "below -" not in page.text and "above 10" not in page.text.replace("above 100", "")  # limits that nothing can pass


def test_limits_are_three_scaled_median_deviations():
    values = np.r_[np.random.default_rng(1).normal(5, 2, 400), 30.0]
    found = limits(values)
    middle = np.median(values)
    mad = 1.4826 * np.median(np.abs(values - middle))
    assert_allclose((found.low, found.high), (middle - 3 * mad, middle + 3 * mad))
    assert limits(values[:9]) is None
    same = limits(np.r_[np.ones(19), 0.5])
    assert same.by_mean and same.low == pytest.approx(1 - 3 * 1.2533 * 0.5 / 20)
    rows = [{"coverage": value, "atlas": ATLAS, "site": ""} for value in np.r_[np.ones(30), 0.995, 0.4]]
    spread = distribution(next(figure for figure in FIGURES if figure.key == "coverage"), rows)
    assert list(outliers([spread])) == [31]  # half a per cent does not matter


def test_a_value_is_compared_with_results_for_its_atlas_and_from_its_site(tmp_path):
    """Atlas B agrees less than A, site X moves more than Y: neither makes an outlier. A site of few is compared with the whole atlas."""
    rng, rows = np.random.default_rng(0), []
    for atlas, agreement in (("A", 0.9), ("B", 0.5)):
        for number in range(44):
            site = "X" if number < 20 else "Y" if number < 40 else "Z"
            motion = 0.5 if site == "X" else 0.1
            figures = {"agreement": agreement + rng.normal(0, 0.01), "mean_fd": motion + rng.normal(0, 0.01)}
            rows.append(row_of(tmp_path, number, atlas=atlas, **figures))
    rows[3] |= {"agreement": 0.5}  # as is usual for the other atlas
    rows[25] |= {"mean_fd": 0.5}  # as is usual for the other site
    table = "".join(f"{number:04d}\t{'X' if number < 20 else 'Y' if number < 40 else 'Z'}\n" for number in range(44))
    (tmp_path / "participants.tsv").write_text(f"participant_id\tsite\n{table}")
    for stray in tmp_path.glob("*.html"):
        stray.unlink()
    page = CohortPage(write_index(tmp_path, rows))
    assert page.data["outliers"].get("3") == ["agreement"] and page.data["outliers"].get("25") == ["mean_fd"]
    assert len(page.data["outliers"]) < 6
    assert "for each atlas and within each site that has at least 10 results (X, Y); results from other sites" in page.text
    assert "not the same for all results" in page.text and ", the limit of site Y" in page.text
    assert "88 results of 44 scans of 44 participants: 88 finished" in page.text and "results, by the rule below" in page.text


@pytest.mark.parametrize(("low", "high"), [(0.03, 0.52), (2.4, 8.0), (0, 100), (99, 100), (1e-4, 3e-3), (5, 5)])
def test_ticks_are_few_and_inside(low, high):
    found = ticks(low, high)
    assert 1 <= len(found) <= 6 and low <= min(found) and max(found) <= high


def test_reasons_that_differ_in_names_and_numbers_are_one():
    texts = [
        "sub-01_ses-1 (/a/b/sub-01_bold.nii.gz): confounds file /a/b/sub-01.tsv has 12 rows",
        "sub-02 (/a/b/c.nii.gz): confounds file /x/y/z.tsv has 9 rows",
        "RuntimeError: out of memory",
        "",
        "/a/b/sub-03_dseg.tsv: no such file",
    ]
    found = kinds(texts)
    assert [(kind.title, kind.members) for kind in found] == [
        ("confounds file … has … rows", [0, 1]),
        ("RuntimeError: out of memory", [2]),
        ("no reason was recorded", [3]),
        ("no such file", [4]),
    ]
    assert bare(texts[2]) == texts[2] and bare(texts[4]) == texts[4]  # which file is missing must be said


def test_reasons_for_the_atlas_are_those_of_the_construction():
    """The phrases by which the report knows a reason are still what the construction says."""
    source = re.sub(r'"\s*\n\s*f?"', "", inspect.getsource(construction_qc))
    for phrase, _ in DECISIONS:
        assert phrase in source, phrase
    assert decision("something new") == "something new"


def test_decisions_and_sites(tmp_path):
    folder = tmp_path / "derivatives"
    data = tmp_path / "dataset"
    folder.mkdir()
    data.mkdir()
    (data / "participants.tsv").write_text("participant_id\tSite\nsub-0001\tYale\nsub-0002\tYale\n0003\tNYU\n")
    source = str(data / "derivatives" / "fmriprep" / "sub-{0}" / "func" / "sub-{0}_bold.nii.gz")
    reason = "across halves …, which does not exclude zero: a longer scan would help, so the atlas is kept"
    record(folder, 1, source=source.format("0001"), minutes=8, moved=0.2)
    record(folder, 2, source=source.format("0002"), minutes=6, parcels="atlas", reason=reason, moved=0.0)
    record(folder, 3, source=source.format("0003"), status="failed", error="damaged")
    record(folder, 4, source=source.format("0004"), parcels="atlas", reason=reason, moved=0.0)
    page = CohortPage(write_index(folder))
    assert page.column("site") == ["Yale", "Yale", "NYU", ""]
    assert "NYU 1 1 (100 %) –" in page.text and "Yale 2 0 50 % 7.0 min (6.5–7.5)" in page.text and "unknown 1 0 0 %" in page.text
    assert "personalised: 1 (33 %)" in page.text and "atlas returned: 2 (67 %)" in page.text
    assert "2 The gain over data-free parcels is not distinguishable from zero." in page.text


def test_without_participants_there_are_no_sites(tmp_path):
    record(tmp_path, 1)
    assert "Sites" not in CohortPage(write_index(tmp_path)).text


def variant(seed: int, make=helpers.make_network, **fields):
    """A network whose labels and edges differ from seed to seed."""
    network, rng = make(), np.random.default_rng(seed)
    swapped = (rng.random(len(network.labels)) < 0.3) & (network.labels >= 0)
    labels = np.where(swapped, network.candidates[:, 1].clip(0), network.labels).astype(np.int32)
    edges = {"pearson": helpers.correlation(rng.normal(size=(helpers.K, helpers.T)).astype(np.float32))}
    return dataclasses.replace(network, labels=labels, subject=f"{seed:02d}", edges=edges, halves={}, **fields)


@pytest.mark.parametrize("make", [helpers.make_network, helpers.cifti_network, helpers.points_network], ids=["grid", "cifti", "points"])
def test_maps_of_a_result_are_those_of_its_network(make, tmp_path):
    network = make()
    maps = load_maps(save(network, tmp_path)[-1])
    at = tuple(network.space.grid.ijk.T) if maps.affine is not None else slice(None)
    for found, labels in ((maps.labels, network.labels), (maps.atlas_labels, network.atlas_labels)):
        assert np.array_equal(found[at], np.where(labels >= 0, network.ids[labels], 0))
    assert_allclose(maps.confidence[at], network.confidence, atol=1e-6)


@pytest.mark.parametrize("make", [helpers.make_network, helpers.cifti_network, helpers.points_network], ids=["grid", "cifti", "points"])
def test_group_maps_are_shares_and_means_over_the_scans(make, tmp_path):
    networks = [variant(seed, make) for seed in (1, 2, 3)]
    files = [save(network, tmp_path, probabilities=False)[-1] for network in networks]
    sums, left_out = add_maps([*files, tmp_path / "sub-09_dseg.tsv"])
    assert sums.scans == 3 and left_out == 1
    labels, prior, confidence = (np.stack([getattr(one, key) for one in networks]) for key in ("labels", "atlas_labels", "confidence"))
    inside = (labels >= 0) & (prior >= 0)
    at = tuple(networks[0].space.grid.ijk.T) if sums.first.affine is not None else slice(None)
    often = 2 * inside.sum(0) >= 3
    expected = ((labels != prior) & inside).sum(0)[often] / inside.sum(0)[often]
    assert_allclose(sums.mean(sums.changed)[at][often], expected)
    assert_allclose(sums.mean(sums.confidence)[at][often], (confidence * inside).sum(0)[often] / inside.sum(0)[often], atol=1e-6)
    assert np.isnan(sums.mean(sums.changed)[at][~often]).all()


def test_the_space_that_most_scans_have_is_mapped(tmp_path):
    coarse = helpers.grid_space(helpers.phantom_mask()[1:], helpers.AFFINE, name="MNI152NLin6Asym")
    other = save(helpers.make_network(coarse, subject="0"), tmp_path)[-1]
    files = [save(variant(seed), tmp_path)[-1] for seed in (1, 2)]
    sums, left_out = add_maps([other, *files])
    assert (sums.scans, left_out) == (2, 1) and sums.first.labels.shape == helpers.SHAPE
    assert add_maps([]) == (None, 0)


def test_moments_are_those_of_the_stack(tmp_path):
    networks = [variant(seed) for seed in range(5)]
    files = [save(network, tmp_path, probabilities=False)[-1] for network in networks]
    stack = np.stack([network.edges["pearson"] for network in networks]).astype(float)
    stack[1, 3] = stack[1, :, 3] = np.nan
    moments = Moments.empty(helpers.K)
    for matrix in stack:
        moments.add(matrix)
    known = np.isfinite(stack).sum(0)
    assert_allclose(moments.average[known > 0], np.nanmean(stack[:, known > 0], 0), atol=1e-12)
    assert_allclose(moments.sd[known > 1], np.nanstd(stack[:, known > 1], 0, ddof=1), atol=1e-12)
    assert np.isnan(Moments.empty(2).average).all() and MapSums.empty(load_maps(files[0])).scans == 0
    read = add_edges([*files, tmp_path / "sub-09_dseg.tsv"])
    assert read.scans == 5
    plain = np.stack([network.edges["pearson"] for network in networks])
    assert_allclose(read.average, plain.mean(0), atol=1e-5)


def test_the_sample_is_fixed_and_has_a_scan_of_each_participant():
    rows = [
        {"scan": f"sub-{number:04d}_ses-{ses}", "subject": f"{number:04d}", "atlas": "A", "status": "ok", "dseg": "x"}
        for number in range(MOST + 50)
        for ses in (2, 1)
    ]
    rows += [{"scan": "sub-9999", "subject": "9999", "atlas": "B", "status": "ok", "dseg": "x"}]
    rows += [{"scan": "sub-9998", "subject": "9998", "atlas": "A", "status": "failed"}]
    chosen, participants = sample(rows)
    assert len(chosen) == MOST and participants == MOST + 50
    assert len({row["subject"] for row in chosen}) == MOST and all(row["scan"].endswith("ses-1") for row in chosen)
    again, _ = sample([*rows[::-1], {"scan": "sub-new", "subject": "new", "atlas": "A", "status": "ok", "dseg": "x"}])
    assert len({row["scan"] for row in chosen} ^ {row["scan"] for row in again}) <= 2


@pytest.fixture
def group(tmp_path):
    """A folder with the results of four participants, of whom the last has the parcels of the atlas; and their records."""
    rows = []
    for seed in range(4):
        decision = "atlas" if seed == 3 else "personalised"
        network = variant(seed, qc=QC(selection=Selection(decision=decision)))
        dseg = save(network, tmp_path, probabilities=False)[-1].relative_to(tmp_path).as_posix()
        row = {"scan": scan_label(network), "subject": network.subject, "atlas": ATLAS, "status": "ok", "dseg": dseg}
        rows.append(write_record(tmp_path, row | result_columns(network), {dseg: f"digest {seed}"}, "pnet construct"))
    return tmp_path, rows


def test_the_group_is_drawn(group):
    folder, rows = group
    page = CohortPage(write_index(folder, rows))
    assert page.images == 4 and "All 4 participants with a finished scan" in page.text
    assert "Share of 3 participants with personalised parcels" in page.text
    assert "1 of the 4 participants have the atlas’s parcels" in page.text
    assert "over 4 participants of Pearson’s r between 12 parcels" in page.text


def test_group_figures_are_made_again_only_when_results_change(group, monkeypatch):
    folder, rows = group
    drawn = []
    plate = {"image": "data:image/png;base64,", "backdrop": "", "captions": (), "shape": (1, 2)}
    monkeypatch.setattr(group_drawing, "share_map", lambda *given: drawn.append(given) or plate)
    first = CohortPage(write_index(folder))
    assert len(drawn) == 2
    assert CohortPage(write_index(folder)).addresses == first.addresses and len(drawn) == 2
    another = {key: value for key, value in rows[0].items() if key not in ("files", "command")}
    write_record(folder, another, {rows[0]["dseg"]: "another"}, "pnet construct")
    write_index(folder)
    assert len(drawn) == 4
    # Of a full sample, one in ten may change.
    monkeypatch.setattr(group_drawing, "MOST", 4)
    monkeypatch.setattr(group_drawing, "STALE", 0.25)
    write_record(folder, another, {rows[0]["dseg"]: "a third"}, "pnet construct")
    assert "1 of these results have changed since the figures were made" in CohortPage(write_index(folder)).text and len(drawn) == 4
    assert "have changed since" not in CohortPage(write_index(folder, exact=True)).text and len(drawn) == 6


def test_group_figures_cached_in_another_form_are_made_again(group):
    folder, rows = group
    write_index(folder, rows)
    cache = folder / RECORDS / group_drawing.CACHE
    kept = json.loads(cache.read_text())
    old = [name.replace(f"/{group_drawing.FORM} ", " ", 1) for name in kept["names"]]
    cache.write_text(json.dumps({"names": old, "figures": {"n": 4, "atlas": ATLAS, "maps": {"changed": "data:"}, "edges": None}}))
    assert CohortPage(write_index(folder, rows)).images == 4


def test_a_group_figure_that_fails_does_not_cost_the_page(group, monkeypatch):
    folder, rows = group

    def broken(*_):
        raise RuntimeError("no fonts <here>")

    monkeypatch.setattr(group_drawing, "share_map", broken)
    with pytest.warns(UserWarning, match="the group maps could not be drawn: RuntimeError"):
        page = CohortPage(write_index(folder, rows))
    assert "could not be drawn (RuntimeError: no fonts <here>)" in page.text and page.images == 2


def test_an_empty_folder(tmp_path):
    assert "No scan has been constructed" in CohortPage(write_index(tmp_path)).text
