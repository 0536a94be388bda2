from __future__ import annotations

import dataclasses
import html
import importlib.util
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from nilearn import plotting

from pnet_jax.network import QC, Bin, MapScores, Selection, Trial
from pnet_jax.report import brains, figures, write_report
from pnet_jax.report.page import render
from pnet_jax.report.style import ALARM, PERSONAL, drawing
from pnet_jax.report.words import explain, key_numbers, sentences, verdict

_spec = importlib.util.spec_from_file_location("output_helpers", Path(__file__).parents[1] / "outputs" / "helpers.py")
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

SECTIONS = {"parcellation", "confidence", "change", "fit", "connectome", "motion", "coverage", "warnings", "provenance"}


class Page(HTMLParser):
    """Ids, addresses and text of a page; complains about tags that are not closed."""

    void = ("meta", "img", "br", "link", "input", "hr")
    scripts = False  # whether the page has any

    def __init__(self, file: Path):
        super().__init__()
        self.ids, self.addresses, self.words, self.open = set(), [], [], []
        self.tags, self.attributes, self.script = [], set(), []
        self.feed(file.read_text("utf-8"))
        assert not self.open, f"not closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.ids |= {value for name, value in attrs if name == "id"}
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        assert tag not in ("link", "iframe") and (self.scripts or tag != "script"), tag
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.script.append(data)
        elif self.open and self.open[-1] != "style":
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
    assert page.images == 10
    for expected in (
        "sub-01_ses-a_task-rest_run-1",
        "40 of 43",
        "2 s",
        "15 % of the locations",
        "supported by the scan",
        "by 0.120 nats per location (95 % CI [0.080, 0.160]) and by 0.0201 in DCBC (95 % CI [0.0125, 0.0277])",
        "Moved confidently 12 %",
        "Moved doubtfully 3.4 %",
        "Expected agreement 71 %",
        "Calibration error 0.014",
        "Personalised parcels are returned. Across halves",
        "both halves give the same label 61 %",
    ):
        assert expected in page.text, expected
    assert "only 1.3 minutes were kept <b>" in page.text, "text from the data is escaped"
    assert f"area {helpers.ABSENT}" in page.text and "absent" in page.text and "restored from the atlas" in page.text
    assert "config.cleaning.low_pass" in page.text and "00ff" in page.text
    assert list(tmp_path.iterdir()) == [file] and file.stat().st_size < 4e6


@pytest.mark.parametrize(
    ("make", "images", "said"),
    [
        (
            helpers.points_network,
            5,
            ["scan of 30 ROIs, which has no image", "No edges were estimated.", "There is no motion series", "not compared", "calibrated"],
        ),
        (helpers.cifti_network, 10, ["grayordinate"]),
        (helpers.native_network, 10, ["on the scan's mean image", "There is no motion series"]),
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
        edges={}, qc=QC(), provenance={}, mean=None, displacement=None, entities={}, signals=np.full((12, 40), np.nan)
    )
    page = report(network, tmp_path / "page.html")
    assert page.images == 4
    for expected in ("No provenance was recorded", "No settings were", "No parcel has a signal", "not tested", "There are no warnings"):
        assert expected in page.text, expected


def drawn_axes(monkeypatch, module, draw):
    """Axes of the figure that a function draws."""
    taken = []
    save_png = module.as_png
    monkeypatch.setattr(module, "as_png", lambda figure: (taken.append(figure), save_png(figure))[1])
    with drawing():
        assert draw().startswith("data:image/png;base64,")
    return taken[0].axes


def test_the_choice_is_drawn_with_its_trials_and_the_data_free_score(monkeypatch):
    selection = helpers.example_qc().selection
    (axes,) = drawn_axes(monkeypatch, figures, lambda: figures.choice_figure(selection))
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert list(lines) == ["β = 0.1", "β = 0.2", "β = 0.4", "data-free (κ = 0)", "chosen: κ = 6.3, β = 0.4"]
    assert lines["β = 0.2"][:, 0].tolist() == [2, 5, 6.3, 10] and len(lines["β = 0.1"]) == 1
    assert lines["chosen: κ = 6.3, β = 0.4"].tolist() == [[6.3, 1.34]]
    assert lines["data-free (κ = 0)"][:, 1].tolist() == [1.22, 1.22] and axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "5", "6.3", "10"]


