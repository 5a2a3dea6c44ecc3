"""GET /metrics of a server, on each transport, with the GIL free and held."""

from __future__ import annotations

import platform
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.lifecycle import talking
from support.requests.samples import key, samples
from support.served import Connect, Kind, Serve
from support.waiting import wait_until
from support.wire import Reply, ask, message, post

import workerserver
from workerserver import Limits
from workerserver.http._protocol import wants_openmetrics

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: What Prometheus 3 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
SERVED: tuple[Kind, ...] = ("unix", "tcp", "uvloop-unix", "uvloop-tcp", "tls")
native = pytest.mark.skipif(sys.platform != "linux", reason="the native I/O thread is Linux's")


def scrape(*accept: str, method: str = "GET", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    return message(method, "/metrics", headers=[*headers, *(("Accept", each) for each in accept)])


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text ; Version=0.0.1 ; Q=1.000", True),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.000", False),
        ("application/openmetrics-text;q=0.001", True),
        ("application/openmetrics-text;q=high", False),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.4", False),
        ("application/openmetrics-text;q=0.4,text/plain;q=0.3", True),
        ("application/openmetrics-text;q=0.5,*/*;q=0.9,text/plain;q=0.2", True),
        ("text/*;q=0.9,application/openmetrics-text;q=0.5", False),
        ("application/openmetrics-textual", False),
        ("application/vnd.google.protobuf;q=0.7,application/openmetrics-text;q=0.5", True),
        (",,;;=,q=1,\t;q", False),
    ],
)
def test_which_form_is_wanted(accept: str, openmetrics: bool) -> None:
    assert wants_openmetrics(accept.encode()) is openmetrics


@pytest.mark.parametrize("kind", SERVED)
def test_both_forms_on_each_transport(serve: Serve, connect: Connect, kind: Kind) -> None:
    client = connect(serve(kind).address)
    assert client.ask(post("ping")).status == 200
    for asked, content_type in (
        ((), TEXT),
        (("*/*",), TEXT),
        ((PROMETHEUS,), OPENMETRICS),
        (("text/plain;q=0.1", "application/openmetrics-text"), OPENMETRICS),  # two fields
    ):
        reply = client.ask(scrape(*asked))
        assert (reply.status, reply.header("content-type")) == (200, content_type)
        assert reply.body.endswith(b"# EOF\n") is (content_type == OPENMETRICS)
        found = samples(reply.body)
        assert found[key("workerserver_requests_total", handler="ping", status="200")] == 1
        assert found[key("workerserver_request_duration_seconds_count", handler="ping")] == 1
        assert found[key("workerserver_connections")] == 1
        assert 0 < found[key("workerserver_uptime_seconds")] < 600
    head = client.ask(scrape(method="HEAD"), head_only=True)
    assert (head.status, head.body) == (200, b"")
    assert int(head.header("content-length") or 0) > 1000
    assert client.ask(message("POST", "/metrics")).status == 405


@native
def test_one_implementation_for_all_transports(serve: Serve, connect: Connect) -> None:
    """The same families in the same order, with the same words about them."""
    words = []
    for kind in SERVED[:4]:
        client = connect(serve(kind).address)
        client.ask(post("ping"))
        client.ask(post("nothing"))
        client.ask(scrape())
        lines = client.ask(scrape()).body.splitlines()
        words.append([line for line in lines if line.startswith(b"#") and b"gil_wait" not in line])
    assert words[0] == words[1] == words[2] == words[3]


@native
def test_the_io_thread_answers_alone(serve: Serve, connect: Connect) -> None:
    served = serve("tcp")
    client = connect(served.address)
    for _ in range(3):
        assert client.ask(scrape(PROMETHEUS)).status == 200
    assert ("/metrics", 200) not in served.state.requests  # of the loop
    assert (
        samples(client.ask(scrape()).body)[
            key("workerserver_requests_total", handler="/metrics", status="200")
        ]
        == 3
    )


@native
def test_many_in_one_go(serve: Serve, connect: Connect) -> None:
    """Pipelined among other requests, and the last one closes: each has its answer, in order."""
    client = connect(serve("unix").address)
    close = (("Connection", "close"),)
    client.send((post("ping") + scrape() + scrape(PROMETHEUS)) * 20 + scrape(headers=close))
    for _ in range(20):
        assert client.reply().body == b"pong"
        assert client.reply().header("content-type") == TEXT
        assert client.reply().header("content-type") == OPENMETRICS
    last = client.reply()
    assert last.header("connection") == "close"
    found = samples(last.body)
    assert found[key("workerserver_requests_total", handler="ping", status="200")] == 20
    assert found[key("workerserver_request_duration_seconds_count", handler="ping")] == 20
    assert client.rest() == b""


def test_requests_inside_a_handler(serve: Serve, connect: Connect, gate: threading.Event) -> None:
    served = serve("tcp")
    served.registry.register("wait", lambda: gate.wait(60))
    client = connect(served.address)
    client.send(post("wait"))

    def running() -> tuple[float, float]:
        found = samples(ask(served.address, scrape()).body)
        return (
            found[key("workerserver_handler_running", handler="wait")],
            found[key("workerserver_budget_used", budget="handler_threads")],
        )

    wait_until(lambda: running() == (1, 1))
    gate.set()
    assert client.reply().status == 200
    wait_until(lambda: running()[0] == 0)
    served.registry.unregister("wait")
    assert running_names(ask(served.address, scrape())) == set(served.registry.names())


