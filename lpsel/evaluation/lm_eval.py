"""EleutherAI's lm-evaluation-harness on trained models, several side by side."""

import gc
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpsel.errors import UserError, check_package, first_line
from lpsel.evaluation.evaluator import Candidates, Place
from lpsel.model.load import load_model, load_tokenizer, locate
from lpsel.model.spec import ModelSpec
from lpsel.storage import distinct, file_names, finite, json_line, write_atomically

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LmEvalEvaluator:
    """Measures models with tasks of the harness, or with task files of one's own.

    Attributes:
        tasks: names, groups or tags of the harness, or YAML files.
        include_path: a folder with further task files.
        num_fewshot: examples before the question; None for what each task says.
        limit: rows of each task; None for all.
        batch_size: rows of a forward pass.
        apply_chat_template: whether questions go through the tokenizer's chat template; None for models with
            `template: chat`.
        seed: of the choice of examples.
    """

    tasks: Sequence[str] | None = None
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    apply_chat_template: bool | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        for name, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise UserError(f"evaluator.{name}={value}: must be a whole number, at least {least}.")
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise UserError(f"evaluator.include_path={self.include_path}: no such folder; give one with task files.")

    def check(self, candidates: Candidates) -> None:
        """See that the harness is installed, and that there are tasks, and models on this machine."""
        check_package("lm_eval", "lm-eval", "evaluator", "lm_eval")
        if not self.tasks:
            raise UserError("tasks=null: nothing to run; say tasks=[hellaswag,arc_easy], or a task file.")
        candidates.on_this_machine()

    def evaluate(self, candidates: Candidates, place: Place) -> dict[str, Any]:
        """Run all tasks on one model after the other, each freed before the next is loaded.

        The run folder gets generations/NAME.jsonl for every model: each row of each task with its prompt, the model's
        answers and its figures.

        Returns:
            `models` in their order, each with `metrics`: `TASK/METRIC` to `value` and `standard_error` as the harness
            reports them (None where it has none), and `tasks`: rows, few-shot examples and version of each.

        Raises:
            UserError: lm_eval is not installed; no task, one that is not known or whose data cannot be read; a model
                without a chat template that was to have one. Before any model is loaded.
        """
        self.check(candidates)
        assert self.tasks
        for name in ("lm_eval", "evaluate"):
            logging.getLogger(name).setLevel(logging.ERROR)
        specs = candidates.on_this_machine()
        paths = [locate(spec, place.cache_dir) for spec in specs]
        tokenizers = [load_tokenizer(spec, path) for spec, path in zip(specs, paths, strict=True)]
        chats = [self._chat(spec, tokenizer) for spec, tokenizer in zip(specs, tokenizers, strict=True)]
        manager = self._manager()
        shutil.rmtree(place.folder / "generations", ignore_errors=True)  # of an earlier run in the same folder
        (place.folder / "generations").mkdir(parents=True)
        models = []
        for name, file, spec, path, tokenizer, chat in zip(
            distinct([spec.name for spec in specs]),
            file_names([spec.name for spec in specs]),
            specs,
            paths,
            tokenizers,
            chats,
            strict=True,
        ):
            started = time.perf_counter()
            model = load_model(spec, path, place.dtype).to(place.device)
            found = self._run(model, tokenizer, manager, chat)
            del model
            gc.collect()
            generations = Path("generations") / f"{file}.jsonl"
            write_atomically(place.folder / generations, lambda opened, found=found: opened.writelines(_rows(found)))  # type: ignore[misc]
            models.append(
                {
                    "name": name,
                    "model": path,
                    "apply_chat_template": chat,
                    "generations": generations.as_posix(),
                    "tasks": {
                        task: {
                            "rows": counted["effective"],
                            "num_fewshot": found["n-shot"].get(task),
                            "version": found["versions"].get(task),
                        }
                        for task, counted in found["n-samples"].items()
                    },
                    "metrics": metrics_of(found["results"]),
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
        return finite(
            {
                "evaluator": "lm_eval",
                "lm_eval_version": _version(),
                "tasks": list(self.tasks),
                "num_fewshot": self.num_fewshot,
                "limit": self.limit,
                "seed": self.seed,
                "baseline": models[0]["name"],
                "models": models,
            }
        )

    def table(self, result: dict[str, Any]) -> "Table":
        """A row for every figure, a column for every model."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(caption="lm-evaluation-harness, value ± standard error", caption_justify="left")
        table.add_column("task/metric", overflow="fold")
        for model in result["models"]:
            table.add_column(escape(model["name"]), justify="right", overflow="fold")
        for metric in dict.fromkeys(metric for model in result["models"] for metric in model["metrics"]):
            table.add_row(escape(metric), *[_cell(model["metrics"].get(metric)) for model in result["models"]])
        return table

    def _chat(self, spec: ModelSpec, tokenizer: Any) -> bool:
        chat = spec.template == "chat" if self.apply_chat_template is None else self.apply_chat_template
        if chat and not tokenizer.chat_template:
            raise UserError(
                f"apply_chat_template: the tokenizer of {spec.name} has no chat template; say "
                "evaluator.apply_chat_template=false."
            )
        return chat

    def _manager(self) -> Any:
        """The harness's tasks, once it is sure that it knows those asked for and that their data are there."""
        from lm_eval.tasks import TaskManager

        folder = None if self.include_path is None else str(Path(self.include_path).expanduser())
        # One's own files first: to list the thousands that the harness brings takes seconds.
        own = TaskManager(include_path=folder, include_defaults=False)
        if self._wrong(own) is None:
            return own
        every = TaskManager(include_path=folder)
        if wrong := self._wrong(every):
            raise wrong
        return every

    def _wrong(self, manager: Any) -> UserError | None:
        for task in self.tasks or ():
            if not manager.match_tasks([task]) and not Path(task).is_file():
                return UserError(
                    f"tasks: {task} is no task, group or tag of lm_eval and no file; `lm_eval ls tasks` lists them, "
                    "evaluator.include_path=FOLDER adds your own."
                )
            try:
                manager.load([task])
            except Exception as error:
                return UserError(f"tasks: {task} cannot be loaded ({first_line(error)}).")
        return None

    def _run(self, model: Any, tokenizer: Any, manager: Any, chat: bool) -> Any:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=self.batch_size),
            tasks=list(self.tasks or ()),
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            apply_chat_template=chat,
            task_manager=manager,
            random_seed=self.seed,
            numpy_random_seed=self.seed,
            torch_random_seed=self.seed,
            fewshot_random_seed=self.seed,
        )


