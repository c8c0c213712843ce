"""What conf/selection/*.yaml say of a selection."""

from dataclasses import dataclass

from lpsel.errors import UserError
from lpsel.selection.budget import PARTS_OF_BUCKETS, check_pct, rows_of
from lpsel.selection.rules import Rule

BUDGETS = ("exact", "paper")
BUCKETS = ("low", "mid", "high")


@dataclass(frozen=True)
class SelectionSpec:
    """A rule and how it is applied.

    Attributes:
        name: shown in results.
        rule: a function of lpsel.selection.rules.
        epochs: recorded epochs that the rule needs and uses, n of its formula; 0 where it needs no scores.
        budget: exact, or paper for the released behaviour.
        bucket: low, mid or high: choose only inside this third of every cluster, by score; null for no buckets.
        pct: a share that is the rule's own and takes the place of the command's; null for the command's.
    """

    name: str
    rule: Rule
    epochs: int = 0
    budget: str = "exact"
    bucket: str | None = None
    pct: float | None = None

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise UserError(f"selection.budget={self.budget}: must be {' or '.join(BUDGETS)}.")
        if self.bucket is not None and self.bucket not in BUCKETS:
            raise UserError(f"selection.bucket={self.bucket}: must be {', '.join(BUCKETS)}, or null for no buckets.")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0:
            raise UserError(f"selection.epochs={self.epochs}: must be a whole number of epochs, 0 or more.")

    @property
    def uses_clusters(self) -> bool:
        """Whether clusters can make a difference: not where everything is chosen."""
        return self.pct != 100

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
