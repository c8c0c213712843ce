"""`select`: find or make scores and clusters, choose rows, write the selection folder."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from lpsel.clustering.clusters import Auto, Clusters, KMeans, NoClusters, brings_clusters, with_clusters
from lpsel.clustering.embeddings import check_embedder, embed
from lpsel.commands import result_summary as outline
from lpsel.commands.job import Job
from lpsel.commands.tracked_values import log_rows, log_scores
from lpsel.config import build
from lpsel.console import as_text, lines
from lpsel.data.dataset import Row, Source
from lpsel.data.subset import write_subset
from lpsel.distributed import is_main_process
from lpsel.errors import UserError
from lpsel.model.spec import ModelSpec, ScorerSpec
from lpsel.run_config import SCORER
from lpsel.scoring.read import SCORES_FILE, read_scores
from lpsel.scoring.table import ScoreTable
from lpsel.selection.select import Selection, select
from lpsel.selection.spec import SelectionSpec
from lpsel.selection.summary import ends, examples, summary
from lpsel.storage import sha256_of, write_atomically
from lpsel.tracking.artifacts import scores_artifact, subset_artifact

if TYPE_CHECKING:
    from lpsel.scoring.store import Scores

log = logging.getLogger(__name__)

SELECTION = "selection.parquet"
# Ids and scores get no smaller by being compressed, and of millions of rows that takes longer than writing them.
WRITING: dict[str, Any] = {
    "use_dictionary": ["bucket", "reason"],  # columns of few different texts
    "column_encoding": {"index": "DELTA_BINARY_PACKED"},
    "compression": dict.fromkeys(["cluster", "bucket", "selected", "reason"], "snappy"),
}


@dataclass(frozen=True)
class Plan:
    """What a selection is made from, looked at before anything heavy is loaded.

    Attributes:
        source: the data set.
        rule: the selection rule with its budget.
        pct: the share it takes, in percent.
        clusters: how rows are grouped.
        scorer: makes the scores, unless `given` or a rule that needs none.
        given: a table of scores in place of a scorer's.
        tokens_of: whose tokens say which rows have a supervised one, where the rule needs no scores.
    """

    source: Source
    rule: SelectionSpec
    pct: float
    clusters: Clusters
    scorer: ScorerSpec
    given: ScoreTable | None
    tokens_of: ModelSpec

    @property
    def needs_scorer(self) -> bool:
        return self.given is None and self.rule.epochs is not None


@dataclass(frozen=True)
class Chosen:
    """A selection, the table it was made from, and the scores folder where a scorer made it."""

    selection: Selection
    table: ScoreTable
    scores: "Scores | None"


def run(job: Job) -> dict[str, Any]:
    """Choose rows and write them."""
    plan = prepare(job, tokens_of=build(job.config.scorer))
    job.start_tracking()
    chosen = choose(job, plan)
    if not is_main_process():
        return {}
    result = {"command": "select"} | write_selection(job, plan, chosen)
    log.info(as_text(lines([*outline.selection(result), *outline.scores(result)])))
    return result


def prepare(job: Job, tokens_of: ModelSpec) -> Plan:
    """Read the data set and the configuration, and find what is wrong with them before any model is loaded.

    Raises:
        UserError: whatever the user can mend.
    """
    config = job.config
    rule: SelectionSpec = build(config.selection)
    clusters: Clusters = build(config.cluster)
    scorer: ScorerSpec = build(config.scorer)
    if rule.embedder == SCORER:
        rule = replace(rule, embedder=_as_embedder(scorer, job.cache_dir))
    if isinstance(clusters, KMeans) and clusters.embedder == SCORER:
        clusters = replace(clusters, embedder=_as_embedder(scorer, job.cache_dir))
    source = Source(build(config.dataset))
    given = None
    if config.scores is not None:
        columns = [name for name in rule.columns if name is not None]
        given = read_scores(config.scores, config.scores_key, columns, clusters=isinstance(clusters, Auto))
        rule.check_records(given)
        given = given.of_dataset(source.ids, source.spec.name)
    elif config.scores_key is not None:
        raise UserError(f"scores_key={config.scores_key}: names an array of scores=FILE.npz. Say which file, too.")
    plan = Plan(source, rule, rule.percentage(config.pct, len(source)), clusters, scorer, given, tokens_of)
    if rule.uses_clusters and not (given is not None and brings_clusters(given, clusters)):
        if rule.clusters == "rule" and isinstance(clusters, NoClusters):
            raise UserError(
                f"cluster=none: selection={rule.name} is about clusters. Leave it out, or name another rule."
            )
        clusters.check(source.spec)
    for name in _from_data(plan):
        _number(next(iter(source)), name)
    if rule.needs_vectors:
        assert rule.embedder is not None
        check_embedder(rule.embedder)
    if plan.needs_scorer:
        from lpsel.scoring.scorer import check_scorer

        assert rule.epochs is not None
        check_scorer(job.training_setup(), scorer, rule.epochs)
    return plan


def _as_embedder(scorer: ScorerSpec, cache_dir: Path) -> str:
    """The scorer, to embed rows with: sentence-transformers averages a language model's last hidden states."""
    from lpsel.model.load import locate

    if scorer.revision is not None:
        raise UserError(
            f"cluster.embedder={SCORER}: takes no scorer.revision={scorer.revision}; give cluster.embedder=FOLDER."
        )
    return locate(scorer, cache_dir)


def _from_data(plan: Plan) -> list[str]:
    """The columns that the rule ranks by and that neither a scorer records nor the given scores have."""
    known = plan.rule.records if plan.given is None else plan.given.columns
    return [name for name in plan.rule.columns if name is not None and name not in known]


