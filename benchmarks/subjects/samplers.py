"""Samplers that record a process from now on, each with a process or request of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.subjects.servers import Missing

__all__ = ["HZ", "Cost", "installed", "ours", "peer", "post"]

HZ = 100
#: The time that a peer gets to begin. It reads the symbols of large libraries first.
PATIENCE_SECONDS = 60.0
#: Its first samples take much longer than later ones.
SETTLE_SECONDS = 1.5


@dataclass
class Cost:
    """Processor time of a recording, and how long the recording took."""

    cpu: float = 0.0
    seconds: float = 0.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def post(path: str, target: str, method: str = "POST") -> bytes:
    """The body of the answer of the worker at *path*."""
    with contextlib.closing(_Connection(path)) as connection:
        connection.request(method, target)
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{target}: {answer.status} {body[:200]!r}")
    return body


def installed(name: str) -> str:
    """The program *name*, beside this interpreter or on PATH. Missing if it can't run here."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed")
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{name} can't run here: {done.stderr.strip()[-120:]}")
    return found


@contextlib.contextmanager
def ours(path: str, seconds: float) -> Iterator[Cost]:
    """Our sampler records during the block, of *seconds* at most."""
    cost = Cost()

    def ask() -> None:
        body = post(path, f"/handler/sample_stacks?duration={seconds:.2f}&hz={HZ}")
        told = json.loads(body)
        cost.cpu, cost.seconds = told["cost_seconds"], told["seconds"]

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    time.sleep(0.05)
    try:
        yield cost
    finally:
        asking.join()


@contextlib.contextmanager
def peer(name: str, pid: int, seconds: float, output: Path) -> Iterator[Cost]:
    """The sampler *name* records the process during the block; folded stacks go to *output*."""
    program = installed(name)
    length = int(seconds + SETTLE_SECONDS) + 1
    command = {
        "py-spy": ["record", "-p", str(pid), "-r", str(HZ), "-d", str(length),
                   "-f", "raw", "-o", str(output)],
        "austin": ["-i", str(10**6 // HZ), "-x", str(length), "-o", str(output),
                   "-p", str(pid)],
    }[name]  # fmt: skip
    cost = Cost()
    with subprocess.Popen(
        [program, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        if name == "py-spy":
            _until("Sampling process", process)
        time.sleep(SETTLE_SECONDS)
        began = time.perf_counter()
        before = _processor(process.pid)
        yield cost
        cost.cpu = _processor(process.pid) - before
        cost.seconds = time.perf_counter() - began
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_SECONDS)


def _until(text: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return
    raise RuntimeError(f"the sampler ended: {said[-300:]}")


def _processor(pid: int) -> float:
    """Seconds of processor time that *pid* has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
