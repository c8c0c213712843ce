"""Inputs of a selection: check the dataset, scores, clusters and embeddings, then load them."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from lpsel.clustering.clusters import Auto, Clusters, KMeans, NoClusters, brings_clusters, with_clusters
from lpsel.clustering.embeddings import check_embedder, embed
from lpsel.commands.row_checks import check_own_ids, numeric_columns, prompt_numbers
from lpsel.config import build, choice, choices
from lpsel.data.content_ids import first_kinds
from lpsel.data.dataset import Source
from lpsel.data.shared_source import shared_source
from lpsel.distributed import is_main_process
from lpsel.errors import UserError
from lpsel.model.load import load_tokenizer, locate, with_template
from lpsel.model.spec import ModelSpec, ScorerSpec
from lpsel.run_config import SCORER, TARGET
from lpsel.scoring.read import SCORES_FILE, read_scores
from lpsel.scoring.store import Scores
from lpsel.scoring.table import ScoreTable
from lpsel.selection import rules
from lpsel.selection.budget import rounded_rows
from lpsel.selection.combine import combined_spec
from lpsel.selection.rules import PROMPT
from lpsel.selection.spec import SelectionSpec, selection

if TYPE_CHECKING:
    from lpsel.training.setup import TrainingSetup

log = logging.getLogger(__name__)
FEW_ROWS = 10


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a selection."""

    source: Source
    spec: SelectionSpec
    pct: float
    seed: int  # for the selection and for clustering
    clusters: Clusters
    scorer: ScorerSpec
    setup: "TrainingSetup | None"  # how the scorer is trained; None if no scores are needed or they are given
    query: Source | None  # examples of the user's task, if any
    query_in_data: int | None  # number of examples that are also rows of the dataset
    prompts: NDArray[np.float64] | None  # prompt number of every row, (N,), for a rule that compares answers
    scores: ScoreTable | None  # from the file `scores_file`
    scores_file: Path | None
    tokens_of: ModelSpec  # without scores, its tokenizer decides which rows have a supervised token
    cache_dir: Path

    @cached_property
    def numbers(self) -> dict[str, NDArray[np.float64]]:
        """Columns that the rule ranks by and the scores lack, read from the dataset, (N,) each."""
        return numeric_columns(self.source, self.spec, self.scores)

    @property
    def embedder_option(self) -> str:
        """Option that sets the rule's embedder: the clusters' option, unless the rule has one."""
        same = isinstance(self.clusters, KMeans) and self.clusters.embedder == self.spec.embedder
        return "cluster.embedder" if same else "selection.embedder"


def prepare_inputs(
    config: DictConfig, cache_dir: Path, make_setup: Callable[[], "TrainingSetup"], tokens_of: ModelSpec
) -> Inputs:
    """Read and check the configuration, given scores and the dataset, before any model is loaded."""
    spec: SelectionSpec = build(config.selection)
    clusters: Clusters = build(config.cluster)
    scorer = scoring_model(spec, build(config.scorer), tokens_of)
    query = query_source(config, spec)
    source = shared_source(build(config.dataset))
    scores, scores_file = read_given_scores(config, spec, source)
    query_in_data = None if query is None else _rows_in(query, source)
    prompts = None if spec.group is None else prompt_numbers(source, spec.group)
    pct = spec.percentage(config.pct, len(source))
    if spec.embedder in (SCORER, TARGET):
        model = scorer if spec.embedder == SCORER else tokens_of
        spec = replace(spec, embedder=_embedder_path("selection.embedder", spec.embedder, model, cache_dir))
    if isinstance(clusters, KMeans) and clusters.embedder == SCORER:
        clusters = replace(clusters, embedder=_embedder_path("cluster.embedder", SCORER, scorer, cache_dir))
    setup = make_setup() if scores is None and spec.epochs is not None else None
    inputs = Inputs(
        source=source,
        spec=spec,
        pct=pct,
        seed=config.seed,
        clusters=clusters,
        scorer=scorer,
        setup=setup,
        query=query,
        query_in_data=query_in_data,
        prompts=prompts,
        scores=scores,
        scores_file=scores_file,
        tokens_of=tokens_of,
        cache_dir=cache_dir,
    )
    _check(inputs)
    if pct < 100 and (rows := rounded_rows(pct, len(source))) < FEW_ROWS:
        log.warning("pct=%g of %d rows is only %s", pct, len(source), "1 row" if rows == 1 else f"{rows} rows")
    if setup is not None:
        warn_of_toy("scorer", scorer, source)
    return inputs


