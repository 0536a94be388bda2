from __future__ import annotations

import base64
import dataclasses
import html
import importlib.util
import io
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pnet_jax.network import QC, Bin, MapScores, Selection, Trial
from pnet_jax.outputs import images
from pnet_jax.report import brains, figures, linked, write_report
from pnet_jax.report.methods import methods
from pnet_jax.report.page import render
from pnet_jax.report.png import png
from pnet_jax.report.words import explain, key_numbers, sentences, verdict

_spec = importlib.util.spec_from_file_location("output_helpers", Path(__file__).parents[1] / "outputs" / "helpers.py")
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

SECTIONS = {
    "reliability",
    "confidence",
    "parcellation",
    "connectome",
    "change",
    "fit",
    "motion",
    "coverage",
    "warnings",
    "provenance",
    "methods",
}


class Page(HTMLParser):
    """Ids, addresses and text of a page; complains about tags that are not closed."""

    void = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, file: Path):
        super().__init__()
        self.ids, self.addresses, self.words, self.open = set(), [], [], []
        self.tags, self.attributes, self.script, self.charts = [], set(), [], []
        self.feed(file.read_text("utf-8"))
        assert not self.open, f"not closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.ids |= {value for name, value in attrs if name == "id"}
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.tags.append(tag)
        self.charts += [dict(attrs)["aria-label"]] if tag == "svg" else []
        self.attributes |= {name for name, _ in attrs}
        assert tag not in ("link", "iframe"), tag
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
    def data(self) -> dict:
        """What the script of the page reads."""
        return json.loads(self.script[0])

    @property
    def images(self) -> int:
        return sum(address.startswith("data:image/png;base64,") for address in self.addresses)


def report(network, file) -> Page:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a figure that could not be drawn warns
        page = Page(write_report(network, file))
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    text = file.read_text("utf-8")
    assert set(re.findall(r"url\((?!data:image/png;base64,|#arrow)", text)) == set() and page.ids >= SECTIONS
    return page


def test_report_of_a_whole_result(tmp_path):
    network = helpers.make_network()
    file = tmp_path / "sub-01.html"
    page = report(network, file)
    assert page.images == 8 and len(page.charts) == 12
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
        (helpers.cifti_network, 8, ["grayordinate"]),
        (helpers.native_network, 8, ["on the scan's mean image", "There is no motion series"]),
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


def drawn(panel) -> ElementTree.Element:
    """The SVG of a panel."""
    return ElementTree.fromstring(re.match(r"<svg.*?</svg>", panel.body, re.S)[0])


def marks(panel, tag: str, kind: str) -> list[dict]:
    """Attributes of the marks of a kind, each with what is said of it."""
    found = [one for one in drawn(panel).iter(tag) if kind in one.get("class", "").split()]
    return [dict(one.attrib) | {"said": one.findtext("title")} for one in found]


def said(panel) -> list[str]:
    return [one.text for one in drawn(panel).iter("text")]


def test_the_choice_is_drawn_with_its_trials_and_the_data_free_score():
    selection = helpers.example_qc().selection
    (panel,) = figures.choice(selection)
    assert [name for name, _ in panel.keys] == ["β = 0.1", "β = 0.2", "β = 0.4", "data-free (κ = 0)", "chosen: κ = 6.3, β = 0.4"]
    assert [one["said"] for one in marks(panel, "circle", "mark")] == [
        "κ = 6.3, β = 0.1: S = 1.310",
        "κ = 2, β = 0.2: S = 1.168",
        "κ = 10, β = 0.2: S = 1.200",
        "κ = 5, β = 0.2: S = 1.300",
        "κ = 6.3, β = 0.2: S = 1.320",
        "κ = 6.3, β = 0.4: S = 1.340",
    ]
    (ring,), (free,) = marks(panel, "circle", "ring"), marks(panel, "line", "c-free")
    last = marks(panel, "circle", "mark")[-1]
    assert (ring["cx"], ring["cy"]) == (last["cx"], last["cy"]) and float(free["y1"]) > float(last["cy"])
    # κ is on a logarithmic axis.
    places = {one["said"].split(",")[0]: float(one["cx"]) for one in marks(panel, "circle", "mark")}
    assert places["κ = 5"] - places["κ = 2"] == pytest.approx((places["κ = 10"] - places["κ = 5"]) * np.log(2.5) / np.log(2), abs=0.2)
    assert {"2", "5", "6.3", "10"} <= set(said(panel))


