"""Latency of ours against torch's server: ``python -m benchmarks.latency [--json]``.

Round trips over a Unix socket on keep-alive connections, one request at a time, from a client in C
(compiled first; needs ``cc``). Rounds alternate between the subjects; a figure is the median of the
rounds' medians, a ratio the median of the rounds' ratios.

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
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SUBJECTS = ("ours", "torch", "epoll")
REQUESTS = {"ping": 4000, "dump_traceback": 500}
RUNS = (("idle", "one core"), ("idle", "two cores"), ("idle", "free"), ("python", "free"))
#: Requests beside a busy loop are paced, microseconds, and there are so many fewer of them.
PAUSE = 10_000
PACED_SHARE = 40


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


def place(pid: int, cpus: set[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cpus)


def measure(load: str, placement: str, rounds: int, programs: list[str]) -> list[dict[str, Any]]:
    """One row per handler: medians and tails in microseconds, and each subject's ratio to torch."""
    roundtrip, epoll_server = programs
    everywhere = os.sched_getaffinity(0)
    first, last = {min(everywhere)}, {max(everywhere)}
    rows = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(os.sched_setaffinity, 0, everywhere)
        paths = {kind: str(folder / kind) for kind in SUBJECTS}
        for kind, path in paths.items():
            pid = stack.enter_context(served(kind, path, load, epoll_server))
            place(pid, {"one core": first, "two cores": last}.get(placement, everywhere))
        if placement != "free":
            os.sched_setaffinity(0, first)  # the client inherits it
        for name, count in REQUESTS.items():
            asked = [kind for kind in SUBJECTS if kind != "epoll" or name == "ping"]
            if load != "idle":
                asked = [kind for kind in asked if kind != "epoll"]
                count //= PACED_SHARE
            pause = 0 if load == "idle" else PAUSE
            results: dict[str, list[tuple[float, float]]] = {kind: [] for kind in asked}
            for number in range(rounds + 1):
                for kind in asked:
                    command = [roundtrip, paths[kind], name, str(count), str(pause)]
                    answer = subprocess.run(command, check=True, capture_output=True, text=True)
                    if number:  # the first round warms up
                        p50, p99 = map(float, answer.stdout.split())
                        results[kind].append((p50, p99))
            row: dict[str, Any] = {"handler": name, "load": load, "placement": placement}
            for kind in asked:
                pairs = zip(results[kind], results["torch"], strict=True)
                ratios = sorted(own[0] / torch[0] for own, torch in pairs)
                row[kind] = {
                    "p50_us": round(statistics.median(p50 for p50, _ in results[kind]), 1),
                    "p99_us": round(statistics.median(p99 for _, p99 in results[kind]), 1),
                    "ratio": round(statistics.median(ratios), 2),
                    "ratio_range": [round(ratios[0], 2), round(ratios[-1], 2)],
                }
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        programs = [compiled(name, Path(folder)) for name in ("roundtrip", "epoll_server")]
        rows = [
            row
            for load, placement in RUNS
            for row in measure(load, placement, options.rounds, programs)
        ]
    if options.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
        return
    line = "{:15} {:7} {:10} {:6} {:>9} {:>9} {:>9}  {}"
    print(line.format("handler", "load", "placement", "server", "p50 us", "p99 us", "to torch", ""))
    for row in rows:
        for kind in SUBJECTS:
            if kind in row:
                facts = row[kind]
                span = "{} to {}".format(*facts["ratio_range"])
                cells = (facts["p50_us"], facts["p99_us"], facts["ratio"], span)
                print(
                    line.format(
                        row["handler"], row["load"], row["placement"], kind, *cells
                    ).rstrip()
                )


if __name__ == "__main__":
    main()
