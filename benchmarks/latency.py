"""Latency of ours against torch's server: ``python -m benchmarks.latency [--json]``.

Round trips over a Unix socket on keep-alive connections, one request at a time, from a client in C
(compiled first; needs ``cc``). Rounds alternate between the subjects, which are stopped (SIGSTOP)
while it isn't their turn. A figure is the median of the rounds' figures, a ratio the median of the
rounds' ratios. At the end: the targets, and how many times a request took the GIL (needs gdb).

Where client and server run decides as much as what they do: to wake a thread on the other core of
a virtual machine can cost more than a whole request. So the placement is fixed (``one core``, ``two
cores``), and ``free`` shows what this machine's scheduler makes of it. ``epoll`` is a bare epoll
loop in C, the physical limit; it has no dump.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
#: Microseconds between two requests beside a busy loop.
PAUSE = 10_000
SETTLE = 0.02  # seconds that a server has to get going after it was stopped


class Subject(NamedTuple):
    """A server, and a request to it: ``torch`` has no modes, ``epoll`` no dump."""

    server: str
    request: str

    @property
    def label(self) -> str:
        mode = self.request.partition("?mode=")[2]
        return f"{self.server} {mode}".rstrip()


class Run(NamedTuple):
    request: str
    load: str
    placement: str
    number: int  # of requests in a round
    subjects: tuple[Subject, ...]


def pings(*servers: str) -> tuple[Subject, ...]:
    return tuple(Subject(server, "ping") for server in servers)


DUMPS = (
    Subject("ours", "dump_traceback?mode=gil"),
    Subject("ours", "dump_traceback?mode=nogil"),
    Subject("ours-uvloop", "dump_traceback?mode=gil"),
    Subject("torch", "dump_traceback"),
)
RUNS = (
    *(
        Run("ping", "idle", placement, 4000, pings("ours", "ours-uvloop", "torch", "epoll"))
        for placement in ("one core", "two cores", "free")
    ),
    *(Run("dump", "idle", placement, 300, DUMPS) for placement in ("one core", "two cores")),
    Run("ping", "python", "free", 300, pings("ours", "ours-uvloop", "torch")),
    Run("dump", "python", "free", 60, DUMPS),
)


class Target(NamedTuple):
    """*subject*'s figure, divided by that of *peer*, is at most *limit*."""

    request: str
    load: str
    placements: tuple[str, ...]
    subject: str
    figure: str
    peer: str
    limit: float


FIXED = ("one core", "two cores")
TARGETS = (
    # On two cores the bare epoll loop itself is as slow as torch.
    Target("ping", "idle", ("one core",), "ours", "p50", "torch", 0.6),
    Target("ping", "idle", FIXED, "ours", "p50", "epoll", 1.3),
    Target("ping", "python", ("free",), "ours", "p50", "torch", 0.7),
    Target("ping", "python", ("free",), "ours", "p99", "torch", 0.7),
    Target("dump", "python", ("free",), "ours gil", "p50", "torch", 1.0),
    Target("dump", "python", ("free",), "ours nogil", "p50", "torch", 0.1),
)


def compiled(name: str, folder: Path) -> str:
    program = folder / name
    subprocess.run(
        [os.environ.get("CC", "cc"), "-O2", "-Wall", "-o", str(program), str(HERE / f"{name}.c")],
        check=True,
    )
    return str(program)


@contextlib.contextmanager
def served(kind: str, path: str, load: str, epoll_server: str) -> Iterator[int]:
    """The pid of a server of *kind* at *path*."""
    command = [sys.executable, "-m", "benchmarks.serve", kind, path, load]
    if kind == "epoll":
        command = [epoll_server, path]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{kind} did not start")
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def awake(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGCONT)
    time.sleep(SETTLE)
    yield
    os.kill(pid, signal.SIGSTOP)


