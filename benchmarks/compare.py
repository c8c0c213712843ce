"""Compare lpsel with its contestants on the same rows in the same rounds; results as a table and as numbers."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import contestants
import ours
import torch
from harness import (
    AGREEMENT,
    NOMINAL_PEAK,
    Run,
    check_agreement,
    in_words,
    interleave,
    matmul_rate,
    peak_above_weights,
    ratios,
    show,
    spread,
)

from lpsel.data.tokens import Tokens

LPSEL, COMPILED, LIGER = "lpsel", "lpsel, compiled", "lpsel, Liger's head"
RECIPE, TRAINER = "released recipe's loop", "transformers Trainer"
NO_LM_EVAL = "lm-eval is not installed and left out: pip install '.[lm-eval]'"
NOTES = (
    "tokens/s: real tokens, padding aside. lpsel/it: median [range] of the rounds' speed ratios, lpsel's over its",
    "of matmul: share of the matrix-product rate measured in the same round. needed: FLOPs with the output head on",
    "supervised tokens only and shared beginnings once; full: of every real token. A training step counts three passes",
)


def scorers(
    model: Path,
    tokens: Path,
    precision: str,
    device: str,
    *,
    recipe: bool = False,
    lm_eval: tuple[int, ...] = (),
    compiled: bool = False,
    liger: bool = False,
) -> dict[str, Callable[..., Run]]:
    """Create contestants: lpsel, also compiled or with Liger's head, the recipe's loop, lm-eval per batch size."""
    score = partial(ours.score, model, tokens, precision, device=device)
    found: dict[str, Callable[..., Run]] = {LPSEL: score}
    if compiled:
        found[COMPILED] = partial(score, compiled=True)
    if liger:
        found[LIGER] = partial(score, head="liger")
    if recipe:
        found[RECIPE] = partial(contestants.recipe_score, model, tokens, precision, device=device)
    for size in lm_eval if contestants.HAS_LM_EVAL else ():
        found[f"lm-eval, batch size {size}"] = partial(
            contestants.lm_eval_score, model, tokens, precision, batch_size=size, device=device
        )
    return found


def trainers(
    model: Path,
    tokens: Path,
    precision: str,
    device: str,
    steps: int,
    batch_size: int,
    compiled: bool = False,
    liger: bool = False,
) -> dict[str, Callable[..., Run]]:
    sizes: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "device": device}
    train = partial(ours.train, model, tokens, precision, **sizes)
    found: dict[str, Callable[..., Run]] = {LPSEL: train}
    if compiled:
        found[COMPILED] = partial(train, compiled=True)
    if liger:
        found[LIGER] = partial(train, head="liger")
    if contestants.HAS_TRAINER:
        found[TRAINER] = partial(contestants.trainer_train, model, tokens, precision, **sizes)
    return found


def compare(
    title: str,
    entrants: Mapping[str, Callable[..., Run]],
    rounds: int,
    model: Path,
    device: str,
    steps: int = 0,
    peaks: bool = True,
) -> dict[str, Any]:
    """Run the rounds, check that all agree, measure peak memory, print the table and return all figures.

    Args:
        entrants: lpsel first; bound to the same rows.
        steps: optimizer steps of each run that trains.
        peaks: whether to measure peak memory, in one more run of every contestant.
    """
    print(f"\n{title}", flush=True)
    _, tokens_folder, precision = entrants[LPSEL].args  # type: ignore[attr-defined]
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    shape = matrix_shape(model)
    measured = interleave({"matrix products": lambda: matmul_rate(dtype, *shape, device), **entrants}, rounds)
    rate = measured.pop("matrix products")
    # In bfloat16 the contestants round in different places; that they compute the same is shown in float32.
    limit = AGREEMENT if dtype == torch.float32 else float("inf")
    # Of training the first step: later ones start from weights that differ in their last digits.
    first = {name: run[0].nll[:1] if steps else run[0].nll for name, run in measured.items()}
    tokens = Tokens(tokens_folder)
    fed = ours.order_of(tokens)
    if steps:
        batch_size = entrants[LPSEL].keywords["batch_size"]  # type: ignore[attr-defined]
        fed = fed[batch_size : (steps + 1) * batch_size]  # the first step is not timed
    assert int(tokens.lengths[fed].sum()) == measured[LPSEL][0].tokens, "FLOPs would be counted of other rows"
    spent = {kind: (3 if steps else 1) * count for kind, count in ours.flops(model, tokens, fed).items()}
    figures: dict[str, Any] = {}
    rows = []
    for name, runs in measured.items():
        speed = ratios([run.rate for run in measured[LPSEL]], [run.rate for run in runs])
        difference = check_agreement(first[LPSEL], first[name], f"{title}: {name}", limit)
        shares = {
            kind: spread([flops / run.seconds / best for run, best in zip(runs, rate, strict=True)])["median"]
            for kind, flops in spent.items()
        }
        peak = peak_above_weights(device, entrants[name]) if peaks else None
        figures[name] = {
            "ratio": speed,
            "tokens_per_second": spread([run.rate for run in runs]),
            "largest_difference_nats": difference,
            "peak_bytes_above_weights": peak,
            "share_of_matmul": shares,
            "rounds": runs,
        }
        middle = spread([run.rate for run in runs])["median"]
        rows.append(
            [
                name,
                f"{middle:,.0f}",
                *([f"{spread([run.seconds for run in runs])['median'] / steps:.3g}"] if steps else []),
                "1" if name == LPSEL else in_words(speed),
                f"{shares['needed']:.0%}",
                f"{shares['full']:.0%}",
                *([] if peak is None else [f"{peak / 2**20:,.0f}"]),
                f"{difference:.1e}",
            ]
        )
    headings = ["", "tokens/s", *(["s/step"] if steps else []), "lpsel/it"]
    headings += ["of matmul, needed", "of matmul, full", *(["peak MiB above weights"] if peaks else []), "off by, nats"]
    show(title, headings, rows, [f"matrix products {spread(rate)['median'] / 1e9:,.0f} GFLOP/s"])
    return {
        "title": title,
        "precision": precision,
        "rows": len(fed),
        "matmul_flops_per_second": rate,
        "contestants": figures,
    }


def matrix_shape(model: Path) -> tuple[int, int]:
    """Read the hidden and intermediate size from a model folder."""
    config = json.loads((model / "config.json").read_text())
    return config["hidden_size"], config.get("intermediate_size") or config["ffn_dim"]


def nominal_peak(device_name: str) -> float | None:
    """Return the vendor's dense bfloat16 peak in FLOP/s, or None for an unknown device."""
    return next((peak for name, peak in NOMINAL_PEAK.items() if name in device_name), None)
