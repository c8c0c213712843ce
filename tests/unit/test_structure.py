"""The shape of the package: the order of imports, the README's tree, the size of modules and functions."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "lpsel").rglob("*.py"))

# Data flows down this list: a module imports only from its own stage and from the stages above it.
STAGES = (
    ("errors",),
    ("redact", "storage", "distributed"),
    ("integrity", "console", "config", "html_pages"),
    ("cache", "run_config"),
    ("output_folder",),
    ("toy",),
    ("data",),
    ("tracking",),
    ("model",),
    ("training",),
    ("scoring",),
    ("clustering",),
    ("selection",),
    ("generation",),
    ("judging",),
    ("evaluation",),
    ("report",),
    ("integrations",),
    ("overrides",),
    ("commands",),
    ("command_line", "sweep", "sweep_names"),
    ("cli",),
    ("__main__",),
)
STAGE_OF = {name: stage for stage, names in enumerate(STAGES) for name in names}
# `lpsel.selection` ranks tables with NumPy: it reads no file and needs no model.
PURE = {"selection"}
IMPURE = {"torch", "lightning", "transformers", "pathlib", "os", "json", "filelock", "hydra", "omegaconf"}

MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 75


def stage_name(module: str) -> str:
    return module.split(".")[1]


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, at its top or inside functions, type checking aside."""
    tree = ast.parse(path.read_text())
    type_checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in type_checking:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "lpsel":
                yield from (f"lpsel.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_import_only_from_earlier_stages(path):
    parts = path.relative_to(ROOT / "lpsel").with_suffix("").parts
    if parts == ("__init__",):
        return
    ours = STAGE_OF[parts[0]]
    later = [
        name
        for name in imports(path)
        if name.startswith("lpsel.") and stage_name(name) in STAGE_OF and STAGE_OF[stage_name(name)] > ours
    ]
    assert later == []


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent.name in PURE], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_selection_reads_no_file_and_needs_no_model(path):
    assert [name for name in imports(path) if name.split(".")[0] in IMPURE] == []


def test_every_module_has_a_stage():
    names = {path.relative_to(ROOT / "lpsel").parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert names == set(STAGE_OF)


def test_the_readme_tree_lists_every_module_once():
    tree = (ROOT / "README.md").read_text().split("## Repository layout")[1].split("```")[1]
    listed: list[str] = []
    folders: list[str] = []
    for line in tree.strip("\n").splitlines():
        found = re.match(r"(?P<indent> *)(?P<name>\S+)", line)
        if found is None:
            continue
        depth = len(found["indent"]) // 2
        if found["name"].endswith("/"):
            folders[depth:] = [found["name"].rstrip("/")]
        elif found["name"].endswith(".py"):
            listed.append("/".join([*folders[:depth], found["name"]]))
    on_disk = [path.relative_to(ROOT).as_posix() for path in MODULES if path.name not in ("__init__.py", "__main__.py")]
    assert sorted(name for name in listed if name.startswith("lpsel/")) == on_disk


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_MODULE_LINES


def lines_of_code(function: ast.AST, source: list[str]) -> int:
    """Lines of a function without its docstring, comments and empty lines."""
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    first = function.body[0]
    docstring = range(0)
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        docstring = range(first.lineno, (first.end_lineno or first.lineno) + 1)
    lines = (number for number in range(function.lineno, (function.end_lineno or 0) + 1) if number not in docstring)
    return sum(bool(text := source[number - 1].strip()) and not text.startswith("#") for number in lines)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_are_short(path):
    text = path.read_text()
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {f.name: n for f in functions if (n := lines_of_code(f, text.splitlines())) > MAX_FUNCTION_LINES}
    assert long == {}
