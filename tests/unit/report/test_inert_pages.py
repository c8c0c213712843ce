"""Scripts in rows, model names and run names are inert on the pages about runs, in a real browser."""

import json

import numpy as np
import pytest

from lpsel.commands.agreement import run as compare
from lpsel.commands.job import run
from lpsel.commands.report import report

NAME = "<img src=x onerror=window.pwned=1>"  # a valid folder name
TEXT = "</script><script>window.pwned=1</script><svg onload=window.pwned=1>\"'`${window.pwned=1}&amp;<!--"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Two run folders of select with scripts in all texts of their rows, scores and dataset."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [{"instruction": f"{TEXT} {i}", "output": TEXT} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = []
    for seed, name in enumerate((NAME, f"{NAME}2")):
        nll = np.random.default_rng(seed).uniform(1, 3, (2, 24))
        scores = folder / f"{name}.csv"
        scores.write_text("nll_0,nll_1\n" + "".join(f"{before},{after}\n" for before, after in nll.T))
        runs.append(folder / "runs" / name)
        run(
            "select",
            [
                "dataset=local", f"dataset.path={folder}/rows.jsonl", f"dataset.name='{NAME}'", f"scores='{scores}'",
                "cluster=none", "pct=25", "tracker=none", f"cache_dir={folder}/cache",
            ],
            runs[-1],
        )  # fmt: skip
    return runs


def pwned(page):
    return page.evaluate("window.pwned")


def test_the_report_is_inert(hostile, tmp_path, page_in_chromium):
    page = page_in_chromium(report([str(folder) for folder in hostile], tmp_path / "report"))
    assert NAME in page.inner_text("body")
    assert TEXT in page.evaluate("document.body.textContent")
    assert pwned(page) is None


def test_the_agreement_page_is_inert(hostile, tmp_path, page_in_chromium):
    compare([str(folder) for folder in hostile], tmp_path / "out")
    page = page_in_chromium(tmp_path / "out" / "agreement.html")
    assert NAME in page.inner_text("body")
    assert pwned(page) is None


def test_the_same_text_runs_if_it_is_not_escaped(tmp_path, browser):
    """The tests above can fail."""
    for text in (NAME, TEXT):
        (tmp_path / "page.html").write_text(f"<body>{text}")
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_function("window.pwned === 1")
        page.close()
