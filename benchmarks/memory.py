"""Peak memory above the weights when scoring, over token budgets and vocabularies (part of `make bench`).

    python benchmarks/memory.py --model FOLDER

Random Llamas of a small hidden size, so that the output head is what counts, and the model given (SmolLM2-135M in the
folder that LPSEL_TEST_MODELS names). Each figure comes from a process of its own. Weights are bfloat16. Beside it
stands the released recipe's loop, four rows a batch with the logits of every token. Every budget gets just enough rows
to fill a batch; the loop, whose memory depends on its longest batch alone, those of the second budget.
"""

import tempfile
from pathlib import Path

import contestants
import ours
from harness import arguments, hush, peak_above_weights, show, write
from material import alpaca_lengths, existing, random_llama, smollm2

VOCABULARIES = (32_000, 128_256, 262_144)
BUDGETS = (2_048, 16_384, 65_536)
PRECISION = "bf16-true"


def main(argv: list[str] | None = None) -> Path:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=existing, default=smollm2())
    options = parser.parse_args(argv)
    hush()
    vocabularies, budgets = ((512,), (512, 1024)) if options.tiny else (VOCABULARIES, BUDGETS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = work / "text"
        text.write_text("A tokenizer is not needed here: the rows are random ids.")
        folders = {
            f"random Llama, vocabulary {size:,}": random_llama(
                work / f"vocabulary-{size}", text, layers=2, hidden=64, vocabulary=size
            )
            for size in vocabularies
        }
        if not options.tiny and options.model is not None:
            folders[options.model.name] = options.model
        figures, rows = [], []
        for name, model in folders.items():
            rows_of = {
                budget: _rows_that_fill(budget, min(vocabularies), work / name / str(budget)) for budget in budgets
            }
            print(f"{name}: peak of the recipe's loop and of {len(budgets)} budgets", flush=True)
            recipe = peak_above_weights("cpu", contestants.recipe_score, model, rows_of[budgets[1]], PRECISION)
            peaks = {
                budget: peak_above_weights("cpu", ours.score, model, tokens, PRECISION, score_tokens=budget)
                for budget, tokens in rows_of.items()
            }
            figures += [
                {
                    "model": name,
                    "score_tokens": budget,
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


def _rows_that_fill(budget: int, vocabulary: int, folder: Path) -> Path:
    """Rows of Alpaca's lengths that fill one batch of `budget` tokens even where padding does not count."""
    prompt, response = alpaca_lengths(budget // 100)
    return ours.made_up_tokens(prompt, response, vocabulary, folder).folder


if __name__ == "__main__":
    main()
