"""Known holes and licenses of the pinned packages, one line for each that a person should look at.

    python .ci/audit.py VENV     (make audit)

pip-audit asks the package index; where it gives no answer, a line says so. Advisory: ends with status 0.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

TOOLS = Path(sys.executable).parent
COPYLEFT = re.compile(r"\bA?GPL|GNU (Affero )?General Public|UNKNOWN|^$")
SECONDS = 90


def output(*command: str) -> list:
    """The JSON that a tool prints; pip-audit's status is 1 where it finds something."""
    done = subprocess.run([TOOLS / command[0], *command[1:]], capture_output=True, text=True, timeout=SECONDS)
    return json.loads(done.stdout)


def holes() -> None:
    pinned = ["--requirement", "constraints.txt", "--no-deps", "--disable-pip"]
    found = output("pip-audit", *pinned, "--format", "json", "--progress-spinner", "off", "--timeout", "10")
    packages = found["dependencies"]
    for package in packages:
        for hole in package.get("vulns", []):
            fixed = ", ".join(hole["fix_versions"]) or "no version"
            print(f"audit: {package['name']} {package['version']}: {hole['id']}, fixed in {fixed}")
    asked = sum("vulns" in package for package in packages)
    print(f"audit: the index knew {asked} of {len(packages)} packages; of the others nothing is known")


def licenses(venv: str) -> None:
    packages = output("pip-licenses", "--python", f"{venv}/bin/python", "--format", "json")
    for package in packages:
        if COPYLEFT.search(package["License"]) and "Lesser" not in package["License"]:
            print(f"license: {package['Name']} {package['Version']}: {package['License']}")
    print(f"license: {len(packages)} packages looked at")


for look in (holes, lambda: licenses(sys.argv[1])):
    try:
        look()
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        print(f"audit: no answer ({type(error).__name__})")
