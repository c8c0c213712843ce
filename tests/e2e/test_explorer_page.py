"""The explorer in a real browser: search, filters, brushing, export, keyboard, and texts that try to run.

One page serves all tests; each starts from its initial state.
"""

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures.explorer import HOSTILE, NLL

from lpsel.commands.explore import explore
from lpsel.commands.job import run
from lpsel.overrides import hydra_arguments


@pytest.fixture(scope="module")
def opened(browser, explorable):
    """The page of the run; it must log and raise no error, and request nothing but itself."""
    path, _ = explore(explorable, None, None, explorable.parent / "cache")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, has_touch=True)
    page, problems = context.new_page(), []
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url != path.as_uri() and problems.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#tools [aria-pressed=true]").count() == 0, "dragging scrolls a touch screen"
    page.click("[data-mode=select]")
    yield page
    context.close()
    assert problems == []


@pytest.fixture
def page(opened):
    opened.set_viewport_size({"width": 1280, "height": 900})
    opened.click("#clear")
    opened.click("#views button:first-child")
    opened.evaluate("scrollTo(0, 0)")
    opened.mouse.move(0, 0)
    return opened


@pytest.fixture
def table(explorable):
    """The columns of selection.parquet as arrays."""
    columns = pq.read_table(explorable / "selection.parquet").to_pydict()
    return {name: np.array(values) for name, values in columns.items()}


def waited(page, count):
    """Waits until so many rows are listed."""
    page.get_by_text(f"{count} of 60 rows,").wait_for()


def listed(page):
    """Numbers of the rows on this page of the list."""
    return [int(text) for text in page.locator("#rows tbody button").all_inner_texts()]


def pixel(page, x, y):
    """Where plotly draws a point of these coordinates: an independent reference for where the page draws the rows."""
    return page.evaluate(
        """([x, y]) => {
            const plot = document.getElementById("plot"), { xaxis, yaxis } = plot._fullLayout;
            const box = plot.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(y)];
        }""",
        [float(x), float(y)],
    )


def drag(page, *corners):
    page.mouse.move(*pixel(page, *corners[0]))
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*pixel(page, *corner), steps=3)
    page.mouse.up()


def downloaded(page, button):
    with page.expect_download() as started:
        page.click(button)
    return started.value.suggested_filename, open(started.value.path(), newline="", encoding="utf-8").read()


def test_the_list_starts_with_the_rows_ranked_first(page, table):
    assert page.inner_text("#count") == "60 of 60 rows, 12 selected (20%)"
    first = sorted((rank, row) for row, rank in enumerate(table["rank"]) if rank is not None)[:25]
    assert listed(page) == [row for _, row in first]
    page.click("#rows thead >> text=NLL after")
    page.click("#rows thead >> text=NLL after")
    assert listed(page) == np.argsort(-NLL[1], kind="stable")[:25].tolist()
    page.click("#next")
    page.click("#next")
    assert page.inner_text("#pages") == "51 to 60 of 60"
    page.click("#rows thead >> text=rank")


def test_search_and_filters_narrow_the_list(page, table):
    page.get_by_label("Search texts").fill("COUNT 17.")
    waited(page, 1)
    assert listed(page) == [17]
    page.click("#clear")
    page.get_by_label("Selection").select_option("selected")
    waited(page, 12)
    assert set(listed(page)) == set(np.flatnonzero(table["selected"]))
    page.get_by_label("Clusters").fill("0, 2-3")
    page.get_by_label("NLL before from").fill("2")
    expected = np.flatnonzero(table["selected"] & (table["cluster"] != 1) & (NLL[0] >= 2))
    waited(page, len(expected))
    assert set(listed(page)) == set(expected)
    page.click("#clear")
    page.get_by_label("Not selectable because").select_option("empty answer")
    waited(page, 1)
    assert listed(page) == [5]
    page.get_by_label("row to").fill("4")
    waited(page, 0)
    assert page.inner_text("#pages") == "No rows match."
    assert page.is_disabled("#csv")


def test_a_box_and_a_lasso_list_the_rows_in_them(page):
    drag(page, (1.51, 0.6), (2.49, 0.9))
    inside = np.flatnonzero((NLL[0] > 1.51) & (NLL[0] < 2.49) & (NLL[1] > 0.6) & (NLL[1] < 0.9))
    waited(page, len(inside))
    assert len(inside) == 10
    assert set(listed(page)) == set(inside)
    page.keyboard.press("Escape")
    waited(page, 60)

    page.click("[data-mode=lasso]")
    drag(page, (1.0, 0.5), (3.4, 0.5), (1.0, 1.06))  # a triangle; below its long side, x / 2.4 + y / .56 < 1 from there
    edge = (NLL[0] - 1.0) / 2.4 + (NLL[1] - 0.5) / 0.56
    assert np.abs(edge - 1).min() > 1e-3
    inside = np.flatnonzero((edge < 1) & (NLL[0] > 1) & (NLL[1] > 0.5))
    waited(page, len(inside))
    page.click("[data-mode=select]")


def test_a_brush_stays_in_another_view_and_after_zooming(page, table):
    drag(page, (0.99, 0.6), (1.4, 1.1))
    brushed = set(np.flatnonzero((NLL[0] < 1.4) & (NLL[1] > 0.6)))
    waited(page, len(brushed))
    page.click("text=Score and length")
    assert set(listed(page)) == brushed
    page.click("[data-mode=zoom]")
    drag(page, (10, 0.3), (100, 0.6))
    page.click("[data-mode=select]")
    page.keyboard.press("Escape")
    waited(page, 60)
    drag(page, (20, 0.35), (80, 0.5))  # characters, on a logarithmic axis
    length = np.array([len(" ".join(map(str, range(i + 1)))) for i in range(60)])
    length[[5, 13, 21]] = 1, len(f"=1+1 {HOSTILE}"), len("=SUM(A1), " + "a long answer, " * 60)
    score = 1 - NLL[1] / NLL[0]
    inside = np.flatnonzero((length >= 20) & (length <= 80) & (score >= 0.35) & (score <= 0.5))
    waited(page, len(inside))
    assert set(listed(page)) == set(inside) != set()
    page.click("#reset")


