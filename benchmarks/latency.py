"""Latency of ours against torch's server: ``python -m benchmarks.latency [--json]``.

Round trips over a Unix socket on keep-alive connections; one request at a time, from one Python
client (its own cost, the same for both, is inside every figure). Rounds alternate between the
subjects; a figure is the median of the rounds' medians, a ratio the median of the rounds' ratios.

Where client and server run decides as much as what they do: waking a thread on the other core of
a virtual machine costs more than a whole request. So both placements are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SUBJECTS = ("ours", "torch")
REQUESTS = {"ping": 1000, "dump_traceback": 100}
# torch's server closes a connection after a number of requests; new ones are made outside the
# timing, for both alike.
PER_CONNECTION = 25


@contextlib.contextmanager
def served(kind: str, path: str, load: str) -> Iterator[int]:
    """The pid of a server of *kind* at *path*."""
    command = [sys.executable, "-m", "benchmarks.serve", kind, path, load]
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


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    client.connect(path)
    return client


def round_trips(path: str, name: str, count: int, pause: float) -> list[float]:
    """Seconds of each of *count* requests, *pause* seconds apart."""
    request = f"POST /handler/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    times = []
    for start in range(0, count, PER_CONNECTION):
        with connect(path) as client:
            for _ in range(min(PER_CONNECTION, count - start)):
                if pause:
                    time.sleep(pause)
                begin = time.perf_counter()
                client.sendall(request)
                reply = client.recv(1 << 20)
                head, _, body = reply.partition(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                while len(body) < length:
                    body += client.recv(1 << 20)
                times.append(time.perf_counter() - begin)
                if not head.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"{name}: {head!r}")
    return times


def place(pid: int, cpus: set[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cpus)


def measure(load: str, placement: str, rounds: int) -> list[dict[str, object]]:
    """One row per handler: medians and tails in microseconds, and the ratio ours/torch."""
    everywhere = os.sched_getaffinity(0)
    first, last = min(everywhere), max(everywhere)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(os.sched_setaffinity, 0, everywhere)
        paths = {kind: str(folder / kind) for kind in SUBJECTS}
        for kind, path in paths.items():
            pid = stack.enter_context(served(kind, path, load))
            place(pid, {"one core": {first}, "two cores": {last}}.get(placement, everywhere))
        if placement != "free":
            os.sched_setaffinity(0, {first})
        rows = []
        for name, count in REQUESTS.items():
            if load != "idle":
                count //= 10
            pause = 0.0 if load == "idle" else 0.01
            p50: dict[str, list[float]] = {kind: [] for kind in SUBJECTS}
            p99: dict[str, list[float]] = {kind: [] for kind in SUBJECTS}
            for number in range(rounds + 1):
                for kind in SUBJECTS:
                    times = sorted(round_trips(paths[kind], name, count, pause))
                    if number:  # the first round warms up
                        p50[kind].append(times[len(times) // 2] * 1e6)
                        p99[kind].append(times[len(times) * 99 // 100] * 1e6)
            ratios = [ours / torch for ours, torch in zip(*p50.values(), strict=True)]
            row: dict[str, object] = {"handler": name, "load": load, "placement": placement}
            for kind in SUBJECTS:
                row[f"{kind}_p50_us"] = round(statistics.median(p50[kind]), 1)
                row[f"{kind}_p99_us"] = round(statistics.median(p99[kind]), 1)
            row["ratio_p50"] = round(statistics.median(ratios), 3)
            row["ratio_p50_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
            rows.append(row)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for load, placement in (
        ("idle", "one core"),
        ("idle", "two cores"),
        ("idle", "free"),
        ("python", "free"),
    ):
        rows += measure(load, placement, options.rounds)
    if options.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
        return
    print(
        f"{'handler':15} {'load':7} {'placement':10} {'ours p50/p99 us':>20} "
        f"{'torch p50/p99 us':>20} {'p50 ratio':>9}  (range)"
    )
    for row in rows:
        ours = f"{row['ours_p50_us']} / {row['ours_p99_us']}"
        torch = f"{row['torch_p50_us']} / {row['torch_p99_us']}"
        print(
            f"{row['handler']:15} {row['load']:7} {row['placement']:10} {ours:>20} {torch:>20} "
            f"{row['ratio_p50']:9}  {row['ratio_p50_range']}"
        )


if __name__ == "__main__":
    main()
