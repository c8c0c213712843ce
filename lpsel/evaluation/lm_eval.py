"""Evaluate trained models with EleutherAI's lm-evaluation-harness."""

import logging
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lpsel.errors import UserError, check_int, check_package, first_line
from lpsel.evaluation.evaluator import Candidates, EvaluationContext, generation_files
from lpsel.evaluation.statistics import wilson
from lpsel.evaluation.tables import lm_eval_table
from lpsel.model.device import free_memory
from lpsel.model.load import load_model, load_tokenizer, locate
from lpsel.model.spec import ModelSpec
from lpsel.storage import distinct, finite, write_lines


@dataclass(frozen=True)
class LmEvalEvaluator:
    """Evaluates models on tasks of the harness, or on your own task files.

    Attributes:
        tasks: tasks, groups or tags of the harness, or YAML files.
        include_path: folder with more task files.
        num_fewshot: number of few-shot examples; None for the default of each task.
        limit: maximum number of rows per task; None for all.
        batch_size: rows per forward pass.
        apply_chat_template: use the tokenizer's chat template; None for models with `template: chat`.
        seed: seed for choosing few-shot examples.
    """

    tasks: Sequence[str] | str | None = None
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    apply_chat_template: bool | None = None
    seed: int = 42

    table = staticmethod(lm_eval_table)

    def __post_init__(self) -> None:
        for name, minimum in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
            if getattr(self, name) is not None:
                check_int(f"evaluator.{name}", getattr(self, name), minimum)
        are_names = isinstance(self.tasks, Sequence) and all(isinstance(task, str) for task in self.tasks)
        if self.tasks is not None and not are_names:
            raise UserError("tasks", self.tasks, "must be names of tasks", "set tasks=[hellaswag,arc_easy]")
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise UserError("evaluator.include_path", self.include_path, "no such folder", "set a folder of task files")

    @property
    def task_names(self) -> list[str]:
        """The tasks as a list, since a single task can be set as a string."""
        return [self.tasks] if isinstance(self.tasks, str) else list(self.tasks or ())

    def check(self, candidates: Candidates) -> None:
        """Raise a UserError unless the harness is installed and there are tasks and local models."""
        check_package("lm_eval", "lm-eval", "evaluator", "lm_eval")
        if not self.task_names:
            raise UserError("tasks", "null", "no tasks to run", "set tasks=[hellaswag,arc_easy] or a task file")
        candidates.local()

    def evaluate(self, candidates: Candidates, context: EvaluationContext) -> dict[str, Any]:
        """Run all tasks on one model at a time, and free each model before loading the next.

        Writes generations/NAME.jsonl for every model: each row of each task with its prompt, answers and metrics.

        Returns:
            `models` in their order, each with `metrics`, a mapping from `TASK/METRIC` to `value` and `standard_error`
            as reported by the harness (None if missing) and `low` and `high` of the 95% interval, see `_interval`; and
            `tasks`: number of rows, few-shot examples and version of each.

        Raises:
            UserError: a task is unknown or its data cannot be read, or a model has no chat template; raised before any
                model is loaded. Or the code of a task fails on a model's answers.
        """
        for name in ("lm_eval", "evaluate"):
            logging.getLogger(name).setLevel(logging.ERROR)
        prepared = []
        for spec in candidates.local():
            path = locate(spec, context.cache_dir)
            tokenizer = load_tokenizer(spec, path)
            prepared.append((spec, path, tokenizer, self._chat(spec, tokenizer)))
        manager = self._task_manager()
        names = [spec.name for spec, *_ in prepared]
        files = generation_files(names, context.folder)
        models = []
        for name, file, (spec, path, tokenizer, chat) in zip(distinct(names), files, prepared, strict=True):
            started = time.perf_counter()
            output = self._run(spec, path, tokenizer, manager, chat, context)
            free_memory()
            write_lines(context.folder / file, _rows(output))
            models.append(
                {
                    "name": name,
                    "model": path,
                    "apply_chat_template": chat,
                    "generations": file,
                    "tasks": _tasks(output),
                    "metrics": metrics_of(output["results"], output["n-samples"]),
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
        return finite(
            {
                "evaluator": "lm_eval",
                "lm_eval_version": version("lm_eval"),
                "tasks": self.task_names,
                "num_fewshot": self.num_fewshot,
                "limit": self.limit,
                "seed": self.seed,
                "baseline": models[0]["name"],
                "models": models,
            }
        )

    def _chat(self, spec: ModelSpec, tokenizer: Any) -> bool:
        chat = spec.template == "chat" if self.apply_chat_template is None else self.apply_chat_template
        if chat and not tokenizer.chat_template:
            problem = f"the tokenizer of {spec.name} has no chat template"
            hint = "set evaluator.apply_chat_template=false"
            raise UserError("evaluator.apply_chat_template", self.apply_chat_template, problem, hint)
        return chat

    def _task_manager(self) -> Any:
        """Return the harness's task manager after checking that the requested tasks can be loaded."""
        from lm_eval.tasks import TaskManager

        folder = None if self.include_path is None else str(Path(self.include_path).expanduser())
        try:
            # Listing the harness's thousands of tasks takes seconds, so task files of the user are tried first.
            manager = TaskManager(include_path=folder, include_defaults=False)
        except Exception as failure:  # one of the folder's files, requested or not
            problem = f"a task file in it cannot be read ({_cause(failure)})"
            hint = "check that the names of all tasks and groups are text"
            raise UserError("evaluator.include_path", self.include_path, problem, hint) from failure
        if self._task_error(manager) is not None:
            manager = TaskManager(include_path=folder)
            if error := self._task_error(manager):
                raise error
        return manager

    def _task_error(self, manager: Any) -> UserError | None:
        """Return why a requested task cannot be evaluated, or None if all can."""
        for task in self.task_names:
            if not manager.match_tasks([task]) and not Path(task).is_file():
                hint = "run `lm_eval ls tasks` for a list, or set evaluator.include_path=FOLDER"
                return UserError("tasks", task, "not a task, group or tag of lm_eval, nor a file", hint)
            try:
                loaded = manager.load([task])["tasks"]
            except Exception as error:  # the code of a task can raise anything
                return UserError("tasks", task, f"cannot be loaded ({_cause(error)})", "check its file and data")
            if any(getattr(subtask, "UNSAFE_CODE", False) for subtask in loaded.values()):
                hint = "evaluate this task with lm_eval itself, in a sandbox"
                return UserError("tasks", task, "runs code that the model writes", hint)
            for name in filter(None, map(_ignored_metric, loaded.values())):
                hint = "return its values from process_results: !function, or remove it"
                return UserError("tasks", task, f"lm_eval ignores its metric {name}, which is a function", hint)
        return None

    def _run(
        self, spec: ModelSpec, path: str, tokenizer: Any, manager: Any, chat: bool, context: EvaluationContext
    ) -> Any:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        model: Any = load_model(spec, path, context.dtype).to(context.device)
        try:
            return simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=self.batch_size),
                tasks=self.task_names,
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                apply_chat_template=chat,
                task_manager=manager,
                random_seed=self.seed,
                numpy_random_seed=self.seed,
                torch_random_seed=self.seed,
                fewshot_random_seed=self.seed,
            )
        except Exception as error:
            task = _failed_task(error)
            if task is None:  # the model or the harness failed
                raise
            hint = "check its few-shot examples, metrics and functions"
            raise UserError("tasks", task, f"cannot be evaluated ({_cause(error)})", hint) from error


