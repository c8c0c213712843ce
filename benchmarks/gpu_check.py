"""Check lpsel's results on one CUDA device and measure its speed, within 5 minutes and without a network.

    python benchmarks/gpu_check.py                 # prefix with PYTHONPATH=. if lpsel is not installed

Models have random weights in published shapes, and rows have random ids with Alpaca's lengths. Each of the six stages
is written to the JSON file when it ends, so that nothing is lost if a later one fails; the exit status is then 1.
`--stages` runs some of them, and `--device cpu --tiny` runs the same code on a CPU with the smallest sizes.
"""

import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from lpsel.model.device import allocator_settings

os.environ.update(allocator_settings())  # as on the command line, before torch is imported

import contestants
import device_checks
import ours
import torch
from compare import LPSEL, NOTES, RECIPE, TRAINER, compare, scorers, trainers
from harness import arguments, quiet_libraries, show, write
from material import ALPACA_ROWS, alpaca_lengths, random_model
from transformers import LlamaConfig, OPTConfig

from lpsel.training.costs import peak_flops

STAGES = ("attention", "losses", "profile", "checkpoint", "rates", "projection")
MODELS = ("OPT-350M", "OPT-1.3B", "Llama-1B")
PRECISION = "bf16-mixed"  # what trainer.precision=auto selects on such a device
LINES = 12  # of a traceback in the JSON file


def main(argv: list[str] | None = None) -> tuple[Path, int]:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=("OPT-350M", "Llama-1B"), help="to time")
    parser.add_argument("--rows", type=int, default=1024, help="rows that are scored in every round")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps per round of training, 32 rows each")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device=cuda: this machine has no CUDA device; set --device cpu --tiny to try the code.")
    quiet_libraries()
    figures: dict[str, Any] = {"cuda": torch.version.cuda, "stages": {}}
    with tempfile.TemporaryDirectory() as folder:
        path, failures = run(Stages(Path(folder), options, figures["stages"]), options, figures)
    print(*NOTES, *([] if contestants.HAS_TRAINER else [contestants.NO_TRAINER]), sep="\n")
    if "liger" not in device_checks.HEADS_OF_LOSS:
        print("liger-kernel is not installed (or there is no GPU), and its head is left out")
    for failure in failures:
        print(f"failed: {failure}")
    return path, 1 if failures else 0


def run(stages: "Stages", options: Any, figures: dict[str, Any]) -> tuple[Path, list[str]]:
    """Run the stages in order; return the JSON file and descriptions of what failed."""
    failures: list[str] = []
    for name in options.stages:
        print(f"\n{name}", flush=True)
        started = time.perf_counter()
        try:
            measured, failed = getattr(stages, name)()
            stage = {"figures": measured, "failed": failed}
        except (Exception, SystemExit) as error:
            lines = "".join(traceback.format_exception(error)).splitlines()[-LINES:]
            stage = {"failed": [f"{name}: {type(error).__name__}: {error}"], "traceback": lines}
        stage["seconds"] = round(time.perf_counter() - started, 1)
        figures["stages"][name] = stage
        failures += stage["failed"]
        path = write(options.out, "gpu_check", options, options.device, figures)
    return path, failures