def running_names(reply: Reply) -> set[str]:
    return {
        dict(labels)["handler"]
        for name, labels in samples(reply.body)
        if name == "workerserver_handler_running" and not dict(labels)["handler"].startswith("/")
    }


@pytest.mark.parametrize("kind", ["tcp", "uvloop-tcp"])
def test_every_budget_is_a_figure(serve: Serve, connect: Connect, kind: Kind) -> None:
    """What is used now, and what may be, for each resource that is bounded."""
    served = serve(kind, limits=Limits(max_unproven=7, max_peer=9), token="secret")
    silent = [connect(served.address) for _ in range(3)]
    token = (("Authorization", "Bearer secret"),)
    used = key("workerserver_budget_used", budget="connections")
    # uvloop accepts one connection in each turn of its loop.
    wait_until(lambda: samples(silent[0].ask(scrape(headers=token)).body)[used] == 3)
    found = samples(silent[0].ask(scrape(headers=token)).body)
    limits = Limits()
    for name, limit in {
        "connections_without_token": 7,
        "connections_of_one_address": 9,
        "request_bytes": limits.max_bodies,
        "unsent_bytes": 128 << 20,
        "handler_threads": 64,
        "gil_share": 0.1,
        "snapshots": 100,
    }.items():
        assert found[key("workerserver_budget_limit", budget=name)] == limit, name
        assert key("workerserver_budget_used", budget=name) in found
    assert found[key("workerserver_budget_limit", budget="descriptors")] > 0
    assert found[key("workerserver_budget_used", budget="connections_without_token")] == 2
    assert found[key("workerserver_budget_used", budget="connections_of_one_address")] == 3
    assert silent[1].ask(scrape()).status == 401


@native
def test_bodies_count_while_they_wait(serve: Serve, connect: Connect) -> None:
    served = serve("tcp")
    client = connect(served.address)
    whole = message("POST", "/handler/ping", body=b"x" * 100_000)
    client.send(whole[:-1])

    def held() -> float:
        found = samples(ask(served.address, scrape()).body)
        return found[key("workerserver_budget_used", budget="request_bytes")]

    wait_until(lambda: held() >= 90_000)
    client.send(whole[-1:])
    assert client.reply().status == 200
    wait_until(lambda: held() == 0)


@native
def test_the_info_says_who_it_is(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("WORKERSERVER_JOB", 'di"g\\its')
    client = connect(serve("tcp").address)
    (labels,) = (
        dict(labels)
        for name, labels in samples(client.ask(scrape()).body)
        if name == "workerserver_info"
    )
    assert labels["rank"] == "3"
    assert labels["world_size"] == "8"
    assert labels["job"] == 'di"g\\its'
    assert labels["host"]
    assert labels["version"] == workerserver.__version__
    assert labels["python"] == platform.python_version()
    assert "torch" in labels


HELD = """
import ctypes, sys, time
from workerserver import WorkerServer, heartbeat
heartbeat(1)
with WorkerServer("127.0.0.1", 0) as server:
    print(server.port, flush=True)
    sys.stdin.readline()
    heartbeat(2)
    ctypes.PyDLL(None).sleep(60)  # keeps the GIL
    print("free", flush=True)
"""


@native
def test_answers_while_the_gil_is_held() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HELD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = ("127.0.0.1", int(process.stdout.readline()))
            process.stdin.write("go\n")
            process.stdin.flush()
            wait_until(
                lambda: (
                    samples(ask(address, scrape()).body)[key("workerserver_heartbeat_step")] == 2
                )
            )

            def unavailable() -> float:
                reply = ask(address, scrape(PROMETHEUS))
                assert reply.header("content-type") == OPENMETRICS
                return samples(reply.body)[key("workerserver_gil_unavailable_seconds")]

            wait_until(lambda: unavailable() > 0.5)
            assert not select.select([process.stdout], [], [], 0)[0]  # it holds the GIL still
        finally:
            process.kill()


@native
def test_a_forked_child_is_another_process(short_path: Path) -> None:
    """Its own server shows nothing of the parent's steps, and its own start."""
    with talking("metrics/forks.py", str(short_path)) as talker:
        parent, child = (samples(ask(talker.hear(60).strip(), scrape()).body) for _ in range(2))
    assert parent[key("workerserver_heartbeats_total")] == 5
    assert not [name for name, _ in child if "step" in name or "heartbeats" in name]
    assert child[key("process_start_time_seconds")] >= parent[key("process_start_time_seconds")]


def test_nothing_of_prometheus_is_imported(short_path: Path) -> None:
    code = (
        "import sys\n"
        "from workerserver import WorkerServer\n"
        f"with WorkerServer({str(short_path / 's')!r}, transport={{}}) as server:\n"
        "    import socket\n"
        "    peer = socket.socket(socket.AF_UNIX)\n"
        f"    peer.connect({str(short_path / 's')!r})\n"
        "    peer.sendall(b'GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "    print(peer.recv(15).decode())\n"
        "print([m for m in sys.modules if 'prometheus' in m])\n"
    )
    for transport in ("None", "'uvloop'"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(transport)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout == "HTTP/1.1 200 OK\n[]\n", done.stderr
