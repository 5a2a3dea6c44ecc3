"""``install()``: ours in torch's place, and torch's own debug frontend on top of it."""

from __future__ import annotations

import html
import inspect
import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS, environment, free_port
from support.waiting import wait_until

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch"),
]
WORLD = 2


def run(code: str) -> str:
    """Python code in a fresh process; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PLACES = """
import torch, sys, workerserver
from workerserver import WorkerServer, worker_main, install

def bindings():
    return torch._C._distributed_c10d._WorkerServer

def mains():
    import torch.distributed.elastic.control_plane as control_plane
    return control_plane.worker_main

def debug():
    import torch.distributed.debug
    return torch.distributed.debug._WorkerServer

theirs, their_main = bindings(), mains()
assert theirs is not WorkerServer
"""


@pytest.mark.parametrize("debug_imported", ["before install", "between", "after undo"])
def test_install_and_undo(debug_imported: str) -> None:
    code = [
        PLACES,
        "assert debug() is theirs" if debug_imported == "before install" else "",
        "undo = install()",
        "assert bindings() is WorkerServer and mains() is worker_main",
        "assert debug() is WorkerServer" if debug_imported != "after undo" else "",
        "from torch.distributed.elastic.control_plane import worker_main as imported",
        "assert imported is worker_main",
        "undo()",
        "assert bindings() is theirs and mains() is their_main",
        "assert debug() is theirs",
        "undo()",
        "assert bindings() is theirs and debug() is theirs",
        "install()",
        "assert bindings() is WorkerServer and debug() is WorkerServer",
        "print('fine')",
    ]
    assert run("\n".join(code)) == "fine\n"


def test_install_twice() -> None:
    code = PLACES + (
        "first = install()\n"
        "second = install()\n"
        "second()\n"
        "assert bindings() is WorkerServer, 'what the first one put there stays'\n"
        "first()\n"
        "assert bindings() is theirs and mains() is their_main\n"
        "print('fine')"
    )
    assert run(code) == "fine\n"


def test_undo_leaves_what_somebody_else_put_there() -> None:
    code = PLACES + (
        "undo = install()\n"
        "torch._C._distributed_c10d._WorkerServer = 'somebody else'\n"
        "undo()\n"
        "assert bindings() == 'somebody else' and mains() is their_main\n"
        "print('fine')"
    )
    assert run(code) == "fine\n"


def test_torchs_worker_main_after_install_serves(tmp_path: Path) -> None:
    code = f"""
import os
from support.lifecycle import ask
import workerserver
workerserver.install()
os.environ["TORCH_WORKER_SERVER_SOCKET"] = {str(tmp_path / "s.sock")!r}
from torch.distributed.elastic.control_plane import worker_main

@worker_main()
def main():
    return ask({str(tmp_path / "s.sock")!r}, "/healthz", "GET")[0]

