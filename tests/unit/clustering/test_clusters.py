"""Clusters of rows."""

import json
import math
import multiprocessing
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lpsel.clustering import embeddings
from lpsel.clustering.clusters import Auto, Column, KMeans, NoClusters, clusters_for, with_clusters
from lpsel.clustering.embeddings import check_embedder, embed, embeddings_entry
from lpsel.clustering.k_means import k_means
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.errors import UserError

KINDS = ("add", "bake", "code")


@pytest.fixture
def source(tmp_path):
    """Writes rows of three kinds, in any order, and opens them."""

    def make(rows, name="rows.jsonl", **fields):
        lines = (
            json.dumps({"instruction": f"{KINDS[i % 3]} number {i}", "output": "done " * (i % 7), "kind": KINDS[i % 3]})
            for i in rows
        )
        (tmp_path / name).write_text("\n".join(lines))
        return Source(DatasetSpec("rows", path=str(tmp_path / name), **fields))

    return make


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    """An embedder that puts every kind into a corner of its own, and notes what it has been given."""
    seen = []

    class SentenceTransformer(torch.nn.Module):
        max_seq_length = 512

        def __init__(self, folder, **more):
            super().__init__()
            seen.append(f"loaded {Path(folder).name}")

        def encode(self, texts, **_):
            assert self.max_seq_length == 256
            seen.extend(texts)
            corners = [[text.startswith(f"Instruction: {kind}") for kind in KINDS] for text in texts]
            return np.array(corners, np.float64) + [[len(text) / 1000, 0, 0] for text in texts]

    stand_in = ModuleType("sentence_transformers")
    stand_in.__dict__["SentenceTransformer"] = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", stand_in)
    folder = tmp_path / "embedder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder), seen


def test_a_column_gives_a_cluster_for_every_value_in_sorted_order(source, tmp_path):
    assert Column("kind").assign(source([2, 0, 1, 5]), tmp_path, 0).tolist() == [2, 0, 1, 2]
    named = source([2, 0], cluster_column="kind")
    assert Column().assign(named, tmp_path, 0).tolist() == [1, 0]


def test_a_missing_column_is_named(source, tmp_path):
    with pytest.raises(UserError, match=r"cluster.column=topic: row 0 has only instruction, output, kind\. Name"):
        Column("topic").assign(source([0]), tmp_path, 0)
    with pytest.raises(
        UserError, match=r"cluster=column: dataset rows has no cluster_column\. Set cluster.column=NAME\."
    ):
        Column().check(source([0]).spec)
    with pytest.raises(UserError, match=r"cluster.column=topic: row 0 has only"):
        Column("topic").check(source([0]).spec)
    Column("kind").check(source([0]).spec)


