"""SelectionSpec: the validated settings of conf/selection."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from lpsel.errors import UserError, check_choice, check_flag, check_int, check_number
from lpsel.scoring.columns import RECORDABLE
from lpsel.scoring.table import ScoreTable
from lpsel.selection.budget import PARTS_OF_BUCKETS, check_pct, paper_shares, rounded_rows, row_budget
from lpsel.selection.rules import Ranking, Rule

BUCKETS = ("low", "mid", "high")
CHOICES = {
    "budget": ("exact", "paper"),
    "clusters": ("shared", "rule", "none"),
    "allocation": ("proportional", "equal", "cluster_mean"),
    "length": ("none", "matched"),
    "pct_of": ("rows", "tokens"),
    "duplicates": ("keep", "drop"),
    "known": ("keep", "drop"),
    "rising": ("keep", "drop"),
    "scored_by": ("scorer", "target"),
}


@dataclass(frozen=True)
class SelectionSpec:
    """A selection rule and its settings.

    Attributes:
        epochs: number of recorded epochs that the rule uses, n in its formula; 0 if it only uses the scores before
            training, None if it needs no scores.
        bucket: low, mid or high: select only from this third of every cluster, by score; None for no buckets.
        pct: overrides the command's percentage.
        clusters: shared if rows are allocated to all clusters, rule if only the rule uses clusters, or none.
        columns: additional columns that the rule ranks by: recorded by a scorer (RECORDABLE), or user-defined.
        scored_by: scorer, or target if the target model records the scores itself.
        group: column that identifies answers to the same prompt, for a rule that compares them; `prompt` for the text
            of the prompt.
        embedder: model that embeds the rows, for a rule that uses embeddings; a rule with an option `threshold` uses
            them only if it is set.
        duplicates: drop to select only the first of several rows with the same content.
        known: drop to exclude rows whose loss before training is below `known_level`; if that is None, below the
            median after the last epoch that the rule uses.
        rising: drop to exclude rows whose loss after any epoch that the rule uses is above the loss before training.
        min_response_tokens: fewest supervised tokens of a selected row; None for no limit.
        allocation: how rows are allocated to clusters: proportional to their sizes, equal, or cluster_mean.
        length: matched to preserve the distribution of response lengths.
        pct_of: unit of the percentage: rows, or tokens of prompts and responses.
    """

    name: str
    rule: Rule
    epochs: int | None = None
    budget: str = "exact"
    bucket: str | None = None
    pct: float | None = None
    clusters: str = "shared"
    columns: Sequence[str | None] = ()
    scored_by: str = "scorer"
    group: str | None = None
    embedder: str | None = None
    duplicates: str = "keep"
    known: str = "keep"
    known_level: float | None = None
    rising: str = "keep"
    min_response_tokens: int | None = None
    allocation: str = "proportional"
    length: str = "none"
    pct_of: str = "rows"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(f"selection.{name}", getattr(self, name), choices)
        if self.bucket is not None:
            check_choice("selection.bucket", self.bucket, BUCKETS, "set selection.bucket=null for no buckets")
        if self.rule.epochs is not None:
            hint = f"leave it out: selection={self.name} sets it"
            check_int("selection.epochs", self.epochs, self.rule.epochs, hint=hint)
        elif self.epochs is not None:
            hint = "set selection.epochs=null for a rule without scores"
            check_int("selection.epochs", self.epochs, 0, hint=hint)
        if self.known_level is not None:
            check_number("selection.known_level", self.known_level, hint="set it to null for the median after training")
            if self.known == "keep":
                hint = "set it as well, or leave out the level"
                raise UserError("selection.known_level", self.known_level, "needs selection.known=drop", hint)
        if self.min_response_tokens is not None:
            hint = "set selection.min_response_tokens=null for no limit"
            check_int("selection.min_response_tokens", self.min_response_tokens, 1, hint=hint)
        if None in self.columns:
            hint = (
                "set selection.column=NAME, a numeric column of the scores or dataset (deita: complexity and quality)"
            )
            raise UserError("selection", self.name, "needs a column to rank by", hint)
        if self.rule.uses_group and self.group is None:
            problem = f"selection={self.name} compares the answers to a prompt"
            raise UserError("selection.group", "null", problem, "set it to prompt or to a column")
        if self.budget == "paper":
            problem, hint = "is not part of the released method", "set selection.budget=exact"
            self._require(problem, hint, allocation=["proportional"], length=["none"], min_response_tokens=[None])
            self._require(problem, hint, pct_of=["rows"], duplicates=["keep"], known=["keep"], rising=["keep"])
        if self.clusters != "shared":
            problem = f"needs selection.clusters=shared; selection={self.name} does not allocate rows to clusters"
            self._require(problem, "leave it out", allocation=["proportional"])
        if self.rule.picks_rows:
            problem = f"needs a score for every row; selection={self.name} picks rows one after another"
            allowed: dict[str, Collection[str | None]] = {"budget": ["exact"], "bucket": [None]}
            self._require(problem, "leave it out", **allowed, allocation=["proportional", "equal"])

    def _require(self, problem: str, hint: str, **allowed: Collection[str | None]) -> None:
        """Raise a UserError with `problem` and `hint` if one of these settings is not among its allowed values."""
        for name, values in allowed.items():
            value = getattr(self, name)
            if value not in values:
                raise UserError(f"selection.{name}", value, problem, hint)

    @property
    def uses_clusters(self) -> bool:
        """Whether clusters can affect the selection; shared clusters do not if all rows are selected."""
        if self.clusters == "shared":
            return self.pct != 100 or self.bucket is not None
        return self.clusters == "rule"

    @property
    def needs_vectors(self) -> bool:
        """Whether the rule uses embeddings."""
        if self.embedder is None:
            return False
        return "threshold" not in self.options or self.options["threshold"] is not None

    @property
    def trains_on_query(self) -> bool:
        """Whether the scorer is trained only on the examples of the user's task.

        A rule that compares embeddings of rows and examples needs no scorer.
        """
        return self.rule.uses_query and self.embedder is None and self.epochs is not None

    @property
    def relative(self) -> bool:
        """Whether the score is a relative decrease in loss."""
        return self.name in ("lp_nll", "lp_app_nll", "task_lp") or self.options.get("basis") == "nll"

    @property
    def settings(self) -> dict[str, Any]:
        names = ("epochs", "clusters", "duplicates", "known", "known_level", "rising", "allocation", "length", "pct_of")
        return {name: getattr(self, name) for name in (*names, "min_response_tokens")} | dict(self.options)

    @property
    def records(self) -> tuple[str, ...]:
        """Columns that a scorer must record in addition to the NLLs; empty if no scorer runs."""
        return tuple(name for name in self.columns if self.epochs is not None and name in RECORDABLE)

    def option_of(self, column: str) -> str:
        """Option that sets one of `columns`, for messages."""
        for name, value in self.options.items():
            if column == value or (isinstance(value, dict) and column in value):
                return f"selection.{name}"
        return "selection.column"

    def used(self, table: ScoreTable) -> ScoreTable:
        """The table up to `epochs`, so that additional recorded epochs do not change the selection."""
        return table if self.epochs is None else table.first_epochs(self.epochs)

    def rank(self, table: ScoreTable, seed: int) -> Ranking:
        return self.rule(self.used(table), seed=seed, **self.options)

    def percentage(self, pct: float, n_total: int) -> float:
        """Percentage of n_total rows to select; `pct` is the command's percentage.

        Raises:
            UserError: it is not in (0, 100], is less than half a row, or is not a third with the paper's buckets.
        """
        pct = check_pct(pct if self.pct is None else self.pct)
        if self.budget == "exact":
            row_budget(pct, n_total)
        elif self.bucket is not None and round(min(100 / pct, 100)) != PARTS_OF_BUCKETS:
            hint = "set pct=33, or selection.budget=exact for smaller subsets"
            raise UserError("pct", f"{pct:g}", "the released buckets are thirds of a cluster", hint)
        return pct

    def planned_rows(self, pct: float, n_total: int) -> int:
        """Number of rows that `pct` selects from one cluster of n_total eligible rows, for estimates."""
        return rounded_rows(pct, n_total) if self.budget == "exact" else int(paper_shares(np.array([n_total]), pct)[0])

    def check_without_clusters(self) -> None:
        """Raise a UserError if the rule or a setting needs clusters, for cluster=none."""
        if self.clusters == "rule":
            hint = "leave out cluster=none, or use another rule"
            raise UserError("cluster", "none", f"selection={self.name} needs clusters", hint)
        problem = "allocates rows to clusters, and cluster=none has none"
        self._require(problem, "leave it out", allocation=["proportional"])

    def check_records(self, table: ScoreTable) -> None:
        """Check that a table has the records and token counts that the rule needs, except user-defined columns.

        Raises:
            UserError: there are too few epochs, or a recorded column or the token counts are missing.
        """
        if self.epochs is not None and (table.epochs < self.epochs or not len(table.nll)):
            problem = "needs nll_0, which these scores lack"
            if self.epochs:
                problem = f"needs {self.epochs} recorded epochs, and these scores have {table.epochs}"
            again = f"score again with scorer.recipe.epochs={max(self.epochs, 1)}"
            hint = f"{again}, or use a rule that needs fewer (lp_app: 1, random: none)"
            raise UserError("selection", self.name, problem, hint)
        for name in self.records:
            if name not in table.columns:
                hint = "leave out scores= so that the scorer records it, or add the column"
                raise UserError("selection", self.name, f"needs the column {name}, which these scores lack", hint)
        if not table.tokens_known:
            problem, hint = "these scores have no token counts", "add the columns prompt_tokens and response_tokens"
            if self.rule.uses_lengths:
                raise UserError("selection", self.name, problem, hint)
            self._require(problem, hint, length=["none"], pct_of=["rows"], min_response_tokens=[None])


def selection(*, rule: Any, **settings: Any) -> SelectionSpec:
    """Create a SelectionSpec from a configuration node; settings that are not its fields are options of the rule.

    Raises:
        UserError: the rule has no such option, or a value is invalid.
    """
    rule = rule.func if isinstance(rule, partial) else rule
    drops_known, drops_rising = settings.get("known") == "drop", settings.get("rising") == "drop"
    if drops_rising or (drops_known and settings.get("known_level") is None):  # needs losses after an epoch
        settings["epochs"] = max(settings.get("epochs") or 0, 1)
    elif drops_known:  # needs losses before training
        settings["epochs"] = settings.get("epochs") or 0
    settings["columns"] = [_column(name) for name in settings.get("columns", ())]
    settings["group"] = _column(settings.get("group"))
    field_names = {f.name for f in fields(SelectionSpec)} - {"options"}
    of_spec = {name: value for name, value in settings.items() if name in field_names}
    options = {name: value for name, value in settings.items() if name not in field_names}
    parameters, types = inspect.signature(rule.function).parameters, get_type_hints(rule.function)
    for name, value in options.items():
        if name not in parameters:
            problem = f"selection={settings['name']} has no such option"
            raise UserError(f"selection.{name}", value, problem, "leave it out")
        _check_option(f"selection.{name}", value, types[name])
        if types[name] is str:
            options[name] = _column(value)
    return SelectionSpec(rule=rule, options=options, **of_spec)


def _column(name: Any) -> str | None:
    """The name of a column, which may look like a number."""
    return None if name is None else str(name)


def _check_option(name: str, value: Any, type_: Any) -> None:
    """Check an option by the type hint of the rule's parameter."""
    if get_origin(type_) is Literal:
        check_choice(name, value, get_args(type_))
    elif type_ is bool:
        check_flag(name, value)
    elif type_ is int:
        check_int(name, value, 1)
    elif type_ == (float | None) and value is not None:
        check_number(name, value, hint=f"set {name}=null to turn it off")
