"""Builds a wheel and runs tests on every other CPython of 3.10-3.14 that this machine has.

It runs the tests that need no torch, are not slow, and whose subject may depend on the version. It
looks for ``python3.X`` on PATH, and for the versions that pyenv knows. It leaves out the version
that runs this script, because ``make test`` covers that version. Exit status 0 if every found
version passed. A version that is missing or can't build extensions is reported, but is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from source_tree import copy_sources

MINORS = range(10, 15)
#: Folders of tests whose subject doesn't depend on the version. `make test` runs these tests.
LEFT_OUT = ("benchmarks", "cli", "cluster")

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
    """The output of *command*; None if the command can't run or fails."""
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
        # pyenv has a shim even for a version that isn't switched on. Running such a shim fails.
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


def check(interpreter: Interpreter, log: IO[bytes], work: Path, pytest_args: list[str]) -> str:
    """Build, install and test in a fresh environment in *work*: "passed", or what failed."""
    tree = work / "tree"
    copy_sources(tree)
    environment = work / "venv"
    python = str(environment / "bin" / "python")
    wheels = work / "wheels"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--constraint", str(tree / "constraints.txt")]

    def run(command: list[str], cwd: Path) -> bool:
        done = subprocess.run(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, check=False)
        return done.returncode == 0

    if not run([interpreter.path, "-m", "venv", str(environment)], work):
        return "FAILED at the environment"
    if not run([*install, "setuptools", "wheel", "Cython"], work):
        return "FAILED at the build tools"
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), "."]
    if not run(build, tree):
        return "FAILED at the wheel"
    wheel = next(wheels.glob("workerserver-*.whl"))
    if not run([*install, f"{wheel}[test]"], work):
        return "FAILED at the install"
    # Without the package's sources beside the tests, the tests can only import the wheel.
    tests = work / "tests"
    shutil.copytree(tree, tests, ignore=shutil.ignore_patterns("workerserver", "build", "*.so"))
    chosen = ["-m", "not torch and not cuda and not slow"]
    chosen += [f"--ignore=tests/{folder}" for folder in LEFT_OUT]
    command = [python, "-m", "pytest", "-q", *chosen, *pytest_args]
    return "passed" if run(command, tests) else "FAILED at the tests"


def checked(interpreter: Interpreter, pytest_args: list[str]) -> str:
    """Check *interpreter*, print the whole output at once at the end, and return the result."""
    with (
        tempfile.TemporaryDirectory(prefix="workerserver-cpythons-") as folder,
        tempfile.TemporaryFile() as log,
    ):
        result = check(interpreter, log, Path(folder), pytest_args)
        log.seek(0)
        text = log.read().decode(errors="replace")
    print(f"=== CPython {interpreter.name} ===\n{text}", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="run_cpythons.py")
    parser.add_argument("pytest_args", nargs="*", help="further arguments for pytest")
    pytest_args = parser.parse_args().pytest_args
    lines: dict[int, str] = {sys.version_info[1]: "runs `make test`"}
    running: dict[int, tuple[Interpreter, Future[str]]] = {}
    # As many versions at a time as cores. The tests mostly wait, but they also compute.
    with ThreadPoolExecutor(os.cpu_count() or 1) as executor:
        for minor in MINORS:
            if minor in lines:
                continue
            found = find(minor)
            if isinstance(found, str):
                lines[minor] = f"missing ({found})"
            else:
                running[minor] = (found, executor.submit(checked, found, pytest_args))
    for minor, (found, result) in running.items():
        lines[minor] = f"{found.name} {result.result()}"
    print("\n".join(["=== CPythons ===", *(f"3.{m}: {lines[m]}" for m in sorted(lines))]))
    return 1 if any("FAILED" in line for line in lines.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
