"""Builds a wheel and runs tests on every other CPython of 3.10-3.15 that this machine has.

It runs the tests that need no torch, are not slow, and whose subject may depend on the version. It
looks for ``python3.X`` on PATH, and for the versions that pyenv knows. It leaves out the version
that runs this script, because ``make test`` covers that version. Exit status 0 if every found
version passed. A version that is missing or can't build extensions is reported, but is no failure.

With ``--chroot FOLDER`` the script also looks for the newest versions in a Debian in FOLDER. If the
folder doesn't exist or is empty, debootstrap fills it with Debian testing (needs root, takes about
a minute). The folder is kept.
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

from source_tree import ROOT, copy_sources

#: The one list of the versions that we claim: the classifiers in pyproject.toml.
CLASSIFIER = re.compile(r'"Programming Language :: Python :: 3\.(\d+)"')
MINORS = tuple(map(int, CLASSIFIER.findall((ROOT / "pyproject.toml").read_text())))
#: The versions whose headers a Debian in a chroot has.
DEBIAN_MINORS = (14, 15)
#: Tests whose subject is the sources or doesn't depend on the version. `make test` runs them.
LEFT_OUT = (
    "benchmarks", "cli", "cluster", "dumps", "integrations", "job", "launches", "metrics",
    "simulator", "test_house.py",
)  # fmt: skip

FAILED = "FAILED at the tests"

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
    root: Path | None = None
    """The folder of the Debian that it belongs to."""

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


def make_debian(root: Path, *packages: str) -> None:
    """Fill *root* with a small Debian testing: CPythons with their headers, and *packages*.

    A folder that holds something stays as it is.
    """
    if root.exists() and any(root.iterdir()):
        return
    names = ",".join([*(f"python3.{minor}-dev" for minor in DEBIAN_MINORS), *packages])
    command = ["debootstrap", "--variant=minbase", f"--include={names}", "testing", str(root)]
    subprocess.run(command, check=True)


def find_in_debian(root: Path, minor: int) -> Interpreter | str:
    """The interpreter of this minor version below *root*, or why there is none."""
    path = f"/usr/bin/python3.{minor}"
    answer = output("chroot", str(root), path, "-c", PROBE)
    if answer is None:
        return "not found, nor in the chroot"
    facts = json.loads(answer)
    if not facts["headers"]:
        return f"{path} in the chroot has no Python.h"
    return Interpreter(path, tuple(facts["version"]), root)


class Debian:
    """The folder *work*, which lies below the root of *interpreter*'s Debian.

    That Debian needs neither pip nor a network: our own pip fetches wheels for its interpreter.
    """

    def __init__(self, interpreter: Interpreter, work: Path, log: IO[bytes] | None = None) -> None:
        assert interpreter.root is not None
        self.root = interpreter.root
        self.work = work
        self.python = interpreter.path
        self._log = log
        minor = interpreter.version[1]
        self._wheels = ["--only-binary=:all:", "--python-version", f"3.{minor}"]
        self._wheels += ["--implementation", "cp"]
        self._wheels += ["--abi", f"cp3{minor}", "--abi", "abi3", "--abi", "none"]
        self._wheels += ["--constraint", str(work / "tree" / "constraints.txt")]

    def inside(self, path: Path) -> str:
        """The name that *path* has there."""
        return f"/{path.relative_to(self.root)}"

    def fetch(self, *words: str, command: str = "install") -> bool:
        pip = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"]
        return self._succeeds([*pip, *self._wheels, *words])

    def run(
        self, cwd: Path, packages: Path, command: list[str], program: str = "", **settings: str
    ) -> bool:
        """Run *command* there: by Python, or by another *program*. *packages* can be imported."""
        # In a mount namespace of its own: its mounts end with it.
        script = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$@"'
        there = self.inside(packages)
        place = ["env", "-i", "-C", self.inside(cwd), f"PYTHONPATH={there}", "HOME=/root"]
        place += ["LANG=C.UTF-8", f"PATH={there}/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        place += [f"{name}={value}" for name, value in settings.items()]
        shell = ["unshare", "--mount", "sh", "-c", script, str(self.root), str(self.root)]
        return self._succeeds([*shell, *place, program or self.python, *command])

    def _succeeds(self, command: list[str]) -> bool:
        done = subprocess.run(command, stdout=self._log, stderr=subprocess.STDOUT, check=False)
        return done.returncode == 0


def copy_tests(tree: Path, tests: Path) -> None:
    """Without the package's sources beside them, the tests can only import the wheel."""
    shutil.copytree(tree, tests, ignore=shutil.ignore_patterns("workerserver", "build", "*.so"))


def check_in_debian(
    interpreter: Interpreter, log: IO[bytes], work: Path, pytest_args: list[str]
) -> str:
    """Build and test below the root of *interpreter*, in *work*, which lies below it too."""
    there = Debian(interpreter, work, log)
    tree, tools, wheels = work / "tree", work / "tools", work / "wheels"
    copy_sources(tree)
    if not there.fetch("--target", str(tools), "setuptools", "wheel", "Cython"):
        return "FAILED at the build tools"
    build = ["setup.py", "--quiet", "bdist_wheel", "--dist-dir", there.inside(wheels)]
    if not there.run(tree, tools, build):
        return "FAILED at the wheel"
    wheel = next(wheels.glob("workerserver-*.whl"))
    packages, tests = work / "packages", work / "tests"
    if not there.fetch("--target", str(packages), f"{wheel}[test]"):
        return "FAILED at the install"
    copy_tests(tree, tests)
    return "passed" if there.run(tests, packages, pytest_command(pytest_args)) else FAILED


def pytest_command(pytest_args: list[str]) -> list[str]:
    chosen = ["-m", "not torch and not cuda and not slow"]
    chosen += [f"--ignore=tests/{name}" for name in LEFT_OUT]
    # Most of the time the tests wait.
    two = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    return ["-m", "pytest", "-q", *two, *chosen, *pytest_args]


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
    tests = work / "tests"
    copy_tests(tree, tests)
    return "passed" if run([python, *pytest_command(pytest_args)], tests) else FAILED


def checked(interpreter: Interpreter, pytest_args: list[str]) -> str:
    """Check *interpreter*, print the whole output at once at the end, and return the result."""
    with (
        tempfile.TemporaryDirectory(
            prefix="workerserver-cpythons-", dir=interpreter.root and interpreter.root / "tmp"
        ) as folder,
        tempfile.TemporaryFile() as log,
    ):
        step = check_in_debian if interpreter.root else check
        result = step(interpreter, log, Path(folder), pytest_args)
        log.seek(0)
        text = log.read().decode(errors="replace")
    print(f"=== CPython {interpreter.name} ===\n{text}", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="run_cpythons.py")
    parser.add_argument("pytest_args", nargs="*", help="further arguments for pytest")
    parser.add_argument("--chroot", type=Path, metavar="FOLDER", help="a Debian testing in it")
    options = parser.parse_args()
    pytest_args = options.pytest_args
    root = options.chroot and options.chroot.resolve()
    if root:
        make_debian(root, "gcc", "libc6-dev")
    lines: dict[int, str] = {sys.version_info[1]: "runs `make test`"}
    running: dict[int, tuple[Interpreter, Future[str]]] = {}
    # As many versions at a time as cores. The tests mostly wait, but they also compute.
    with ThreadPoolExecutor(os.cpu_count() or 1) as executor:
        for minor in MINORS:
            if minor in lines:
                continue
            found = find(minor)
            if isinstance(found, str) and root and minor in DEBIAN_MINORS:
                found = find_in_debian(root, minor)
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
