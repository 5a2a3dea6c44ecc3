"""Asks the same hung jobs with workerserver and with other tools, and prints what each one tells.

``compare_peers.py [--rounds N] [--scene NAME]``. A tool that this machine doesn't have is left out,
with a line that says so. For each tool the table has: the commands that a person types for the
whole job, the seconds of all of them one after the other (median of the rounds), the lines that
they print, and whether these lines name the planted function and the rank. A tool that is asked for
each process gets one command for each rank.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compare_rank import GUILTY, SCENES

RANKS = 4
#: Seconds that a tool gets for the whole job. A reader at night would have given up before.
LIMIT = 120.0
#: A verdict is something that a tired reader finds without scrolling.
FIRST_SCREEN = 24

RANK_PROGRAM = Path(__file__).with_name("compare_rank.py")


@dataclass(frozen=True)
class Job:
    pids: Sequence[int]
    sockets: str
    folder: Path
    port: int


@dataclass(frozen=True)
class Tool:
    """*commands* gives the argument vectors for a whole job, or a URL in the place of one."""

    name: str
    commands: Callable[[Job], list[list[str]]]


@dataclass(frozen=True)
class Told:
    seconds: float
    text: str
    statuses: tuple[str, ...]


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def for_each(*words: str) -> Callable[[Job], list[list[str]]]:
    return lambda job: [[word.replace("PID", str(pid)) for word in words] for pid in job.pids]


def frontend(page: str) -> Callable[[Job], list[list[str]]]:
    return lambda job: [[f"http://localhost:{job.port}/{page}"]]


def tools() -> tuple[list[Tool], list[str]]:
    """The tools of this machine, and a line for each one that is missing."""
    ours = python("-m", "workerserver", "diagnose", "--world-size", str(RANKS))
    found = [Tool("workerserver diagnose", lambda job: [[*ours, job.sockets]])]
    missing = []
    pyspy = shutil.which("py-spy", path=os.path.dirname(sys.executable)) or shutil.which("py-spy")
    gdb, traces = shutil.which("gdb"), Path(sys.executable).with_name("torchfrtrace")
    if pyspy:
        found.append(Tool("py-spy dump", for_each(pyspy, "dump", "--pid", "PID")))
        found.append(
            Tool("py-spy dump --native", for_each(pyspy, "dump", "--native", "--pid", "PID"))
        )
    else:
        missing.append("py-spy is not installed")
    if subprocess.run(python("-c", "import pystack"), capture_output=True, check=False).returncode:
        missing.append("pystack is not installed (pip install pystack)")
    else:
        found.append(Tool("pystack remote", for_each(*python("-m", "pystack", "remote", "PID"))))
    if gdb:
        words = [gdb, "-p", "PID", "-batch", "-ex", "thread apply all bt"]
        found.append(Tool("gdb, thread apply all bt", for_each(*words)))
    else:
        missing.append("gdb is not installed")
    for page in ("stacks", "fr_trace"):
        found.append(Tool(f"torch's debug frontend, /{page}", frontend(page)))
    if traces.exists():
        words = [str(traces), "-p", "trace_", "--allow-incomplete-ranks"]
        found.append(Tool("torchfrtrace", lambda job: [[*words, str(job.folder / "traces")]]))
    else:
        missing.append("torchfrtrace is not there: this torch has none")
    return found, missing


@contextlib.contextmanager
def hung(scene: str) -> Iterator[Job]:
    """A job of four ranks that has hung for some seconds."""
    with tempfile.TemporaryDirectory(prefix="compare-") as name, socket.socket() as taken:
        folder = Path(name)
        (folder / "traces").mkdir()
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        taken.close()
        sockets = str(folder / "rank{rank}.sock")
        environment = os.environ | {
            "TORCH_WORKER_SERVER_SOCKET": sockets,
            "TORCH_FR_BUFFER_SIZE": "2000",
            "OMP_NUM_THREADS": "1",
        }
        command = python(
            "-m", "torch.distributed.run", "--standalone", "--monitor-interval", "3600"
        )
        command += ["--nproc-per-node", str(RANKS), str(RANK_PROGRAM)]
        command += [scene, str(folder / "traces"), str(port)]
        with (folder / "log").open("wb") as log:
            job = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield Job(wait(job, folder), sockets, folder, port)
        except Exception:
            print((folder / "log").read_text(errors="replace"), file=sys.stderr)
            raise
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.wait(timeout=5)
            for pid in ranks_of(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def ranks_of(folder: Path) -> list[int]:
    """The pids of the ranks and of their children: all have *folder* on their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if str(folder / "traces").encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def wait(job: subprocess.Popen[bytes], folder: Path) -> list[int]:
    """Wait until no rank makes a step any more. Gives the pids in the order of the ranks."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if job.poll() is not None:
            raise RuntimeError(f"the job ended with status {job.returncode}")
        health = []
        for rank in range(RANKS):
            path = folder / f"rank{rank}.sock"
            done = subprocess.run(
                ["curl", "-s", "--unix-socket", str(path), "http://localhost/healthz"],
                capture_output=True,
                check=False,
            )
            with contextlib.suppress(ValueError):
                health.append(json.loads(done.stdout))
        if len(health) == RANKS and all((each["step_age_s"] or 0) > 6 for each in health):
            (folder / "traces" / "dump").touch()
            time.sleep(1.5)
            return [each["pid"] for each in health]
        time.sleep(0.5)
    raise RuntimeError("the job did not hang within 120 s")


def ask(tool: Tool, job: Job, prefix: Sequence[str] = ()) -> Told:
    """Run the tool's commands one after the other."""
    began, text, statuses = time.monotonic(), "", []
    for words in tool.commands(job):
        left = LIMIT - (time.monotonic() - began)
        if words[0].startswith("http:"):
            answer, status = page(words[0], max(left, 1))
        else:
            answer, status = output([*prefix, *words], max(left, 1))
        text += answer
        statuses.append(status)
    return Told(time.monotonic() - began, text, tuple(statuses))


