"""`show`: one run folder: what was asked, what came out, what it cost, which files it has."""

from collections.abc import Sequence
from pathlib import Path

from lpsel.commands import result_summary as outline
from lpsel.commands.arguments import OneLineParser
from lpsel.console import lines, show
from lpsel.errors import UserError
from lpsel.report.runs import COMMANDS, Found, Run, find, measures, number
from lpsel.run_config import RESULT, RUN_CONFIG

SAID = ("seed", "baseline", "limit", "num_fewshot")


def main(arguments: Sequence[str]) -> None:
    """Run the command as `lpsel show ARGUMENTS`.

    Raises:
        UserError: no finished run there.
    """
    parser = OneLineParser(prog="lpsel show", description="Print one run: what was asked, what came out, its costs.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or the result.json in it")
    given = parser.parse_args(arguments).run
    folder = given.parent if given.name == RESULT else given
    found = find([str(folder)])
    run = _only(found, folder)
    show(lines(described(run), title=f"{run.command}  {run.folder}"))


def described(run: Run) -> outline.Pairs:
    """The run as names and a line each."""
    try:
        came_out = _COMMANDS.get(run.command, _evaluation)(run)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run.folder / RESULT}: lacks what a run of {run.command} says ({error}).") from None
    return [*_asked(run), *came_out, *_files(run.folder)]


def _only(found: Found, folder: Path) -> Run:
    if len(found.runs) == 1:
        return found.runs[0]
    if found.runs:
        raise UserError(f"{folder}: contains {len(found.runs)} runs; `lpsel runs {folder}` lists them.")
    if (folder / RUN_CONFIG).is_file() and not (folder / RESULT).is_file():
        raise UserError(f"{folder}: this run is not finished; give its command again.")
    why = found.left_out[0][1] if found.left_out else "no result.json in it"
    raise UserError(f"{folder}: {why}; name the folder of a run of {', '.join(COMMANDS)}.")


def _asked(run: Run) -> outline.Pairs:
    overrides = _overrides(run.folder)
    pairs = [("Overrides", " ".join(overrides))] if overrides else []
    data = run.get("dataset")
    if isinstance(data, dict):
        data = f"{data.get('name')}{f' ({path})' if (path := data.get('path')) else ''}"
    prompts = run.get("prompts")
    judge = run.get("judge", "name") or run.get("judge", "kind")
    said = {
        "data": data or (" and ".join(map(str, prompts)) if isinstance(prompts, list) else prompts),
        "judge": judge,
        **{name: run.get(name) for name in SAID},
    }
    return pairs + [(name.capitalize(), str(value)) for name, value in said.items() if isinstance(value, str | int)]


def _overrides(folder: Path) -> list[str]:
    from omegaconf import OmegaConf

    file = folder / ".hydra" / "overrides.yaml"
    try:
        return [str(override) for override in OmegaConf.load(file)]
    except (OSError, ValueError):
        return []


def _training(run: Run) -> outline.Pairs:
    return [*_selection(run), *outline.training(run.result)]


def _selection(run: Run) -> outline.Pairs:
    return [*outline.selection(run.result), *outline.scores(run.result)]


def _evaluation(run: Run) -> outline.Pairs:
    pairs = []
    for m in measures(run):
        ends = "" if m.low is None or m.high is None else f" [{m.low:.4g}, {m.high:.4g}]"
        pairs.append((m.model, f"{m.metric} {m.value:.4g}{ends}"))
    if (alpha := number(run.get("agreement", "krippendorff_alpha"))) is not None:
        pairs.append(("Krippendorff's alpha", f"{alpha:.3f}"))
    pairs += [
        (str(person.get("name")), f"{person.get('votes')} votes, {person.get('skipped')} skipped")
        for person in run.entries("annotators")
    ]
    return pairs + ([("Cost", f"{run.seconds:,.1f} s")] if run.seconds else [])


def _agreement(run: Run) -> outline.Pairs:
    return [("Scorers", ", ".join(map(str, run.get("scorers") or []))), ("Page", str(run.get("page")))]


def _files(folder: Path) -> outline.Pairs:
    """What is in the folder, of a folder in it the sum of its files."""
    made = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
            made.append(f"{path.name}{'/' if path.is_dir() else ''} {_size(sum(p.stat().st_size for p in files))}")
    return [("Files", ", ".join(made))]


def _size(size: int) -> str:
    if size < 1_000:
        return f"{size} B"
    unit, of = next((u, n) for u, n in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= n)
    return f"{size / of:.1f} {unit}"


_COMMANDS = {"train": _training, "select": _selection, "agreement": _agreement}