def test_settings_that_were_not_measured_are_drawn_without_a_mark():
    assert figures.choice_figure(Selection()) is None
    assert figures.choice_figure(Selection(trials=(Trial(2.0, 0.2, float("nan"), 1.0),))) is None
    assert figures.choice_figure(Selection(trials=(Trial(2.0, 0.2, 1.0, 1.0),)))


def test_fit_shows_three_maps_and_both_gains(monkeypatch):
    selection = helpers.example_qc().selection
    axes = drawn_axes(monkeypatch, figures, lambda: figures.fit_figure(selection))
    assert [panel.get_title(loc="left") for panel in axes] == ["DCBC", "Homogeneity", "Gain, nats per location", "Gain, DCBC"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["personalised", "data-free", "atlas"]
    # Of a table of ROIs, DCBC cannot be measured.
    selection = Selection(personalised=MapScores(homogeneity=0.3), atlas=MapScores(homogeneity=0.2), gain=(0.1, 0.2, 0.3))
    axes = drawn_axes(monkeypatch, figures, lambda: figures.fit_figure(selection))
    assert [panel.get_title(loc="left") for panel in axes] == ["Homogeneity", "Gain, nats per location"]
    assert figures.fit_figure(Selection()) is None


def test_reliability_shows_the_curve_and_its_error(monkeypatch):
    network = helpers.make_network()
    left, right = drawn_axes(monkeypatch, figures, lambda: figures.reliability_figure(network))
    assert left.get_title(loc="left") == "Reliability (ECE = 0.014)"
    np.testing.assert_allclose(left.collections[0].get_offsets(), [[0.35, 0.33], [0.55, 0.52], [0.85, 0.87]])
    assert np.all(np.diff(left.collections[0].get_sizes()) > 0), "more locations are a larger point"
    counted = sum(bar.get_height() for bar in right.patches)
    assert counted == ((network.labels >= 0) & (network.atlas_labels >= 0)).sum()
    assert figures.reliability_figure(dataclasses.replace(network, qc=QC())) is None
    one = dataclasses.replace(network.qc.calibration, curve=(Bin(3, 0.5, 0.5),))
    assert figures.reliability_figure(dataclasses.replace(network, qc=QC(calibration=one)))


def test_confident_and_doubtful_moves_have_colours_of_their_own():
    network = helpers.make_network()
    mark, names = brains._changes(network)
    assert list(names.values())[1:] == [PERSONAL, ALARM]
    moved = (network.labels != network.atlas_labels) & (network.labels >= 0)
    assert (mark[moved] == np.where(network.confidence >= 0.5, 2, 3)[moved]).all() and {2, 3} <= set(mark.tolist())
    assert (mark[~moved & (network.labels >= 0)] == 1).all() and (mark[network.labels < 0] == 0).all()
    # Without a saved soft parcellation, nobody knows which are which.
    hard = dataclasses.replace(network, candidates=network.labels[:, None], probabilities=np.ones((len(network.labels), 1), np.float32))
    assert list(brains._changes(hard)[1]) == ["as in the atlas", "changed"]
    assert brains.confidence_figure(hard) is None


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
    assert "could not be drawn (RuntimeError: no such luck)" in page.text and page.images == 4


def test_matplotlib_is_left_as_it_was(tmp_path):
    import matplotlib

    matplotlib.rcParams["font.size"] = 17
    try:
        write_report(helpers.points_network(), tmp_path / "page.html")
        assert matplotlib.rcParams["font.size"] == 17
        assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()
    finally:
        matplotlib.rcParams["font.size"] = matplotlib.rcParamsDefault["font.size"]


BOTH = ((0.01, 0.02, 0.03), (0.001, 0.002, 0.003))
LONGER = "7 degrees of freedom, expected at least 10: a longer scan or fewer regressors would help, so the atlas is kept"


@pytest.mark.parametrize(
    ("gains", "decision", "reason", "tone", "said"),
    [
        (BOTH, "personalised", "across halves they gain", "good", "the scan supports this: parcels made from one half"),
        (
            ((-0.01, 0.02, 0.03), BOTH[1]),
            "personalised",
            "forced by the configuration, although not supported: they gain little",
            "warn",
            "does not support this, and the configuration forced it: they gain little. Do not rely",
        ),
        (BOTH, "personalised", "forced by the configuration, although not supported: too short", "warn", "forced it: too short."),
        (BOTH, "atlas", LONGER, "warn", "does not support personalised parcels: 7 degrees of freedom, expected at least 10: a longer scan"),
        (((np.nan,) * 3,) * 2, "personalised", "", "plain", "nothing here says whether"),
        (((np.nan,) * 3,) * 2, "fixed", "", "plain", "nothing here says whether"),
    ],
)
def test_words_follow_the_evidence(gains, decision, reason, tone, said):
    selection = Selection(decision=decision, reason=reason, gain=gains[0], dcbc_gain=gains[1])
    warnings = (f"the parcels of the atlas are returned: {reason}",) * bool(reason) + ("second.",)
    network = dataclasses.replace(helpers.points_network(), qc=QC(moved=0.2, selection=selection, warnings=warnings))
    assert said in sentences(network)["change"] and verdict(network)[1] == tone
    assert said in explain(network)
    assert sentences(network)["beware"] == "Keep in mind: second."
    titles = {card["title"] for card in key_numbers(network)}
    assert ({"Gain", "DCBC gain"} <= titles) == bool(np.isfinite(gains).all())


def test_a_returned_atlas_says_why_and_what_would_help(tmp_path):
    network = helpers.make_network()
    selection = dataclasses.replace(network.qc.selection, decision="atlas", reason=LONGER)
    qc = dataclasses.replace(network.qc, selection=selection, calibration=None, moved=0.0)
    page = report(dataclasses.replace(network, qc=qc, labels=network.atlas_labels), tmp_path / "page.html")
    for expected in (
        "atlas returned",
        "The parcels of the atlas are returned. 7 degrees of freedom, expected at least 10: a longer scan or fewer regressors would help",
        "shows the spatial prior",
        "there are no replication probabilities",
        "no location changed its parcel",
    ):
        assert expected in page.text, expected
    assert page.images == 8


def test_explain_gives_a_line_for_each_part():
    network = helpers.make_network()
    fit = {"ok": True, "prior_held_out": 1.5, "held_out": 1.25, "regularised": True}
    dynamics = {"participants": 3, "fit": fit, "parcels": {"kept": False, "reason": "no gain"}, "effective": {"ok": False, "sd": [1, 2]}}
    lines = explain(dataclasses.replace(network, qc=dataclasses.replace(network.qc, dynamics=dynamics))).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["Atlas", "Parcels", "Replication", "Dynamics", "Not determined by the scan"]
    assert "expected to give 71 % of the locations the same label (expected calibration error 0.014)" in lines[2]
    assert "predict held-out data better than the group's, learned from 3 participants (log-likelihood +0.2500 per" in lines[3]
    assert "1 parcel without any location" in lines[4] and "the direction of the coupling" in lines[4]


def test_a_page_names_the_group_s_map_where_a_group_taught_the_spatial_prior():
    selection = Selection(decision="atlas", reason="no gain, so the group's map is kept", gain=(-1, 0, 1), dcbc_gain=(-1, 0, 1))
    taught = {"group": {"digest": "00", "participants": 9, "spatial_prior": True}}
    network = helpers.make_network(qc=QC(selection=selection, moved=0.0), provenance=taught)
    network = dataclasses.replace(network, labels=network.atlas_labels)
    assert verdict(network)[0] == "group's map returned"
    expected = "The parcels shown are those of the group's map, because the scan does not support personalised parcels: no gain."
    assert sentences(network)["change"] == expected
    assert f"Parcels: those of the group's map, unchanged. {expected}" in explain(network)
    assert "whether any border of the group's map should move" in explain(network)
    page = html.unescape(render(network))
    for said in ("Change from the group's map", "The parcels of the group's map are returned.", "depends on the group alone"):
        assert said in page, said
    edges_alone = dataclasses.replace(network, provenance={"group": taught["group"] | {"spatial_prior": False}})
    assert edges_alone.start == "the atlas" and "those of the atlas" in sentences(edges_alone)["change"]