def _ignored_metric(task: Any) -> str | None:
    """Return the name of a function in the task's metrics; the harness only calls them on generated answers."""
    if task.OUTPUT_TYPE == "generate_until" or task.config.process_results is not None:
        return None
    metrics = [entry.get("metric") for entry in task.config.metric_list or ()]
    return next((metric.__name__ for metric in metrics if callable(metric)), None)


def _failed_task(error: Exception) -> str | None:
    """Return the name of the task whose code or settings raised an error in `simple_evaluate`; None if none did."""
    from lm_eval.api.task import Task

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        # While the model runs, the harness's loop over tasks has ended, but its variable still holds the last one.
        if frame.f_code.co_name == "evaluate" and frame is not frames[-1]:
            continue
        for value in map(frame.f_locals.get, ("self", "task")):
            if isinstance(value, Task):
                return str(value.task_name)
    return None


def _cause(error: Exception) -> str:
    """Describe an error by its type and message, which is often only a key or a number."""
    name, line = type(error).__name__, first_line(error)
    return name if line in (name, "None") else f"{name}: {line}"


def metrics_of(
    results: Mapping[str, Mapping[str, Any]], samples: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, float | None]]:
    """Convert the harness's results to a mapping from `TASK/METRIC` to value, standard error and interval.

    The harness uses the keys `METRIC,FILTER` and `METRIC_stderr,FILTER`. The filter is dropped if it is "none".
    """
    metrics = {}
    for task, values in results.items():
        rows = samples.get(task, {}).get("effective", 0)
        for key, reported in values.items():
            metric, _, filter_name = key.partition(",")
            value = _number(reported)
            if not filter_name or metric.endswith("_stderr") or value is None:
                continue
            error = _number(values.get(f"{metric}_stderr,{filter_name}"))
            low, high = _interval(value, error, rows)
            name = f"{task}/{metric}" if filter_name == "none" else f"{task}/{key}"
            metrics[name] = {"value": value, "standard_error": error, "low": low, "high": high}
    return metrics


def _interval(value: float, error: float | None, rows: int) -> tuple[float | None, float | None]:
    """Compute Wilson's interval if the standard error is that of a proportion, otherwise value ± 1.96 standard errors.

    For a proportion, the harness computes the variance as p (1 - p) / (n - 1).
    """
    if error is None:
        return None, None
    if rows > 1 and 0 <= value <= 1 and math.isclose(error**2 * (rows - 1), value * (1 - value), abs_tol=1e-9):
        return wilson(value * rows, rows)
    return value - 1.96 * error, value + 1.96 * error


def _number(value: Any) -> float | None:
    """Return a number, or None if the harness reports something else ("N/A", a name)."""
    try:
        return None if isinstance(value, str) else float(value)
    except TypeError:
        return None


def _tasks(output: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        task: {
            "rows": counts["effective"],
            "num_fewshot": output["n-shot"].get(task),
            "version": output["versions"].get(task),
        }
        for task, counts in output["n-samples"].items()
    }


def _rows(output: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, samples in output["samples"].items():
        for sample in samples:
            yield {
                "id": f"{task}/{sample['doc_id']}",
                "task": task,
                "filter": sample["filter"],
                "prompt": sample["arguments"][0][0],
                "target": sample["target"],
                "output": sample["filtered_resps"],
                **{metric: sample[metric] for metric in sample["metrics"]},
            }
