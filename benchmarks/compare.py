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
    inputs = (model, tokens, precision)
    entrants = _variants(partial(ours.score, *inputs, device=device), compiled, liger)
    if recipe:
        entrants[RECIPE] = partial(contestants.recipe_score, *inputs, device=device)
    for size in lm_eval if contestants.HAS_LM_EVAL else ():
        score = partial(contestants.lm_eval_score, *inputs, batch_size=size, device=device)
        entrants[f"lm-eval, batch size {size}"] = score
    return entrants


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
    inputs = (model, tokens, precision)
    sizes: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "device": device}
    entrants = _variants(partial(ours.train, *inputs, **sizes), compiled, liger)
    if contestants.HAS_TRAINER:
        entrants[TRAINER] = partial(contestants.trainer_train, *inputs, **sizes)
    return entrants


def _variants(lpsel: partial[Run], compiled: bool, liger: bool) -> dict[str, Callable[..., Run]]:
    variants: dict[str, Callable[..., Run]] = {LPSEL: lpsel}
    if compiled:
        variants[COMPILED] = partial(lpsel, compiled=True)
    if liger:
        variants[LIGER] = partial(lpsel, head="liger")
    return variants


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
    table = []
    for name, runs in measured.items():
        tokens_per_second = spread([run.rate for run in runs])
        speed = ratios([run.rate for run in measured[LPSEL]], [run.rate for run in runs])
        difference = check_agreement(first[LPSEL], first[name], f"{title}: {name}", limit)
        shares = {
            kind: spread([flops / run.seconds / best for run, best in zip(runs, rate, strict=True)])["median"]
            for kind, flops in spent.items()
        }
        peak = peak_above_weights(device, entrants[name]) if peaks else None
        figures[name] = {
            "ratio": speed,
            "tokens_per_second": tokens_per_second,
            "largest_difference_nats": difference,
            "peak_bytes_above_weights": peak,
            "share_of_matmul": shares,
            "rounds": runs,
        }
        cells = {
            "": name,
            "tokens/s": f"{tokens_per_second['median']:,.0f}",
            "s/step": f"{spread([run.seconds for run in runs])['median'] / steps:.3g}" if steps else None,
            "lpsel/it": "1" if name == LPSEL else in_words(speed),
            "of matmul, needed": f"{shares['needed']:.0%}",
            "of matmul, full": f"{shares['full']:.0%}",
            "peak MiB above weights": None if peak is None else f"{peak / 2**20:,.0f}",
            "off by, nats": f"{difference:.1e}",
        }
        table.append({heading: cell for heading, cell in cells.items() if cell is not None})
    rows = [list(cells.values()) for cells in table]
    show(title, list(table[0]), rows, [f"matrix products {spread(rate)['median'] / 1e9:,.0f} GFLOP/s"])
    return {
        "title": title,
        "precision": precision,
        "rows": len(fed),
        "matmul_flops_per_second": rate,
        "contestants": figures,
    }


def matrix_shape(model: Path) -> tuple[int, int]:
    config = json.loads((model / "config.json").read_text())
    return config["hidden_size"], config.get("intermediate_size") or config["ffn_dim"]
