"""The voting page in a real browser: voting, saving, downloading, and no script but its own."""

import json
import re

import pyarrow.parquet as pq
import pytest

from lpsel.commands.votes import run
from lpsel.judging.human import KEY, PAGE, HumanJudge, read_key
from lpsel.judging.judge import Pair

PAIRS = [Pair(f"set-{i}", f"Prompt {i}?", f"baseline wrote {i}", f"model wrote {i}", "set") for i in range(8)]
HOSTILE = (
    '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script></script><!--\u2028\u2029\'"`${pwned=1}`&amp;'
)


@pytest.fixture
def write(tmp_path):
    """Writes a page, returns its path."""

    def written(pairs=PAIRS, question="Which answer is better?", seed=3):
        return HumanJudge(question, seed).write(pairs, tmp_path, baseline="opt-125m", model="opt-350m")[0]

    return written


def begin(page, name):
    page.fill("#name", name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#work:visible")


def prompt_number(page):
    return int(re.search(r"\d+", page.inner_text("#prompt"))[0])


def side_of(page, writer):
    return "a" if page.inner_text("#a").startswith(writer) else "b"


def downloaded(page, folder):
    with page.expect_download() as started:
        page.click("#download")
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def test_votes_with_keys_survive_a_reload_and_are_counted(page_in_chromium, write, tmp_path):
    page = page_in_chromium(write())
    begin(page, "Ann")
    sides = {"a": iter(["1", "ArrowLeft", "a", "A"] * 2), "b": iter(["2", "ArrowRight", "b", "B"] * 2)}
    # Pairs 0 to 3 are won, 4 is lost, 5 and 6 are ties, 7 is skipped.
    plan = {4: "baseline", 5: "0", 6: "t", 7: "s"}
    seen = []
    for done in range(8):
        assert page.inner_text("#progress") == f"Pair {done + 1} of 8, {done} done"
        if done == 4:
            page.reload()
            page.wait_for_selector("#work:visible")
            assert page.inner_text("#progress") == "Pair 5 of 8, 4 done", "continues where it was"
            assert page.inner_text("#annotator") == "Ann"
        number = prompt_number(page)
        seen.append(number)
        what = plan.get(number, "model")
        page.keyboard.press(next(sides[side_of(page, what)]) if what in ("model", "baseline") else what)
    assert sorted(seen) == list(range(8))
    assert seen != sorted(seen)
    assert page.is_visible("#done")
    assert page.inner_text("#summary") == "7 votes, 1 skipped, 0 open."
    path = downloaded(page, tmp_path)
    assert path.name == "votes-Ann.json"

    result = run([path], tmp_path, tmp_path / "votes")
    assert [result[name] for name in ("n", "wins", "ties", "losses", "failed")] == [7, 4, 2, 1, 1]
    assert result["win_rate"] == pytest.approx(100 * 5 / 7)
    assert (result["annotators"][0]["name"], result["annotators"][0]["skipped"]) == ("Ann", 1)
    found = {row["id"]: row["preference"] for row in pq.read_table(tmp_path / "votes/judgements.parquet").to_pylist()}
    assert [found[f"set-{i}"] for i in range(8)] == [2, 2, 2, 2, 1, 1.5, 1.5, None]


def test_buttons_vote_and_a_vote_can_be_changed(page_in_chromium, write, tmp_path):
    page = page_in_chromium(write())
    begin(page, "Ann")
    first = prompt_number(page)
    page.click("[data-vote=a]")
    page.click("[data-vote=tie]")
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert prompt_number(page) == first
    assert page.get_attribute("[data-vote=a]", "aria-pressed") == "true"
    page.click("[data-vote=b]")
    assert page.inner_text("#progress") == "Pair 3 of 8, 2 done", "the next pair without a vote"
    page.keyboard.press("j")
    page.click("#back")
    page.click("#next")
    assert page.inner_text("#progress") == "Pair 4 of 8, 2 done"
    page.keyboard.press("Control+a")
    assert page.inner_text("#progress") == "Pair 4 of 8, 2 done", "Ctrl+A selects"
    votes = {vote["pair"]: vote["vote"] for vote in json.loads(downloaded(page, tmp_path).read_text())["votes"]}
    assert votes[first] == "b"
    assert sorted(votes.values()) == ["b", "tie"]


def test_another_browser_continues_from_a_file(page_in_chromium, write, tmp_path):
    path = write()
    one = page_in_chromium(path)
    begin(one, "Ann")
    order = [prompt_number(one)]
    one.keyboard.press("1")
    one.keyboard.press("1")
    file = downloaded(one, tmp_path)

    other = page_in_chromium(path)
    other.wait_for_selector("#start:visible")  # a new profile has no votes
    other.set_input_files("#earlier", file)
    other.wait_for_selector("#work:visible")
    assert other.inner_text("#progress") == "Pair 3 of 8, 2 done"
    other.keyboard.press("k")
    other.keyboard.press("k")
    assert prompt_number(other) == order[0], "the same person has the same order"

    for text, complaint in [
        ("not JSON", "This is not a file of votes."),
        ("[]", "This is not a file of votes."),
        (file.read_text().replace('"page": "', '"page": "0'), "The votes in this file are for another page."),
        (file.read_text().replace('"vote": "a"', '"vote": "c"'), "This file of votes is damaged."),
        (file.read_text().replace('"pair": ', '"pair": 1'), "This file of votes is damaged."),
    ]:
        bad = tmp_path / "bad.json"
        bad.write_text(text)
        other.click("#leave")
        other.set_input_files("#earlier", bad)
        other.wait_for_selector("#notice:visible")
        assert other.inner_text("#notice") == complaint
        assert other.is_visible("#start")
        begin(other, "Ann")


def test_every_annotator_has_their_own_votes_and_order(page_in_chromium, write):
    page = page_in_chromium(write())
    orders = {}
    for name in ("Ann", "Bob", "Ann"):
        begin(page, name)
        expected = "Pair 1 of 8, 0 done" if name not in orders else "8 of 8 done"
        assert page.inner_text("#progress") == expected
        if name not in orders:
            orders[name] = []
            for _ in range(8):
                orders[name].append(prompt_number(page))
                page.keyboard.press("0")
        page.click("#leave")
    assert orders["Ann"] != orders["Bob"]
    assert sorted(orders["Ann"]) == sorted(orders["Bob"]) == list(range(8))


def test_votes_from_two_tabs_are_all_saved(page_in_chromium, write, tmp_path):
    page = page_in_chromium(write())
    begin(page, "Ann")
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("#work:visible")
    order = [prompt_number(other)]
    other.keyboard.press("1")
    page.keyboard.press("j")
    page.keyboard.press("2")
    order.append(prompt_number(other))
    assert page.inner_text("#progress") == "Pair 3 of 8, 1 done", "does not know the vote of the other tab yet"
    file = json.loads(downloaded(page, tmp_path).read_text())
    assert {vote["pair"]: vote["vote"] for vote in file["votes"]} == dict(zip(order, "ab", strict=True))
    other.evaluate("window.dispatchEvent(new Event('focus'))")
    for tab in (page, other):
        tab.wait_for_function("document.getElementById('progress').textContent.endsWith('2 done')")
    page.reload()
    page.wait_for_selector("#work:visible")
    assert page.inner_text("#progress") == "Pair 3 of 8, 2 done"


def test_focusing_the_page_does_not_scroll(page_in_chromium, write):
    page = page_in_chromium(write([Pair(f"{i}", "Explain.", "line\n" * 400, "short", "set") for i in range(2)]))
    begin(page, "Ann")
    page.evaluate("window.scrollTo(0, 300)")
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.wait_for_timeout(200)
    assert page.evaluate("window.scrollY") == 300
    page.keyboard.press("1")
    assert page.evaluate("window.scrollY") == 0, "the next pair begins at its top"


def test_the_same_pair_in_two_tabs_has_the_later_vote(page_in_chromium, write, tmp_path):
    page = page_in_chromium(write())
    begin(page, "Ann")
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("#work:visible")
    pair = prompt_number(page)
    page.keyboard.press("1")
    other.wait_for_timeout(5)  # times of votes are in milliseconds
    other.keyboard.press("0")
    for tab in (page, other):
        file = json.loads(downloaded(tab, tmp_path).read_text())
        assert [(vote["pair"], vote["vote"]) for vote in file["votes"]] == [(pair, "tie")]


@pytest.mark.parametrize(
    "broken",
    [
        "indexedDB.open = () => { throw new DOMException('private', 'SecurityError'); }",
        "IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError'); }",
        "const put = IDBObjectStore.prototype.put;"
        "IDBObjectStore.prototype.put = function (...all) { put.apply(this, all); this.transaction.abort(); }",
    ],
)
def test_a_browser_without_storage_can_be_used(page_in_chromium, write, tmp_path, broken):
    page = page_in_chromium(write())
    page.add_init_script(broken)
    page.reload()
    begin(page, "Ann")
    page.wait_for_selector("#notice:visible")
    assert page.inner_text("#notice").startswith(
        "This browser does not allow the page to save your votes. Download them"
    )
    for _ in range(8):
        page.keyboard.press("t")
    assert len(json.loads(downloaded(page, tmp_path).read_text())["votes"]) == 8


def test_unreadable_saved_votes_are_reported(page_in_chromium, write):
    page = page_in_chromium(write())
    page.add_init_script("IDBObjectStore.prototype.getAll = () => { throw new DOMException('damaged', 'DataError'); }")
    page.reload()
    begin(page, "Ann")
    assert page.inner_text("#notice") == "Votes saved in this browser cannot be read."
    page.keyboard.press("1")
    assert page.inner_text("#progress") == "Pair 2 of 8, 1 done"


def test_texts_of_models_and_people_stay_text(page_in_chromium, write, tmp_path):
    """The fixture fails the test if the page violates its policy, requests anything or throws."""
    as_shown = HOSTILE.replace("`", "")  # code, in Markdown
    hostile = [Pair(HOSTILE, HOSTILE, f"{HOSTILE}1", f"{HOSTILE}2", HOSTILE, HOSTILE)]
    page = page_in_chromium(write(hostile, question=HOSTILE))
    assert page.text_content("h1") == HOSTILE
    begin(page, HOSTILE)
    assert page.text_content("#prompt").strip() == as_shown
    assert {page.text_content(side).strip() for side in ("#a", "#b")} == {f"{as_shown}1", f"{as_shown}2"}
    assert page.text_content("#annotator") == HOSTILE.strip()
    side = "1" if page.text_content("#a").strip().endswith("2") else "2"
    page.keyboard.press(side)
    page.reload()
    page.wait_for_selector("#done:visible")
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.images.length + document.scripts.length") == 2
    path = downloaded(page, tmp_path)
    assert re.fullmatch(r"votes-[\w-]+\.json", path.name)
    result = run([path], tmp_path / KEY, tmp_path / "votes")
    assert (result["wins"], result["annotators"][0]["name"]) == (1, HOSTILE.strip())


def test_the_content_security_policy_blocks_injected_script(browser, write):
    context = browser.new_context()
    page = context.new_page()
    refused = []
    page.on("console", lambda said: refused.append(said.text))
    page.goto(write().as_uri())
    page.evaluate(
        """() => {
            document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="window.pwned=1">');
            const script = document.createElement("script");
            script.textContent = "window.pwned=1";
            document.body.append(script);
            fetch("https://example.org/").catch(() => null);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.pwned") is None
    broken = [text for text in refused if "Content Security Policy" in text]
    assert {policy for policy in ("script-src", "img-src", "default-src") if policy in " ".join(broken)} == {
        "script-src",
        "img-src",
        "default-src",
    }
    context.close()


def test_answers_are_rendered_in_a_readable_width_and_marked_where_they_were_cut_off(page_in_chromium, write):
    code = "\n\n\nUse this:\n\n```python\n" + "x = 1  # " + "long " * 60 + "\n```\n" + "Many words follow. " * 60
    page = page_in_chromium(
        write([Pair("x", "Q", code, "short", stopped=(True, False))]), viewport={"width": 1400, "height": 800}
    )
    begin(page, "Ann")
    side = "#a" if page.locator("#a pre").count() else "#b"
    assert page.inner_text(side).startswith("Use this:")
    assert page.inner_text(f"{side} pre code").startswith("x = 1")
    assert page.inner_text(f"{side} .cut") == "The answer was cut off here."
    assert page.locator(".cut").count() == 1
    characters = page.evaluate(
        """element => {
            const paragraph = document.querySelector(element + " pre + p");
            const style = getComputedStyle(paragraph);
            return paragraph.clientWidth / (parseFloat(style.fontSize) / 2);
        }""",
        side,
    )
    assert 40 < characters < 90
    assert page.evaluate("document.documentElement.scrollWidth") == 1400, "long lines scroll within their block"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_layout_and_contrast(page_in_chromium, write, scheme, width):
    long = [Pair("x", "Explain. " * 80, "wordwithoutend" * 30 + "\n\n1. one\n2. two" * 40, "short")]
    page = page_in_chromium(write(long), color_scheme=scheme, viewport={"width": width, "height": 740})
    for name in ("#start", "#work"):
        page.wait_for_selector(f"{name}:visible")
        assert page.evaluate("document.documentElement.scrollWidth") == width, "no sideways scrolling"
        if name == "#start":
            begin(page, "Ann")
    boxes = [page.locator(side).bounding_box() for side in ("#a", "#b")]
    assert (boxes[0]["y"] == boxes[1]["y"]) == (width > 700), "side by side, one below the other on a phone"
    for button in page.locator("nav button").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= 740, "voting needs no scrolling"
    for text in ("#prompt", "#a", "nav button[data-vote=a]", "#annotator", "#progress"):
        assert contrast(page, text) >= 4.5, f"{text}: WCAG AA"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def contrast(page, selector):
    """WCAG 2 contrast of text to the first painted ground behind it."""
    ink, ground = page.eval_on_selector(
        selector,
        """element => {
            const numbers = color => color.match(/[\\d.]+/g).map(Number);
            let behind = element;
            while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(numbers);
        }""",
    )
    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_hides_which_answer_is_whose(write, tmp_path):
    text = write().read_text()
    assert (tmp_path / PAGE).read_text() == text
    key = read_key(tmp_path / KEY)
    assert {pair.a for pair in key.pairs} == {"baseline", "model"}
    for hidden in ("opt-125m", "opt-350m", "set-", "seed", "prompt_set"):
        assert hidden not in text
