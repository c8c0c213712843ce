"""What no module of lpsel does: the whole package is parsed and looked through."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "lpsel"
MODULES = sorted(PACKAGE.rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.hub"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "tempfile.mktemp"}
UNSAFE_METHODS = {"extractall", "extract", "read_pickle", "to_pickle", "unsafe_load"}
# What a call must say, by the end of the function's name.
MUST_SAY = {
    "torch.load": {"weights_only": True},
    "np.load": {"allow_pickle": False},
    "np.save": {"allow_pickle": False},
    "AutoModelForCausalLM.from_pretrained": {"weights_only": True, "use_safetensors": None},
    "Environment": {"autoescape": True},
}


def dotted(node):
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def unsafe(tree):
    """Every unsafe thing in a module, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            for name in names:
                if name in UNSAFE_MODULES or name.split(".")[0] in UNSAFE_MODULES:
                    yield node.lineno, f"import {name}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        said = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in UNSAFE_CALLS or (isinstance(node.func, ast.Attribute) and node.func.attr in UNSAFE_METHODS):
            yield node.lineno, name
        if isinstance(said.get("shell"), ast.Constant) and said["shell"].value:
            yield node.lineno, f"{name} with a shell"
        if isinstance(said.get("trust_remote_code"), ast.Constant) and said["trust_remote_code"].value:
            yield node.lineno, f"{name} trusts remote code"
        for function, wanted in MUST_SAY.items():
            if name == function or name.endswith(f".{function}"):
                for keyword, value in wanted.items():
                    given = said.get(keyword)
                    if given is None or (value is not None and getattr(given, "value", None) is not value):
                        yield node.lineno, f"{name} without {keyword}={value}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_uses_unsafe_calls(module):
    assert list(unsafe(ast.parse(module.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file)",
        "numpy.np.load(file, allow_pickle=True)",
        "eval(text)",
        "yaml.load(text)",
        "subprocess.run(line, shell=True)",
        "archive.extractall()",
        "AutoModelForCausalLM.from_pretrained(path, weights_only=True)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "jinja2.Environment()",
    ],
)
def test_unsafe_calls_are_detected(code):
    assert len(list(unsafe(ast.parse(code)))) == 1


def test_modules_are_checked():
    assert len(MODULES) > 100
