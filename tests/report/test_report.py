from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from nilearn import plotting

from pnet_jax.outputs import save, scan_label, write_status
from pnet_jax.report import write_index, write_report
from pnet_jax.report.figures import choice_figure
from pnet_jax.report.words import key_numbers, sentences, verdict

_spec = importlib.util.spec_from_file_location("output_helpers", Path(__file__).parents[1] / "outputs" / "helpers.py")
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

SECTIONS = {"parcellation", "change", "fit", "connectome", "motion", "coverage", "warnings", "provenance"}


class Page(HTMLParser):
    """Ids, addresses and text of a page; complains about tags that are not closed."""

    void = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, file: Path):
        super().__init__()
        self.ids, self.addresses, self.words, self.open = set(), [], [], []
        self.feed(file.read_text("utf-8"))
        assert not self.open, f"not closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.ids |= {value for name, value in attrs if name == "id"}
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        assert tag not in ("script", "link", "iframe"), tag
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def images(self) -> int:
        return sum(address.startswith("data:image/png;base64,") for address in self.addresses)


def report(network, file) -> Page:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a figure that could not be drawn warns
        page = Page(write_report(network, file))
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert "url(" not in file.read_text("utf-8") and page.ids >= SECTIONS
    return page


def test_report_of_a_whole_result(tmp_path):
    network = helpers.make_network()
    file = tmp_path / "sub-01.html"
    page = report(network, file)
    assert page.images == 8
    for expected in ("sub-01_ses-a_task-rest_run-1", "40 of 43", "2 s", "15 % of the locations", "supported by the scan", "+0.0201"):
        assert expected in page.text, expected
    assert "only 1.3 minutes were kept <b>" in page.text, "text from the data is escaped"
    assert f"area {helpers.ABSENT}" in page.text and "absent" in page.text and "restored from the prior" in page.text
    assert "config.cleaning.low_pass" in page.text and "00ff" in page.text
    assert list(tmp_path.iterdir()) == [file] and file.stat().st_size < 4e6


@pytest.mark.parametrize(
    ("make", "images", "said"),
    [
        (
            helpers.points_network,
            4,
            ["scan of 30 ROIs, which has no image", "No edges were estimated.", "No motion series came", "not compared"],
        ),
        (helpers.cifti_network, 8, ["grayordinate"]),
        (helpers.native_network, 8, ["on the scan's mean image", "No motion series came"]),
    ],
    ids=["points", "cifti", "native"],
)
def test_report_says_what_is_missing(make, images, said, tmp_path):
    page = report(make(), tmp_path / "page.html")
    assert page.images == images
    for expected in said:
        assert expected in page.text, expected


def test_report_with_next_to_nothing(tmp_path):
    network = helpers.make_network(
        edges={}, qc={}, provenance={}, mean=None, displacement=None, entities={}, signals=np.full((12, 40), np.nan)
    )
    page = report(network, tmp_path / "page.html")
    assert page.images == 3
    for expected in ("No provenance was recorded", "No grid of κ", "No parcel has a signal", "not tested", "Nothing raised"):
        assert expected in page.text, expected


def test_a_chosen_point_without_a_score_is_drawn_without_its_mark():
    """DCBC cannot be measured on a table of ROIs."""
    grid = [{"kappa": k, "beta": 0.2, "dcbc": float("nan") if k == 5.0 else 0.1, "homogeneity": 0.3} for k in (2.0, 5.0, 10.0)]
    assert choice_figure({"kappa": 5.0, "beta": 0.2, "grid": grid})


def test_directed_edges_are_drawn_from_their_columns_to_their_rows(tmp_path, monkeypatch):
    drawn = []
    draw = plotting.plot_connectome
    monkeypatch.setattr(plotting, "plot_connectome", lambda matrix, *given, **named: (drawn.append(matrix), draw(matrix, *given, **named)))
    network, rng = helpers.make_network(), np.random.default_rng(0)
    effective = rng.normal(size=(helpers.K, helpers.K)).astype(np.float32)
    effective[helpers.ABSENT] = effective[:, helpers.ABSENT] = np.nan
    network = dataclasses.replace(network, edges={"effective": effective}, uncertainty={"effective": np.abs(effective)})
    page = report(network, tmp_path / "report.html")
    present = np.arange(helpers.K) != helpers.ABSENT
    expected = effective[np.ix_(present, present)].T  # nilearn's rows are where an arrow begins
    np.fill_diagonal(expected, 0)
    np.testing.assert_array_equal(drawn[0], expected)
    assert "direction of influence" in page.text and "1/s" in page.text