def test_settings_that_were_not_measured_are_drawn_without_a_mark():
    assert figures.choice(Selection()) == []
    assert figures.choice(Selection(trials=(Trial(2.0, 0.2, float("nan"), 1.0),))) == []
    (panel,) = figures.choice(Selection(trials=(Trial(2.0, 0.2, 1.0, 1.0),)))
    assert len(marks(panel, "circle", "mark")) == 1 and not marks(panel, "circle", "ring")


def test_fit_shows_three_maps_and_both_gains():
    selection = helpers.example_qc().selection
    panels = figures.fit(selection)
    assert [panel.title for panel in panels] == ["DCBC", "Homogeneity", "Gain, nats per location", "Gain in DCBC"]
    assert {"personalised", "data-free", "atlas", "0.0610", "0.0420", "0.0410"} <= set(said(panels[0]))
    assert "+0.120 [+0.080, +0.160]" in said(panels[2]) and marks(panels[2], "rect", "c-personal")
    # Of a table of ROIs, DCBC cannot be measured.
    selection = Selection(personalised=MapScores(homogeneity=0.3), atlas=MapScores(homogeneity=0.2), gain=(-0.3, -0.2, -0.1))
    panels = figures.fit(selection)
    assert [panel.title for panel in panels] == ["Homogeneity", "Gain, nats per location"]
    assert marks(panels[1], "rect", "c-alarm") and "−0.200 [−0.300, −0.100]" in said(panels[1])
    assert figures.fit(Selection()) == []


def test_reliability_shows_the_curve_and_its_error():
    network = helpers.make_network()
    curve, histogram = figures.reliability(network)
    assert curve.title == "Reliability (ECE = 0.014)"
    dots = marks(curve, "circle", "c-personal")
    assert [one["said"] for one in dots] == [
        "probability 0.35, replicated 0.33, n = 120 locations",
        "probability 0.55, replicated 0.52, n = 600 locations",
        "probability 0.85, replicated 0.87, n = 900 locations",
    ]
    assert np.all(np.diff([float(one["r"]) for one in dots]) > 0), "more locations are a larger point"
    kept, moved = (marks(histogram, "rect", kind) for kind in ("c-null", "c-personal"))
    counted = [re.search(r": ([\d,]+) as in the atlas, ([\d,]+) moved", one["said"]).groups() for one in kept]
    inside = (network.labels >= 0) & (network.atlas_labels >= 0)
    assert sum(int(count.replace(",", "")) for pair in counted for count in pair) == inside.sum() and moved
    assert figures.reliability(dataclasses.replace(network, qc=QC())) == []
    one = dataclasses.replace(network.qc.calibration, curve=(Bin(3, 0.5, 0.5),))
    assert figures.reliability(dataclasses.replace(network, qc=QC(calibration=one)))


def test_scrubbed_frames_are_marked():
    network = helpers.make_network()
    motion, signals = figures.motion(network)
    assert motion.note == "3 of 43 frames were scrubbed." and len(marks(motion, "rect", "c-scrubbed")) == 3
    assert motion.keys == (("scrubbed, n = 3", "c-alarm"),)
    pixels = read_png(re.search(r'href="([^"]+)"', signals.body)[1])
    assert pixels.shape == (helpers.K - 1, 43, 4)
    assert [k for k in range(43) if (pixels[:, k, 3] < 255).all()] == list(helpers.DROPPED)


