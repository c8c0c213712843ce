"""Prints the tables of docs/guides/win-rates.md: length control on 21 AlpacaEval sets, and coverage of intervals.

python benchmarks/win_rates.py ../shared/data/alpaca_eval_annotations.json.gz [DRAWS]
"""

import gzip
import json
import sys
from dataclasses import asdict

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from lpsel.evaluation.length_control import length_controlled_win_rate, minimal_win_rate
from lpsel.evaluation.win_rate import shown_interval, win_rate

PROMPTS = (50, 100, 200, 805)
RATES = ((0.5, 0.0), (0.45, 0.1), (0.25, 0.1), (0.85, 0.05))  # P(win), P(tie)


def length_control(entries: list[dict]) -> None:
    """Each set's win rate, length-controlled ones, and the interval."""
    print("| set | judge | win rate | published, length-controlled | minimal | ours | 95 % interval |")
    print("|---|---|---|---|---|---|---|")
    distance = []
    for entry in entries:
        published = entry["published"]
        verdicts = entry["preference"], entry["model_chars"], entry["baseline_chars"]
        found = length_controlled_win_rate(*verdicts, seed=1)
        distance.append(abs(found.value - published["length_controlled_winrate"]))
        judge = "GPT-4" if entry["annotator"] == "alpaca_eval_gpt4" else "GPT-4 Turbo, shares"
        print(
            f"| {entry['model']} | {judge} | {published['win_rate']:.2f} | "
            f"{published['length_controlled_winrate']:.2f} | {minimal_win_rate(*verdicts):.2f} | {found.value:.2f} | "
            f"{found.low:.2f} to {found.high:.2f} |",
            flush=True,
        )
    print(f"\nDistance to the published figure: median {np.median(distance):.2f}, largest {max(distance):.2f} points.")


def coverage(draws: int) -> None:
    """How many percent of simulated sets have the true win rate inside their 95 % interval."""
    print("\n| prompts | wins, ties | bootstrap | Wilson |\n|---|---|---|---|")
    generator = np.random.default_rng(0)
    for prompts in PROMPTS:
        for win, tie in RATES:
            true = 100 * (win + tie / 2)
            inside = np.zeros(2)
            for draw in range(draws):
                verdicts = generator.choice([2, 1.5, 1], size=prompts, p=[win, tie, 1 - win - tie])
                found = win_rate(verdicts, resamples=1000, seed=draw)
                inside += [found.ci_low <= true <= found.ci_high, found.wilson_low <= true <= found.wilson_high]
            plain, wilson = 100 * inside / draws
            print(f"| {prompts} | {100 * win:g} %, {100 * tie:g} % | {plain:.1f} | {wilson:.1f} |", flush=True)


def exact_coverage() -> None:
    """The same for wins and losses, from the binomial distribution of the wins instead of draws."""
    print("\n| prompts | wins | bootstrap | Wilson | shown |\n|---|---|---|---|---|")
    for prompts in (10, 20, 50, 200):
        found = [
            win_rate([2.0] * wins + [1.0] * (prompts - wins), resamples=4000, seed=wins) for wins in range(prompts + 1)
        ]
        ends = [
            [(f.ci_low, f.ci_high) for f in found],
            [(f.wilson_low, f.wilson_high) for f in found],
            [shown_interval(asdict(f)) for f in found],
        ]
        for rate in (0.5, 0.8, 0.95):
            chance = binom(prompts, rate).pmf(range(prompts + 1))
            inside = [
                sum(p for p, (low, high) in zip(chance, each, strict=True) if low <= 100 * rate <= high)
                for each in ends
            ]
            print(f"| {prompts} | {100 * rate:g} % | " + " | ".join(f"{100 * share:.1f}" for share in inside) + " |")


def coverage_at_equal_length(draws: int) -> None:
    """The same of the length-controlled win rate, on data that follow its model."""
    generator = np.random.default_rng(0)
    print("\n| prompts | theta, phi | length-controlled bootstrap |\n|---|---|---|")
    for prompts, theta, phi in ((100, 0.4, -1.5), (250, 0.4, -1.5), (250, -1.5, -2.0)):
        inside = 0
        for draw in range(draws):
            baseline = generator.integers(200, 2000, prompts)
            model = np.maximum(1, baseline + generator.normal(150, 400, prompts).astype(int))
            shorter = (baseline - model).astype(float)
            wins = generator.random(prompts) < expit(theta + phi * np.tanh(shorter / shorter.std(ddof=1)))
            found = length_controlled_win_rate(np.where(wins, 2.0, 1.0), model, baseline, resamples=500, seed=draw)
            inside += found.low <= 100 * expit(theta) <= found.high
        print(f"| {prompts} | {theta}, {phi} | {100 * inside / draws:.1f} |", flush=True)


if __name__ == "__main__":
    with gzip.open(sys.argv[1]) as file:
        length_control(json.load(file)["entries"])
    sets = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    coverage(sets)
    exact_coverage()
    coverage_at_equal_length(sets)
