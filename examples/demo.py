"""A training job hangs. ``workerserver diagnose`` says which rank is to blame, and where it hangs.

The demo starts ``torchrun`` with train_digits.py, in which one rank runs into a deadlock. It waits
until no rank makes a step any more, and then diagnoses all ranks through their sockets. Then the
job is ended, as a time limit would do it at night. In the morning the job's own log has a line of
its watchdog, and the black boxes of its ranks give the same verdict. Exit status 0 only if both
verdicts name the guilty rank and the function with the planted mistake.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parent / "train_digits.py"
#: The function with the planted mistake. The demo uses the name only for the exit status.
PLANTED = "load_checkpoint_shard"

#: The job hangs if no rank has made a step for this long. (A step takes milliseconds here.)
STALLED_SECONDS = 4.0
START_SECONDS = 180.0
#: For the watchdog's line in the job's log, then for what the ended ranks have left.
LINE_SECONDS = 60.0
LEFT_SECONDS = 60.0

Json = dict[str, Any]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def ask(path: Path, method: str, target: str) -> Json:
    """One worker's JSON answer. OSError or HTTPException if the worker doesn't answer."""
    connection = UnixConnection(path)
    with contextlib.closing(connection):
        connection.request(method, target)
        response = connection.getresponse()
        body = response.read()
    if response.status != 200:
        raise http.client.HTTPException(f"{target}: {response.status} {body[:200]!r}")
    answer: Json = json.loads(body)
    return answer


def wait_until_stalled(job: subprocess.Popen[bytes], paths: Sequence[Path]) -> list[Json]:
    """Wait until no rank has made a step for STALLED_SECONDS. Returns each rank's /healthz."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if job.poll() is not None:
            raise RuntimeError(f"the job ended with status {job.returncode} before it hung")
        # A rank that isn't up yet, or hasn't made a step yet, has not stalled.
        with contextlib.suppress(OSError, http.client.HTTPException):
            health = [ask(path, "GET", "/healthz") for path in paths]
            if all((each["step_age_s"] or 0.0) > STALLED_SECONDS for each in health):
                return health
        time.sleep(0.25)
    raise RuntimeError(f"the job didn't hang within {START_SECONDS:g} s")


def end(job: subprocess.Popen[bytes], pids: Sequence[int]) -> None:
    """Ask torchrun to end: it ends its workers too. Kill the processes that are left."""
    job.terminate()
    try:
        job.wait(timeout=20)
    except subprocess.TimeoutExpired:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.kill()
        job.wait()


def workerserver(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workerserver", *words],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )


def diagnosed(options: argparse.Namespace, *words: str) -> bool:
    """Show what ``workerserver diagnose`` says. Whether it names the guilty rank and function."""
    print("$ workerserver diagnose", *words, flush=True)
    done = workerserver("diagnose", *words)
    print(done.stdout, flush=True)
    verdict = done.stdout.partition("\n")[0]
    named = re.search(rf"\brank {options.hang_rank}\b", verdict) is not None
    return done.returncode == 1 and named and PLANTED in verdict


def watchdog_line(log: Path) -> str:
    """What the job's watchdog has written to the job's log."""
    deadline = time.monotonic() + LINE_SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("workerserver watchdog: "):
                return line
        time.sleep(0.25)
    return f"(nothing, within {LINE_SECONDS:g} s)"


def wait_until_left(boxes: Path) -> None:
    """Wait until the black boxes tell how each rank has ended: they are copied just then."""
    deadline = time.monotonic() + LEFT_SECONDS
    while time.monotonic() < deadline:
        listed = json.loads(workerserver("blackbox", "--json", str(boxes)).stdout)
        if all(box["end"] != "alive" for box in listed["runs"][0]["boxes"]):
            return
        time.sleep(0.25)


def run(options: argparse.Namespace, folder: Path) -> bool:
    paths = [folder / f"rank{rank}.sock" for rank in range(options.ranks)]
    boxes, log = folder / "boxes", folder / "job.log"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(options.ranks), str(SCRIPT), "--epochs", "100000"]
    command += ["--hang-rank", str(options.hang_rank), "--hang-step", str(options.hang_step)]
    environment = os.environ | {
        "TORCH_WORKER_SERVER_SOCKET": str(folder / "rank{rank}.sock"),
        "TORCH_FR_BUFFER_SIZE": "2000",
        "OMP_NUM_THREADS": "1",
        "WORKERSERVER_BLACKBOX": str(boxes),
        "WORKERSERVER_STALL": f"{STALLED_SECONDS:g}",
    }
    print(f"Starting {options.ranks} ranks: torchrun {SCRIPT.name}", flush=True)
    pids: list[int] = []
    with log.open("wb") as output:
        job = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        health = wait_until_stalled(job, paths)
        pids = [each["pid"] for each in health]
        print(f"No step on any rank for {STALLED_SECONDS:g} s. Which is to blame?\n", flush=True)
        live = diagnosed(
            options, "--world-size", str(options.ranks), str(folder / "rank{rank}.sock")
        )
        line = watchdog_line(log)
    except Exception:
        print(log.read_text(errors="replace"), file=sys.stderr)
        raise
    finally:
        end(job, pids)

    print("At night nobody asks. The time limit has ended the job (SIGTERM). In the morning:\n")
    print(f"$ grep watchdog {log}\n{line}\n")
    wait_until_left(boxes)
    return diagnosed(options, str(boxes)) and live


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--hang-rank", type=int, default=2)
    parser.add_argument("--hang-step", type=int, default=40)
    options = parser.parse_args()
    # SIGTERM to the demo has to end the job too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(
        prefix="workerserver-demo-", ignore_cleanup_errors=True
    ) as folder:
        return 0 if run(options, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
