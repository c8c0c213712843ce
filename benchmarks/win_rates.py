"""Print the tables of docs/results/win-rates.md: length control on 21 AlpacaEval sets, and coverage of intervals.

python benchmarks/win_rates.py [FILE [DRAWS]], with FILE the annotations of AlpacaEval sets and their published results
"""

import gzip
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.special import expit, logit
from scipy.stats import multinomial

from lpsel.evaluation.length_control import length_controlled_win_rate, minimal_win_rate
from lpsel.evaluation.statistics import bootstrap_means, bootstrap_ratios, paired_interval, score_interval, wilson
from lpsel.evaluation.subset_validation import rank_correlation
from lpsel.evaluation.win_rate import pairwise_metrics, shown_interval, win_rate
from lpsel.report.comparisons import smallest_passing
from lpsel.report.points import Point
from lpsel.report.runs import Run

FEW_AND_MANY = (10, 20, 50, 200)
HIGH = (0.5, 0.8, 0.95)
TIES = (0.0, 0.1)


def length_control(entries: list[dict]) -> None:
    """Print each set's win rate, length-controlled win rates and interval."""
    print("| set | judge | win rate | published, length-controlled | minimal | ours | 95% interval |")
    print("|---|---|---|---|---|---|---|")
    distance = []
    for entry in entries:
        published = entry["published"]
        verdicts = entry["preference"], entry["model_chars"], entry["baseline_chars"]
        ours = length_controlled_win_rate(*verdicts, seed=1)
        distance.append(abs(ours.value - published["length_controlled_winrate"]))
        judge = "GPT-4" if entry["annotator"] == "alpaca_eval_gpt4" else "GPT-4 Turbo, fractional"
        print(
            f"| {entry['model']} | {judge} | {published['win_rate']:.2f} | "
            f"{published['length_controlled_winrate']:.2f} | {minimal_win_rate(*verdicts):.2f} | {ours.value:.2f} | "
            f"{ours.low:.2f} to {ours.high:.2f} |",
            flush=True,
        )
    print(f"\nDistance to the published figure: median {np.median(distance):.2f}, largest {max(distance):.2f} points.")