def _number(row: Row, name: str) -> float:
    if name not in row.raw:
        found = ", ".join(map(str, row.raw))
        raise UserError(
            f"selection.column={name}: neither in scores= nor in row {row.index} of the data set, which has {found}. "
            "Name a column of numbers."
        )
    value = row.raw[name]
    try:
        return float("nan") if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        raise UserError(
            f"selection.column={name}: row {row.index} holds {str(value)[:40]!r}. Name a column of numbers."
        ) from None


def choose(job: Job, plan: Plan) -> Chosen:
    """Get scores and clusters, reused where they are in the cache, and apply the rule."""
    scores = None
    if plan.given is not None:
        table = plan.given
    elif plan.needs_scorer:
        from lpsel.scoring.scorer import scores_for

        assert plan.rule.epochs is not None
        scores = scores_for(job.training_setup(), plan.scorer, plan.source, plan.rule.epochs, plan.rule.records)
        table = read_scores(scores.table, columns=plan.rule.records)
    else:
        table = _without_scores(job, plan)
    if plan.rule.uses_clusters:
        table = with_clusters(table, plan.clusters, plan.source, job.cache_dir, job.config.seed)
    if further := _from_data(plan):
        numbers = (_number(row, name) for row in plan.source for name in further)
        rows = np.fromiter(numbers, np.float64).reshape(-1, len(further))
        table = replace(table, columns={**table.columns, **dict(zip(further, rows.T, strict=True))})
    if plan.rule.needs_vectors:
        assert plan.rule.embedder is not None
        vectors_UD = embed(plan.source, plan.rule.embedder, job.cache_dir)
        table = replace(table, vectors=vectors_UD[plan.source.contents.position])
    return Chosen(select(table, plan.rule, plan.pct, job.config.seed), table, scores)


def _without_scores(job: Job, plan: Plan) -> ScoreTable:
    """A table of tokens alone: a rule that needs no scores still leaves out rows that teach nothing."""
    from lpsel.data.tokens import tokenize
    from lpsel.model.load import load_tokenizer, locate
    from lpsel.scoring.scorer import report_tokens

    spec = plan.tokens_of
    tokenizer = load_tokenizer(spec, locate(spec, job.cache_dir))
    tokens = tokenize(plan.source, tokenizer, spec.template, spec.max_length, job.cache_dir)
    report_tokens(tokens, spec)
    return ScoreTable(
        index=np.arange(len(tokens)),
        id=tokens.ids,
        prompt_tokens=tokens.prompt_tokens,
        response_tokens=tokens.response_tokens,
        truncated=tokens.truncated,
        nll=np.empty((0, len(tokens))),
    )


def write_selection(job: Job, plan: Plan, chosen: Chosen) -> dict[str, Any]:
    """Write the selection folder of the contract, track it, and return its part of result.json."""
    selection, scores = chosen.selection, chosen.scores
    table_path = job.run_dir / SELECTION
    write_atomically(table_path, lambda file: pq.write_table(selection.to_arrow(), file, **WRITING))
    places = ends(selection, job.config.seed)
    wanted = selection.index[np.concatenate([*places.values()])].tolist()
    subset_path, seen = write_subset(plan.source, selection.selected, job.run_dir, wanted)
    texts = {row: example.instruction() for row, example in seen.rows.items()}
    characters = seen.mean_characters(selection.n_selected, selection.n_total)
    figures, shown = summary(selection, chosen.table, characters), examples(selection, texts, places)

    parents = []
    if scores:
        parent = scores_artifact(scores.folder, scores.manifest())
        parents.append(parent.name)
        job.tracker.use_artifact(parent)
    log_scores(job.tracker, chosen.table)
    log_rows(job.tracker, selection, chosen.table, places, seen.rows)
    hashes = {path.name: sha256_of(path) for path in (subset_path, table_path)}
    about = {**figures, "made from": parents}
    subset = subset_artifact(subset_path, hashes[subset_path.name], about)
    # A run that goes on to train has the subset as its input, so that the model's parent is known.
    (job.tracker.log_artifact if job.command == "select" else job.tracker.use_artifact)(subset)
    return {
        **figures,
        "examples": shown,
        "bucket": plan.rule.bucket,
        "subset": subset_path,
        "selection": table_path,
        "sha256": hashes,
        "scores": _scores_path(job, plan, scores),
        "scorer": describe_model(plan.scorer) if plan.needs_scorer else None,
        "scores_reused": scores.reused if scores else None,
        "scoring": _cost(scores),
        "dataset": {
            "name": plan.source.spec.name,
            "path": plan.source.spec.path,
            "fingerprint": plan.source.fingerprint,
            "license": plan.source.spec.license,
        },
        "seed": job.config.seed,
    }


def _scores_path(job: Job, plan: Plan, scores: "Scores | None") -> Path | None:
    if scores:
        return scores.table
    if plan.given is None:
        return None
    given = Path(job.config.scores).expanduser().resolve()
    return given / SCORES_FILE if given.is_dir() else given


def _cost(scores: "Scores | None") -> dict[str, Any] | None:
    """What making the scores took, in this run or the one that made them."""
    if scores is None:
        return None
    manifest = scores.manifest()
    return {name: manifest[name] for name in ("tokens", "flops", "seconds", "device_seconds", "peak_memory_bytes")}


def describe_model(spec: ModelSpec) -> dict[str, Any]:
    """What a later command needs to use the model in the same way."""
    return {
        "name": spec.name,
        "path": spec.path,
        "revision": spec.revision,
        "template": spec.template,
        "max_length": spec.max_length,
        "trust_remote_code": spec.trust_remote_code,
        "bin_weights": spec.bin_weights,
    }