def test_rows_without_a_value_are_one_cluster(tmp_path):
    # pandas writes a missing number as NaN, which is not equal to itself.
    columns = {"instruction": ["a", "b", "c", "d"], "output": ["e"] * 4, "kind": [math.nan, 2.0, None, math.nan]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    rows = Source(DatasetSpec("rows", path=str(tmp_path / "rows.parquet")))
    assert Column("kind").assign(rows, tmp_path, 0).tolist() == [0, 1, 0, 0]


def test_a_column_is_checked_in_the_usable_rows(source):
    rows = source([0], bad_rows="skip", cluster_column="kind")
    Path(rows.spec.path).write_text("{\n{}\n" + Path(rows.spec.path).read_text())
    Column().check(rows.spec)
    with pytest.raises(UserError, match=r"cluster.column=topic: row 2 has only instruction, output, kind\."):
        Column("topic").check(rows.spec)


def test_kmeans_finds_the_kinds(source, encoder, tmp_path):
    cluster = KMeans(3, encoder[0]).assign(source(range(30)), tmp_path, 42)
    assert cluster.dtype == np.int32
    assert [len(set(cluster[kind::3])) for kind in range(3)] == [1, 1, 1]
    assert len(set(cluster[:3])) == 3


def test_skipped_rows_are_neither_embedded_nor_in_a_cluster(source, encoder, tmp_path):
    folder, seen = encoder
    without_skipped = KMeans(3, folder).assign(source(range(30)), tmp_path / "without_skipped", 0)
    texts = seen.copy()
    with_odd = source(range(30), bad_rows="skip")
    lines = Path(with_odd.spec.path).read_text().splitlines()
    lines[10:10] = ['{"instruction": "add", "output": ["a"], "kind": "add"}', "{"]
    Path(with_odd.spec.path).write_text("\n".join(["[1]", *lines]))
    for clusters, expected in (
        (KMeans(3, folder), without_skipped.tolist()),
        (Column("kind"), [i % 3 for i in range(30)]),
    ):
        cluster = clusters.assign(with_odd, tmp_path / "odd", 0)
        assert cluster[[0, 11, 12]].tolist() == [-1, -1, -1]
        assert np.delete(cluster, [0, 11, 12]).tolist() == expected
    assert seen == texts * 2


def test_clusters_do_not_depend_on_the_order_of_rows(source, encoder, tmp_path):
    order = np.random.default_rng(0).permutation(150)
    first = KMeans(7, encoder[0]).assign(source(range(150)), tmp_path / "one", 42)
    other = KMeans(7, encoder[0]).assign(source(order, "other.jsonl"), tmp_path / "two", 42)
    assert (other == first[order]).all()


def test_clusters_and_embeddings_are_computed_once(source, encoder, tmp_path):
    folder, seen = encoder
    rows = source(range(20))
    first = KMeans(3, folder).assign(rows, tmp_path, 42)
    assert len(seen) == 21
    assert (KMeans(3, folder).assign(rows, tmp_path, 42) == first).all()
    assert len(seen) == 21, "the clusters were kept"
    KMeans(4, folder).assign(rows, tmp_path, 42)
    assert len(seen) == 21, "the embeddings were kept"
    KMeans(3, folder).assign(source(range(23), "more.jsonl"), tmp_path, 42)
    assert len(seen) == 21 + 1 + 3, "only new rows are embedded"


@pytest.mark.parametrize("kind", ["embeddings", "clusters"])
def test_a_changed_file_is_computed_again_with_a_warning(source, encoder, tmp_path, kind, caplog):
    folder, seen = encoder
    whole = KMeans(3, folder).assign(source(range(20)), tmp_path, 42)
    (file,) = (tmp_path / kind).rglob("*.arrow" if kind == "embeddings" else "*.npy")
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    wanted = 3 if kind == "clusters" else 4  # other clusters of the same embeddings
    again = KMeans(wanted, folder).assign(source(range(20)), tmp_path, 42)
    assert f"{file}: has changed since it was written" in caplog.text
    assert len(seen) == (21 if kind == "clusters" else 42)
    if kind == "clusters":
        assert (again == whole).all()
    caplog.clear()
    KMeans(wanted, folder).assign(source(range(20)), tmp_path, 42)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_of_two_processes_one_embeds_and_clusters(source, encoder, tmp_path):
    folder, seen = encoder
    rows = source(range(20))

    def cluster(place):
        found = KMeans(3, folder).assign(rows, tmp_path, 42)
        (tmp_path / f"said{place}.json").write_text(json.dumps([len(seen), found.tolist()]))

    processes = [multiprocessing.get_context("fork").Process(target=cluster, args=(i,)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    (one, first), (two, second) = (json.loads((tmp_path / f"said{i}.json").read_text()) for i in range(2))
    assert sorted([one, two]) == [0, 21]
    assert first == second


@pytest.mark.parametrize("part", [1, 2])
def test_embedding_that_is_killed_after_a_part_resumes_with_the_next(source, encoder, tmp_path, monkeypatch, part):
    monkeypatch.setattr(embeddings, "PART_ROWS", 8)
    folder, seen = encoder
    rows, written = source(range(20)), []

    def embed_and_die():
        def write(*arguments):
            whole(*arguments)
            written.append(None)
            if len(written) == part:
                os.kill(os.getpid(), signal.SIGKILL)

        whole = embeddings._write
        embeddings._write = write
        embed(rows, folder, tmp_path)

    process = multiprocessing.get_context("fork").Process(target=embed_and_die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    resumed = embed(rows, folder, tmp_path)
    assert len(seen) == 1 + 20 - 8 * part, "rows of finished parts are not embedded again"
    assert (resumed == embed(rows, folder, tmp_path / "undisturbed")).all()


def test_embeddings_are_those_of_their_rows_and_of_long_rows_first(source, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "PART_ROWS", 8)
    folder, seen = encoder
    rows = source([*range(20), 3, 3])
    vectors = embed(rows, folder, tmp_path)
    texts = {row.example.content_id(): row.example.embedding_text() for row in rows}
    assert vectors.shape == (20, 3), "the same content is embedded once"
    for vector, id_ in zip(vectors, sorted(texts), strict=True):
        assert vector[0] == np.float32(texts[id_].startswith("Instruction: add") + len(texts[id_]) / 1000)
    lengths = [len(text) for text in seen[1:]]
    assert lengths[:8] == sorted(lengths[:8], reverse=True)
    assert len(list((tmp_path / "embeddings").rglob("*.arrow"))) == 3, "kept part by part"
    some = embed(source([11, 2, 17], "some.jsonl"), folder, tmp_path)
    places = sorted(texts).index
    ids = sorted(row.example.content_id() for row in source([11, 2, 17], "some.jsonl"))
    assert (some == vectors[[places(id_) for id_ in ids]]).all()


def test_another_embedder_has_other_embeddings(encoder, tmp_path):
    folder = Path(encoder[0])
    (folder / "modules.json").write_text("[]")
    before = embeddings_entry(str(folder), tmp_path)
    (folder / "README.md").write_text("says nothing")
    assert embeddings_entry(str(folder), tmp_path) == before
    (folder / "pooling").mkdir()
    (folder / "pooling" / "config.json").write_text("{}")
    assert embeddings_entry(str(folder), tmp_path) != before


@pytest.mark.parametrize(("rows", "count"), [(52_002, 1000), (15_011, 300), (10_000_000, 200_000), (1, 1), (40, 1)])
def test_as_many_clusters_as_the_paper_has(rows, count):
    assert clusters_for(rows) == count


def test_the_number_of_clusters_is_one_for_fifty_rows(source, encoder, tmp_path):
    def count(n, n_clusters=None):
        return len(np.unique(KMeans(n_clusters, encoder[0]).assign(source(range(n), f"{n}.jsonl"), tmp_path, 0)))

    assert [count(n) for n in (3, 149, 260)] == [1, 3, 5]
    assert count(3, n_clusters=9) == 3, "no more than there are contents"
    with pytest.raises(UserError, match=r"cluster.n_clusters=0: must be an integer, at least 1"):
        KMeans(0)


def test_vectors_count_as_often_as_they_occur():
    # Two clusters of points at 0, 3 and 4. Together, 0 and 3 cost 9 w0 w3 / (w0 + w3), and 3 and 4 w3 w4 / (w3 + w4):
    # with weights of 1, 4.5 against 0.5; with weights of 1, 20 and 1000, 8.6 against 19.6.
    vectors = np.array([[0.0], [3.0], [4.0]], np.float32)
    once, often = (k_means(vectors, np.array(weights), 2, seed=0) for weights in ([1, 1, 1], [1, 20, 1000]))
    assert once[1] == once[2] != once[0]
    assert often[0] == often[1] != often[2]


@pytest.fixture
def blobs():
    """300 points around three corners, and which corner each is at."""
    corner = np.arange(300) % 3
    noise = np.random.default_rng(0).normal(scale=0.1, size=(300, 2))
    return (np.array([[0, 0], [5, 0], [0, 5]])[corner] + noise).astype(np.float32), corner


def test_many_rows_are_clustered_by_mini_batches(blobs, monkeypatch, caplog):
    vectors, corner = blobs
    once = np.ones(300, np.int64)
    assert not (k_means(vectors, once, 3, 42) - k_means(vectors, once, 3, 42)).any()
    assert "mini-batches" not in caplog.text
    monkeypatch.setattr("lpsel.clustering.k_means.MINIBATCH_ABOVE", 299)
    with caplog.at_level("INFO"):
        cluster = k_means(vectors, once, 3, 42)
    assert "more than 299 rows, so k-means by mini-batches" in caplog.text
    assert len(set(zip(cluster.tolist(), corner.tolist(), strict=True))) == 3, "one cluster for every corner"
    assert (k_means(vectors, once, 3, 42) == cluster).all(), "the same seed gives the same clusters"


@pytest.mark.parametrize("above", [200_000, 10])
def test_iterations_are_logged_and_nothing_is_printed(blobs, monkeypatch, capsys, caplog, above):
    monkeypatch.setattr("lpsel.clustering.k_means.MINIBATCH_ABOVE", above)
    with caplog.at_level("INFO"):
        k_means(blobs[0], np.ones(300, np.int64), 3, 42)
    assert re.search(r"Clusters: \d+ iterations, inertia \d", caplog.text)
    assert capsys.readouterr().out == ""


def test_auto_takes_the_column_of_the_data_set_and_else_kmeans(source, encoder, tmp_path):
    auto = Auto(2, encoder[0])
    named = source(range(6), cluster_column="kind")
    assert auto.assign(named, tmp_path, 0).tolist() == [0, 1, 2, 0, 1, 2]
    assert encoder[1] == []
    assert set(auto.assign(source(range(6), "other.jsonl"), tmp_path, 0)) == {0, 1}
    Auto(embedder="/no/such/folder").check(named.spec)
    with pytest.raises(UserError, match=r"cluster\.embedder=/no/such/folder: no such folder"):
        Auto(embedder="/no/such/folder").check(source(range(2)).spec)


def test_clusters_that_came_with_the_scores_are_kept_unless_none_are_wanted(source, make_table, tmp_path):
    table = make_table([[1.0, 2.0, 3.0]], cluster=[8, 8, 9])
    rows = source(range(3), cluster_column="kind")
    kept = with_clusters(table, Auto(), rows, tmp_path, 0).cluster
    assert kept is not None
    assert kept.tolist() == [8, 8, 9]
    assert with_clusters(table, NoClusters(), rows, tmp_path, 0).cluster is None
    assigned = with_clusters(replace(table, cluster=None), Auto(), rows, tmp_path, 0).cluster
    assert assigned is not None
    assert assigned.tolist() == [0, 1, 2]


@pytest.mark.parametrize("embedder", ["/no/such/folder", "./nothing", "~/nothing-here", "a/b/c"])
def test_a_missing_embedder_is_noticed_before_it_is_loaded(embedder):
    with pytest.raises(UserError) as error:
        check_embedder(embedder)
    assert (error.value.name, error.value.value, error.value.problem) == (
        "cluster.embedder",
        embedder,
        "no such folder",
    )


def test_a_folder_without_a_model_is_no_embedder(tmp_path):
    with pytest.raises(UserError, match=r"has neither config.json nor modules.json\. Set cluster.embedder=FOLDER"):
        check_embedder(str(tmp_path))


def test_an_unreachable_hub_is_reported_in_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError("We couldn't connect.\nCheck your connection.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError) as error:
        check_embedder("someone/embedder")
    assert "not available from the Hub (We couldn't connect). Set cluster.embedder=FOLDER" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_embedder_that_cannot_be_loaded_is_a_user_error(source, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be loaded \(.*\)\. Set cluster.embedder=FOLDER") as error:
        KMeans(2, str(tmp_path / "broken")).assign(source(range(4)), tmp_path, 0)
    assert "\n" not in str(error.value)


@pytest.mark.real
def test_minilm_keeps_kinds_of_instruction_apart(real_models, tmp_path):
    minilm = real_models / "all-minilm-l6-v2"
    texts = [f"Translate to French: {word}" for word in ("cat", "dog", "house", "tree", "car", "bread")]
    texts += [f"What is {n} plus 5? Answer with a number." for n in (3, 14, 22, 81, 90, 65)]
    lines = (json.dumps({"instruction": text, "output": "Here it is."}) for text in texts)
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = Source(DatasetSpec("rows", path=str(tmp_path / "rows.jsonl")))
    cluster = KMeans(2, str(minilm)).assign(rows, tmp_path, 42)
    assert (set(cluster[:6]), set(cluster[6:])) in [({0}, {1}), ({1}, {0})]
    vectors = embed(rows, str(minilm), tmp_path)
    assert vectors.shape == (12, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(12), abs=1e-5), "normalised by the model itself"


@pytest.mark.slow
@pytest.mark.real
def test_processes_of_several_devices_embed_many_rows(real_models, tmp_path, instructions, monkeypatch):
    minilm = real_models / "all-minilm-l6-v2"
    rows = Source(DatasetSpec("rows", path=str(instructions(rows=150))))
    alone = embed(rows, str(minilm), tmp_path / "alone")
    monkeypatch.setattr(embeddings, "PART_ROWS", 100)
    monkeypatch.setattr(embeddings, "_visible_gpus", lambda: ["cpu", "cpu"])
    from sentence_transformers import SentenceTransformer

    pools, start = [], SentenceTransformer.start_multi_process_pool
    monkeypatch.setattr(
        SentenceTransformer, "start_multi_process_pool", lambda *given: pools.append(start(*given)) or pools[-1]
    )
    together = embed(rows, str(minilm), tmp_path / "together")
    assert len(pools) == 1
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("SpawnProcess")]
    np.testing.assert_allclose(together, alone, atol=1e-6)