def place(pid: int, cpus: set[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cpus)


def measure(run: Run, rounds: int, programs: list[str]) -> dict[str, dict[str, list[float]]]:
    """By subject: p50 and p99 of each round, microseconds."""
    roundtrip, epoll_server = programs
    everywhere = os.sched_getaffinity(0)
    first, last = {min(everywhere)}, {max(everywhere)}
    found: dict[str, dict[str, list[float]]] = {
        subject.label: {"p50": [], "p99": []} for subject in run.subjects
    }
    pause = 0 if run.load == "idle" else PAUSE
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(os.sched_setaffinity, 0, everywhere)
        pids = {}
        for kind in dict.fromkeys(subject.server for subject in run.subjects):
            path = str(folder / kind)
            pids[kind] = stack.enter_context(served(kind, path, run.load, epoll_server))
            place(pids[kind], {"one core": first, "two cores": last}.get(run.placement, everywhere))
            os.kill(pids[kind], signal.SIGSTOP)
        if run.placement != "free":
            os.sched_setaffinity(0, first)  # the client inherits it
        for number in range(rounds + 1):
            for subject in run.subjects:
                command = [roundtrip, str(folder / subject.server), subject.request]
                command += [str(run.number), str(pause)]
                with awake(pids[subject.server]):
                    answer = subprocess.run(command, check=True, capture_output=True, text=True)
                if number:  # the first round warms up
                    p50, p99 = map(float, answer.stdout.split())
                    found[subject.label]["p50"].append(p50)
                    found[subject.label]["p99"].append(p99)
    return found


def ratios(own: list[float], peer: list[float]) -> dict[str, float]:
    values = sorted(a / b for a, b in zip(own, peer, strict=True))
    return {
        "median": round(statistics.median(values), 3),
        "lowest": round(values[0], 3),
        "highest": round(values[-1], 3),
    }


def summary(run: Run, found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"request": run.request, "load": run.load, "placement": run.placement}
    row["subjects"] = {
        label: {
            "p50_us": round(statistics.median(figures["p50"]), 1),
            "p99_us": round(statistics.median(figures["p99"]), 1),
            "to": {
                peer: {name: ratios(figures[name], found[peer][name]) for name in ("p50", "p99")}
                for peer in ("torch", "epoll")
                if peer in found and peer != label
            },
        }
        for label, figures in found.items()
    }
    return row


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    results = []
    for target in TARGETS:
        for row in rows:
            if (row["request"], row["load"]) != (target.request, target.load):
                continue
            if row["placement"] in target.placements:
                ratio = row["subjects"][target.subject]["to"][target.peer][target.figure]
                met = ratio["median"] <= target.limit
                results.append(
                    {**target._asdict(), "placements": row["placement"], "ratio": ratio, "met": met}
                )
    return results


def acquisitions() -> dict[str, dict[str, float]] | str:
    """By server and handler; the reason if they can't be counted."""
    command = [sys.executable, "-m", "benchmarks.acquisitions", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip()
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def print_tables(report: dict[str, Any]) -> None:
    line = "{:8} {:7} {:10} {:16} {:>9} {:>9} {:>9} {:>9} {:>9}"
    heads = ("request", "load", "placement", "server", "p50 us", "p99 us")
    print(line.format(*heads, "to torch", "p99", "to epoll"))
    for row in report["latency"]:
        for label, facts in row["subjects"].items():
            torch, epoll = facts["to"].get("torch"), facts["to"].get("epoll")
            print(
                line.format(
                    row["request"],
                    row["load"],
                    row["placement"],
                    label,
                    facts["p50_us"],
                    facts["p99_us"],
                    torch["p50"]["median"] if torch else "",
                    torch["p99"]["median"] if torch else "",
                    epoll["p50"]["median"] if epoll else "",
                ).rstrip()
            )
    print()
    for result in report["targets"]:
        print(
            "{:6} {request} {load}, {placements}: {subject} {figure} to {peer} {median} "
            "({lowest} to {highest}), at most {limit}".format(
                "met" if result["met"] else "MISSED", **result, **result["ratio"]
            )
        )
    print()
    counts = report["acquisitions"]
    if isinstance(counts, str):
        print(counts)
        return
    for kind, handlers in counts.items():
        for name, number in handlers.items():
            print(f"GIL acquisitions for each request: {kind:12} {name:28} {number:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="requests or loads that contain this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        programs = [compiled(name, Path(folder)) for name in ("roundtrip", "epoll_server")]
        rows = [
            summary(run, measure(run, options.rounds, programs))
            for run in RUNS
            if options.only in f"{run.request} {run.load} {run.placement}"
        ]
    report = {
        "latency": rows,
        "targets": judged(rows),
        "acquisitions": "not counted" if options.only else acquisitions(),
    }
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        print_tables(report)


if __name__ == "__main__":
    main()
