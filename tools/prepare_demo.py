"""Makes what ``make demo`` needs on a fresh machine, and no more: ``prepare_demo.py VENV``.

The demo's dependencies are installed while two processes compile the modules, so all cores have
work from the first second. Each stage says on one line what is done, and how long it took. The
modules lie in the source tree, where ``make build`` finds them later.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
#: Two halves that take about the same time.
HALVES = (
    "native._engine,process._pulse,http._protocol",
    "native._bridge,stacks._stacks,loadgen._loadgen,cluster._ask,_parser",
)
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"demo: {time.monotonic() - BEGAN:4.0f} s  {text}", flush=True)


class Stage:
    """A command that runs beside others; its output is shown if it fails."""

    def __init__(self, name: str, command: list[str], **settings: str) -> None:
        self.name = name
        self.output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the stage)
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def succeeded(self) -> bool:
        if self.process.returncode == 0:
            say(f"{self.name}: done")
            return True
        self.output.seek(0)
        sys.stderr.buffer.write(self.output.read())
        sys.stderr.flush()
        say(f"{self.name}: FAILED")
        return False


def together(*stages: Stage) -> bool:
    """Wait for all *stages*; whether all have succeeded. After a failure the others are ended."""
    left = list(stages)
    try:
        while left:
            time.sleep(0.05)
            for stage in [each for each in left if each.process.poll() is not None]:
                left.remove(stage)
                if not stage.succeeded():
                    return False
        return True
    finally:
        for stage in left:
            stage.process.terminate()
            stage.process.wait()


def dependencies(python: str) -> list[str]:
    """What the package and its extra ``demo`` need, as pyproject.toml says. pip brings a reader of
    TOML; Python itself has one from 3.11 on."""
    code = (
        "import json, sys\n"
        "try: import tomllib\n"
        "except ImportError: from pip._vendor import tomli as tomllib\n"
        "project = tomllib.load(open('pyproject.toml', 'rb'))['project']\n"
        "print(json.dumps([project['dependencies'], project['optional-dependencies']]))\n"
    )
    done = subprocess.run(
        [python, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    wanted, extras = json.loads(done.stdout)
    asked = [*wanted, *extras["demo"]]
    found = []
    for each in asked:
        extra = re.fullmatch(r"workerserver\[(\w+)\]", each)
        if extra:
            asked += extras[extra[1]]
        else:
            found.append(each)
    return found


def main(venv: str) -> int:
    python = str(Path(venv).absolute() / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    pip += ["--constraint", "constraints.txt"]
    if not Path(python).exists():
        say(f"making a virtual environment in {venv}")
        if not together(Stage("environment", [sys.executable, "-m", "venv", venv])):
            return 1
    say("installing Cython and setuptools")
    if not together(Stage("build tools", [*pip, "Cython", "setuptools"])):
        return 1
    say("installing torch and what else the demo needs; compiling beside it")
    compiler = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
    stages = [Stage("dependencies", [*pip, *dependencies(python)])]
    for number, half in enumerate(HALVES, 1):
        stages.append(Stage(f"modules, part {number}", compiler, WORKERSERVER_MODULES=half))
    return 0 if together(*stages) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
