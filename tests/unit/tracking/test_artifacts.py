"""Names of artifacts, which link the runs that share them."""

from pathlib import Path

from lpsel.tracking.artifacts import (
    evaluation_artifact,
    model_artifact,
    model_name,
    scores_artifact,
    subset_artifact,
)


def test_names_identify_contents_or_runs():
    run = Path("/multirun/sweep/3")
    artifacts = [
        scores_artifact(Path("/cache/scores/opt-350m-0123"), {}),
        subset_artifact(run / "subset.jsonl", "0123456789abcdef0123", {}),
        model_artifact(model_name(run), run / "model"),
        evaluation_artifact(run / "judgements.parquet", run),
    ]
    assert [(a.kind, a.name) for a in artifacts] == [
        ("scores", "scores-opt-350m-0123"),
        ("subset", "subset-0123456789abcdef"),
        ("model", "model-sweep-3"),
        ("evaluation", "judgements-3"),
    ]
    assert [a.by_reference for a in artifacts] == [False, False, True, False], "models are too large to copy"
