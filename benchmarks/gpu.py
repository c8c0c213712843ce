"""Scoring and training on one CUDA device, against the released recipe's loop, lm-eval and transformers' Trainer.

    python benchmarks/gpu.py

Needs no download: OPT-350M, OPT-1.3B and a Llama of 1 B weights get random weights, and rows random ids in Alpaca's
lengths. `--device cpu --tiny` runs the same code on a CPU with the smallest sizes.
"""

import tempfile
from pathlib import Path
from typing import Any

import contestants
import ours
import torch
from compare import LPSEL, NO_LM_EVAL, NOTES, RECIPE, TRAINER, compare, nominal_peak, scorers, trainers
from harness import arguments, check_agreement, quiet_libraries, show, write
from material import ALPACA_ROWS, alpaca_lengths, random_model
from transformers import LlamaConfig, OPTConfig

CHECKED_ROWS = 8


def main(argv: list[str] | None = None) -> Path:
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, default=1024, help="rows that are scored in every round")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps per round of training, 32 rows each")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device=cuda: this machine has no CUDA device; say --device cpu --tiny to try the code.")
    quiet_libraries()
    figures: dict[str, Any] = {"comparisons": [], "alpaca_end_to_end": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs(options.tiny).items():
            model = random_model(Path(folder) / name, config, ["random ids need no tokenizer"], torch.bfloat16)
            measured = _measure(name, model, config.vocab_size, Path(folder) / "rows" / name, options)
            figures["comparisons"] += measured
            figures["alpaca_end_to_end"].append(end_to_end(name, *measured))
    show(
        f"Projected for LP_app on Alpaca's {ALPACA_ROWS:,} rows: score, train one epoch, score",
        ["", "lpsel, minutes", "recipe's loop and Trainer, minutes", "ratio"],
        [
            [row["model"], f"{row['lpsel']:.1f}", f"{row['others']:.1f}", f"{row['ratio']:.2f}"]
            for row in figures["alpaca_end_to_end"]
        ],
    )
    print(*NOTES, *([] if contestants.HAS_LM_EVAL else [NO_LM_EVAL]), sep="\n")
    return write(options.out, "gpu", options, options.device, figures)


def configs(tiny: bool) -> dict[str, Any]:
    """The published shapes of OPT-350M, OPT-1.3B and Llama 3.2 1B; without dropout, which lpsel does not use either."""
    if tiny:
        small: dict[str, Any] = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        return {
            "tiny OPT": OPTConfig(**small, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=512, dropout=0.0)
        }
    opt: dict[str, Any] = {"num_hidden_layers": 24, "dropout": 0.0}
    return {
        "OPT-350M": OPTConfig(
            hidden_size=1024,
            ffn_dim=4096,
            num_attention_heads=16,
            word_embed_proj_dim=512,
            do_layer_norm_before=False,
            **opt,
        ),
        "OPT-1.3B": OPTConfig(hidden_size=2048, ffn_dim=8192, num_attention_heads=32, word_embed_proj_dim=2048, **opt),
        "Llama-1B": LlamaConfig(
            vocab_size=128_256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        ),
    }


def _measure(
    name: str, model: Path, vocabulary: int, rows: Path, options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    batch_size = 4 if options.tiny else 32
    device = options.device
    counts = {"checked": CHECKED_ROWS, "scored": options.rows, "trained": (options.steps + 1) * batch_size}
    tokens = {
        what: ours.made_up_tokens(*alpaca_lengths(count), vocabulary, rows / what).folder
        for what, count in counts.items()
    }
    exact = {
        who: score()
        for who, score in scorers(model, tokens["checked"], "32-true", device, recipe=True, lm_eval=(4,)).items()
    }
    for who, run in exact.items():
        check_agreement(exact[LPSEL].nll, run.nll, f"{name}, float32: {who}")
    entrants = scorers(model, tokens["scored"], "bf16-true", device, recipe=True, lm_eval=(4, 64))
    scoring = compare(f"Scoring {options.rows} rows, {name}", entrants, options.rounds, model, device)
    both = trainers(model, tokens["trained"], "bf16-mixed", device, options.steps, batch_size)
    title = f"Training, {options.steps} steps of {batch_size} rows, {name}"
    training = compare(title, both, options.rounds, model, device, steps=options.steps)
    peak = nominal_peak(torch.cuda.get_device_name()) if device == "cuda" else None
    for figures in (scoring, training):
        figures["model"] = name
        if peak:
            measured = figures["matmul_flops_per_second"]
            share = (
                figures["contestants"][LPSEL]["share_of_matmul"]["needed"] * sorted(measured)[len(measured) // 2] / peak
            )
            figures["model_flops_utilisation_of_nominal_peak"] = share
            print(f"{figures['title']}: lpsel's model FLOPs utilisation is {share:.1%} of {peak / 1e12:.0f} TFLOP/s")
    return scoring, training


def end_to_end(name: str, scoring: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Minutes for a scoring pass, an epoch and a scoring pass over Alpaca, from the rates measured."""
    tokens = sum(each["contestants"][LPSEL]["rounds"][0].tokens for each in (scoring, training))
    rows = scoring["rows"] + training["rows"]
    alpaca = ALPACA_ROWS * tokens / rows
    minutes = {}
    for who, scorer, trainer in (
        ("lpsel", LPSEL, LPSEL),
        ("others", RECIPE, TRAINER),
    ):
        passes = 2 / scoring["contestants"][scorer]["tokens_per_second"]["median"]
        epoch = 1 / training["contestants"][trainer]["tokens_per_second"]["median"]
        minutes[who] = alpaca * (passes + epoch) / 60
    return {"model": name, "tokens": alpaca, **minutes, "ratio": minutes["others"] / minutes["lpsel"]}


if __name__ == "__main__":
    main()
