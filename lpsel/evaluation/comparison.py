"""Compare models with a baseline and with each other, and detect inconclusive results. Pure functions of verdicts."""

# N prompts

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from lpsel.evaluation.judgements import Verdicts, by_prompt, without_equal
from lpsel.evaluation.length_control import FEW
from lpsel.evaluation.statistics import add_holm, paired_interval, sign_flip_test
from lpsel.evaluation.win_rate import Sample, pairwise_metrics, shown_interval

WIDE = 10.0  # half-width of an interval, in points, above which it is too wide
AIM = 5.0  # half-width, in points, that the recommended number of prompts gives
LEAST_PROBABILITY = 0.1  # minimum probability that the judge's next token is A or B
MANY = 0.1  # fraction of failed or cut prompts, or of cut or empty answers, above which there is a warning
MOST = 0.5  # fraction of cut or empty answers, or of flips, above which a result is uninformative


def compare(
    verdicts: Mapping[str, Verdicts], *, answers: Sequence[Mapping[str, Any]] = (), resamples: int, seed: int
) -> dict[str, Any]:
    """Compute all statistics of the verdicts on several models.

    Args:
        verdicts: one entry per judge and model, with the name to show as its key.
        answers: reports on the answers of the baseline and each model, see `lpsel.generation.answers`.
        resamples, seed: settings of the bootstrap over prompts.

    Returns:
        `models`: for each model, the values of `pairwise_metrics` with its `name` and `p_value_holm` (corrected for the
        number of models of the judge), and the `warnings` and `informative` of `describe_problems`. `comparisons`: the
        `model_differences` between all informative models of a judge. `warnings`: those of all models.
    """
    metrics: dict[str, dict[str, Any]] = {}
    names_by_judge: dict[str, list[str]] = {}
    for name, of_model in verdicts.items():
        metrics[name] = pairwise_metrics(
            of_model.preference_NO,
            model_chars_N=of_model.model_chars_N,
            baseline_chars_N=of_model.baseline_chars_N,
            equal_N=of_model.equal_N,
            unfinished=of_model.unfinished,
            text_N=of_model.text_N,
            category_N=of_model.category_N,
            prompt_set_N=of_model.prompt_set_N,
            resamples=resamples,
            seed=seed,
        )
        names_by_judge.setdefault(of_model.judge, []).append(name)
    for names in names_by_judge.values():
        add_holm([metrics[name] for name in names])
    models = []
    for name, of_model in verdicts.items():
        problems = describe_problems(
            metrics[name],
            letter_probability=of_model.letter_probability,
            only_order=of_model.only_order,
            answers=[report for report in answers if report["name"] in (name, answers[0]["name"])],
        )
        models.append({"name": name, **metrics[name], **problems})
    informative = {model["name"] for model in models if model["informative"]}
    comparisons = []
    for names in names_by_judge.values():
        comparisons += model_differences({name: verdicts[name] for name in names if name in informative}, seed=seed)
    return {"models": models, "comparisons": comparisons, "warnings": _merged_warnings(models)}


