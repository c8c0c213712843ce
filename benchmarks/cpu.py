"""Compare CPU scoring and training with the released recipe's loop, lm-eval and transformers' Trainer (`make bench`).

    python benchmarks/cpu.py --model FOLDER --data FILE

The defaults are SmolLM2-135M in the folder LPSEL_TEST_MODELS and Alpaca next to the checkout, or a random Llama and the
embedded rows without those. About 25 minutes on two cores; --rounds and --rows make it shorter.
"""

import tempfile
from pathlib import Path
from typing import Any

import contestants
import ours
from compare import NO_LM_EVAL, NOTES, RECIPE, compare, scorers, trainers
from harness import arguments, interleave, quiet_libraries, show, spread, write
from material import add_options, random_llama, sample

FULL = {"layers": 8, "hidden": 256, "vocabulary": 49_152}
TINY = {"layers": 2, "hidden": 32, "vocabulary": 512}


def main(argv: list[str] | None = None) -> Path:
    parser = arguments(__doc__)
    add_options(parser, rows=200)
    parser.add_argument("--lm-eval-rows", type=int, default=80, help="fewer for lm-eval, which takes longest")
    parser.add_argument("--training-rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps per round of training")
    options = parser.parse_args(argv)
    quiet_libraries()
    batch_size, sizes, compiled = (4, (4,), False) if options.tiny else (32, (1, 4, 16), True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        counts = {"scored": options.rows, "lm-eval": options.lm_eval_rows, "trained": (options.steps + 1) * batch_size}
        files = {rows: sample(options.data, rows, work) for rows in set(counts.values())}
        text, data_name = files[options.rows]
        model = options.model
        if options.tiny or model is None:
            model = random_llama(work / "model", **(TINY if options.tiny else FULL), text=text)
        tokens = {what: ours.tokens_of(files[rows][0], model, work / "cache").folder for what, rows in counts.items()}
        name = "random Llama" if model.parent == work else model.name
        figures: dict[str, Any] = {"model": name, "data": data_name, "rows": counts, "comparisons": []}

        for precision in ("32-true", "bf16-true"):
            entrants = scorers(model, tokens["scored"], precision, "cpu", recipe=True, compiled=compiled)
            if precision != "32-true":
                entrants[f"{RECIPE}, 32-true"] = scorers(model, tokens["scored"], "32-true", "cpu", recipe=True)[RECIPE]
            title = f"Scoring {options.rows} rows of {data_name}, {name}, {precision}"
            figures["comparisons"].append(compare(title, entrants, options.rounds, model, "cpu"))
        if contestants.HAS_LM_EVAL:
            for precision in ("32-true", "bf16-true"):
                entrants = scorers(model, tokens["lm-eval"], precision, "cpu", lm_eval=sizes, compiled=compiled)
                title = f"Scoring {options.lm_eval_rows} of these rows with lm-eval, {name}, {precision}"
                figures["comparisons"].append(compare(title, entrants, options.rounds, model, "cpu"))
        for precision in ("32-true", "bf16-mixed"):
            entrants = trainers(model, tokens["trained"], precision, "cpu", options.steps, batch_size, compiled)
            title = f"Training, {options.steps} steps of {batch_size} rows, {name}, {precision}"
            rounds = min(options.rounds, options.training_rounds)
            figures["comparisons"].append(compare(title, entrants, rounds, model, "cpu", steps=options.steps))
        figures["recording"] = recording(model, tokens["trained"], batch_size, options)
    print(*NOTES, *([] if contestants.HAS_LM_EVAL else [NO_LM_EVAL]), sep="\n")
    return write(options.out, "cpu", options, "cpu", figures)


def recording(model: Path, tokens: Path, batch_size: int, options: Any) -> dict[str, Any]:
    """Measure the overhead of recording passes beyond forward passes, in percent of a training run that records."""

    def run() -> Any:
        return ours.train(model, tokens, "32-true", steps=options.steps, batch_size=batch_size, record=True)

    name = "training that records"
    runs = interleave({name: run}, min(options.rounds, options.training_rounds))[name]
    percent = spread([100 * (r.extra["passes"] - r.extra["forward"]) / r.extra["whole"] for r in runs])
    passes = spread([100 * r.extra["forward"] / r.extra["whole"] for r in runs])
    show(
        "Training that records, before and after",
        ["", "% of the whole: median [range]"],
        [
            [label, f"{value['median']:.2f} [{value['min']:.2f}, {value['max']:.2f}]"]
            for label, value in (("forward passes of recording", passes), ("recording beyond them", percent))
        ],
    )
    return {"percent_beyond_forward_passes": percent, "percent_forward_passes": passes, "rounds": runs}


if __name__ == "__main__":
    main()
