"""What choosing rows cost, what training on fewer of them saved, and from which share on it would not pay."""

from collections.abc import Mapping
from typing import Any

SPENT = ("tokens", "flops", "device_seconds")


def ledger(
    scoring: Mapping[str, Any] | None, training: Mapping[str, Any], everything: Mapping[str, float]
) -> dict[str, Any]:
    """The costs of a run, added up, beside training on all rows.

    Scores that were made by an earlier run count in full: somebody paid for them. Device seconds of training on
    everything are this run's, in proportion to FLOPs.

    Args:
        scoring: tokens, flops and device_seconds of making the scores; None where the rule needs none.
        training: the same of training the target.
        everything: tokens and flops of training the target on all rows.

    Returns:
        `selection`, `training`, `total` and `everything`, each with tokens, flops and device_seconds; `saved`, the
        last less the total, in FLOPs and as a share of it (negative: more was spent); and `break_even_pct`, the share
        of the data set's training, in percent, up to which choosing by these scores costs less than training on all.
    """
    selection = {name: scoring[name] if scoring else 0 for name in SPENT}
    spent = {name: training[name] for name in SPENT}
    of_all = everything["flops"]
    all_rows = {**everything, "device_seconds": spent["device_seconds"] * of_all / spent["flops"]}
    total = {name: selection[name] + spent[name] for name in SPENT}
    return {
        "selection": selection,
        "training": spent,
        "total": total,
        "everything": all_rows,
        "saved": {"flops": of_all - total["flops"], "share": 1 - total["flops"] / of_all},
        "break_even_pct": 100 * max(0.0, 1 - selection["flops"] / of_all),
    }


def describe_ledger(figures: Mapping[str, Any]) -> str:
    """The ledger in one line."""
    share = figures["saved"]["share"]
    outcome = f"{share:.0%} less than" if share >= 0 else f"{-share:.0%} more than"
    if figures["break_even_pct"] == 0:
        limit = "selection alone costs as much"
    else:
        limit = f"selection pays off below {figures['break_even_pct']:.0f} % of the data"
    return (
        f"{figures['selection']['flops']:.3g} FLOPs to select, {figures['training']['flops']:.3g} to train: "
        f"{outcome} training on everything ({figures['everything']['flops']:.3g}); {limit}"
    )
