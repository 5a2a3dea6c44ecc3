"""Record what the ranks of a real job answer: ``record.py SCENE WORLD ours|torch OUT.json``.

The file holds rounds, each with its time and for each rank what it answered to every question, the
paths of the machine cut to what matters.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
JOB = HERE / "recorded_job.py"
#: The last operations of each rank are kept: this many.
KEEP = 5
#: Stopped by SIGSTOP once the job has hung or run for a while.
STOP = {"stopped": 1, "two_asleep": 2}
QUESTIONS = {
    "healthz": ("GET", "/healthz"),
    "digest": ("POST", "/handler/dump_traceback?format=digest"),
    "stacks": ("POST", "/handler/dump_traceback?format=json"),
    "fr_summary": ("POST", "/handler/fr_summary"),
    "flight": ("POST", "/handler/fr_trace_json"),
}
#: The questions that stock torch answers.
STOCK = {
    "text": ("POST", "/handler/dump_traceback"),
    "flight": ("POST", "/handler/fr_trace_json"),
}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=3)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(3)
        self.sock.connect(str(self.path))


def ask(path: Path, question: str) -> Any:
    connection = UnixConnection(path)
    with contextlib.closing(connection):
        try:
            connection.request(*(QUESTIONS | STOCK)[question])
            response = connection.getresponse()
            body = response.read()
        except OSError as error:
            return {"failure": "timeout" if isinstance(error, TimeoutError) else "unreachable"}
    if response.status != 200:
        return {"failure": "refused", "status": response.status}
    return body.decode() if question == "text" else json.loads(body)


def ask_all(path: Path, questions: Iterable[str]) -> dict[str, Any]:
    """What one rank answers; nothing more is asked of one that can't be reached."""
    answers: dict[str, Any] = {}
    for question in questions:
        answers[question] = ask(path, question)
        if question == "healthz" and "failure" in answers[question]:
            break
    return answers


def anonymous(text: str) -> str:
    """Without what only this machine has: its paths, and anything else that is no evidence."""
    library = sysconfig.get_paths()["purelib"]
    standard = sysconfig.get_paths()["stdlib"]
    for path, name in ((str(HERE), "/home/user"), (library, "/usr/lib/python3.11/site-packages")):
        text = text.replace(path, name)
    text = text.replace(standard, "/usr/lib/python3.11")
    return re.sub(r"/tmp/[^\"' ]*\.so", "library.so", text)


def compact(recording: dict[str, Any]) -> dict[str, Any]:
    """ "same": as in the round before."""
    first, second = (each["ranks"] for each in recording["rounds"])
    for before, after in zip(first, second, strict=True):
        for question in after:
            if after[question] == before.get(question):
                after[question] = "same"
    return recording


def trim(answers: dict[str, Any]) -> dict[str, Any]:
    flight = answers.get("flight")
    if isinstance(flight, dict) and "entries" in flight:
        flight["entries"] = flight["entries"][-KEEP:]
    stacks = answers.get("stacks")
    if isinstance(stacks, dict) and "threads" in stacks:
        mine = ("workerserver",)
        stacks["threads"] = [
            thread for thread in stacks["threads"] if not (thread["name"] or "").startswith(mine)
        ]
    return answers


def main() -> None:
    scene, world, kind, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    with tempfile.TemporaryDirectory(prefix="fr") as folder:
        paths = [Path(folder) / f"{rank}.sock" for rank in range(world)]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "TORCH_FR_BUFFER_SIZE": os.environ.get("TORCH_FR_BUFFER_SIZE", "2000"),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        ranks = [
            subprocess.Popen(
                [sys.executable, str(JOB), scene, kind, str(path)],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, path in enumerate(paths)
        ]
        try:
            give_up = time.monotonic() + 60
            while not all(path.exists() for path in paths):
                if time.monotonic() > give_up or any(rank.poll() is not None for rank in ranks):
                    raise SystemExit("the job did not start")
                time.sleep(0.1)
            time.sleep(5)
            if scene in STOP:
                ranks[STOP[scene]].send_signal(signal.SIGSTOP)
                time.sleep(3)
            rounds = []
            for _ in range(2):
                moment = time.time()
                questions = QUESTIONS if kind == "ours" else STOCK
                answers = [trim(ask_all(path, questions)) for path in paths]
                rounds.append({"time": moment, "ranks": answers})
                time.sleep(1.5)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    recording = {"scene": scene, "kind": kind, "world": world, "rounds": rounds}
    text = json.dumps(compact(recording), separators=(",", ":"))
    out.write_text(anonymous(text) + "\n")


if __name__ == "__main__":
    main()
