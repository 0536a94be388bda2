from __future__ import annotations

import dataclasses
import sys

import pytest

from pnet_jax.outputs import network_atlas, page_name, save, scan_label, write_record
from pnet_jax.outputs.status import digests
from pnet_jax.report import ReportExtraMissingError, report_folder, write_index, write_report
from pnet_jax.report.words import sentence

from .test_cohort_report import CohortPage
from .test_report import Page, helpers

LABEL = "sub-01_ses-a_task-rest_run-1"
PAGE = f"{LABEL}_seg-Schaefer12.html"


@pytest.fixture
def quick(monkeypatch):
    """Pages without figures: what is tested here is which pages there are."""
    monkeypatch.setattr("pnet_jax.report.page._attempt", lambda *given: {"found": None, "error": None})


def test_the_page_is_that_of_the_run(tmp_path):
    """What is read back makes the page that the Network in memory makes, figures included."""
    network = helpers.make_network()
    save(network, tmp_path)
    assert report_folder(tmp_path) == tmp_path / "index.html"
    page, direct = (Page(file) for file in (tmp_path / PAGE, write_report(network, tmp_path / "direct.html")))
    assert page.text == direct.text and page.images == direct.images == 8
    # Files hold probabilities in steps of 1/65535, which may change the colour of a location in the confidence map.
    assert sum(own != other for own, other in zip(page.addresses, direct.addresses, strict=True)) <= 1
    assert CohortPage(tmp_path / "index.html").links == [PAGE]


@pytest.mark.parametrize("make", [helpers.native_network, helpers.cifti_network, helpers.points_network], ids=["native", "cifti", "points"])
def test_every_kind_of_scan_has_its_page(make, tmp_path, quick):
    network = make()
    save(network, tmp_path)
    report_folder(tmp_path)
    name = page_name(scan_label(network), network_atlas(network).label)
    page, direct = (Page(file) for file in (tmp_path / name, write_report(network, tmp_path / "direct.html")))
    assert page.text == direct.text


def test_status_says_what_there_is(tmp_path, quick):
    first, second, third = (helpers.make_network(subject=name) for name in ("01", "02", "03"))
    tables = [save(network, tmp_path, probabilities=False)[-1].relative_to(tmp_path) for network in (first, second, third)]
    rows = [
        {"scan": scan_label(n), "subject": n.subject, "status": "ok", "minutes": 9.25, "dseg": t}
        for n, t in zip((first, second), tables, strict=False)
    ]
    for row in [*rows, {"scan": "sub-04", "subject": "04", "status": "failed", "error": "too short"}]:
        write_record(tmp_path, row, {}, "pnet construct")
    next((tmp_path / "sub-02").rglob("*_desc-atlas_labels.nii.gz")).unlink()
    seen = []
    with pytest.warns(UserWarning, match=r"sub-02.*the page could not be written: .*desc-atlas_labels\.nii\.gz: no such file"):
        index = report_folder(tmp_path, lambda *step: seen.append(step))
    assert sorted(page.name for page in tmp_path.glob("*.html")) == ["index.html", PAGE, PAGE.replace("01", "03", 1)]
    page = CohortPage(index)
    assert page.column("status") == ["ok", "unreadable", "failed", "ok"] and 9.2 in page.column("minutes")
    for expected in (
        "desc-atlas_labels.nii.gz: no such file",
        "too short",
        "2 finished, 1 failed, 1 unreadable",
        "Use --resume to",
    ):
        assert expected in page.text, expected
    assert [step[1:] for step in seen] == [(k, 4) for k in range(5)] and seen[0][0] == LABEL and seen[-1][0] == ""


def test_a_result_that_changed_since_it_was_recorded_has_no_page(tmp_path, quick):
    files = save(helpers.make_network(), tmp_path, probabilities=False)
    row = {"scan": LABEL, "subject": "01", "status": "ok", "dseg": files[-1].relative_to(tmp_path).as_posix()}
    page = {PAGE: "a page that is gone is made again"}
    write_record(tmp_path, row, digests(tmp_path, files) | page, "pnet construct")
    assert CohortPage(report_folder(tmp_path)).links == [PAGE]
    table = next(file for file in files if file.name.endswith("_timeseries.tsv"))
    table.write_text(table.read_text().replace("1", "2", 1))
    with pytest.warns(UserWarning, match=f"{table.name}: missing, or changed after it was written"):
        report_folder(tmp_path)


