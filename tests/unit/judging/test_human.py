"""The page as a file, and its key."""

import hashlib
import html as html_module
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lpsel.config import build, config_dir
from lpsel.errors import UserError
from lpsel.judging.human import KEY, PAGE, HumanJudge, blinded, read_key, rendered
from lpsel.judging.judge import Pair


def pairs(number):
    return [Pair(f"koala-{i}", f"prompt {i}", f"old {i}", f"newer {i}", "set", "category") for i in range(number)]


def shown(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def make(pairs, seed=0, question="Which?"):
    return blinded(pairs, question=question, seed=seed, baseline="opt-125m", model="opt-350m")


@given(
    st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=6),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(0, 99),
)
def test_the_page_holds_every_text_and_the_key_its_model(texts, question, seed):
    drawn = [Pair(str(i), prompt, baseline, model) for i, (prompt, baseline, model) in enumerate(texts)]
    html, key = make(drawn, seed, question)
    data = shown(html)
    different = [pair for pair in drawn if pair.baseline != pair.model]
    assert (data["question"], len(data["pairs"])) == (question, len(different))
    for pair, on_page, secret in zip(different, data["pairs"], key.pairs, strict=True):
        sides = ("a", "b") if secret.a == "model" else ("b", "a")
        texts = (on_page["prompt"], *(on_page[side] for side in sides))
        assert texts == tuple(map(rendered, (pair.prompt, pair.model, pair.baseline)))
        assert (secret.id, secret.model_chars) == (pair.id, len(pair.model))


def test_the_page_holds_nothing_but_what_it_shows():
    html, key = make(pairs(200))
    data = shown(html)
    assert set(data) == {"page", "question", "pairs"}
    assert {name for pair in data["pairs"] for name in pair} == {"prompt", "a", "b"}
    # The digest covers only what is shown.
    visible = json.dumps({"question": data["question"], "pairs": data["pairs"]}, sort_keys=True)
    assert data["page"] == key.page == hashlib.sha256(visible.encode()).hexdigest()
    for secret in ("opt-125m", "opt-350m", "koala-", "category"):
        assert secret not in html


def test_markdown_is_rendered_and_nothing_else():
    text = "\n\n# Title\nsome *words* and `x < 1`\nnext line\n\n```python\nif a < b:\n    pass\n```\n- one\n- two"
    assert rendered(text) == (
        "<h1>Title</h1>\n<p>some <em>words</em> and <code>x &lt; 1</code><br />\nnext line</p>\n"
        '<pre><code class="language-python">if a &lt; b:\n    pass\n</code></pre>\n'
        "<ul>\n<li>one</li>\n<li>two</li>\n</ul>\n"
    )
    assert "<td>x</td>" in rendered("|a|\n|:-:|\n|x|")
    as_written = r"[a](http://x) ![b](http://y) <http://z> \(x^2\) &lt;"
    assert html_module.unescape(rendered(as_written)) == f"<p>{as_written}</p>\n"


@given(st.text(st.sampled_from("<>&\"'`*_[]()!#-~|\n =/abimgscriptonerror:")))
def test_rendered_texts_have_only_tags_without_attributes(text):
    tags = re.findall(r"<[^>]*>", rendered(text))
    known = re.compile(r'</?[a-z]+[1-6]?( /)?>|<code class="language-[^"<>]*">|<ol start="\d+">')
    assert [tag for tag in tags if not known.fullmatch(tag)] == []


def test_answers_that_were_cut_off_are_marked_on_their_side():
    pair = Pair("x", "Q", "baseline", "model", stopped=(False, True))
    html, key = make([pair])
    [on_page] = shown(html)["pairs"]
    cut = {side for side in "ab" if "The answer was cut off here." in on_page[side]}
    assert cut == {"a" if key.pairs[0].a == "model" else "b"}


def test_sides_are_drawn_from_the_seed():
    (html, key), (again, _), (other, _) = make(pairs(200)), make(pairs(200)), make(pairs(200), seed=1)
    assert html == again != other
    # 200 fair coins: 100 with a standard deviation of 7
    assert 70 < sum(pair.a == "model" for pair in key.pairs) < 130


def test_texts_cannot_escape_the_json():
    bad = "</script><script>alert(1)</script><!--\u2028\u2029\ud800"
    html, _ = make([Pair("x", bad, bad, bad + "!")], question="</title><script>alert(2)</script>")
    assert html.count("<script") == html.count("</script>") == 2
    assert html.count("</title>") == 1
    assert "\u2028" not in html
    assert html.encode()


def test_the_key_of_another_page_is_not_overwritten(tmp_path):
    judge = HumanJudge(seed=1)
    page, key = judge.write(pairs(5), tmp_path, baseline="opt-125m", model="opt-350m")
    assert (page, key) == (tmp_path / PAGE, tmp_path / KEY)
    first = read_key(key)
    assert (first.baseline, first.model, len(first.pairs)) == ("opt-125m", "opt-350m", 5)
    judge.write(pairs(5), tmp_path, baseline="opt-125m", model="opt-350m")
    with pytest.raises(UserError, match=r"key\.json: is the key of another page. Use another folder, or move key"):
        judge.write(pairs(6), tmp_path, baseline="opt-125m", model="opt-350m")
    assert read_key(key) == first


def test_the_configuration():
    config = OmegaConf.merge({"seed": 7}, {"judge": OmegaConf.load(config_dir() / "judge" / "human.yaml")})
    judge = build(config.judge)
    assert judge == HumanJudge(question="Which answer is better?", seed=7)
    for empty in (" ", None):
        with pytest.raises(UserError, match=r"judge\.question: is empty. Set a question"):
            HumanJudge(question=empty)
    with pytest.raises(UserError, match=r"judge\.seed=-1: must be an integer, at least 0"):
        HumanJudge(seed=-1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"page": "x", "baseline": "b", "model": "m", "pairs": [{"id": 1}]}'])
def test_a_file_that_is_not_a_key(tmp_path, text):
    path = tmp_path / "key.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"key\.json: is not the key of a page. Pass the key\.json next to the page\."):
        read_key(path)
    with pytest.raises(UserError, match=r"nowhere/key\.json: cannot be read \(No such file or directory\). Pass the"):
        read_key(tmp_path / "nowhere" / "key.json")


def test_equal_answers_are_not_on_the_page(tmp_path):
    pairs = [Pair("a", "Q", "x", "y"), Pair("b", "Q", "same", "same", "set", "kind")]
    html, key = blinded(pairs, question="?", seed=0, baseline="old", model="new")
    assert "same" not in json.dumps(shown(html))
    assert [pair.id for pair in key.pairs] == ["a"]
    assert [(pair.id, pair.prompt_set, pair.category) for pair in key.equal] == [("b", "set", "kind")]
    with pytest.raises(UserError, match="judge=human: all answers of new and old are equal"):
        HumanJudge().write(pairs[1:], tmp_path, baseline="old", model="new")