def metrics_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The harness's figures, `TASK/METRIC` to value and standard error.

    It keys them `METRIC,FILTER` and `METRIC_stderr,FILTER`; the filter is kept where there is one.
    """
    found = {}
    for task, figures in results.items():
        for key, value in figures.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or _number(value) is None:
                continue
            found[f"{task}/{metric}" if filtered == "none" else f"{task}/{metric},{filtered}"] = {
                "value": _number(value),
                "standard_error": _number(figures.get(f"{metric}_stderr,{filtered}")),
            }
    return found


def _number(value: Any) -> float | None:
    """None for what the harness writes in place of a number ("N/A", a name)."""
    try:
        return None if isinstance(value, str) else float(value)
    except TypeError:
        return None


def _rows(found: Mapping[str, Any]) -> Iterator[bytes]:
    for task, samples in found["samples"].items():
        for sample in samples:
            yield json_line(
                {
                    "id": f"{task}/{sample['doc_id']}",
                    "task": task,
                    "filter": sample["filter"],
                    "prompt": sample["arguments"][0][0],
                    "target": sample["target"],
                    "output": sample["filtered_resps"],
                    **{metric: sample[metric] for metric in sample["metrics"]},
                }
            )


def _cell(figure: Mapping[str, float | None] | None) -> str:
    if figure is None or figure["value"] is None or math.isnan(figure["value"]):
        return "-"
    error = figure["standard_error"]
    return f"{figure['value']:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")
