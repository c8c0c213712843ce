"""The file name select.py breaks nothing, whichever way Python has its own `select`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"an extension file": False, "built in": True}


def interpreter(built_in):
    """A Python of this version whose `select` is built in (Debian's), or is a file (most others), if there is one."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}", shutil.which(f"python{version}", path=os.defpath)):
        if python and Path(python).exists():
            code = "import sys; print('select' in sys.builtin_module_names)"
            answer = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, check=False)
            if answer.stdout.strip() == str(built_in):
                return python
    return None


@pytest.fixture(params=KINDS)
def python(request):
    found = interpreter(KINDS[request.param])
    if found is None:
        pytest.skip(f"no Python of this version whose select module is {request.param} on this machine")
    return found


def run(python, *arguments, cwd=ROOT):
    """Run a Python from the root as users do, with this environment's packages."""
    packages = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(packages), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def test_importing_from_the_root_finds_the_standard_librarys_select(python, tmp_path):
    another_checkout = f"import sys; sys.path.insert(1, {str(tmp_path)!r})"
    (tmp_path / "lpsel").mkdir()
    shutil.copy(ROOT / "select.py", tmp_path)
    for before in ("", another_checkout):
        print_select = "import select, subprocess, selectors; print(select.select, hasattr(select, 'POLLIN'))"
        done = run(python, "-c", f"{before}\n{print_select}")
        assert done.stdout.strip() == "<built-in function select> True", done.stderr


@pytest.mark.parametrize("script", ["select.py", "evaluate.py"])
def test_entry_points_start_from_the_root(python, script):
    done = run(python, script, "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "cache_dir:" in done.stdout


def test_pytest_runs_from_the_root(python, tmp_path):
    (tmp_path / "test_one.py").write_text("import subprocess\ndef test_one():\n    assert subprocess.PIPE == -1\n")
    done = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path))
    assert "1 passed" in done.stdout, done.stdout + done.stderr


SPAWNING = """
import multiprocessing, sys
def square(x):
    import select
    assert hasattr(select, "POLLIN")
    return x * x
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(square, [1, 2, 3]))
"""


def test_spawned_workers_start_from_the_root(python, tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    done = run(python, str(script))
    assert done.stdout.strip() == "[1, 4, 9]", done.stderr


@pytest.mark.parametrize("script", ["train.py", "select.py", "evaluate.py"])
def test_a_worker_spawned_by_an_entry_point_imports_it_without_running_it(python, script):
    code = (
        "import runpy, sys; sys.argv = ['x']; "
        f"module = runpy.run_path({str(ROOT / script)!r}, run_name='__mp_main__'); "
        "import select; print(hasattr(select, 'POLLIN'), 'lpsel' in sys.modules)"
    )
    assert run(python, "-c", code).stdout.strip() == "True False"


def test_torchrun_starts_an_entry_point_from_the_root(python):
    done = run(python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "train.py", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "cache_dir:" in done.stdout


@pytest.mark.parametrize("script", ["train.py", "select.py", "evaluate.py"])
def test_an_entry_point_runs_the_code_of_its_own_checkout(python, tmp_path, script):
    """Also if another checkout, here this one, is the installed one."""
    for name in (script, "select.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "lpsel").mkdir()
    (tmp_path / "lpsel" / "__init__.py").touch()
    (tmp_path / "lpsel" / "cli.py").write_text("def entry_point(script):\n    print('the other checkout')\n")
    assert run(python, str(tmp_path / script)).stdout == "the other checkout\n"