def test_a_figure_that_fails_costs_only_itself(tmp_path, monkeypatch):
    def fail(network):
        raise RuntimeError("no such luck")

    monkeypatch.setattr("pnet_jax.report.brains.change_figure", fail)
    network = helpers.points_network()
    with pytest.warns(UserWarning, match="sub-01: the figure `change` could not be drawn"):
        page = Page(write_report(network, tmp_path / "page.html"))
    assert "could not be drawn (RuntimeError: no such luck)" in page.text and page.images == 3


def test_matplotlib_is_left_as_it_was(tmp_path):
    import matplotlib

    matplotlib.rcParams["font.size"] = 17
    try:
        write_report(helpers.points_network(), tmp_path / "page.html")
        assert matplotlib.rcParams["font.size"] == 17
        assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()
    finally:
        matplotlib.rcParams["font.size"] = matplotlib.rcParamsDefault["font.size"]


@pytest.mark.parametrize(
    ("difference", "decision", "tone", "said"),
    [
        ((0.01, 0.02, 0.03), "personalised", "good", "the scan supports this"),
        ((-0.01, 0.02, 0.03), "personalised", "plain", "cannot be told from the prior"),
        ((-0.03, -0.02, -0.01), "personalised", "warn", "worse than the prior"),
        ((-0.01, 0.02, 0.03), "prior", "warn", "those of the group prior, since the scan does not show that moving them helps: too short."),
        ((np.nan,) * 3, "personalised", "plain", "nothing here says whether"),
        (None, None, "plain", "nothing here says whether"),
    ],
)
def test_words_follow_the_evidence(difference, decision, tone, said):
    selection = {"difference": {"dcbc": difference}, "decision": decision, "reason": "too short, so the prior is kept"}
    network = helpers.points_network()
    network = dataclasses.replace(
        network, qc={"moved": 0.2, "selection": selection, "warnings": [f"prior: {selection['reason']}", "second."]}
    )
    assert said in sentences(network)["change"] and verdict(network)[1] == tone
    assert sentences(network)["beware"] == "Keep in mind: second."
    assert any(card["title"] == "DCBC gain" for card in key_numbers(network)) == bool(difference and np.isfinite(difference[0]))


def test_index_lists_every_scan(tmp_path):
    network = helpers.make_network(subject="0 1")
    label = scan_label(network)
    dseg = save(network, tmp_path, probabilities=False)[-1].relative_to(tmp_path)
    (tmp_path / f"{label}_seg-Schaefer12.html").write_text("")
    (tmp_path / "sub-stray.html").write_text("")
    row = {
        "scan": label,
        "subject": "0 1",
        "atlas": "Schaefer12",
        "status": "ok",
        "seconds": 11.2,
        "n_frames": 40,
        "minutes": 1.3,
        "n_absent": 1,
        "used_prior": False,
    }
    failed = {"scan": "sub-02", "subject": "02", "status": "failed", "error": "too few frames <i>"}
    write_status(tmp_path / "status.tsv", [row | {"dseg": dseg}, failed])
    page = Page(write_index(tmp_path))
    assert sorted(page.addresses) == ["sub-0%201_ses-a_task-rest_run-1_seg-Schaefer12.html", "sub-stray.html"]
    for expected in (label, "personalised", "15 %", "+0.0201", "sub-02", "too few frames <i>", "sub-stray"):
        assert expected in page.text, expected
    assert re.search(r"Scans 3 Finished 1 Failed 1", page.text)


def test_index_of_an_empty_folder(tmp_path):
    assert "No scan is listed" in Page(write_index(tmp_path)).text