def read_png(address: str) -> np.ndarray:
    """The pixels of an image in a `data:` address."""
    from matplotlib import image

    return np.rint(image.imread(io.BytesIO(base64.b64decode(address.partition(",")[2])), "png") * 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_is_read_back(channels):
    pixels = np.random.default_rng(channels).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    np.testing.assert_array_equal(read_png(png(pixels)).reshape(5, 7, channels), pixels)


def test_maps_show_each_location_where_it_is():
    network = helpers.make_network()
    views = brains.plate(network)
    assert views.backdrop and [text for _, _, text in views.captions].count("L") == 2
    shown = views.pixels[views.pixels >= 0]
    assert (network.labels[shown] >= 0).all() or (network.atlas_labels[shown] >= 0).all()
    colours = (images.parcel_colors(network.ids) * 255).round().astype(int)
    pixels = read_png(brains.parcel_map(network, views, network.labels))
    inside = (views.pixels >= 0) & (network.labels[views.pixels] >= 0)
    np.testing.assert_array_equal(pixels[inside][:, :3], colours[network.labels[views.pixels[inside]]])
    assert (pixels[~inside][:, 3] == 0).all()
    # In the first slice, left is left and what is above lies further to the front.
    height, width = views.shape
    first = views.pixels[: height // 2, : width // 6]
    rows, columns = np.nonzero(first >= 0)
    xyz = network.space.xyz[first[rows, columns]]
    assert np.corrcoef(columns, xyz[:, 0])[0, 1] > 0.99 and np.corrcoef(rows, xyz[:, 1])[0, 1] < -0.99
    assert len(np.unique(xyz[:, 2])) == 1


@pytest.mark.parametrize("make", [helpers.points_network, helpers.cifti_network], ids=["points", "cifti"])
def test_views_from_outside_show_the_nearest_location(make):
    network = make()
    views = brains.plate(network)
    middle = views.pixels[:, views.shape[1] // 3 : 2 * views.shape[1] // 3]  # from above
    highest = int(network.space.xyz[:, 2].argmax())
    assert (middle == highest).sum() >= (middle == int(network.space.xyz[:, 2].argmin())).sum() > -1 and (middle == highest).any()


def test_confident_and_doubtful_moves_have_colours_of_their_own():
    network = helpers.make_network()
    mark, names = brains.changes(network)
    assert list(names.values())[1:] == [brains.PERSONAL, brains.ALARM]
    moved = (network.labels != network.atlas_labels) & (network.labels >= 0)
    assert (mark[moved] == np.where(network.confidence >= 0.5, 1, 2)[moved]).all() and {1, 2} <= set(mark.tolist())
    assert (mark[~moved & (network.labels >= 0)] == 0).all() and (mark[network.labels < 0] == -1).all()
    # Without a saved soft parcellation, which are which is unknown.
    hard = dataclasses.replace(network, candidates=network.labels[:, None], probabilities=np.ones((len(network.labels), 1), np.float32))
    assert list(brains.changes(hard)[1]) == ["as in the atlas", "changed"]
    assert brains.confidence_map(hard, brains.plate(hard)) is None


def test_directed_edges_lead_from_their_columns_to_their_rows(tmp_path):
    network, rng = helpers.make_network(), np.random.default_rng(0)
    effective = rng.normal(size=(helpers.K, helpers.K)).astype(np.float32)
    effective[helpers.ABSENT] = effective[:, helpers.ABSENT] = np.nan
    network = dataclasses.replace(network, edges={"effective": effective}, uncertainty={"effective": np.abs(effective)})
    edges = brains.strongest(network, "effective")
    assert len(edges) == (helpers.K - 1) * (helpers.K - 2)
    assert all(edge.directed and edge.value == effective[edge.target, edge.source] for edge in edges)
    assert np.all(np.diff([abs(edge.value) for edge in edges]) >= 0)
    page = report(network, tmp_path / "report.html")
    (matrix,) = page.data["matrices"]
    codes = np.frombuffer(base64.b64decode(matrix["values"]), "<i2").reshape(helpers.K, helpers.K)
    assert matrix["directed"] and (codes[helpers.ABSENT] == linked.MISSING).all()
    known = codes != linked.MISSING
    np.testing.assert_allclose(codes[known] / linked.LARGEST * matrix["largest"], effective[known], atol=2e-4)
    assert "direction of influence" in page.text and "1/s" in page.text


def test_what_the_script_reads_is_the_result():
    network = helpers.make_network()
    views = brains.plate(network)
    data = json.loads(linked.linked_json(network, views))
    runs = np.frombuffer(base64.b64decode(data["plate"]["runs"]), "<u2").reshape(-1, 2)
    labels = np.repeat(runs[:, 0].astype(int) - 1, runs[:, 1]).reshape(data["plate"]["height"], data["plate"]["width"])
    np.testing.assert_array_equal(labels, np.where(views.pixels >= 0, network.labels[views.pixels], -1))
    assert [network.hemispheres[k] for k in data["order"]] == sorted(network.hemispheres)
    first = data["matrices"][0]
    codes = np.frombuffer(base64.b64decode(first["values"]), "<i2")
    below = network.edges["pearson"][np.tril_indices(helpers.K, -1)]
    assert not first["directed"] and ((codes == linked.MISSING) == np.isnan(below)).all()
    np.testing.assert_allclose(codes[np.isfinite(below)] / linked.LARGEST * first["largest"], below[np.isfinite(below)], atol=1e-4)
    long = np.r_[np.full(200_000, -1), np.full(3, 5)]
    np.testing.assert_array_equal(np.repeat(*linked.runs(long).astype(int).T) - 1, long)


def test_hostile_names_stay_text(tmp_path):
    hostile = "</script><script>alert(1)</script>"
    network = helpers.make_network()
    names = (hostile, *network.names[1:])
    page = report(dataclasses.replace(network, names=names, subject="01"), tmp_path / "page.html")
    assert page.tags.count("script") == 2 and page.data["names"][0] == hostile and hostile in page.text


def test_the_methods_text_gives_the_figures_of_the_scan():
    network = helpers.make_network()
    text = " ".join(methods(network))
    for expected in (
        "estimated with pnet_jax 0.1.0.",
        "1.3 min of resting-state fMRI (n = 40 of 43 frames, TR = 2 s; mean framewise displacement 0.11 mm)",
        "started from the atlas (Schaefer12, K = 12) and were personalised (κ = 6.3, β = 0.4)",
        "0.120 nats per location (95 % CI [0.080, 0.160]) and 0.0201 in DCBC (95 % CI [0.0125, 0.0277])",
        "Edges: pearson, partial",
    ):
        assert expected in text, expected
    cleaning = {"confounds": ["csf", "rot_x"], "strategy": ["motion"], "detrend": True, "low_pass": 0.1, "high_pass": 0.01}
    cleaned = dataclasses.replace(network, provenance={"cleaning": cleaning, "config": {"cleaning": {"fd_threshold": 0.5}}})
    expected = (
        "Signals were cleaned by regression of 2 confounds (motion), linear detrending, a band-pass filter of 0.01 to 0.1 Hz and "
        "scrubbing of frames with a framewise displacement above 0.5 mm."
    )
    assert expected in methods(cleaned)
    bare = methods(dataclasses.replace(network, provenance={}, edges={}, qc=QC(), displacement=None))
    assert len(bare) == 3 and "nan" not in " ".join(bare) and "not compared" in bare[-1]


def test_a_figure_that_fails_costs_only_itself(tmp_path, monkeypatch):
    def fail(network, views):
        raise RuntimeError("no such luck")

    monkeypatch.setattr("pnet_jax.report.brains.change_map", fail)
    network = helpers.points_network()
    with pytest.warns(UserWarning, match="sub-01: the figure `change` could not be drawn"):
        page = Page(write_report(network, tmp_path / "page.html"))
    assert "could not be drawn (RuntimeError: no such luck)" in page.text and page.images == 4


def test_a_page_of_many_parcels_is_small(tmp_path):
    k = 400
    network = helpers.make_network()
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(k, 300)).astype(np.float32)
    many = {
        "labels": rng.integers(0, k, len(network.labels)).astype(np.int32),
        "atlas_labels": rng.integers(0, k, len(network.labels)).astype(np.int32),
        "signals": signals,
        "frames": np.arange(300),
        "displacement": rng.gamma(1.5, 0.07, 300),
        "edges": dict.fromkeys(("pearson", "partial", "covariance"), helpers.correlation(signals)),
        "halves": {},
        "ids": np.arange(1, k + 1, dtype=np.int32),
        "names": tuple(f"7Networks_LH_Default_pCunPCC_{n}" for n in range(k)),
        "hemispheres": tuple("LR"[n % 2] for n in range(k)),
        "coverage": np.ones(k, np.float32),
    }
    file = tmp_path / "page.html"
    report(dataclasses.replace(network, **many), file)
    assert file.stat().st_size < 3e6


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
    assert page.images == 6


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
