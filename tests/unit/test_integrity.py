"""Manifests and lines with checksums: reading returns what was written, or an error that names the file."""

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
def manifest(tmp_path):
    (tmp_path / "data").write_bytes(bytes(range(256)) * 40)
    seal(tmp_path / "manifest.json", ["data"], {"format": 3, "rows": 7})
    return tmp_path / "manifest.json"


def test_a_manifest_returns_its_fields(manifest):
    assert unseal(manifest, 3)["rows"] == 7


@pytest.mark.parametrize("place", [0, 5_000, 10_239])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_detected(manifest, place, bit):
    data = manifest.with_name("data")
    content = bytearray(data.read_bytes())
    content[place] ^= 1 << bit
    unseal(manifest, 3)  # hashed once in this process
    data.write_bytes(content)
    with pytest.raises(Damaged, match=r"/data: has changed since it was written \(SHA-256 \w{12}, was \w{12}\)"):
        unseal(manifest, 3)


def test_a_truncated_or_missing_file_is_detected(manifest):
    data = manifest.with_name("data")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(Damaged, match="/data: has changed"):
        unseal(manifest, 3)
    data.unlink()
    with pytest.raises(Damaged, match="/data: no longer exists"):
        unseal(manifest, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 4, "sha256": {}}', "manifest.json: has format 4, lpsel .* reads format 3"),
        ('{"format": true, "sha256": {}}', "has format True, lpsel"),
        ('{"sha256": {}}', "has no format, lpsel"),
        ('{"format": 3}', "has no hashes of files"),
        ('{"format": 3, "sha256": []}', "has no hashes of files"),
        ("[3]", "has no format"),
        ('{"format": 3, "sha', r"not readable \("),
        ("[" * 100_000, r"not readable \(nested too deeply\)"),
    ],
)
def test_a_manifest_with_another_format_or_invalid_json_is_rejected(manifest, content, message):
    manifest.write_text(content)
    with pytest.raises(Damaged, match=message):
        unseal(manifest, 3)


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    from lpsel import integrity

    hashed = []
    monkeypatch.setattr(integrity, "sha256_of", lambda file: hashed.append(file.name) or str(len(hashed)))
    file = tmp_path / "large"
    file.write_bytes(b"one")
    assert (sha256_once(file), sha256_once(file)) == ("1", "1")
    file.write_bytes(b"three")
    assert sha256_once(file) == "2"


@given(VALUES)
def test_a_line_returns_its_value(value):
    value.pop("check", None)
    assert open_line(sealed_line(value)) == value


@given(VALUES, st.data())
def test_a_line_with_a_changed_bit_is_rejected_or_has_the_same_value(value, data):
    value.pop("check", None)
    line = bytearray(sealed_line(value)[:-1])
    line[data.draw(st.integers(0, len(line) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ValueError):
        assert open_line(bytes(line)) == value


def test_a_line_without_a_checksum_is_rejected():
    with pytest.raises(ValueError, match="has changed"):
        open_line(json.dumps({"verdict": 1}).encode())
