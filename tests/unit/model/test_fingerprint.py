import os

import pytest

from lpsel.errors import UserError
from lpsel.model.fingerprint import model_fingerprint


@pytest.fixture
def folder(tmp_path):
    """A folder with large weights, and a module in a folder of its own."""
    made = tmp_path / "model"
    (made / "1_Dense").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(bytes(3 << 20))
    (made / "config.json").write_text("{}")
    (made / "1_Dense" / "model.safetensors").write_bytes(b"dense")
    return made


def test_equal_files_have_one_fingerprint_wherever_they_are(tmp_path, folder):
    first = model_fingerprint(str(folder))
    folder.rename(tmp_path / "moved")
    assert model_fingerprint(str(tmp_path / "moved")) == first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model"])
def test_a_changed_or_new_file_changes_it(folder, name):
    before = model_fingerprint(str(folder))
    (folder / name).write_bytes(b"another")
    assert model_fingerprint(str(folder)) != before


def test_the_modules_of_a_sentence_transformers_model_count(folder):
    (folder / "modules.json").write_text("[]")
    before = model_fingerprint(str(folder))
    (folder / "1_Dense" / "model.safetensors").write_bytes(b"other")
    assert model_fingerprint(str(folder)) != before


def test_weights_in_subfolders_that_an_index_lists_count(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "1_Dense/model.safetensors"}}')
    before = model_fingerprint(str(folder))
    (folder / "1_Dense" / "model.safetensors").write_bytes(b"other")
    assert model_fingerprint(str(folder)) != before


def test_logs_and_checkpoints_in_the_folder_do_not_count(folder):
    before = model_fingerprint(str(folder))
    (folder / "train.log").write_text("step 1")
    (folder / "1_Dense" / "model.safetensors").write_bytes(b"other")
    assert model_fingerprint(str(folder)) == before


def test_hashes_of_large_files_are_shared_between_processes(tmp_path, folder):
    cache = tmp_path / "cache"
    first = model_fingerprint(str(folder), None, cache)
    assert first == model_fingerprint(str(folder))
    (cached,) = (cache / "hashes").iterdir()
    cached.write_text("0" * 64)  # read instead of the weights
    assert model_fingerprint(str(folder), None, cache) != first
    (folder / "model.safetensors").write_bytes(bytes(3 << 20))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert model_fingerprint(str(folder), None, cache) == first, "rewritten, so read again"


def test_a_path_that_is_neither_a_folder_nor_on_the_hub():
    with pytest.raises(UserError) as caught:
        model_fingerprint("nobody/no-such-model")
    assert caught.value.name == "nobody/no-such-model"
