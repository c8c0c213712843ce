"""What is read is what was written, or an error that names the file."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.integrity import Damaged, open_line, seal, sealed_line, sha256_once, unseal

VALUES = st.dictionaries(
    st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "data").write_bytes(bytes(range(256)) * 40)
    seal(tmp_path / "manifest.json", ["data"], {"format": 3, "rows": 7})
    return tmp_path / "manifest.json"


def test_a_manifest_gives_back_what_it_was_given(sealed):
    assert unseal(sealed, 3)["rows"] == 7


@pytest.mark.parametrize("place", [0, 5_000, 10_239])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_seen(sealed, place, bit):
    data = sealed.with_name("data")
    content = bytearray(data.read_bytes())
    content[place] ^= 1 << bit
    unseal(sealed, 3)  # this process knows the file by now
    data.write_bytes(content)
    with pytest.raises(Damaged, match=r"/data: has changed since it was written \(SHA-256 \w{12}, was \w{12}\)"):
        unseal(sealed, 3)


def test_a_file_that_is_shorter_or_gone_is_seen(sealed):
    data = sealed.with_name("data")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(Damaged, match="/data: has changed"):
        unseal(sealed, 3)
    data.unlink()
    with pytest.raises(Damaged, match="/data: does not exist any more"):
        unseal(sealed, 3)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"format": 4, "sha256": {}}', "manifest.json: has format 4, lpsel .* reads format 3"),
        ('{"format": true, "sha256": {}}', "has format True, lpsel"),
        ('{"sha256": {}}', "has no format, lpsel"),
        ('{"format": 3}', "names no file with its SHA-256"),
        ('{"format": 3, "sha256": []}', "names no file with its SHA-256"),
        ("[3]", "has no format"),
        ('{"format": 3, "sha', r"cannot be read \("),
        ("[" * 100_000, r"cannot be read \(nested too deeply\)"),
    ],
)
def test_a_manifest_of_another_format_or_none_is_refused(sealed, content, complaint):
    sealed.write_text(content)
    with pytest.raises(Damaged, match=complaint):
        unseal(sealed, 3)


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    from lpsel import integrity as sealed

    hashed = []
    monkeypatch.setattr(sealed, "sha256_of", lambda file: hashed.append(file.name) or str(len(hashed)))
    file = tmp_path / "large"
    file.write_bytes(b"one")
    assert (sha256_once(file), sha256_once(file)) == ("1", "1")
    file.write_bytes(b"three")
    assert sha256_once(file) == "2"


@given(VALUES)
def test_a_line_comes_back(value):
    value.pop("check", None)
    assert open_line(sealed_line(value)) == value


@given(VALUES, st.data())
def test_a_line_with_any_byte_changed_is_refused_or_says_the_same(value, data):
    value.pop("check", None)
    line = bytearray(sealed_line(value)[:-1])
    line[data.draw(st.integers(0, len(line) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ValueError):
        assert open_line(bytes(line)) == value


def test_a_line_without_a_check_is_refused():
    with pytest.raises(ValueError, match="has changed"):
        open_line(json.dumps({"verdict": 1}).encode())