def output(words: Sequence[str], seconds: float) -> tuple[str, str]:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return "", "no end"
    return done.stdout + done.stderr, str(done.returncode)


def page(url: str, seconds: float) -> tuple[str, str]:
    try:
        with urllib.request.urlopen(url, timeout=seconds) as reply:
            return reply.read().decode(errors="replace"), str(reply.status)
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace"), str(error.code)
    except OSError as error:
        return str(error), "no answer"


def named(told: Told, scene: str) -> str:
    """How much of "rank and function" the output has."""
    lines = told.text.splitlines()
    rank = re.compile(rf"\brank {GUILTY}\b")
    if any(rank.search(line) and scene in line for line in lines[:FIRST_SCREEN]):
        return "rank and function, in one line"
    if any(scene in line for line in lines):
        return "the function, among all threads of all ranks"
    return "neither"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scene", choices=[*SCENES], action="append")
    options = parser.parse_args()
    found, missing = tools()
    for line in missing:
        print(line)
    without = shutil.which("setpriv")
    for scene in options.scene or SCENES:
        print(f"\n### rank {GUILTY} stands in {scene}()\n")
        print("| tool | commands | seconds | lines | statuses | what the output names |")
        print("|---|---:|---:|---:|---|---|")
        with hung(scene) as job:
            for tool in found:
                rounds = [ask(tool, job) for _ in range(options.rounds)]
                row(tool.name, rounds, scene)
            if without:
                prefix = [without, "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
                for tool in found:
                    row(f"{tool.name}, without ptrace", [ask(tool, job, prefix)], scene)
    return 0


def row(name: str, rounds: Sequence[Told], scene: str) -> None:
    told = rounds[-1]
    seconds = statistics.median(each.seconds for each in rounds)
    statuses = " ".join(sorted(set(told.statuses)))
    print(
        f"| {name} | {len(told.statuses)} | {seconds:.2f} | {len(told.text.splitlines())} "
        f"| {statuses} | {named(told, scene)} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
