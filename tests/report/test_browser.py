"""The pages in a browser: nothing overflows, nothing is fetched, everything can be reached and operated, rules of axe-core hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pnet_jax.evaluate.answer import Answer, Figure, Line, Row
from pnet_jax.outputs import save, write_record
from pnet_jax.report import write_index, write_report
from pnet_jax.report.evaluation import write_evaluation

from .browser import Browser, executable
from .test_cohort_report import many
from .test_report import helpers

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium: expected chromium, chromium-browser or google-chrome in PATH")
PAGES = ("scan", "index", "evaluation")
TAB, ENTER, SPACE = ("Tab", 9), ("Enter", 13, "\r"), (" ", 32, " ")
K = helpers.K


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    network = helpers.make_network()
    rows = many(folder, 60)
    for subject in ("91", "92", "93"):  # with group figures
        dseg = save(helpers.make_network(subject=subject), folder, probabilities=False)[-1].relative_to(folder).as_posix()
        row = {"scan": f"sub-{subject}", "subject": subject, "atlas": "Glasser12", "status": "ok", "parcels": "personalised", "dseg": dseg}
        rows.append(write_record(folder, row, {}, "pnet construct"))
    return {
        "scan": write_report(network, folder / "scan.html"),
        "index": write_index(folder, rows),
        "evaluation": write_evaluation([answer()], folder / "evaluation.html", title="Cohort", about={"Scans": "60"}),
    }


def answer() -> Answer:
    rng = np.random.default_rng(0)
    x = np.arange(5.0)
    figures = (
        Figure("Curves", "minutes", "r", lines=(Line("raw", x, x / 9, x / 9 - 0.1, x / 9 + 0.1), Line("shrunk", x, x / 8))),
        Figure("Matrix", "network", "network", matrix=rng.normal(size=(4, 4)), names=("A", "B", "C", "D")),
        Figure("Distributions", "r", values={"within": rng.normal(size=90), "between": rng.normal(size=900)}),
    )
    rows = (Row("edges", "raw", "accuracy", 0.9, 0.8, 1.0, 0.001, 20), Row("edges", "shrunk", "accuracy", 0.8, 0.7, 0.9, 0.01, 20))
    return Answer("identifiability", rows=rows, sentences=("Accuracy was 0.90.",), figures=figures, settings={"seed": 0})


@pytest.fixture(scope="module")
def browser():
    one = Browser()
    yield one
    one.close()


@pytest.mark.parametrize("width", [400, 1300, 1920])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_width_without_errors_or_requests(name, width, pages, browser):
    browser.open(pages[name], width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.errors() == []
    assert browser.requests() == [pages[name].as_uri()]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_rules_of_axe(name, dark, pages, browser):
    here = [Path(os.environ.get("AXE", "")), Path("node_modules/axe-core/axe.min.js")]
    script = next((file for file in here if file.is_file()), None)
    if script is None:
        pytest.skip("no axe-core: set AXE to axe.min.js (npm pack axe-core)")
    browser.open(pages[name], dark=dark)
    browser.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    browser.run(script.read_text("utf-8") + "; 0")
    checked, found = json.loads(browser.run("axe.run().then((all) => JSON.stringify([all.passes.length, all.violations]))"))
    assert checked > 15
    said = [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]
    assert not said, "\n".join(said)


def state(browser) -> dict:
    """What the page shows of the chosen parcel."""
    return browser.run("""({
        rows: [...document.querySelectorAll("#parcel-table tr.chosen")].map((row) => Number(row.dataset.parcel)),
        pressed: document.querySelectorAll("#parcel-table [aria-pressed=true]").length,
        line: document.querySelector("#matrix .row").hidden ? null : parseFloat(document.querySelector("#matrix .row").style.top),
        marked: [...document.querySelectorAll(".plate[data-linked] canvas")].map((one) =>
            one.getContext("2d").getImageData(0, 0, one.width, one.height).data.some((value) => value > 0)),
        said: document.getElementById("chosen").textContent,
        value: document.getElementById("value").textContent,
    })""")


def place(browser, selector: str, x: float, y: float) -> tuple[float, float]:
    """The point of the window at a share of an element's width and height."""
    browser.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
    browser.settle()
    box = browser.run(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
    return box["left"] + x * box["width"], box["top"] + y * box["height"]


def test_table_maps_and_matrix_show_the_same_parcel(pages, browser):
    browser.open(pages["scan"])
    order = np.concatenate([np.arange(0, K, 2), np.arange(1, K, 2)])  # left, then right
    assert state(browser)["said"] == "No parcel is selected." and not any(state(browser)["marked"])
    # Of the matrix, row 3.
    browser.click(*place(browser, "#matrix", 1.5 / K, 3.5 / K))
    now = state(browser)
    edge = helpers.make_network().edges["pearson"][order[3], order[1]]
    assert now["rows"] == [order[3]] and now["pressed"] == 1 and all(now["marked"])
    assert now["line"] == pytest.approx(100 * 3 / K, abs=1e-3)
    said, _, value = now["value"].rpartition(": ")
    assert said == f"area {order[3]} – area {order[1]}" and float(value.replace("−", "-")) == pytest.approx(edge, abs=2e-3)
    # Of the table, another row; once more clears it.
    browser.click(*place(browser, "#parcel-table tbody tr:nth-child(5)", 0.3, 0.5))
    assert state(browser)["rows"] == [4] and state(browser)["said"].startswith("Selected: area 4. Strongest edges: area ")
    browser.click(*place(browser, "#parcel-table tbody tr:nth-child(5)", 0.3, 0.5))
    assert state(browser)["rows"] == [] and state(browser)["line"] is None
    # Of the map, what is drawn there.
    for x in (0.07, 0.1, 0.25, 0.3):
        browser.click(*place(browser, ".plate[data-linked=dim]", x, 0.2))
        (chosen,) = state(browser)["rows"] or [None]
        if chosen is not None:
            break
    assert state(browser)["line"] == pytest.approx(100 * list(order).index(chosen) / K, abs=1e-3)


def test_the_table_is_sorted_and_filtered(pages, browser):
    browser.open(pages["scan"])
    visible = (
        "[...document.querySelectorAll('#parcel-table tbody tr')].filter((row) => !row.hidden).map((row) => Number(row.dataset.parcel))"
    )
    sizes = "[...document.querySelectorAll('#parcel-table tbody tr')].map((row) => Number(row.cells[3].textContent))"
    browser.run("document.querySelectorAll('#parcel-table th button')[3].click()")
    assert browser.run(sizes) == sorted(browser.run(sizes))
    browser.run("document.querySelectorAll('#parcel-table th button')[3].click()")
    assert browser.run(sizes) == sorted(browser.run(sizes), reverse=True)
    assert browser.run("document.querySelectorAll('#parcel-table th')[3].getAttribute('aria-sort')") == "descending"
    browser.run("document.getElementById('parcel-noted').click()")
    assert sorted(browser.run(visible)) == [0, 1, 2, 3, 4, 7]
    assert "of 12 parcels" in browser.run("document.getElementById('parcel-count').textContent")
    # A parcel that the filter hides is shown when it is chosen elsewhere.
    browser.click(*place(browser, "#matrix", 0.5, 0.99))
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert len(browser.run(visible)) == K and state(browser)["rows"] == [11]


def test_everything_is_reached_and_operated_by_the_keyboard(pages, browser):
    browser.open(pages["scan"])
    reached = []
    for _ in range(120):
        browser.press(*TAB)
        reached.append(
            browser.run(
                "(() => { const one = document.activeElement; return one.id || one.closest('tr')?.dataset.parcel || one.tagName })()"
            )
        )
    assert [one for one in reached if one.isdigit()][:K] == [str(k) for k in range(K)]
    assert {"parcel-query", "parcel-side", "parcel-noted", "measure", "matrix"} <= set(reached)
    browser.run("document.querySelector('#parcel-table tr[data-parcel=\"2\"] button').focus()")
    browser.press(*SPACE)
    assert state(browser)["rows"] == [2] and state(browser)["line"] is not None
    browser.run("document.getElementById('matrix').focus()")
    for _ in range(2):
        browser.press("ArrowDown", 40)
    browser.press("ArrowRight", 39)
    assert state(browser)["value"].startswith("area 4 – area 2: ")
    browser.press(*ENTER)
    assert state(browser)["rows"] == [4]


def test_the_table_of_scans_is_operated_by_the_keyboard(pages, browser):
    browser.open(pages["index"])
    reached = []
    for _ in range(90):
        browser.press(*TAB)
        reached.append(browser.run("document.activeElement.id || document.activeElement.textContent.slice(0, 30)"))
    assert {"query", "filter-status", "save", "Minutes"} <= set(reached), reached
    note = "document.querySelector('#table td.notes button')"
    browser.run(f"{note}.focus()")
    browser.press(*ENTER)
    assert browser.run(f"{note}.getAttribute('aria-expanded')") == "true"


def test_a_printed_page_has_all_rows_and_no_controls(pages, browser):
    browser.open(pages["scan"])
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = browser.run("getComputedStyle(document.getElementById('parcel-filters')).display")
    box = browser.run("(() => { const one = document.querySelector('.rows'); return [one.scrollHeight, one.clientHeight] })()")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert shown == "none" and box[0] <= box[1] + 2