def scoring_model(spec: SelectionSpec, scorer: ScorerSpec, target: ModelSpec) -> ScorerSpec:
    """The model that records the scores: the scorer, or the target of `train` if the rule requires it."""
    if spec.scored_by == SCORER or isinstance(target, ScorerSpec):
        return scorer
    return ScorerSpec(**{field.name: getattr(target, field.name) for field in fields(target)})


def check_recipe(spec: SelectionSpec, scorer: ScorerSpec) -> None:
    """Raise a UserError if the scorer's training is too short for a rule, or shortened where it must not."""
    scorer.check_epochs(spec.epochs or 0)
    if spec.trains_on_query and (less := scorer.less_training()):
        problem, hint = f"selection={spec.name} trains on all rows of query.path", "leave it out"
        raise UserError(f"scorer.{next(iter(less))}", problem=problem, hint=hint)


def warn_of_toy(option: str, model: ModelSpec, source: Source) -> None:
    """Warn if an embedded toy model is used on the user's data."""
    if model.path is None and source.spec.path is not None and is_main_process():
        problem = "is a toy for the embedded dataset: its results on other rows are meaningless"
        log.warning(
            "%s=%s %s. Set %s=FOLDER_OR_HUB_ID, or another name in conf/model.", option, model.name, problem, option
        )


def _embedder_path(option: str, value: str, model: ModelSpec, cache_dir: Path) -> str:
    """Path of a language model to use as an embedder: sentence-transformers averages its last hidden states."""
    if value == TARGET and isinstance(model, ScorerSpec):
        raise UserError(option, value, "`select` has no target", f"set {option}=scorer, or scorer= to the target")
    if model.revision is not None:
        problem = f"does not support {'model' if value == TARGET else value}.revision={model.revision}"
        raise UserError(option, value, problem, f"set {option}=FOLDER")
    return locate(model, cache_dir)


def query_source(config: DictConfig, spec: SelectionSpec) -> Source | None:
    """Examples of the user's task, if any. If the rule does not use them, their overlap with the data is reported."""
    if not OmegaConf.is_config(config.query):
        raise UserError("query", config.query, "query is a group of options", f"set query.path={config.query}")
    if config.query.path is None:
        scored_by_query = spec.trains_on_query and config.scores is not None
        if spec.rule.uses_query and not scored_by_query:
            problem = f"selection={spec.name} needs examples of your task"
            hint = "set query.path=FILE, in any format that dataset.path accepts"
            raise UserError("query.path", "null", problem, hint)
        return None
    try:
        query = Source(build(config.query), "query")
        _ = query.ids  # reads and checks the rows
    except UserError as error:
        raise error.renamed(re.sub(r"^dataset\b", "query", error.name)) from error
    if not spec.rule.uses_query and is_main_process():
        log.warning("selection=%s does not use the examples in query.path; rds and task_lp do.", spec.name)
    return query


def _rows_in(query: Source, source: Source) -> int:
    """Number of examples that are also rows of the dataset, by content."""
    overlap = pc.sum(pc.is_in(query.ids, value_set=source.ids)).as_py()
    if overlap and is_main_process():
        log.warning(
            "%s of %s rows of query.path are also rows of dataset %s (leakage): do not evaluate on them.",
            f"{overlap:,}", f"{len(query):,}", source.spec.name,
        )  # fmt: skip
    return overlap


def read_given_scores(config: DictConfig, spec: SelectionSpec, source: Source) -> tuple[ScoreTable | None, Path | None]:
    """Read `scores=`, the scores of the rows of a dataset; returns them and their file, or None twice.

    Raises:
        UserError: the file cannot be read, does not match the rows, or lacks something that the rule needs.
    """
    if config.scores is None:
        if config.scores_key is None:
            return None, None
        problem, hint = "names an array of scores=FILE.npz, which is not set", "set scores=FILE.npz, or leave it out"
        raise UserError("scores_key", config.scores_key, problem, hint)
    columns = [name for name in spec.columns if name is not None]
    clusters = isinstance(build(config.cluster), Auto)
    table = read_scores(config.scores, config.scores_key, columns, clusters=clusters, rows=lambda: len(source))
    spec.check_records(table)
    check_own_ids(table, source)
    path = Path(config.scores).expanduser().resolve()
    file = path / SCORES_FILE
    return table.of_dataset(source.ids, source.spec.name), file if file.is_file() else path


