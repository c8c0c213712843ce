"""What conf/selection/*.yaml say of a selection."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lpsel.errors import UserError
from lpsel.scoring.columns import RECORDABLE
from lpsel.scoring.table import ScoreTable
from lpsel.selection.budget import PARTS_OF_BUCKETS, check_pct, rows_of
from lpsel.selection.rules import Greedy, Rule

BUDGETS = ("exact", "paper")
BUCKETS = ("low", "mid", "high")
CLUSTERS = ("shared", "rule", "none")
DUPLICATES = ("keep", "drop")
ALLOCATIONS = ("proportional", "equal", "cluster_mean")
LENGTHS = ("none", "matched")


@dataclass(frozen=True)
class SelectionSpec:
    """A rule and how it is applied.

    Attributes:
        name: shown in results.
        rule: a function of lpsel.selection.rules or lpsel.selection.coverage.
        epochs: recorded epochs that the rule needs and uses, n of its formula; 0 where the pass before training is
            enough, null where it needs no scores.
        budget: exact, or paper for the released behaviour.
        bucket: low, mid or high: choose only inside this third of every cluster, by score; null for no buckets.
        pct: a share that is the rule's own and takes the place of the command's; null for the command's.
        clusters: shared where every cluster gives a share of the rows, rule where only the rule looks at clusters,
            none where they do not matter.
        columns: further columns that the rule ranks by: recorded by a scorer (RECORDABLE), or the user's own.
        embedder: what embeds the rows, for a rule that looks at embeddings; null for others. Such a rule with an
            option `threshold` looks at them only where that is set.
        duplicates: drop to choose only the first of several rows with the same content.
        allocation: how the rows are shared over clusters: proportional to their sizes, equal, or cluster_mean.
        length: matched to choose at every length of response as many rows as there are.
        options: the rule's own, already bound to it.
    """

    name: str
    rule: Rule
    epochs: int | None = None
    budget: str = "exact"
    bucket: str | None = None
    pct: float | None = None
    clusters: str = "shared"
    columns: Sequence[str | None] = ()
    embedder: str | None = None
    duplicates: str = "keep"
    allocation: str = "proportional"
    length: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("budget", self.budget, BUDGETS)
        _one_of("clusters", self.clusters, CLUSTERS)
        _one_of("duplicates", self.duplicates, DUPLICATES)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        _one_of("length", self.length, LENGTHS)
        if self.bucket is not None and self.bucket not in BUCKETS:
            raise UserError(f"selection.bucket={self.bucket}: must be {', '.join(BUCKETS)}, or null for no buckets.")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int | None) or (self.epochs or 0) < 0:
            raise UserError(f"selection.epochs={self.epochs}: must be a whole number of epochs, 0 or more.")
        if None in self.columns:
            raise UserError(
                f"selection={self.name}: names no column to rank by. Say selection.column=NAME (deita: complexity=, "
                "quality=), a column of numbers in scores=FILE or in the data set."
            )
        for name, default in (("allocation", "proportional"), ("length", "none"), ("duplicates", "keep")):
            value = getattr(self, name)
            if self.budget == "paper" and value != default:
                raise UserError(
                    f"selection.{name}={value}: needs selection.budget=exact; budget=paper repeats what was released."
                )
        if self.allocation != "proportional" and self.clusters != "shared":
            raise UserError(
                f"selection.allocation={self.allocation}: needs selection.clusters=shared; selection={self.name} does "
                "not share its rows over clusters."
            )
        if self.picks_a_set:
            for name, defaults in (
                ("budget", ("exact",)),
                ("bucket", (None,)),
                ("length", ("none",)),
                ("allocation", ("proportional", "equal")),
            ):
                value = getattr(self, name)
                if value not in defaults:
                    raise UserError(
                        f"selection.{name}={value}: needs a score for every row, selection={self.name} picks rows one "
                        "after another. Leave it out, or choose a rule that scores."
                    )

    @property
    def uses_clusters(self) -> bool:
        """Whether clusters can make a difference: not where everything is chosen."""
        return self.clusters != "none" and self.pct != 100

    @property
    def needs_vectors(self) -> bool:
        """Whether the rule looks at embeddings."""
        return self.embedder is not None and self.options.get("threshold", 0) is not None

    @property
    def settings(self) -> dict[str, Any]:
        """How the rule is applied, for results."""
        names = ("epochs", "clusters", "duplicates", "allocation", "length")
        return {name: getattr(self, name) for name in names} | dict(self.options)

    @property
    def records(self) -> tuple[str, ...]:
        """Columns beside the NLLs that a scorer has to record for this rule."""
        return tuple(name for name in self.columns if name in RECORDABLE)

    @property
    def picks_a_set(self) -> bool:
        """Whether the rule picks rows one after another instead of scoring each."""
        rule = self.rule.func if isinstance(self.rule, partial) else self.rule
        return get_type_hints(rule).get("return") is Greedy

    def share(self, pct: float, n_total: int) -> float:
        """The share in percent that this selection takes when the command's is `pct`.

        Costs nothing, so that a mistake is known before anything is scored.

        Raises:
            UserError: no share in (0, 100]; less than half a row of n_total; released buckets that are not thirds.
        """
        pct = check_pct(pct if self.pct is None else self.pct)
        if self.budget == "exact":
            rows_of(pct, n_total)
        elif self.bucket is not None and round(100 / pct) != PARTS_OF_BUCKETS:
            raise UserError(
                f"pct={pct:g}: the released buckets are whole thirds. Say pct=33, or selection.budget=exact for less."
            )
        return pct

    def check_records(self, table: ScoreTable) -> None:
        """See that a table has the records and token counts that the rule needs, columns of the user's own aside.

        Raises:
            UserError: too few epochs, a recorded column or token counts that are not there.
        """
        if self.epochs is not None and (table.epochs < self.epochs or not len(table.nll)):
            raise UserError(
                f"selection={self.name}: needs {self.epochs} recorded epochs, these scores have {table.epochs}. Score "
                f"again with scorer.recipe.epochs={max(self.epochs, 1)}, or choose a rule that needs fewer (lp_app: 1, "
                "random: none)."
            )
        for name in self.records:
            if name not in table.columns:
                raise UserError(
                    f"selection={self.name}: needs the column {name}, which these scores lack. Leave scores= out, so "
                    "that the scorer records it, or add the column."
                )
        if (self.length == "matched" or self.name == "longest") and not table.tokens_known:
            asked = "selection=longest" if self.name == "longest" else "selection.length=matched"
            raise UserError(
                f"{asked}: these scores do not say how long rows are. Add columns prompt_tokens and response_tokens."
            )


def selection(*, rule: Any, **settings: Any) -> SelectionSpec:
    """A SelectionSpec from a configuration node: what is none of its fields is an option of the rule.

    Raises:
        UserError: an option that the rule does not have, or a value that it does not take.
    """
    known = {f.name for f in fields(SelectionSpec)} - {"options"}
    options = {name: value for name, value in settings.items() if name not in known}
    function = rule.func if isinstance(rule, partial) else rule
    kinds = get_type_hints(function)
    for name, value in options.items():
        if name not in inspect.signature(function).parameters:
            raise UserError(f"selection.{name}={value}: selection={settings['name']} has no such option; leave it out.")
        _check_option(name, value, kinds[name])
    bound = partial(function, **options) if options else function
    return SelectionSpec(rule=bound, options=options, **{k: v for k, v in settings.items() if k in known})


def _check_option(name: str, value: Any, kind: Any) -> None:
    if get_origin(kind) is Literal:
        _one_of(name, value, get_args(kind))
    elif kind is bool and not isinstance(value, bool):
        raise UserError(f"selection.{name}={value}: must be true or false.")
    elif (
        float in get_args(kind)
        and value is not None
        and (isinstance(value, bool) or not isinstance(value, int | float))
    ):
        raise UserError(f"selection.{name}={value}: must be a number, or null.")


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        listed = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UserError(f"selection.{name}={value}: must be {listed}.")
