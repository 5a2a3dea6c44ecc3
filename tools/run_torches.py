"""Runs the tests in which torch matters on other versions of torch.

Each version gets a virtual environment of its own, one after the other, with a wheel of this tree
and torch as pip finds it; the environment is deleted before the next one. torch's CUDA builds take
much room: a version for which the disk has too little is reported as skipped, and is no failure.
Without a GPU the tests that need one leave themselves out; those of the NCCL handlers' parameters
and formats run.

Exit status 0 if every version that was run has passed, and in time.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from source_tree import copy_sources

#: torch and CUDA's libraries (5.4 GiB for 2.15.0), and what pip unpacks before it installs them.
ROOM = 10 << 30
GIB = 1 << 30

TESTS = (
    "tests/handlers",
    "tests/http/test_contract.py",
    "tests/http/test_side_by_side.py",
    "tests/native/test_torch_standby.py",
    "tests/native/test_relay.py",
    "tests/server/test_install.py",
    "tests/server/test_worker_main.py",
    "tests/server/test_registration.py",
    "tests/cluster/test_cluster_flight.py",
    "tests/cluster/ask",
)
#: Two files run side by side, because tests mostly wait.
PYTEST = ("-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "not cuda and not faults")

DESCRIBE = """
import torch
from torch._C import _distributed_c10d as c10d
kind = "CUDA " + torch.version.cuda if torch.version.cuda else "CPU"
nccl = "NCCL" if hasattr(c10d, "_dump_nccl_trace") else "no NCCL"
device = "GPU" if torch.cuda.is_available() else "no GPU"
print(f"{torch.__version__} ({kind}, {nccl}, {device})")
"""


class Failed(Exception):
    """A step failed; the text says which one."""


class Runner:
    """Runs commands until the *seconds* of one version are over."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def __call__(self, what: str, command: list[str], cwd: Path) -> None:
        left = self._end - time.monotonic()
        try:
            done = subprocess.run(command, cwd=cwd, check=False, timeout=max(left, 1.0))
        except subprocess.TimeoutExpired:
            raise Failed(f"not done in time at {what}") from None
        if done.returncode != 0:
            raise Failed(f"FAILED at {what}")


def build(work: Path) -> tuple[Path, Path, Path]:
    """A wheel of this tree; the tests, without the sources beside them; what pip is to keep to."""
    tree = work / "tree"
    copy_sources(tree)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(work), str(tree)]
    subprocess.run(command, check=True)
    (wheel,) = work.glob("workerserver-*.whl")
    constraints = work / "constraints.txt"
    lines = (tree / "constraints.txt").read_text().splitlines(keepends=True)
    constraints.write_text("".join(line for line in lines if not line.startswith("torch==")))
    tests = work / "tests"
    shutil.copytree(tree, tests, ignore=shutil.ignore_patterns("workerserver", "build", "*.so"))
    return wheel, tests, constraints


def check(
    version: str, built: tuple[Path, Path, Path], seconds: float, pytest_args: list[str]
) -> str:
    """Install torch *version*, test, delete; what came of it."""
    wheel, tests, constraints = built
    with tempfile.TemporaryDirectory(prefix="workerserver-torch-") as folder:
        free = shutil.disk_usage(folder).free
        if free < ROOM:
            return f"skipped: {free / GIB:.1f} GiB of disk are free, {ROOM / GIB:.0f} are needed"
        environment = Path(folder) / "venv"
        python = str(environment / "bin" / "python")
        # Without pip's cache: the environment is deleted, and so should the downloads be.
        install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        install += ["--constraint", str(constraints), f"torch=={version}", f"{wheel}[test-torch]"]
        install += ["rich"]
        run = Runner(seconds)
        try:
            run("the environment", [sys.executable, "-m", "venv", str(environment)], tests)
            run("the install", install, tests)
            described = subprocess.run(
                [python, "-c", DESCRIBE], cwd=tests, capture_output=True, text=True, check=False
            )
            name = described.stdout.strip() or "torch can't be imported"
            print(f"--- {name}", flush=True)
            run("the tests", [python, *PYTEST, *(pytest_args or TESTS)], tests)
        except Failed as failure:
            return str(failure)
        return f"passed, {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="run_torches.py")
    parser.add_argument("--seconds", type=float, default=1800.0, help="for each version (1800)")
    parser.add_argument(
        "--if-possible",
        action="store_true",
        help="a version that can't be installed, or that is not done in time, is reported, as one "
        "without room is; only failed tests are a failure",
    )
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="of torch: 2.13.0")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], metavar="ARGUMENT")
    options = parser.parse_args()
    for version in options.versions:
        if not re.fullmatch(r"\d+\.\d+\.\d+(\+\w+)?", version):
            parser.error(f"{version!r} is no version of torch")
    lines = []
    with tempfile.TemporaryDirectory(prefix="workerserver-torches-") as folder:
        built = build(Path(folder))
        for version in options.versions:
            print(f"=== torch {version} ===", flush=True)
            result = check(version, built, options.seconds, options.pytest)
            lines.append(f"{version}: {result}")
    print("\n".join(["=== torches ===", *lines]))
    bad = ["FAILED at the tests"] if options.if_possible else ["FAILED", "not done"]
    return 1 if any(word in line for line in lines for word in bad) else 0


if __name__ == "__main__":
    sys.exit(main())
