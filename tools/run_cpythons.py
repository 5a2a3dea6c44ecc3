"""Builds a wheel and runs the torch-free tests on every other CPython of 3.10-3.14 found here.

Looked for: ``python3.X`` on PATH, and the versions that pyenv knows. The version that runs this
script is left out (``make test`` covers it). Exit status 0 if everything found passed; a version
that isn't there, or can't build extensions, is reported and is no failure.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from source_tree import copy_sources

MINORS = range(10, 15)
PROBE = """
import json, os, sys, sysconfig
include = sysconfig.get_path("include")
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "cpython": sys.implementation.name == "cpython",
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "headers": os.path.exists(os.path.join(include, "Python.h")),
}))
"""


@dataclass(frozen=True)
class Interpreter:
    path: str
    version: tuple[int, ...]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version))


def output(*command: str) -> str | None:
    """What *command* prints, or None if it can't be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def candidates(minor: int) -> Iterator[str]:
    on_path = shutil.which(f"python3.{minor}")
    if on_path:
        yield on_path
    known = output("pyenv", "versions", "--bare") or ""
    matching = [line for line in known.split() if re.fullmatch(rf"3\.{minor}\.\d+", line)]
    for version in sorted(matching, key=lambda text: int(text.rsplit(".", 1)[1]), reverse=True):
        prefix = output("pyenv", "prefix", version)
        if prefix:
            yield str(Path(prefix.strip()) / "bin" / "python")


def find(minor: int) -> Interpreter | str:
    """The first usable interpreter of this minor version, or why there is none."""
    reason = "not found"
    for path in candidates(minor):
        # A pyenv shim exists for versions that are not switched on; it fails when it is run.
        answer = output(path, "-c", PROBE)
        if answer is None:
            continue
        facts = json.loads(answer)
        if facts["version"][1] != minor or not facts["cpython"] or facts["free_threaded"]:
            continue
        if not facts["headers"]:
            reason = f"{path} has no Python.h"
            continue
        return Interpreter(path, tuple(facts["version"]))
    return reason


def check(interpreter: Interpreter, tree: Path, work: Path, pytest_args: list[str]) -> str | None:
    """Build, install and test in a fresh environment; None, or the step that failed."""
    environment = work / f"venv-{interpreter.name}"
    python = str(environment / "bin" / "python")
    wheels = work / f"wheels-{interpreter.name}"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--constraint", str(tree / "constraints.txt")]

    def run(command: list[str], cwd: Path) -> bool:
        return subprocess.run(command, cwd=cwd, check=False).returncode == 0

    if not run([interpreter.path, "-m", "venv", str(environment)], work):
        return "venv"
    if not run([*install, "setuptools", "wheel", "Cython"], work):
        return "install of the build tools"
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), "."]
    if not run(build, tree):
        return "wheel"
    wheel = next(wheels.glob("workerserver-*.whl"))
    if not run([*install, f"{wheel}[test]"], work):
        return "install"
    # Without the package's sources beside them, the tests can only import the wheel.
    tests = work / f"tests-{interpreter.name}"
    shutil.copytree(tree, tests, ignore=shutil.ignore_patterns("workerserver", "build", "*.so"))
    command = [python, "-m", "pytest", "-q", "-m", "not torch and not cuda", *pytest_args]
    return None if run(command, tests) else "tests"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="run_cpythons.py")
    parser.add_argument("pytest_args", nargs="*", help="further arguments for pytest")
    pytest_args = parser.parse_args().pytest_args
    lines: list[str] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="workerserver-cpythons-") as folder:
        work = Path(folder)
        tree = work / "tree"
        copy_sources(tree)
        for minor in MINORS:
            if minor == sys.version_info[1]:
                lines.append(f"3.{minor}: runs `make test`")
                continue
            found = find(minor)
            if isinstance(found, str):
                lines.append(f"3.{minor}: missing ({found})")
                continue
            print(f"=== CPython {found.name} ===", flush=True)
            step = check(found, tree, work, pytest_args)
            failed = failed or step is not None
            lines.append(f"3.{minor}: {found.name} {f'FAILED at {step}' if step else 'passed'}")
            shutil.rmtree(work / f"venv-{found.name}", ignore_errors=True)
    print("\n".join(["=== CPythons ===", *lines]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
