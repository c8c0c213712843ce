"""`select`: find or make scores and clusters, choose rows, write the selection folder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from lpsel.config import Job, build
from lpsel.data.source import Source
from lpsel.distributed import is_main_process
from lpsel.files import json_line, sha256_of, write_atomically
from lpsel.model.spec import ModelSpec
from lpsel.selection.choose import Selection, select
from lpsel.selection.clusters import Clusters, brings_clusters, with_clusters
from lpsel.selection.spec import SelectionSpec
from lpsel.selection.summary import describe, summary
from lpsel.selection.table import SCORES_FILE, ScoreTable, read_scores
from lpsel.tracking.base import Artifact

if TYPE_CHECKING:
    from lpsel.jobs.score import Scores

log = logging.getLogger(__name__)

SELECTION = "selection.parquet"
SUBSET = "subset.jsonl"


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
    scorer: ModelSpec
    given: ScoreTable | None
    tokens_of: ModelSpec

    @property
    def needs_scorer(self) -> bool:
        return self.given is None and self.rule.epochs > 0


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
    return {"command": "select"} | write_selection(job, plan, chosen) if is_main_process() else {}


def prepare(job: Job, tokens_of: ModelSpec) -> Plan:
    """Read the data set and the configuration, and find what is wrong with them before any model is loaded.

    Raises:
        UserError: whatever the user can mend.
    """
    config = job.config
    rule: SelectionSpec = build(config.selection)
    clusters: Clusters = build(config.cluster)
    scorer: ModelSpec = build(config.scorer)
    source = Source(build(config.dataset))
    given = None
    if config.scores is not None:
        given = read_scores(config.scores).of_dataset(source.ids, source.spec.name)
    plan = Plan(source, rule, rule.share(config.pct, len(source)), clusters, scorer, given, tokens_of)
    if rule.uses_clusters and not (given is not None and brings_clusters(given, clusters)):
        clusters.check(source.spec)
    if plan.needs_scorer:
        from lpsel.jobs.score import check_scorer

        check_scorer(job, scorer, rule.epochs)
    return plan


def choose(job: Job, plan: Plan) -> Chosen:
    """Get scores and clusters, reused where they are in the cache, and apply the rule."""
    scores = None
    if plan.given is not None:
        table = plan.given
    elif plan.needs_scorer:
        from lpsel.jobs.score import scores_for

        scores = scores_for(job, plan.scorer, plan.source, plan.rule.epochs)
        table = read_scores(scores.table)
    else:
        table = _without_scores(job, plan)
    if plan.rule.uses_clusters:
        table = with_clusters(table, plan.clusters, plan.source, job.cache_dir, job.config.seed)
    selection = select(table, plan.rule, plan.pct, job.config.seed)
    log.info("\n".join(describe(summary(selection, table))))
    return Chosen(selection, table, scores)


def _without_scores(job: Job, plan: Plan) -> ScoreTable:
    """A table of tokens alone: a rule that needs no scores still leaves out rows that teach nothing."""
    from lpsel.data.tokens import tokenize
    from lpsel.jobs.score import report_tokens
    from lpsel.model.load import load_tokenizer, locate

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
    table_path, subset_path = job.run_dir / SELECTION, job.run_dir / SUBSET
    write_atomically(table_path, lambda file: pq.write_table(selection.to_arrow(), file))
    write_atomically(subset_path, lambda file: file.writelines(_chosen_lines(plan.source, selection)))

    if scores:
        name = f"scores-{scores.folder.name}"
        job.tracker.used(Artifact("scores", name, scores.folder, metadata=scores.manifest()))
    if plan.rule.epochs:
        job.tracker.histogram(f"{plan.rule.name}/selected", selection.score[selection.selected])
        job.tracker.histogram(f"{plan.rule.name}/all", selection.score)
    for epoch, nll_N in enumerate(chosen.table.nll):
        job.tracker.histogram(f"nll/epoch_{epoch}", nll_N)
    figures = summary(selection, chosen.table)
    subset = Artifact("subset", f"subset-{sha256_of(subset_path)[:16]}", subset_path, metadata=figures)
    # A run that goes on to train has the subset as its input, so that the model's parent is known.
    (job.tracker.made if job.command == "select" else job.tracker.used)(subset)
    return {
        **figures,
        "bucket": plan.rule.bucket,
        "subset": subset_path,
        "selection": table_path,
        "scores": _scores_path(job, plan, scores),
        "scorer": describe_model(plan.scorer) if plan.needs_scorer else None,
        "scores_reused": scores.reused if scores else None,
        "scoring": _cost(scores),
        "dataset": {
            "name": plan.source.spec.name,
            "path": plan.source.spec.path,
            "fingerprint": plan.source.fingerprint,
        },
        "seed": job.config.seed,
    }


def _chosen_lines(source: Source, selection: Selection) -> Any:
    for row in source:
        if selection.selected[row.index]:
            yield json_line(row.raw)


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
    }
