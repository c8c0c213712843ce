"""Summarize a report in sentences: what was compared, which selection is better, and at what cost. Pure functions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lpsel.report.cells import capitalized, shown, spread
from lpsel.report.comparisons import ALL_ROWS, BASELINE, Comparison, at_equal_rows, at_equal_tokens, to_all_rows
from lpsel.report.points import Point, comparable
from lpsel.report.runs import Run, Runs, grouped, pct_unit, short_labels

MOST = 5  # selections or comparisons listed in a sentence
REFERENCES = {BASELINE: "random rows", ALL_ROWS: "all rows"}
VERDICTS = {
    1: "{selections} {verb} better than {reference}",
    -1: "{selections} {verb} worse than {reference}",
    0: "for {selections}, no difference from {reference} can be shown",
    None: "for {selections}, nothing can be concluded without an interval",
}
AT_TOKENS = "random rows with as many training tokens"


class Summary(NamedTuple):
    """Headline, and paragraphs as titles with lines."""

    headline: str
    paragraphs: list[tuple[str, list[str]]]


def summarize(runs: Runs, measured: Sequence[Point]) -> Summary:
    """Summarize which conclusions the runs support, and which they do not."""
    compared = ("Compared", [_compared(runs, measured)])
    if not measured:
        return Summary(_nothing_measured(runs), [compared])
    labels = short_labels([p.run for p in measured])
    key, *others = comparable(measured)
    rows, at_tokens, all_rows = at_equal_rows(key), at_equal_tokens(key), to_all_rows(key)
    conclusion = _conclusion(key, rows, at_tokens, labels)
    paragraphs = [
        compared,
        ("At equal rows", _differences(rows, labels)),
        ("At equal training tokens", _at_tokens(at_tokens, rows, labels)),
        ("Against all rows", _against_all_rows(all_rows, labels)),
        ("Cost", _costs(key, labels)),
        ("Intervals", _intervals([*rows, *at_tokens, *all_rows])),
    ]
    for other in others[:2]:
        title = f"By {other[0].key_metric.title}, {other[0].against}"
        paragraphs.append((title, [_conclusion(other, at_equal_rows(other), at_equal_tokens(other), labels)]))
    return Summary(conclusion, [(title, lines) for title, lines in paragraphs if lines])


def _nothing_measured(runs: Runs) -> str:
    if runs.by_command("train"):
        if runs.by_command("evaluate"):
            return "No model trained in these runs is evaluated, so there are no results on quality."
        return "No model is evaluated yet, so there are no results on quality. Next: lpsel evaluate model=RUNS."
    if runs.by_command("select"):
        return "Rows are selected, but no model is trained on them, so there are no results on quality."
    return "These runs select and train nothing, so there are no selections to compare."


def _compared(runs: Runs, measured: Sequence[Point]) -> str:
    """List the rules, datasets, percentages, seeds and targets of the runs, and what was measured."""
    selections = runs.by_command("train", "select")
    if not selections:
        return f"{_count(len(runs.finished), 'run')}: {_listed(sorted({run.command for run in runs.finished}))}."
    rules = list(dict.fromkeys(run.rule for run in selections if run.rule not in REFERENCES))
    references = [name for rule, name in REFERENCES.items() if any(run.rule == rule for run in selections)]
    pcts = sorted({run.pct for run in selections if run.pct is not None and run.rule != ALL_ROWS})
    seeds = {run.get("seed") for run in selections} - {None}
    sizes = {(r.get("dataset", "name"), r.get("n_total")) for r in selections if isinstance(r.get("n_total"), int)}
    datasets = [f"{name} ({size:,} rows)" for name, size in sorted(sizes, key=str)]
    targets = sorted({run.target for run in selections if run.command == "train"})
    text = _listed([*rules, *references], more="other rules")
    if datasets:
        text += f" on {_listed(datasets)}"
    if pcts:
        text += f", {_pcts(pcts)} of the {pct_unit(selections)}"
    if seeds:
        text += f", {_count(len(seeds), 'seed')}"
    if targets:
        text += f"; trained: {_listed(targets)}"
    if measured:
        text += f"; measured: {_measured(measured[-1])}"
    return f"{text}."


def _measured(p: Point) -> str:
    """Describe the metric and what it was measured on."""
    n, dataset = p.evaluation.get("n"), p.evaluation.get("dataset")
    if p.metric == "nll" and isinstance(n, int) and isinstance(dataset, str):
        return f"{p.key_metric.title} of {n:,} rows of {dataset}"
    return f"{p.key_metric.title} {p.against}"


def _conclusion(
    measured: Sequence[Point], rows: Sequence[Comparison], at_tokens: Sequence[Comparison], labels: dict[str, str]
) -> str:
    """Compare selections with equally many random rows or tokens in a sentence, or say why that is not possible."""
    if all(p.run.rule in REFERENCES for p in measured):
        return "No selection is measured, so there is nothing to compare with random rows."
    if not rows and not at_tokens:
        return "No random rows were trained on and measured the same way, so it is unknown whether selection helps."
    return _verdicts(rows, labels) if rows else _verdicts(at_tokens, labels, AT_TOKENS)


def _verdicts(compared: Sequence[Comparison], labels: dict[str, str], reference: str = REFERENCES[BASELINE]) -> str:
    """List selections that are better or worse than random rows, and those without a significant difference."""
    pcts = {c.point.run.pct or 0.0 for c in compared}
    unit = pct_unit(c.point.run for c in compared)
    where = f"at {_pcts([*pcts])} of the {unit}, " if len(pcts) == 1 else ""
    sentences = []
    for verdict, sentence in VERDICTS.items():
        if chosen := [c for c in compared if c.verdict == verdict]:
            verb = "is" if len({c.point.run.series for c in chosen}) == 1 else "are"
            selections = _selections(chosen, labels, with_pcts=not where)
            sentences.append(sentence.format(selections=selections, verb=verb, reference=reference))
    text = f"{where}{'; '.join(sentences)}."
    return capitalized(text) if where or text.startswith("for ") else text


def _selections(chosen: Sequence[Comparison], labels: dict[str, str], with_pcts: bool = True) -> str:
    """List labels, such as: lp at 5 and 10%, lp_app at 5%."""
    by_label = grouped(chosen, lambda c: labels[c.point.run.series])
    texts = []
    for label, same in by_label.items():
        pcts = _pcts(sorted(c.point.run.pct or 0.0 for c in same))
        texts.append(f"{label} at {pcts}" if with_pcts else label)
    return _listed(texts, more="other selections")


def _differences(compared: Sequence[Comparison], labels: dict[str, str], how: str = "") -> list[str]:
    """List the largest gains with intervals; `how` adds to the first line how the references were determined."""
    if not compared:
        return []
    ordered = sorted(compared, key=lambda c: -c.gain)
    metric = compared[0].point.key_metric
    lines = [f"{capitalized(metric.title)} in {metric.unit_name}, {metric.better} is better{how}:"]
    lines += [f"{_at(c, labels)}: {_values(c)}, {_change(c)}" for c in ordered[:MOST]]
    if len(ordered) > MOST:
        lines.append(f"{_count(len(ordered) - MOST, 'more comparison')} in the table of results.")
    return lines


def _at(c: Comparison, labels: dict[str, str]) -> str:
    """Name a selection, such as: lp at 5%."""
    return f"{labels[c.point.run.series]} at {c.point.run.pct:g}%"


def _values(c: Comparison) -> str:
    """Format both values, such as: 2.500 against 3.000."""
    digits = c.point.key_metric.digits
    return f"{c.value:.{digits}f} against {c.reference:.{digits}f}"


def _change(c: Comparison) -> str:
    """Format a difference, such as: 0.200 higher (+0.050 to +0.350)."""
    value, low, high = c.difference
    digits = c.point.key_metric.digits
    size = f"{abs(value):.{digits}f}"
    text = f"{size} {'higher' if value > 0 else 'lower'}" if float(size) else "no difference"
    if low is None or high is None:
        return text
    return f"{text} ({low:+.{digits}f} to {high:+.{digits}f})".replace("-", "−")


def _intervals(compared: Sequence[Comparison]) -> list[str]:
    """Explain which variation the intervals cover."""
    bases = {c.basis for c in compared}
    together = " for all comparisons of a paragraph together" if len(compared) > 1 else ""
    lines = []
    over_seeds = [c for c in compared if c.basis == "seeds"]
    if over_seeds:
        seeds = _listed([str(n) for n in sorted({c.seeds for c in over_seeds})], "or")
        paired = "" if all(c.one_baseline for c in over_seeds) else ", paired by seed"
        lines.append(f"95%{together}; t intervals over {seeds} seeds{paired}.")
    if any(c.one_baseline for c in over_seeds):
        lines.append("Win rates of all seeds are against one run: against another seed of it, they may differ.")
    if "rows" in bases:
        lines.append(f"95%{together}; of one seed, over the rows or prompts measured: another seed may differ.")
    if "none" in bases:
        lines.append("Values without an interval allow no conclusion.")
    return lines


def _at_tokens(compared: Sequence[Comparison], rows: Sequence[Comparison], labels: dict[str, str]) -> list[str]:
    """Compare at equal tokens, and list the selections that are only compared at equal rows."""
    selections = {c.selection for c in compared}
    missing = [c for c in rows if c.selection not in selections]
    lines = [f"{_selections(missing, labels)}: no random rows have as many training tokens."] if missing else []
    if not compared:
        return lines
    how = ", random rows interpolated between their percentages" if any(c.interpolated for c in compared) else ""
    return [_verdicts(compared, labels), *_differences(compared, labels, how), *lines]


def _against_all_rows(compared: Sequence[Comparison], labels: dict[str, str]) -> list[str]:
    if not compared:
        return []
    best = max(compared, key=lambda c: c.gain)
    lines = [
        f"{words}: {_selections(chosen, labels)}."
        for verdict, words in ((1, "Better than all rows"), (0, "No difference can be shown"))
        if (chosen := [c for c in compared if c.verdict == verdict])
    ]
    if all(c.verdict == -1 for c in compared):
        lines = ["All selections are worse than all rows."]
    return [*lines, f"{_at(best, labels)} has the best mean: {_values(best)}, {_change(best)}."]


def _costs(measured: Sequence[Point], labels: dict[str, str]) -> list[str]:
    """FLOPs of every selection as a percentage of training on all rows."""
    counted = [p.run for p in measured if p.run.rule != ALL_ROWS and p.run.flops_of_all_rows]
    by_label = grouped(counted, lambda run: labels[run.series])
    texts = []
    for label, runs in list(by_label.items())[:MOST]:
        scoring, total = (_percent(runs, part) for part in ("selection", "total"))
        texts.append(f"{label} {total}%" if scoring == "0" else f"{label} {total}% ({scoring}% for selecting)")
    if not texts:
        return []
    all_rows = shown(float(np.mean([p.run.flops_of_all_rows for p in measured if p.run.flops_of_all_rows])))
    return [f"FLOPs of selection and training, of training on all rows ({all_rows}): {'; '.join(texts)}."]


def _percent(runs: Sequence[Run], part: str) -> str:
    percents = [run.flops_percent(part) or 0.0 for run in runs]
    return spread(percents, lambda value: f"{value:.3g}" if value < 1 else f"{value:.0f}")


def _pcts(pcts: Sequence[float]) -> str:
    return f"{_listed([f'{pct:g}' for pct in pcts])}%"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _listed(items: Sequence[Any], last: str = "and", more: str = "others") -> str:
    """Join items for a sentence; a long list is shortened to the first items and the number of others."""
    texts = [str(item) for item in items]
    if len(texts) > MOST + 1:
        texts = [*texts[:MOST], f"{len(texts) - MOST} {more}"]
    return f" {last} ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))