class Stages:
    """The six stages; each returns its measurements and descriptions of the checks that failed."""

    def __init__(self, folder: Path, options: Any, done: Mapping[str, Any]) -> None:
        self.folder, self.options, self.done = folder, options, done
        self.device, self.tiny = options.device, options.tiny
        self.batch_size = 4 if self.tiny else 32
        self.others_failed: list[str] = []
        self.model = cache(self._model)
        self.tokens = cache(self._tokens)

    def attention(self) -> device_checks.Checked:
        return device_checks.attention(self.device, self.tiny)

    def losses(self) -> device_checks.Checked:
        shapes = ("tiny OPT", "tiny Llama") if self.tiny else ("OPT-350M", "Llama of 4 layers")
        figures, failed = {}, []
        for name in shapes:
            tokens = self.tokens(name, 8)
            figures[name], more = device_checks.losses_and_gradients(self.model(name), tokens, self.device)
            failed += more
        return figures, failed

    def profile(self) -> device_checks.Checked:
        name, rows, steps, pack = ("tiny OPT", 30, 6, 512) if self.tiny else ("OPT-350M", 3000, 30, ours.SCORE_TOKENS)
        inputs = (self.model(name), self.tokens(name, rows), self.device)
        return device_checks.training_and_recording(*inputs, steps, self.batch_size, pack)

    def checkpoint(self) -> device_checks.Checked:
        name = "tiny OPT" if self.tiny else "OPT-350M"
        return device_checks.checkpoint(self.model(name), self.tokens(name, 100), self.device, self.batch_size)

    def rates(self) -> device_checks.Checked:
        figures: dict[str, Any] = {}
        for name in ("tiny OPT",) if self.tiny else self.options.models:
            figures[name] = {"scoring": self._scoring(name), "training": self._training(name)}
        return figures, self.others_failed

    def projection(self) -> device_checks.Checked:
        if "figures" not in self.done.get("rates", {}):
            return {}, ["projection: there are no rates"]
        figures = {name: end_to_end(**measured) for name, measured in self.done["rates"]["figures"].items()}
        checkpoint = self.done.get("checkpoint", {}).get("figures")
        show(
            f"Projected for LP_app on Alpaca's {ALPACA_ROWS:,} rows: score, train one epoch, score",
            ["", "lpsel, minutes", "recipe's loop and Trainer, minutes"],
            [
                [name, *(f"{row[who]:.1f}" if who in row else "-" for who in ("lpsel", "others"))]
                for name, row in figures.items()
            ],
            [f"without checkpoints; one takes {checkpoint['seconds_to_write']:.1f} s"] if checkpoint else [],
        )
        return figures, []

    def _scoring(self, name: str) -> dict[str, Any]:
        rows = self.options.rows
        inputs = self.model(name), self.tokens(name, rows), PRECISION, self.device
        entrants = scorers(*inputs, recipe=True, liger="liger" in device_checks.HEADS_OF_LOSS)
        return self._compare(f"Scoring {rows} rows, {name}", name, entrants)

    def _training(self, name: str) -> dict[str, Any]:
        steps, size = self.options.steps, self.batch_size
        tokens = self.tokens(name, (steps + 1) * size)
        inputs = self.model(name), tokens, PRECISION, self.device
        entrants = trainers(*inputs, steps, size, liger="liger" in device_checks.HEADS_OF_LOSS)
        return self._compare(f"Training, {steps} steps of {size} rows, {name}", name, entrants, steps=steps)

    def _compare(
        self, title: str, name: str, entrants: Mapping[str, Callable[..., Any]], steps: int = 0
    ) -> dict[str, Any]:
        measure = partial(
            compare, rounds=self.options.rounds, model=self.model(name), device=self.device, steps=steps, peaks=False
        )
        try:
            measured = measure(title, entrants)
        except Exception as error:  # such as too little memory for padding, or a library of the Trainer
            self.others_failed.append(f"{title}, with others: {type(error).__name__}: {error}")
            measured = measure(title, {LPSEL: entrants[LPSEL]})
        device = torch.device(self.device)
        if device.type == "cuda" and (peak := peak_flops(device, torch.bfloat16)):
            rates = measured["matmul_flops_per_second"]
            share = measured["contestants"][LPSEL]["share_of_matmul"]["needed"] * sorted(rates)[len(rates) // 2] / peak
            measured["utilization_of_nominal_peak"] = share
            print(f"{title}: lpsel's model FLOPs utilization is {share:.1%} of {peak / 1e12:.0f} TFLOP/s")
        return measured

    def _model(self, name: str) -> Path:
        return random_model(
            self.folder / name, config(name), ["random ids need no tokenizer"], torch.bfloat16, self.device
        )

    def _tokens(self, name: str, rows: int) -> Path:
        return ours.made_up_tokens(
            *alpaca_lengths(rows), config(name).vocab_size, self.folder / "rows" / f"{name} {rows}"
        ).folder


def config(name: str) -> Any:
    """Create a configuration with a published or small shape, without dropout, as in lpsel by default."""
    small: dict[str, Any] = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama: dict[str, Any] = {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    opt: dict[str, Any] = {"num_hidden_layers": 24, "dropout": 0.0}
    post_norm = {"word_embed_proj_dim": 512, "do_layer_norm_before": False}
    shapes: dict[str, Callable[[], Any]] = {
        "tiny OPT": partial(
            OPTConfig, **small, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=512, dropout=0.0
        ),
        "tiny Llama": partial(LlamaConfig, **small, intermediate_size=64, num_key_value_heads=2),
        "OPT-350M": partial(OPTConfig, hidden_size=1024, ffn_dim=4096, num_attention_heads=16, **post_norm, **opt),
        "OPT-1.3B": partial(
            OPTConfig, hidden_size=2048, ffn_dim=8192, num_attention_heads=32, word_embed_proj_dim=2048, **opt
        ),
        "Llama of 4 layers": partial(LlamaConfig, **llama, num_hidden_layers=4),
        "Llama-1B": partial(LlamaConfig, **llama, num_hidden_layers=16),
    }
    return shapes[name]()


def end_to_end(scoring: dict[str, Any], training: dict[str, Any]) -> dict[str, float]:
    """Extrapolate the measured rates to minutes for a scoring pass, an epoch and a scoring pass over Alpaca."""
    tokens = sum(each["contestants"][LPSEL]["rounds"][0].tokens for each in (scoring, training))
    alpaca = ALPACA_ROWS * tokens / (scoring["rows"] + training["rows"])
    minutes = {"tokens": alpaca}
    for who, scorer, trainer in (("lpsel", LPSEL, LPSEL), ("others", RECIPE, TRAINER)):
        if scorer in scoring["contestants"] and trainer in training["contestants"]:
            passes = 2 / scoring["contestants"][scorer]["tokens_per_second"]["median"]
            epoch = 1 / training["contestants"][trainer]["tokens_per_second"]["median"]
            minutes[who] = alpaca * (passes + epoch) / 60
    return minutes


if __name__ == "__main__":
    raise SystemExit(main()[1])