def test_without_a_status_table_results_are_searched(tmp_path, quick):
    save(helpers.points_network(), tmp_path)
    network = helpers.make_network()
    save(network, tmp_path, probabilities=False)
    fewer = [name for name in dir(network) if name in ("ids", "names", "hemispheres", "coverage", "signals")]
    other = dataclasses.replace(network, **{name: getattr(network, name)[:11] for name in fewer}, edges={}, halves={})
    labels = {name: getattr(network, name).clip(max=10) for name in ("labels", "atlas_labels", "candidates")}
    save(dataclasses.replace(other, **labels), tmp_path, probabilities=False)
    incomplete = save(helpers.make_network(subject="09"), tmp_path)[-1]
    incomplete.unlink()
    page = CohortPage(report_folder(tmp_path))
    second = f"{LABEL}_space-MNI152NLin6Asym_atlas-pnet_seg-Schaefer12_scale-12_res-8.html"
    assert sorted(page.links) == sorted(["sub-01_seg-atlas12.html", PAGE, second])
    assert "11 areas" in Page(tmp_path / PAGE).text and "12 areas" in Page(tmp_path / second).text
    assert "3 scans of 1 participant: 3 finished, 0 failed." in page.text and "personalised" in page.column("parcels")
    assert not (tmp_path / "status.tsv").exists()
    # Once more, nothing is added.
    assert sorted(CohortPage(report_folder(tmp_path)).links) == sorted(page.links)


def test_each_atlas_of_a_scan_has_its_page(tmp_path, quick):
    first, rows = helpers.make_network(), []
    other = dataclasses.replace(first, provenance=first.provenance | {"atlas": {"source": "Glasser12_dseg.nii.gz", "digest": "bb"}})
    for network in (first, other):
        table, atlas = save(network, tmp_path, probabilities=False)[-1].relative_to(tmp_path), network_atlas(network).label
        rows.append({"scan": LABEL, "subject": "01", "atlas": atlas, "status": "ok", "dseg": table})
    for row in rows:
        write_record(tmp_path, row, {}, "pnet construct")
    page = CohortPage(report_folder(tmp_path))
    assert sorted(page.links) == [PAGE.replace("Schaefer", "Glasser"), PAGE]
    assert (
        "Atlas Glasser12" in Page(tmp_path / PAGE.replace("Schaefer", "Glasser")).text and "Atlas Schaefer12" in Page(tmp_path / PAGE).text
    )


def test_folders_without_results(tmp_path):
    with pytest.raises(ValueError, match=r"no result to report: expected \*\*/sub-\*_atlas-pnet_\*_dseg\.tsv"):
        report_folder(tmp_path)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        report_folder(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_scan_that_failed_has_no_page(tmp_path):
    for row in ({"scan": "sub-04", "status": "failed", "error": "too short"}, {"scan": "sub-05", "status": "ok"}):
        write_record(tmp_path, row, {}, "pnet construct")
    with pytest.warns(UserWarning, match=r"sub-05: the page could not be written: its record does not name its _dseg\.tsv"):
        assert "too short" in CohortPage(report_folder(tmp_path)).text


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    network = helpers.points_network()
    save(network, tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for attempt in (lambda: write_report(network, tmp_path / "a.html"), lambda: report_folder(tmp_path), lambda: write_index(tmp_path)):
        with pytest.raises(ReportExtraMissingError, match=r"jinja2, not installed here: pip install 'pnet_jax\[report\]'") as caught:
            attempt()
        assert isinstance(caught.value, ImportError) and isinstance(caught.value, ValueError)
    assert sorted(tmp_path.iterdir()) == before


def test_sentences_begin_and_end_as_sentences():
    assert sentence("no confounds were given") == "No confounds were given."
    assert sentence("sub-01: too short.") == "sub-01: too short." and sentence("") == ""