def _merged_warnings(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each distinct warning once, after the names of its models if there are several models."""
    names_by_warning: dict[str, list[str]] = {}
    for model in models:
        for warning in model["warnings"]:
            names_by_warning.setdefault(warning, []).append(model["name"])
    if len(models) <= 1:
        return list(names_by_warning)
    return [f"{'; '.join(names)}: {warning}" for warning, names in names_by_warning.items()]


def model_differences(verdicts: Mapping[str, Verdicts], *, seed: int) -> list[dict[str, Any]]:
    """Compute the difference in win rate for every pair of models, on prompts where both were compared to the baseline.

    Returns:
        For each pair of `models`: the number of prompts `n`, the `difference` in points, its `standard_error`, `ci_low`
        and `ci_high` (95%, `paired_interval`), `p_value` (sign-flip test) and `p_value_holm`, corrected for the number
        of comparisons. Values are None without such prompts; the interval also needs more than one.
    """
    preference = by_prompt(verdicts)
    judged = by_prompt({name: without_equal(of_model) for name, of_model in verdicts.items()})
    differences: list[dict[str, Any]] = []
    for first, second in combinations(verdicts, 2):
        difference_N = 100 * (preference[first] - preference[second])
        unfinished = verdicts[first].unfinished or verdicts[second].unfinished
        equal_N = np.isnan(judged[first]) & np.isnan(judged[second])  # both answers are identical to the baseline's
        sample = Sample.of(difference_N, equal_N if unfinished else None)
        difference_n = sample.weight * difference_N[sample.rows_N]
        n = len(difference_n)
        low, high = paired_interval(difference_n, sample.weight * 100) if n > 1 else (None, None)
        difference = {
            "models": [first, second],
            "judge": verdicts[first].judge,
            "n": n + sample.equal,
            "difference": float(difference_n.mean()) if n else None,
            "standard_error": float(difference_n.std(ddof=1)) / n**0.5 if n > 1 else None,
            "ci_low": low,
            "ci_high": high,
            "p_value": sign_flip_test(difference_n, seed=seed) if n else None,
        }
        differences.append(difference)
    add_holm(differences)
    return differences


def describe_problems(
    metrics: Mapping[str, Any],
    *,
    letter_probability: float | None = None,
    only_order: str | None = None,
    answers: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Describe what limits the conclusions from the verdicts on a model.

    Args:
        metrics: the values of `pairwise_metrics`.
        letter_probability: mean probability that the next token is A or B, for a judge that compares the two.
        only_order: the order in which all pairs were shown, if there was only one, for a judge that replies with text.
        answers: reports on the answers of the model and the baseline, see `lpsel.generation.answers`.

    Returns:
        `warnings`, a list of sentences; and `informative`, False if the verdicts do not show which model is better.
    """
    fatal = list(_judge_problems(metrics, letter_probability))
    minor: list[str] = []
    if only_order is not None:
        minor.append(
            f"All pairs were shown to the judge in one order, {only_order}: any position bias of the judge affects "
            "the win rate. Set judge.orders=[baseline_first,model_first]."
        )
    for report in answers:
        for key, problem, fix in (
            ("answers_cut", "are cut off", "Raise evaluator.max_new_tokens"),
            ("answers_empty", "are empty", "Check the model and its template"),
        ):
            count, prompts = report[key], report["prompts"]
            fraction = count / max(prompts, 1)
            if fraction > MANY:
                warnings = fatal if fraction > MOST else minor
                warnings.append(f"{count:,} of {prompts:,} answers of {report['name']} {problem}. {fix}.")
        if report["prompts_cut"] > MANY * report["prompts"]:
            minor.append(
                f"{report['prompts_cut']:,} of {report['prompts']:,} prompts do not fit into the context of "
                f"{report['name']}, which did not see their beginning. Lower evaluator.max_new_tokens."
            )
    return {"warnings": [*fatal, *minor, *_too_few(metrics)], "informative": not fatal}


def _judge_problems(metrics: Mapping[str, Any], letter_probability: float | None) -> Iterator[str]:
    flip_rate, judged = metrics["flip_rate"], metrics["n"] - metrics["equal"]
    if flip_rate is not None and flip_rate > 100 * MOST:
        yield (
            f"The judge carries no information: in {flip_rate:.0f}% of the judged pairs, its verdict depends on the "
            "order of the answers. Use a stronger judge."
        )
    elif metrics["wins"] + metrics["losses"] == 0 and judged > MOST * metrics["n"]:
        yield (
            f"The judge carries no information: all its verdicts on {judged:,} prompts are ties. Use a stronger judge, "
            "or one that can tell these answers apart."
        )
    if letter_probability is not None and letter_probability < LEAST_PROBABILITY:
        yield (
            f"The judge rarely replies A or B: the mean probability of these next tokens is {letter_probability:.2g}. "
            "Set another judge.model, or the template it was trained with (judge.model.template)."
        )


def _too_few(metrics: Mapping[str, Any]) -> Iterator[str]:
    n, failed = metrics["n"], metrics["failed"]
    if failed > MANY * (n + failed):
        yield f"{failed:,} of {n + failed:,} prompts lack a verdict in at least one order."
    if metrics["repeated"]:
        total = n + failed + metrics["repeated"]
        reason = ": the prompt sets overlap" if len(metrics["by_prompt_set"] or ()) > 1 else ""
        yield f"{total:,} prompts have {n + failed:,} distinct texts{reason}. Each text counts once."
    if metrics["win_rate"] is not None and metrics["ci_low"] is None:  # other prompts may have identical answers
        yield "A single verdict has no interval and does not generalize to other prompts."
    low, high = shown_interval(metrics)
    if low is not None and high is not None and low < 50 < high and high - low > 2 * WIDE:
        enough = round(n * ((high - low) / (2 * AIM)) ** 2, -1)
        yield (
            f"The interval of the win rate, {low:.0f} to {high:.0f}%, is too wide to show which model is better: "
            f"about {enough:,.0f} prompts would give ±{AIM:.0f} points."
        )
    if n < FEW and metrics["length_controlled_win_rate"] is not None:
        yield f"The length-controlled win rate of {n} prompts is unreliable: use at least {FEW}."