def coverage(draws: int) -> None:
    """Print the coverage of 95% intervals: the percentage of verdict sets whose interval contains the true win rate.

    For wins, ties and losses, Wilson's coverage is computed exactly rather than from draws. Fractional preferences are
    drawn from a beta distribution, mostly near 0 and 1 like those of a judge.
    """
    print("\n| prompts | win rate | ties | bootstrap | Wilson, shown |\n|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    for prompts, rate in [(n, rate) for n in FEW_AND_MANY for rate in HIGH]:
        for ties in TIES:
            chances = [1 - rate - ties / 2, ties, rate - ties / 2]
            drawn = generator.choice([1, 1.5, 2], size=(draws, prompts), p=chances)
            print(f"| {prompts} | {100 * rate:g}% | {100 * ties:g}% | {_covered(drawn, rate)[0]:.1f} "
                  f"| {exact_coverage(prompts, rate, ties):.1f} |", flush=True)  # fmt: skip
        drawn = 1 + generator.beta(0.3 * rate, 0.3 * (1 - rate), size=(draws, prompts))
        plain, score = _covered(drawn, rate)
        print(f"| {prompts} | {100 * rate:g}% | fractional | {plain:.1f} | {score:.1f} |", flush=True)


def exact_coverage(prompts: int, rate: float, ties: float) -> float:
    """Compute exactly how often, in percent, the score interval of `prompts` verdicts contains the rate."""
    most_ties = prompts if ties else 0
    counts = np.array(
        [(w, t, prompts - w - t) for w in range(prompts + 1) for t in range(min(most_ties, prompts - w) + 1)]
    )
    chances = multinomial.pmf(counts, prompts, [rate - ties / 2, ties, 1 - rate - ties / 2])
    likely = chances > 1e-9
    covered = 0.0
    for chance, numbers in zip(chances[likely], counts[likely], strict=True):
        low, high = score_interval(np.repeat([1, 0.5, 0], numbers))
        covered += chance * (low - 1e-9 <= rate <= high + 1e-9)
    return 100 * covered


def _covered(preference_DN: np.ndarray, rate: float) -> list[float]:
    """Compute the percentages of draws in which the bootstrap and the reported interval contain the rate."""
    inside = np.zeros(2)
    for draw, preference in enumerate(preference_DN):
        rates = win_rate(preference, resamples=1000, seed=draw)
        ends = (rates.ci_low, rates.ci_high), shown_interval(asdict(rates))
        inside += [low <= 100 * rate <= high for low, high in ends]
    return list(100 * inside / len(preference_DN))


def coverage_of_differences(draws: int) -> None:
    """Print coverage for the difference between two models on the same prompts, half of them equally hard for both."""
    print("\n| prompts | won by one, by the other | bootstrap | Agresti-Min, shown |\n|---|---|---|---|")
    generator = np.random.default_rng(0)
    for prompts in FEW_AND_MANY:
        for rates in ((0.5, 0.45), (0.8, 0.7), (0.95, 0.9)):
            inside = np.zeros(2)
            for draw in range(draws):
                first, independent = generator.random((2, prompts))
                second = np.where(generator.random(prompts) < 0.5, first, independent)
                difference = 100.0 * (first < rates[0]) - 100.0 * (second < rates[1])
                ends = [
                    bootstrap_means(difference[:, None], resamples=500, seed=draw).estimate(0)[1:],
                    paired_interval(difference, 100),
                ]
                inside += [low <= 100 * (rates[0] - rates[1]) <= high for low, high in ends]
            shares = " | ".join(f"{100 * share:.1f}" for share in inside / draws)
            print(f"| {prompts} | {100 * rates[0]:g}%, {100 * rates[1]:g}% | {shares} |", flush=True)


def coverage_of_sets(draws: int) -> None:
    """Print coverage for the mean over two prompt sets of equal size and win rate, without ties."""
    print("\n| prompts of each set | wins | bootstrap | Wilson |\n|---|---|---|---|")
    generator = np.random.default_rng(0)
    for prompts in FEW_AND_MANY:
        for rate in HIGH:
            inside, unknown = np.zeros(2), [None] * (2 * prompts)
            for draw in range(draws):
                mean = pairwise_metrics(
                    1.0 + (generator.random(2 * prompts) < rate), model_chars_N=unknown, baseline_chars_N=unknown,
                    prompt_set_N=["a", "b"] * prompts, resamples=500, seed=draw,
                )["mean_of_prompt_sets"]  # fmt: skip
                inside += [mean[f"{kind}_low"] <= 100 * rate <= mean[f"{kind}_high"] for kind in ("ci", "wilson")]
            plain, of_wilson = 100 * inside / draws
            print(f"| {prompts} | {100 * rate:g}% | {plain:.1f} | {of_wilson:.1f} |", flush=True)


def coverage_of_correlations(draws: int) -> None:
    """Print coverage for Spearman's correlation between subsets' scores and their results, both normal."""
    print("\n| subsets | correlation | Bonett-Wright |\n|---|---|---|")
    generator = np.random.default_rng(0)
    for subsets in FEW_AND_MANY:
        for correlation in (0.0, *HIGH):
            of_normal = 2 * np.sin(np.pi * correlation / 6)  # the Pearson correlation with this rank correlation
            first, second = generator.normal(size=(2, draws, subsets))
            second = of_normal * first + np.sqrt(1 - of_normal**2) * second
            correlations = [rank_correlation(*pair) for pair in zip(first, second, strict=True)]
            inside = sum(each.low <= correlation <= each.high for each in correlations)
            print(f"| {subsets} | {correlation:g} | {100 * inside / draws:.1f} |", flush=True)


def coverage_of_rows(draws: int) -> None:
    """Print coverage on held-out rows of 5 to 100 tokens: NLL per token, its difference between models, ROUGE-L."""
    print("\n| rows | NLL | difference in NLL | ROUGE-L |\n|---|---|---|---|")
    generator = np.random.default_rng(0)
    tokens_all = np.exp(generator.uniform(np.log(5), np.log(100), 200_000)).astype(int)
    level_all = generator.gamma(4, 0.5, len(tokens_all)) * (1 + 2 / tokens_all)  # short rows are harder
    true = (level_all * tokens_all).sum() / tokens_all.sum()
    for rows in FEW_AND_MANY:
        inside = np.zeros(3)
        for draw in range(draws):
            some = generator.integers(0, len(tokens_all), rows)
            tokens = tokens_all[some]
            nll = level_all[some] * tokens
            other = nll + tokens * generator.normal(0.05, 0.3, rows)
            close = generator.beta(0.5, 1, rows)
            columns = np.column_stack([nll, other, close]), np.column_stack([tokens, tokens, np.ones(rows)])
            means = bootstrap_ratios(*columns, resamples=500, seed=draw)
            estimates = means.estimate(0), means.difference(1, 0), means.estimate(2)
            inside += [e.low <= each <= e.high for e, each in zip(estimates, (true, 0.05, 1 / 3), strict=True)]
        print(f"| {rows} | " + " | ".join(f"{100 * share:.1f}" for share in inside / draws) + " |", flush=True)


def false_matches(reports: int) -> None:
    """Print how often a report on six selections at six percentages, all at 48%, has one that "matches" all rows."""
    print("\n| prompts | reports with a false match |\n|---|---|")
    generator = np.random.default_rng(0)
    for prompts in FEW_AND_MANY:
        matches = 0
        for won in generator.binomial(prompts, 0.48, (reports, 6, 6)):
            measured = [
                _point(f"rule {s}", pct, 100 * won[s, k] / prompts, [100 * end for end in wilson(won[s, k], prompts)])
                for s in range(6)
                for k, pct in enumerate((1, 3, 5, 10, 25, 33))
            ]
            matches += smallest_passing(measured) is not None
        print(f"| {prompts} | {100 * matches / reports:.1f}% |")


def _point(rule: str, pct: float, value: float, ends: list[float]) -> Point:
    run, all_rows = (Run(Path(r), {"command": "train", "rule": r, "pct": pct}) for r in (rule, "full"))
    return Point(rule, "win_rate", value, *ends, run, run, "", {}, baseline=all_rows)


def coverage_at_equal_length(draws: int) -> None:
    """Print coverage for the length-controlled win rate on data that follow its model."""
    generator = np.random.default_rng(0)
    print("\n| prompts | wins at equal length | length-controlled |\n|---|---|---|")
    for prompts, rate in [(n, rate) for n in FEW_AND_MANY for rate in HIGH]:
        inside, theta, phi = 0, logit(rate), -1.5
        for draw in range(draws):
            baseline = generator.integers(200, 2000, prompts)
            model = np.maximum(1, baseline + generator.normal(150, 400, prompts).astype(int))
            shorter = (baseline - model).astype(float)
            wins = generator.random(prompts) < expit(theta + phi * np.tanh(shorter / shorter.std(ddof=1)))
            controlled = length_controlled_win_rate(np.where(wins, 2.0, 1.0), model, baseline, resamples=500, seed=draw)
            inside += controlled.low <= 100 * rate <= controlled.high
        print(f"| {prompts} | {100 * rate:g}% | {100 * inside / draws:.1f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with gzip.open(sys.argv[1]) as file:
            length_control(json.load(file)["entries"])
    sets = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    coverage(sets)
    coverage_of_differences(sets)
    coverage_of_sets(sets)
    coverage_of_rows(sets)
    coverage_of_correlations(sets)
    coverage_at_equal_length(sets)
    false_matches(sets)