def test_a_point_shows_its_row_and_a_click_or_a_tap_lists_it(page):
    x, y = pixel(page, *NLL[:, 13])
    opacity = """([x, y]) => {
        const canvas = document.getElementById("points"), box = canvas.getBoundingClientRect();
        return canvas.getContext("2d").getImageData(x - box.left, y - box.top, 1, 1).data[3];
    }"""
    assert page.evaluate(opacity, [x, y]) > 100
    page.mouse.move(x, y)
    page.wait_for_selector("#tip:visible")
    assert page.inner_text("#tip strong") == "Row 13"
    assert page.locator("#tip p").all_text_contents() == [HOSTILE, f"=1+1 {HOSTILE}"]
    page.mouse.click(*pixel(page, *NLL[:, 21]))
    waited(page, 1)
    assert listed(page) == [21]
    assert page.get_attribute("#rows tbody button", "aria-expanded") == "true"
    page.keyboard.press("Escape")
    waited(page, 60)
    page.touchscreen.tap(*pixel(page, *NLL[:, 30]))
    waited(page, 1)
    assert listed(page) == [30]


def test_the_list_mirrors_the_points_for_the_keyboard(page):
    rows = listed(page)
    page.focus("#next")
    page.keyboard.press("Tab")
    for _ in page.locator("#rows thead button").all():
        page.keyboard.press("Tab")
    focused = "document.activeElement.dataset.row"
    assert int(page.evaluate(focused)) == rows[0]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert int(page.evaluate(focused)) == rows[2]
    assert page.evaluate("state.focused") == rows[2], "a ring is around its point"
    page.keyboard.press("Enter")
    assert page.get_attribute(f"[data-row='{rows[2]}']", "aria-expanded") == "true"
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#pages") == "26 to 50 of 60"
    page.keyboard.press("ArrowUp")
    assert int(page.evaluate(focused)) == rows[-1]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    unlabeled = "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length && !e.ariaLabel).length"
    assert page.evaluate(unlabeled) == 0


def test_exports_have_the_listed_rows(page, table):
    page.get_by_label("row from").fill("12")
    page.get_by_label("row to").fill("21")
    waited(page, 10)
    name, text = downloaded(page, "#jsonl")
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    assert name == "run-rows.jsonl"
    assert {row["index"] for row in rows} == set(range(12, 22))
    by_number = {row["index"]: row for row in rows}
    assert by_number[13]["prompt"] == HOSTILE
    assert [by_number[i]["id"] for i in range(12, 22)] == table["id"][12:22].tolist()
    assert [by_number[i]["selected"] for i in range(12, 22)] == table["selected"][12:22].tolist()
    assert by_number[15]["nll_0"] == pytest.approx(NLL[0, 15])

    name, text = downloaded(page, "#csv")
    assert name == "run-rows.csv"
    assert text.count("\r\n") == 11
    cells = {int(row["index"]): row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert cells[13]["response"] == f"'=1+1 {HOSTILE}", "no formula"
    assert cells[21]["response"].startswith("'=SUM(A1), a long answer, ")
    assert cells[16]["response"] == " ".join(map(str, range(17)))


def test_nothing_in_a_text_runs(page):
    page.get_by_label("Search texts").fill("pwned")
    waited(page, 1)
    page.click("#rows tbody button")
    assert page.locator("#rows .text").all_text_contents() == [HOSTILE, f"=1+1 {HOSTILE}"]
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.images.length") == 0
    later = """() => new Promise((resolve) => setTimeout(() => {
        try { resolve(new Function("return 1")()); } catch { resolve("refused"); }
    }))"""  # what a test evaluates at once is exempt from the page's policy
    assert page.evaluate(later) == "refused"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_color_scheme(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.wait_for_selector("#plot .main-svg[width='328']")
    ink = page.evaluate("getComputedStyle(document.querySelector('#plot .xtick text')).fill")
    assert ink == {"light": "rgb(31, 35, 40)", "dark": "rgb(230, 233, 237)"}[scheme]
    width = page.evaluate("document.getElementById('points').offsetWidth")
    assert width == 328 - 68, "the width of the page without margins"


@pytest.mark.slow
def test_all_52002_rows_of_alpaca_fit_on_a_page_that_opens_in_three_seconds(shared_data, tmp_path, browser):
    overrides = [
        f"dataset={shared_data}/alpaca.jsonl.xz", f"scores={shared_data}/perplexities_alpaca.npz",
        "scores_key=opt-350m", "selection=lp_app", "cluster=none", "tracker=none", f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip
    run("select", hydra_arguments("select", overrides), tmp_path / "run")
    path, _ = explore(tmp_path / "run", None, None, tmp_path / "cache")
    assert path.stat().st_size < 8e6
    opened = []
    for _ in range(3):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        opened.append(seconds_of(session))
    assert min(opened) < 3
    assert page.inner_text("#count") == "52,002 of 52,002 rows, 5,200 selected (10%)"
    before = seconds_of(session)
    page.evaluate("() => { for (let i = 0; i < 20; i += 1) paint(); }")
    assert (seconds_of(session) - before) / 20 < 0.05, "a frame"


def seconds_of(session):
    """How long the page's thread has run: other processes may take the processor, so no wall-clock time."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
