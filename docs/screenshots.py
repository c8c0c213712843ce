"""Takes screenshots of the docs site, the report, the explorer and the voting page: sizes of screens, light and dark.

    make docs && .venv/bin/python docs/screenshots.py      # about six minutes on two cores the first time

Runs the embedded data's experiments in build/screenshots, which the next call resumes, writes every picture there, and
those that the docs use to docs/figures. Needs playwright and Chromium.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

from PIL import Image

from lpsel.judging.human import HumanJudge
from lpsel.judging.judge import Pair

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "screenshots"
FIGURES = ROOT / "docs" / "figures"
SIZES = {"desktop": (1280, 800), "tablet": (960, 540), "phone": (390, 844)}
IN_DOCS = {
    "report": "report-desktop-light.png",
    "explorer": "explorer-desktop-light.png",
    "voting": "voting-tablet-light.png",
}
SITE = (
    "",
    "tutorials/rows-for-my-task/",
    "guides/judges/",
    "reference/rules/",
    "reference/files/",
    "explanation/concepts/",
)
HAIKU = "Blue waves, **endless** blue,\nthe shore forgets each footprint,\ngulls repeat it all."
SLICE = "Use a slice:\n\n```python\nitems[::-1]\n```\n\nIt makes a new list."
QUESTIONS = {
    "Write a haiku about the sea.": (HAIKU, "The sea is big. It has water in it. The water is blue."),
    "Reverse a list in Python.": (SLICE, "You can use `reversed(items)`, or `items.reverse()` to reverse it in place."),
}


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    page = report()
    explorer = lpsel("explore", str(next((WORK / "sweep").glob("pct-25*lp_app_nll"))))
    pages = {"report": page.as_uri(), "explorer": explorer.as_uri(), "voting": voting_page().as_uri()}
    with served(ROOT / "build" / "site") as site:
        take(pages | {f"site-{Path(page).name or 'home'}": f"{site}/{page}" for page in SITE})
    for name, picture in IN_DOCS.items():
        small = Image.open(WORK / picture).quantize(128)  # less than half of the bytes
        small.save(FIGURES / f"{name}-page.png", optimize=True)


def lpsel(*arguments: str) -> Path:
    """Run a command; the path in its last line."""
    line = [sys.executable, "-m", "lpsel", *arguments]
    ended = subprocess.run(line, cwd=WORK, check=True, stdout=subprocess.PIPE, text=True)
    return Path(ended.stdout.splitlines()[-1])


def report() -> Path:
    """The report of a sweep over two rules and three percentages, compared with all rows."""
    quiet = "tracker=none"
    lpsel("train", "selection=full", quiet, "hydra.run.dir=full")
    lpsel("train", "-m", "selection=lp_app_nll,random", "pct=10,25,50", quiet, "hydra.sweep.dir=sweep")
    lpsel("evaluate", "model=sweep", "baseline=full", quiet, "hydra.run.dir=evaluated")
    return lpsel("report", "full", "sweep", "evaluated")  # the page shows this command


def voting_page() -> Path:
    """A page to vote on, of answers written for it: those of the embedded models are single words."""
    pairs = [Pair(f"{i}", prompt, *answers) for i, (prompt, answers) in enumerate(QUESTIONS.items())]
    folder = WORK / "voting"
    folder.mkdir(exist_ok=True)
    judge = HumanJudge("Which answer is better?", seed=3)
    return judge.write(pairs, folder, baseline="all rows", model="10%")[0]


def begin_to_vote(page: Any) -> None:
    page.fill("#name", "Ann")
    page.keyboard.press("Enter")
    page.wait_for_selector("#work:visible")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """No line for every request."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder; its address. A site that is opened as a file has no search."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def take(pages: dict[str, str]) -> None:
    """Write NAME-SIZE-SCHEME.png of every address by its name."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for (name, address), (size, (width, height)), scheme in product(
            pages.items(), SIZES.items(), ("light", "dark")
        ):
            options: Any = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
            page = browser.new_context(**options).new_page()
            page.goto(address)
            if name == "voting":
                begin_to_vote(page)
            page.screenshot(path=WORK / f"{name}-{size}-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
