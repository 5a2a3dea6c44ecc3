"""Record what the ranks of real gloo jobs answer: ``record.py waits|SEED… [--kind ours|torch]``,
with tests/ in PYTHONPATH.

Writes NAME-KIND.json.gz beside this file, without what only this machine has: paths, and whatever
is workerserver's own. Needs torch 2.13 and CPython 3.11, whose lines the simulator has.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from simulator.job.generate import generate
from simulator.job.program import to_dict

HERE = Path(__file__).resolve().parent

QUESTIONS = {
    "healthz": ("GET", "/healthz"),
    "stacks": ("POST", "/handler/dump_traceback?format=json"),
    "fr_summary": ("POST", "/handler/fr_summary"),
    "flight": ("POST", "/handler/fr_trace_json"),
}
STOCK = {
    "text": ("POST", "/handler/dump_traceback"),
    "flight": ("POST", "/handler/fr_trace_json"),
}
#: Seconds until a job has come to its hang.
SETTLED_S = 8.0


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self.path))


def ask(path: Path, method: str, target: str) -> Any:
    connection = UnixConnection(path)
    with contextlib.closing(connection):
        connection.request(method, target)
        response = connection.getresponse()
        body = response.read()
    if response.status != 200:
        raise SystemExit(f"{target}: {response.status} {body[:200]!r}")
    return json.loads(body) if body[:1] == b"{" else body.decode()


def anonymous(text: str) -> str:
    library, standard = (sysconfig.get_paths()[name] for name in ("purelib", "stdlib"))
    for path, name in (
        (str(HERE), "/home/user"),
        (library, "/usr/lib/python3.11/site-packages"),
        (standard, "/usr/lib/python3.11"),
    ):
        text = text.replace(path, name)
    return re.sub(r"/tmp/[^\"' ]*\.so", "library.so", text)


def run(name: str, kind: str) -> dict[str, Any]:
    job = None if name == "waits" else generate(int(name))
    world = 3 if job is None else job.world
    program = HERE / ("waits.py" if job is None else "play.py")
    with tempfile.TemporaryDirectory(prefix="pl") as folder:
        paths = [Path(folder) / f"{rank}.sock" for rank in range(world)]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": f"{HERE.parents[2]}:{HERE.parents[1]}",
            "PYTHONWARNINGS": "ignore",
        }
        program_file = Path(folder) / "job.json"
        described = to_dict(job) if job is not None else None
        program_file.write_text(json.dumps(described))
        ranks = []
        for rank, path in enumerate(paths):
            words = [kind, str(path), folder]
            words = [*words, "waits"] if job is None else [str(program_file), *words]
            ring = 2000 if job is None else job.ranks[rank].ring
            mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCH_FR_BUFFER_SIZE": str(ring)}
            ranks.append(
                subprocess.Popen([sys.executable, str(program), *words], env=environment | mine)
            )
        try:
            give_up = time.monotonic() + 60
            while not all(path.exists() for path in paths):
                if time.monotonic() > give_up or any(rank.poll() is not None for rank in ranks):
                    raise SystemExit("the job did not start")
                time.sleep(0.1)
            time.sleep(SETTLED_S)
            questions = QUESTIONS if kind == "ours" else STOCK
            answers = [
                trimmed({question: ask(path, *where) for question, where in questions.items()})
                for path in paths
            ]
            return {"job": described, "answers": answers}
        finally:
            for process in ranks:
                process.kill()
                process.wait()


def trimmed(answers: dict[str, Any]) -> dict[str, Any]:
    stacks = answers.get("stacks")
    if stacks is not None:
        stacks["threads"] = [
            thread
            for thread in stacks["threads"]
            if not (thread["name"] or "").startswith("workerserver")
        ]
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="waits|SEED")
    parser.add_argument("--kind", choices=("ours", "torch"), default="ours")
    options = parser.parse_args()
    for name in options.names:
        text = anonymous(json.dumps(run(name, options.kind), separators=(",", ":")))
        packed = gzip.compress(text.encode(), mtime=0)
        (HERE / f"{name}-{options.kind}.json.gz").write_bytes(packed)
        print(name, options.kind, len(packed), "bytes", flush=True)


if __name__ == "__main__":
    main()
