"""Measure peak scoring memory above the weights for several token budgets and vocabularies (part of `make bench`).

    python benchmarks/memory.py --model FOLDER

Models are random Llamas with a small hidden size, so that the output head dominates, and the given model (by default
SmolLM2-135M in LPSEL_TEST_MODELS). Each number is from a separate process, with bfloat16 weights. For comparison, the
released recipe's loop runs four rows per batch with logits for every token. Each budget gets just enough rows to fill
lpsel's pack for it, and budgets with the same pack size are measured once. The loop's memory depends only on its
longest batch, so it gets the longest batch of the rows that fill 16,384 tokens.
"""

import tempfile
from pathlib import Path

import contestants
import numpy as np
import ours
from harness import arguments, peak_above_weights, quiet_libraries, show, write
from material import alpaca_lengths, existing, random_llama, smollm2
from numpy.typing import NDArray

VOCABULARIES = (32_000, 262_144)  # Llama 2's and Gemma 3's
BUDGETS = (2_048, 16_384, 65_536)
PRECISION = "bf16-true"
TOKENS_A_ROW = 100  # a little less than Alpaca's rows have on average, so that a pack is sure to be filled

Lengths = NDArray[np.int64]


def main(argv: list[str] | None = None) -> Path:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=existing, default=smollm2())
    options = parser.parse_args(argv)
    quiet_libraries()
    vocabularies, budgets = ((512,), (512, 1024)) if options.tiny else (VOCABULARIES, BUDGETS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        folders = {
            f"random Llama, vocabulary {size:,}": random_llama(
                work / f"vocabulary-{size}", layers=2, hidden=64, vocabulary=size
            )
            for size in vocabularies
        }
        if not options.tiny and options.model is not None:
            folders[options.model.name] = options.model
        figures, rows = [], []
        for name, model in folders.items():
            print(f"{name}: peak of the recipe's loop and of {len(budgets)} budgets", flush=True)
            longest = _longest_batch(*alpaca_lengths(budgets[1] // TOKENS_A_ROW))
            batch = ours.made_up_tokens(*longest, min(vocabularies), work / name / "batch").folder
            recipe = peak_above_weights("cpu", contestants.recipe_score, model, batch, PRECISION)
            packs = {budget: ours.largest_pack(model, PRECISION, budget, "cpu") for budget in budgets}
            of_packs = {}
            for pack in sorted(set(packs.values())):
                rows_that_fill = alpaca_lengths(pack // TOKENS_A_ROW)
                tokens = ours.made_up_tokens(*rows_that_fill, min(vocabularies), work / name / str(pack)).folder
                of_packs[pack] = peak_above_weights("cpu", ours.score, model, tokens, PRECISION, score_tokens=pack)
            peaks = {budget: of_packs[pack] for budget, pack in packs.items()}
            figures += [
                {
                    "model": name,
                    "score_tokens": budget,
                    "pack_tokens": packs[budget],
                    "peak_bytes": peak,
                    "recipe_peak_bytes": recipe,
                    "ratio": peak / recipe,
                }
                for budget, peak in peaks.items()
            ]
            cells = [f"{peak / 2**20:,.0f} ({peak / recipe:.2f})" for peak in peaks.values()]
            rows.append([name, *cells, f"{recipe / 2**20:,.0f}"])
    show(
        "Scoring: peak MiB above the weights (share of the recipe's loop)",
        ["", *(f"score_tokens={budget}" for budget in budgets), "recipe's loop, 4 rows a batch"],
        rows,
    )
    return write(options.out, "memory", options, "cpu", {"comparisons": figures})


def _longest_batch(prompt_N: Lengths, response_N: Lengths) -> tuple[Lengths, Lengths]:
    """Return the batch with the longest row among the batches of the recipe's loop."""
    first = int((prompt_N + response_N).argmax()) // contestants.ROWS_A_BATCH * contestants.ROWS_A_BATCH
    batch = slice(first, first + contestants.ROWS_A_BATCH)
    return prompt_N[batch], response_N[batch]


if __name__ == "__main__":
    main()