print(main())
"""
    assert run(code) == "200\n"


def test_without_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import workerserver\n"
        "try:\n"
        "    workerserver.install()\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    assert run(code) == "install() needs torch, which can't be imported\n"


# --- torch's debug frontend ----------------------------------------------------------------------


class Frontend:
    """A running job: its pages, and what each rank said of its server."""

    def __init__(self, kind: str, port: int, folder: Path) -> None:
        self.kind = kind
        self.port = port
        self.folder = folder

    def page(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as reply:
            assert reply.status == 200
            return html.unescape(reply.read().decode())

    def up(self) -> bool:
        try:
            self.page("/")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def facts(self, rank: int) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.folder / f"rank{rank}.json").read_text())
        return facts

    def blocks(self, path: str) -> list[str]:
        """One part of the page per rank; each has to be there and to have been fetched."""
        page = self.page(path)
        assert "Failed to fetch" not in page, page
        parts = re.split(r"<h2>Rank (\d+): http://\S+</h2>", page)
        assert parts[1::2] == ["0", "1"], page
        return parts[2::2]


def _name_resolves() -> bool:
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return False
    return True


@pytest.fixture(scope="module", params=["ours", "torch"])
def frontend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Frontend]:
    for module in ("jinja2", "tabulate", "aiohttp"):
        pytest.importorskip(module)
    if not _name_resolves():
        pytest.skip("the frontend asks workers by this machine's name, which doesn't resolve")
    kind, port = str(request.param), free_port()
    folder = tmp_path_factory.mktemp(f"frontend-{kind}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(WORLD), str(PROGRAMS / "server/frontend_rank.py")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, kind, str(port), str(folder)],
            env=environment(TORCH_FR_BUFFER_SIZE="2000"),
            stdout=log,
            stderr=log,
        )
    job = Frontend(kind, port, folder)
    try:
        wait_until(
            lambda: (
                all((folder / f"rank{rank}.json").exists() for rank in range(WORLD))
                or process.poll() is not None
            ),
            90,
        )
        assert process.poll() is None, (folder / "log").read_text()
        wait_until(job.up, 30)
        yield job
        (folder / "done").touch()
        code = process.wait(60)
        assert code == 0, (folder / "log").read_text()
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its workers
            process.wait(60)


def test_frontend_runs_on(frontend: Frontend) -> None:
    wanted = {
        "ours": "workerserver.server.WorkerServer",
        "torch": "torch._C._distributed_c10d._WorkerServer",
    }
    for rank in range(WORLD):
        assert frontend.facts(rank)["type"] == wanted[frontend.kind]


def test_frontend_stacks(frontend: Frontend) -> None:
    for rank, text in enumerate(frontend.blocks("/stacks")):
        assert "(most recent call first):" in text
        assert f"in hold_rank_{rank}" in text
        assert f"in hold_rank_{1 - rank}" not in text


def test_frontend_flight_recorder(frontend: Frontend) -> None:
    for rank, text in enumerate(frontend.blocks("/fr_trace_json")):
        dump = json.loads(_pre(text))
        assert dump["version"]
        names = [entry["profiling_name"] for entry in dump["entries"]]
        assert names[:3] == ["gloo:all_reduce"] * 3, f"rank {rank}"


def test_frontend_flight_recorder_tables(frontend: Frontend) -> None:
    """torch 2.13's own analysis fails on any gloo trace, whoever served it: gloo writes entries
    but no ``pg_config``, and it looks each entry's group up there."""
    with pytest.raises(urllib.error.HTTPError, match=r"KeyError\(\('0', 0\)\)") as caught:
        frontend.page("/fr_trace")
    with caught.value as answer:
        assert answer.code == 500


def test_frontend_wait_counters(frontend: Frontend) -> None:
    for text in frontend.blocks("/wait_counters"):
        assert isinstance(json.loads(_pre(text)), dict)


def test_frontend_profile(frontend: Frontend) -> None:
    page = frontend.page("/profile?duration=0.2")
    assert "Failed to fetch" not in page
    traces = re.findall(r"var data = (.*?);\n\s*openPerfetto", page, re.DOTALL)
    assert len(traces) == WORLD
    for trace in traces:
        assert "traceEvents" in json.loads(trace)


def test_frontend_tcpstore(frontend: Frontend) -> None:
    page = frontend.page("/tcpstore")
    for rank in range(WORLD):
        url = f"http://{socket.gethostname()}:{frontend.facts(rank)['port']}"
        assert re.search(rf"debug_server/rank{rank}: b'{re.escape(url)}'", page), page


def test_frontend_pyspy(frontend: Frontend) -> None:
    """Where the kernel lets py-spy look at us, every rank's stacks; else its own words."""
    page = frontend.page("/pyspy_dump")
    parts = re.split(r"<h2>Rank (\d+): http://\S+</h2>", page)
    assert parts[1::2] == ["0", "1"]
    for rank, text in enumerate(parts[2::2]):
        assert f"hold_rank_{rank}" in text or "status=500" in text, text


def test_frontend_periodic_dumps(frontend: Frontend) -> None:
    """The frontend's own files, from the same handlers."""
    from torch.distributed import debug

    if "dump_dir" not in inspect.signature(debug.start_debug_server).parameters:
        pytest.skip("this torch's frontend writes nothing")  # 2.10
    folder = frontend.folder / "dumps"

    def complete() -> bool:
        texts = [file.read_text() for file in folder.glob("stacks*")]
        return any("hold_rank_0" in text and "hold_rank_1" in text for text in texts)

    wait_until(complete, 60)


def _pre(text: str) -> str:
    found = re.search(r"<pre>(.*?)</pre>", text, re.DOTALL)
    assert found is not None, text
    return found[1]


def test_installed_twice_until_both_are_undone() -> None:
    import torch

    import workerserver

    bindings: Any = torch._C._distributed_c10d

    original = bindings._WorkerServer
    first, second = workerserver.install(), workerserver.install()
    assert bindings._WorkerServer is workerserver.WorkerServer
    first()
    first()
    assert bindings._WorkerServer is workerserver.WorkerServer
    second()
    assert bindings._WorkerServer is original
