"""A training job hangs; which rank is it, and where? Ask each one through its socket.

Starts ``torchrun`` with train_digits.py, in which one rank runs into a deadlock, waits until no
rank makes a step any more, asks all of them what they are doing, and compares the answers. Exit
status 0 only if that leads to the rank and the function in which the mistake was planted.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import workerserver

SCRIPT = Path(__file__).resolve().parent / "train_digits.py"
#: Where the mistake is planted; only the exit status is decided by it.
PLANTED = "load_checkpoint_shard"

#: Frames from there are not the user's: Python's library, what is installed, and workerserver.
LIBRARIES = (
    *(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib", "platlib")),
    f"{Path(workerserver.__file__).parent}/",
    "<",
)

#: No step for so many seconds, on any rank: the job hangs. (A step takes milliseconds here.)
STALLED_S = 4.0
START_S = 180.0

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
    """The JSON that one worker answers; OSError or HTTPException if it doesn't."""
    connection = UnixConnection(path)
    with contextlib.closing(connection):
        connection.request(method, target)
        response = connection.getresponse()
        body = response.read()
    if response.status != 200:
        raise http.client.HTTPException(f"{target}: {response.status} {body[:200]!r}")
    answer: Json = json.loads(body)
    return answer


@dataclass(frozen=True)
class Rank:
    """What one rank answered: its main thread's frames, newest first, and its last collectives."""

    rank: int
    step: int
    age: float
    frames: list[Json]
    issued: Json
    retired: Json

    @property
    def stands_on(self) -> Json:
        """The newest frame that is the user's own."""
        return next((frame for frame in self.frames if is_user_code(frame)), self.frames[0])


def question(rank: int, path: Path) -> Rank:
    health = ask(path, "GET", "/healthz")
    stacks = ask(path, "POST", "/handler/dump_traceback?format=json")
    summary = ask(path, "POST", "/handler/fr_summary")
    main = next(thread for thread in stacks["threads"] if thread["name"] == "MainThread")
    group = next(group for group in summary["groups"] if group["desc"] == "default_pg")
    return Rank(
        rank,
        health["step"],
        health["step_age_s"],
        main["frames"],
        group["last_issued"] or {},
        group["last_retired"] or {},
    )


def is_user_code(frame: Json) -> bool:
    return not frame["file"].startswith(LIBRARIES)


def place(frame: Json) -> str:
    return f"{Path(frame['file']).name}:{frame['line']} {frame['function']}"


def operation(facts: Json) -> str:
    return f"{facts['op']} #{facts['seq']}" if facts else "none"


def table(ranks: Sequence[Rank]) -> str:
    rows = [("rank", "step", "for", "stands on", "last issued", "last retired")]
    rows += [
        (
            str(each.rank),
            str(each.step),
            f"{each.age:.1f} s",
            place(each.stands_on),
            operation(each.issued),
            operation(each.retired),
        )
        for each in ranks
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def stack(frames: Sequence[Json]) -> str:
    """One line per frame of the user's own code, newest first; library frames are counted."""
    lines: list[str] = []
    folded = 0
    for frame in frames:
        if not is_user_code(frame):
            folded += 1
            continue
        if folded:
            lines.append(f"    ({folded} library frames)")
            folded = 0
        lines.append(f"    {place(frame)}")
    if folded:
        lines.append(f"    ({folded} library frames)")
    return "\n".join(lines)


def culprit(ranks: Sequence[Rank]) -> Rank | None:
    """The one rank that hasn't issued the collective in which all the others wait, or None."""
    latest = max(each.issued.get("seq", -1) for each in ranks)
    behind = [each for each in ranks if each.issued.get("seq", -1) < latest]
    return behind[0] if len(behind) == 1 else None


def wait_until_stalled(job: subprocess.Popen[bytes], paths: Sequence[Path]) -> list[Json]:
    """What each rank's /healthz says once no step has been made for STALLED_S on any of them."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if job.poll() is not None:
            raise RuntimeError(f"the job ended with status {job.returncode} before it hung")
        # A rank that isn't up yet, or hasn't made a step, has not stalled.
        with contextlib.suppress(OSError, http.client.HTTPException):
            health = [ask(path, "GET", "/healthz") for path in paths]
            if all((each["step_age_s"] or 0.0) > STALLED_S for each in health):
                return health
        time.sleep(0.25)
    raise RuntimeError(f"the job didn't hang within {START_S:g} s")


def end(job: subprocess.Popen[bytes], pids: Sequence[int]) -> None:
    """torchrun takes its workers along when it is asked to end; whoever is left is killed."""
    job.terminate()
    try:
        job.wait(timeout=20)
    except subprocess.TimeoutExpired:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.kill()
        job.wait()


def run(options: argparse.Namespace, folder: Path) -> bool:
    paths = [folder / f"rank{rank}.sock" for rank in range(options.ranks)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(options.ranks), str(SCRIPT), "--epochs", "100000"]
    command += ["--hang-rank", str(options.hang_rank), "--hang-step", str(options.hang_step)]
    environment = os.environ | {
        "TORCH_WORKER_SERVER_SOCKET": str(folder / "rank{rank}.sock"),
        "TORCH_FR_BUFFER_SIZE": "2000",
        "OMP_NUM_THREADS": "1",
    }
    print(f"Starting {options.ranks} ranks: torchrun {SCRIPT.name}", flush=True)
    log = folder / "job.log"
    pids: list[int] = []
    with log.open("wb") as output:
        job = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        health = wait_until_stalled(job, paths)
        pids = [each["pid"] for each in health]
        print(f"No step for {STALLED_S:g} s on any rank. Asking each through its socket:\n")
        ranks = [question(rank, path) for rank, path in enumerate(paths)]
    except Exception:
        print(log.read_text(errors="replace"), file=sys.stderr)
        raise
    finally:
        end(job, pids)

    print(table(ranks))
    found = culprit(ranks)
    if found is None:
        print("\nNo single rank is behind the others.")
        return False
    last = max(ranks, key=lambda each: each.issued.get("seq", -1)).issued
    print(f"\nRank {found.rank} is stuck in {place(found.stands_on)};", end=" ")
    print(f"the others wait for it in {operation(last)}. Its main thread, newest frame first:")
    print(stack(found.frames))
    return (found.rank, found.stands_on["function"]) == (options.hang_rank, PLANTED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--hang-rank", type=int, default=2)
    parser.add_argument("--hang-step", type=int, default=40)
    options = parser.parse_args()
    # So that the job is ended when somebody ends the demo.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="workerserver-demo-") as folder:
        return 0 if run(options, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