def _check(inputs: Inputs) -> None:
    """Raise a UserError for clusters, columns, embedders or scorers that the rule needs and cannot use."""
    spec = inputs.spec
    given_clusters = inputs.scores is not None and brings_clusters(inputs.scores, inputs.clusters)
    if isinstance(inputs.clusters, NoClusters):
        spec.check_without_clusters()
    elif spec.uses_clusters and not given_clusters:
        inputs.clusters.check(inputs.source.spec)
    _ = inputs.numbers  # reads and checks the columns
    if spec.needs_vectors and spec.embedder is not None:
        check_embedder(spec.embedder, inputs.embedder_option)
    if inputs.setup is not None and spec.epochs is not None:
        from lpsel.scoring.scorer import check_scorer

        check_recipe(spec, inputs.scorer)
        check_scorer(inputs.setup, inputs.scorer, spec.epochs)
    elif inputs.scores is None and isinstance(inputs.tokens_of, ScorerSpec):
        from lpsel.scoring.scorer import check_available

        purpose = "; its tokenizer finds the rows that have no token to train on"
        check_available(inputs.tokens_of, inputs.cache_dir, purpose)


def combined(*, combine: dict[str, float] | None, **settings: Any) -> SelectionSpec:
    """Build the spec of selection=combine from the names of rules or numeric columns, with their weights."""
    hint = "set 'selection.combine={lp_app_nll: 1, COLUMN: .5}' with names of rules and of numeric columns"
    if not isinstance(combine, dict) or not combine:
        raise UserError("selection.combine", combine, "needs rules or columns with their weights", hint)
    weights = {str(name): weight for name, weight in combine.items()}  # a column may look like a number
    return combined_spec({name: _part(name, hint) for name in weights}, weights, **settings)


def _part(name: str, hint: str) -> SelectionSpec:
    if name not in choices("selection"):
        return selection(name="score_column", rule=rules.score_column, column=name, columns=[name], descending=True)
    if name in ("combine", "score_column"):
        raise UserError("selection.combine", name, "cannot be combined", hint)
    return build(choice("selection", name))


def load_table(inputs: Inputs) -> tuple[ScoreTable, Scores | None]:
    """Load or compute the table to select from; returns it, and the scores folder if a scorer computed it.

    Raises:
        UnusableRow: the scores are from a run that skipped rows, which this run must not.
    """
    spec, source, scores = inputs.spec, inputs.source, None
    if inputs.scores is not None:
        table = inputs.scores
    elif inputs.setup is not None and spec.epochs is not None:
        from lpsel.scoring.scorer import scores_for

        trained_on = inputs.query if spec.trains_on_query else None
        scores = scores_for(inputs.setup, inputs.scorer, source, spec.epochs, spec.records, trained_on)
        table = read_scores(scores.table, columns=spec.records)
    else:
        table = _table_of_tokens(source, inputs.tokens_of, inputs.cache_dir)
    source.check_skipped(table.unusable)
    table = replace(table, empty_answer=source.empty_answer, unusable=first_kinds(source.unusable, table.unusable))
    table = replace(table, response_tokens=np.where(source.no_answer, 0, table.response_tokens))
    if spec.uses_clusters:
        table = with_clusters(table, inputs.clusters, source, inputs.cache_dir, inputs.seed)
    prompts = {} if inputs.prompts is None else {PROMPT: inputs.prompts}
    table = replace(table, columns={**table.columns, **inputs.numbers, **prompts})
    if spec.needs_vectors and spec.embedder is not None:
        table = replace(table, vectors=_vectors(source, spec.embedder, inputs))
        if inputs.query is not None and spec.rule.uses_query:
            usable = inputs.query.contents.position >= 0
            table = replace(table, query_vectors=_vectors(inputs.query, spec.embedder, inputs)[usable])
    return table, scores


def _vectors(source: Source, embedder: str, inputs: Inputs) -> NDArray[np.float32]:
    """Embeddings of all rows, (N, D); arbitrary for unusable rows."""
    vectors_UD = embed(source, embedder, inputs.cache_dir, inputs.spec.rule.uses_query, inputs.embedder_option)
    return vectors_UD[source.contents.position]


def _table_of_tokens(source: Source, model: ModelSpec, cache_dir: Path) -> ScoreTable:
    """Table without scores, for a rule that only needs to know which rows have a supervised token."""
    from lpsel.data.tokens import tokenize
    from lpsel.scoring.scorer import report_tokens

    model = with_template(model, source, cache_dir)
    tokenizer = load_tokenizer(model, locate(model, cache_dir))
    tokens = tokenize(source, tokenizer, model.template, model.max_length, cache_dir)
    if isinstance(model, ScorerSpec):  # a target's are reported when it is trained
        report_tokens(model, tokens.counted())
    counts = (tokens.prompt_tokens, tokens.response_tokens, tokens.truncated)
    nll = np.empty((0, len(tokens)))
    return ScoreTable(np.arange(len(tokens)), tokens.ids, *counts, nll=nll, unusable=tokens.unusable)
