"""An installed wheel has everything: the commands work in any folder, with the configuration files inside."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = next(folder.glob("lpsel-*.whl"))
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_contains_every_configuration_file(unpacked):
    inside = {str(p.relative_to(unpacked / "lpsel")) for p in (unpacked / "lpsel" / "conf").rglob("*.yaml")}
    assert inside == {str(p.relative_to(ROOT)) for p in (ROOT / "conf").rglob("*.yaml")}


def test_a_command_works_from_the_wheel_in_another_folder(unpacked, tmp_path):
    code = "import lpsel, sys; from lpsel.cli import console; print(lpsel.__file__, file=sys.stderr); console()"
    done = subprocess.run(
        [sys.executable, "-c", code, "select", "--cfg", "job"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip() == str(unpacked / "lpsel" / "__init__.py")
    assert "dataset:" in done.stdout
    assert done.returncode == 0


def test_the_wheel_contains_the_page_template(unpacked):
    assert (unpacked / "lpsel" / "report" / "templates" / "agreement.html.j2").is_file()


def test_the_wheel_declares_the_console_command(unpacked):
    entry_points = next(unpacked.glob("lpsel-*.dist-info/entry_points.txt")).read_text()
    assert "lpsel = lpsel.cli:console" in entry_points
