"""The page of `lpsel report`, in a real browser."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from lpsel.report.page import link, write_report
from lpsel.report.runs import find_runs

SHOWN = "[...document.querySelectorAll('#runs tbody tr:not([hidden])')].map(r => r.cells[0].textContent)"
# The smallest text of any figure in CSS pixels, after scaling.
TEXT_SIZES = """Math.min(...[...document.querySelectorAll("figure svg")].flatMap(drawn => {
    const scale = drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width;
    if (scale === 0) return [];  // the other one of the phone's and the desktop's
    return [...drawn.querySelectorAll("text")].map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
}))"""


def test_the_page_in_a_browser(sweep, tmp_path, page_in_chromium):
    path = write_report(find_runs([sweep]), tmp_path / "out")
    assert path.stat().st_size < 6e6
    names = {p.stem for p in (tmp_path / "out" / "figures").glob("*.png")}
    assert {"quality-1", "share-1", "trajectory-1", "lengths-1", "agreement", "costs"} <= names
    for kind in ("svg", "pdf"):
        assert names == {p.stem for p in (tmp_path / "out" / "figures").glob(f"*.{kind}")}
    assert (tmp_path / "out" / "tables" / "runs.csv").read_text().count("\n") == 9
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = page_in_chromium(path, viewport={"width": width, "height": 900}, color_scheme=scheme)
        assert page.title() == "Report of 8 runs"  # scripts in the texts of the runs did not run
        assert page.locator("figure svg:visible").count() == len(names)
        assert page.locator("h1 + .top figure svg:visible").bounding_box()["width"] > min(500, width - 50)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#runs").get_by_role("button", name="value").click()
        assert page.evaluate(SHOWN)[:4] == ["sweep/0", "sweep/2", "sweep/1", "sweep/3"]
        assert page.evaluate(TEXT_SIZES) >= 12  # pixels


def test_the_table_is_sorted_and_filtered_from_the_keyboard(sweep, tmp_path, page_in_chromium):
    page = page_in_chromium(write_report(find_runs([sweep]), tmp_path / "out"))

    def tab_to(target):
        for _ in range(120):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id || document.activeElement.textContent") == target:
                return
        raise AssertionError(f"{target} is not reached by Tab")

    def shown():
        return page.evaluate(SHOWN)

    tab_to("filter")
    page.keyboard.type("lp train")
    assert shown() == ["sweep/0", "sweep/1", "sweep/3"]
    assert page.get_by_role("status").text_content() == "3 of 8 shown"
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    tab_to("value")
    page.keyboard.press("Enter")
    assert shown()[:4] == ["sweep/0", "sweep/2", "sweep/1", "sweep/3"]  # 48, 49, 53, 58
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert shown()[:4] == ["sweep/3", "sweep/1", "sweep/2", "sweep/0"]  # undefined ones stay last


@pytest.mark.slow
def test_links_work_after_page_and_runs_are_moved_together(sweep, tmp_path, page_in_chromium):
    write_report(find_runs([sweep]), sweep.parent / "out")
    sweep.parent.rename(moved := tmp_path.with_name(f"{tmp_path.name} moved"))
    page = page_in_chromium(moved / "out" / "index.html")
    links = page.evaluate("[...document.querySelectorAll('#runs a, td a')].map(a => a.href)")
    folders = {Path(unquote(urlsplit(link).path)) for link in links}
    assert folders == {moved / "sweep" / name for name in ("0", "1", "2", "3", "e0", "e1", "e2", "e3")}
    assert all(folder.is_dir() for folder in folders)


def test_pages_of_rows_are_linked(sweep, tmp_path):
    (sweep / "2" / "explore.html").touch()
    page = write_report(find_runs([sweep]), tmp_path / "out").read_text()
    assert '<a href="../sweep/2/explore.html">sweep/2</a>' in page


def test_links_to_runs_elsewhere_are_absolute(sweep, tmp_path):
    assert link(sweep / "0", tmp_path / "deep" / "out") == (sweep / "0").as_uri()
    assert link(tmp_path / "a b", tmp_path / "out") == "../a%20b/"


@pytest.mark.slow
def test_the_page_fits_on_paper(sweep, tmp_path, page_in_chromium):
    page = page_in_chromium(write_report(find_runs([sweep]), tmp_path / "out"), viewport={"width": 1047, "height": 700})
    page.emulate_media(media="print")  # 1047 pixels: A4 across, less margins of 1 cm
    assert page.evaluate("document.documentElement.scrollWidth") <= 1047
    assert page.evaluate("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
