"""The load generator: its counts are right, and no server can fool it or hang it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hostile import Answer, always, peer, reply
from support.parking import untraced
from support.served import Served
from support.waiting import wait_until
from support.wire import PATIENCE, Address, message, post

from workerserver.loadgen._loadgen import Histogram, Load, Result

MS = 1_000_000
PING = post("ping")
OK = b"HTTP/1.1 200 OK\r\n"
TORCH = """
from torch._C._distributed_c10d import _WorkerServer
import sys
server = _WorkerServer(sys.argv[1])
print("on", flush=True)
sys.stdin.read()
server.shutdown()
"""

#: Options of a run, one for each way through the loop.
MODES = [
    pytest.param({}, id="closed"),
    pytest.param({"connections": 3}, id="closed of 3"),
    pytest.param({"rate": 500.0, "connections": 3}, id="open"),
    pytest.param({"fresh": True}, id="fresh"),
]

pytestmark = pytest.mark.usefixtures("no_leaks")


def load(address: Address, request: bytes = PING, **options: Any) -> Result:
    """A run; its figures have to agree with each other."""
    result = Load(address, request, **{"timeout": PATIENCE, **options}).run()
    check(result)
    return result


def check(result: Result) -> None:
    good = sum(times for status, times in result.statuses.items() if 200 <= status < 300)
    assert result.sent == result.answered + sum(result.failed.values())
    assert result.answered == good == result.service.count == result.response.count
    assert result.late.count <= result.sent


def same(one: Histogram, other: Histogram) -> bool:
    return one.points() == other.points()


@pytest.fixture(params=["unix", "tcp"])
def folder(request: pytest.FixtureRequest, short_path: Path) -> Path | None:
    """Where a peer's socket is to be; None for TCP."""
    return short_path if request.param == "unix" else None


# --- good servers -----------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 64])
@pytest.mark.parametrize("fresh", [False, True])
def test_every_request_is_answered(server: Served, connections: int, fresh: bool) -> None:
    result = load(server.address, requests=1000, connections=connections, fresh=fresh)
    assert (result.sent, result.answered, result.failed) == (1000, 1000, {})
    assert result.statuses == {200: 1000}
    assert result.received > 1000 * len(b"pong")
    assert same(result.service, result.response)
    assert result.late.count == 0
    assert 0 < result.service.min <= result.service.max <= result.seconds * 1e9
    wait_until(lambda: server.connections == 0)


def test_other_transports_too(served: Served) -> None:
    if served.kind == "tls":
        pytest.skip("it speaks plain HTTP only")
    result = load(served.address, requests=200, connections=4)
    assert (result.answered, result.failed) == (200, {})


@pytest.mark.parametrize(("connections", "fresh"), [(1, False), (8, False), (8, True)])
def test_a_schedule_is_kept(server: Served, connections: int, fresh: bool) -> None:
    result = load(server.address, seconds=0.2, rate=500.0, connections=connections, fresh=fresh)
    assert (result.sent, result.answered, result.failed) == (100, 100, {})
    # The last request is due after 99 intervals, and not before.
    assert result.seconds >= 99 / 500
    assert result.late.count > 0
    # A request is not sent before it is due, and a reply takes its time after that.
    assert result.response.min >= result.service.min
    assert result.response.max >= result.service.max


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"requests": 30, "rate": 1000.0}, 30),
        ({"requests": 30, "rate": 1000.0, "seconds": 100.0}, 30),
        ({"requests": 1000, "rate": 100.0, "seconds": 0.25}, 25),
        ({"seconds": 0.01, "rate": 1.0}, 1),
        ({"requests": 30, "seconds": 100.0}, 30),
    ],
)
def test_what_comes_first_ends_the_run(
    ours_unix: Served, options: dict[str, Any], sent: int
) -> None:
    result = load(ours_unix.address, **options)
    assert (result.sent, result.answered) == (sent, sent)


@pytest.mark.parametrize("connections", [1, 4])
def test_seconds_end_a_closed_loop(ours_unix: Served, connections: int) -> None:
    result = load(ours_unix.address, seconds=0.2, connections=connections)
    assert result.answered > 0
    assert result.failed == {}
    assert result.seconds >= 0.19


def test_a_load_runs_again(ours_unix: Served) -> None:
    again = Load(ours_unix.address, PING, requests=50)
    assert again.result is None
    first, second = again.run(), again.run()
    assert again.result is second
    assert (first.answered, second.answered) == (50, 50)
    assert first.service is not second.service


def test_a_name_is_looked_up(ours_tcp: Served) -> None:
    result = load(("localhost", int(ours_tcp.address[1])), requests=20)
    assert (result.answered, result.failed) == (20, {})


def test_every_address_of_a_name_is_tried(
    ours_tcp: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(host: str, port: int, **options: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.3", "127.0.0.2", "127.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for options in MODES:
        name = ("three.addresses", int(ours_tcp.address[1]))
        result = load(name, requests=6, **options.values[0])  # type: ignore[arg-type]
        assert (result.answered, result.failed) == (6, {})


def test_ipv6() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with peer(always(reply()), listener):
        result = load(("::1", listener.getsockname()[1]), requests=5)
    assert (result.answered, result.failed) == (5, {})


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_an_abstract_name() -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0workerserver-{os.getpid()}")
    listener.listen(8)
    with peer(always(reply()), listener):
        result = load(f"\0workerserver-{os.getpid()}", requests=5)
    assert (result.answered, result.failed) == (5, {})


@pytest.fixture
def torch_socket(short_path: Path) -> Iterator[str]:
    pytest.importorskip("torch")
    path = str(short_path / "torch.sock")
    with subprocess.Popen(
        [sys.executable, "-c", TORCH, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n"
            yield path
            process.communicate(timeout=60)
        finally:
            process.kill()


@pytest.mark.torch
def test_torchs_server(torch_socket: str) -> None:
    # The server closes a connection after some requests, and says so in the last reply.
    for options in ({}, {"connections": 4}, {"per_connection": 7}, {"fresh": True}):
        result = load(torch_socket, requests=200, **options)
        assert (result.answered, result.failed) == (200, {}), options
    result = load(torch_socket, requests=200, rate=1000.0, connections=4)
    assert (result.answered, result.failed) == (200, {})


# --- replies of all kinds ---------------------------------------------------------------------

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n, world\r\n0\r\nA: b\r\n\r\n"


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([reply()], id="whole"),
        pytest.param([CHUNKED], id="chunked"),
        pytest.param([CHUNKED[:30], CHUNKED[30:50], CHUNKED[50:]], id="chunked, in pieces"),
        pytest.param([bytes([byte]) for byte in reply()], id="a byte at a time"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n", reply()], id="interim"),
        pytest.param([b"HTTP/1.1 204 No Content\r\n\r\n"], id="no content"),
    ],
)
def test_replies_that_leave_the_connection(
    folder: Path | None, pieces: list[bytes], connections: int
) -> None:
    with peer(always(*pieces), folder) as served:
        result = load(served.address, requests=6, connections=connections)
    assert (result.answered, result.failed) == (6, {})
    assert result.received == 6 * sum(map(len, pieces))
    assert served.accepted == connections


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(OK + b"\r\nuntil the end", id="close ends the body"),
        pytest.param(reply(b"x", b"Connection: close"), id="connection: close"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", id="HTTP/1.0"),
    ],
)
def test_replies_that_end_the_connection(
    folder: Path | None, data: bytes, connections: int
) -> None:
    def answer(connection: socket.socket, number: int) -> bool:
        connection.sendall(data)
        return True

    with peer(answer, folder) as served:
        result = load(served.address, requests=6, connections=connections)
    assert (result.answered, result.failed) == (6, {})
    assert result.received == 6 * len(data)
    assert served.accepted == 6


def test_a_reply_to_head_has_no_body(short_path: Path) -> None:
    data = OK + b"Content-Length: 4\r\n\r\n"
    with peer(always(data), short_path) as served:
        result = load(served.address, message("HEAD", "/"), requests=5)
    assert (result.answered, result.failed, served.accepted) == (5, {}, 1)


@pytest.mark.parametrize("options", [{}, {"connections": 2}, {"rate": 100.0}])
def test_a_large_reply_is_counted_and_not_kept(short_path: Path, options: dict[str, Any]) -> None:
    size = 64 << 20
    block = bytes(1 << 20)

    def answer(connection: socket.socket, number: int) -> None:
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 20):
            connection.sendall(block)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with peer(answer, short_path) as served:
        result = load(served.address, requests=4, **options)
    assert (result.answered, result.failed) == (4, {})
    assert result.received > 4 * size
    # In kilobytes. The histograms and the buffer take one MiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_a_large_request_is_sent_whole(folder: Path | None) -> None:
    request = post("x", bytes(5 << 20))
    with peer(always(reply()), folder) as served:
        for connections in (1, 2):
            result = load(served.address, request, requests=4, connections=connections)
            assert (result.answered, result.failed) == (4, {})
        assert served.accepted == 3


def test_a_reply_that_comes_before_the_request_is_sent(folder: Path | None) -> None:
    def answer(connection: socket.socket, number: int) -> None:
        connection.sendall(reply(status=b"413 Too Large"))
        gate.wait(PATIENCE)  # and takes no more connections

    gate = threading.Event()
    with peer(answer, folder, bodies=False) as served:
        result = load(served.address, post("x", bytes(8 << 20)), requests=3)
        gate.set()
    assert (result.statuses, result.answered) == ({413: 3}, 0)
    assert served.accepted == 3  # a connection with half a request on it is of no use


def test_a_reply_behind_which_the_server_closes(short_path: Path) -> None:
    """The request can't be sent any more, but the reply is there. (On TCP it may be lost.)"""

    def answer(connection: socket.socket, number: int) -> bool:
        connection.sendall(reply(status=b"413 Too Large"))
        return True

    with peer(answer, short_path, bodies=False) as served:
        result = load(served.address, post("x", bytes(8 << 20)), requests=3)
    assert (result.statuses, result.answered) == ({413: 3}, 0)


def test_per_connection_reconnects(folder: Path | None) -> None:
    with peer(always(reply()), folder) as served:
        result = load(served.address, requests=100, per_connection=25)
        assert (result.answered, served.accepted) == (100, 4)
        load(served.address, requests=10, fresh=True)
        assert served.accepted == 14


def test_a_connection_that_the_server_closed_meanwhile_is_not_used(folder: Path | None) -> None:
    def answer(connection: socket.socket, number: int) -> bool:
        connection.sendall(reply())
        return True  # without a Connection field that says so

    with peer(answer, folder) as served:
        result = load(served.address, requests=3, rate=5.0, connections=2)
    assert (result.answered, result.failed, served.accepted) == (3, {}, 3)


# --- bad servers ------------------------------------------------------------------------------


def closing(data: bytes) -> Answer:
    def answer(connection: socket.socket, number: int) -> bool:
        connection.sendall(data)
        return True

    return answer


def resetting(connection: socket.socket, number: int) -> bool:
    connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
    )  # struct linger: on, 0 s
    return True


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(closing(b""), "closed early", id="no reply"),
        pytest.param(closing(OK), "closed early", id="half a head"),
        pytest.param(closing(reply()[:-1]), "closed early", id="half a body"),
        pytest.param(closing(CHUNKED[:-2]), "closed early", id="no end of chunks"),
        pytest.param(always(b"garbage garbage garbage\r\n"), "malformed", id="garbage"),
        pytest.param(always(reply() + b"x"), "malformed", id="more than was asked for"),
        pytest.param(always(reply(status=b"503 Busy")), "status 503", id="503"),
    ],
)
def test_failures_are_counted(
    folder: Path | None, answer: Answer, reason: str, options: dict[str, Any]
) -> None:
    with peer(answer, folder) as served:
        result = load(served.address, requests=6, **options)
    assert (result.sent, result.answered, result.failed) == (6, 0, {reason: 6})
    assert result.statuses == ({503: 6} if reason == "status 503" else {})


@pytest.mark.parametrize("options", MODES)
def test_a_reset_is_counted(options: dict[str, Any]) -> None:
    with peer(resetting) as served:
        result = load(served.address, requests=6, **options)
    assert (result.sent, result.failed) == (6, {"reset": 6})


@pytest.mark.parametrize("options", MODES)
def test_some_bad_replies_among_good_ones(folder: Path | None, options: dict[str, Any]) -> None:
    def answer(connection: socket.socket, number: int) -> bool:
        bad = number % 3 == 0
        connection.sendall(b"garbage garbage\r\n" if bad else reply())
        return bad

    with peer(answer, folder) as served:
        result = load(served.address, requests=30, **options)
    assert (result.answered, result.failed) == (20, {"malformed": 10})


@pytest.mark.parametrize("options", MODES)
def test_nobody_listens(folder: Path | None, options: dict[str, Any]) -> None:
    with peer(always(reply()), folder) as served:
        pass
    result = load(served.address, requests=6, **options)
    assert (result.sent, result.failed) == (6, {"refused": 6})
    if folder is not None:
        os.unlink(served.address)  # type: ignore[arg-type]
        result = load(served.address, requests=6, **options)
        assert (result.sent, result.failed) == (6, {"no such socket": 6})


def test_a_path_that_is_no_socket(short_path: Path) -> None:
    result = load(str(short_path), requests=2)
    assert result.failed in ({"refused": 2}, {"Socket operation on non-socket": 2})


@pytest.mark.parametrize(
    "options",
    [*MODES, pytest.param({"rate": 500.0, "connections": 1}, id="open of 1")],
)
def test_a_server_that_says_nothing(folder: Path | None, options: dict[str, Any]) -> None:
    gate = threading.Event()
    with peer(lambda connection, number: gate.wait(PATIENCE), folder) as served:
        try:
            result = load(served.address, requests=3, timeout=0.1, **options)
        finally:
            gate.set()
    assert (result.sent, result.answered) == (3, 0)
    # At the end of its time, an open loop drops the requests that it never sent.
    assert set(result.failed) <= {"timeout", "not sent"}
    assert result.failed["timeout"] >= 1
    if "rate" not in options:
        assert result.failed == {"timeout": 3}


@pytest.mark.parametrize("options", MODES)
def test_a_trickle_is_no_reply(short_path: Path, options: dict[str, Any]) -> None:
    def answer(connection: socket.socket, number: int) -> None:
        connection.sendall(OK + b"Content-Length: 1000\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b"x")
            time.sleep(0.01)

    with peer(answer, short_path) as served:
        result = load(served.address, requests=3, timeout=0.1, **options)
    assert (result.sent, result.failed) == (3, {"timeout": 3})


@pytest.mark.parametrize("rate", [0.0, 200.0])
def test_the_time_is_bounded(short_path: Path, rate: float) -> None:
    """Whatever the server does: seconds and the timeout, here a tenth of PATIENCE and less."""
    gate = threading.Event()
    with peer(lambda connection, number: gate.wait(PATIENCE), short_path) as served:
        begun = time.monotonic()
        try:
            result = load(served.address, seconds=0.3, timeout=0.1, rate=rate, connections=4)
        finally:
            gate.set()
        assert time.monotonic() - begun < PATIENCE / 2
    assert result.answered == 0
    assert result.failed["timeout"] >= 4
    if rate:
        # Each connection dropped five requests at most.
        assert (result.sent, result.failed["not sent"] >= 40) == (60, True)


def test_a_full_backlog_is_waited_for(short_path: Path) -> None:
    """A Unix listener refuses to queue more than its backlog; it is asked again."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(short_path / "full.sock"))
    listener.listen(0)
    found: list[Result] = []
    path = listener.getsockname()
    thread = threading.Thread(
        target=lambda: found.append(load(path, requests=40, connections=20, fresh=True))
    )
    thread.start()
    time.sleep(0.1)
    with peer(always(reply()), listener):
        thread.join(60)
    assert (found[0].answered, found[0].failed) == (40, {})


# --- coordinated omission ---------------------------------------------------------------------

STALL = 0.4


def stalling(at: int) -> Answer:
    """A good server that stands still once, in request number *at*."""

    def answer(connection: socket.socket, number: int) -> None:
        if number == at:
            time.sleep(STALL)
        connection.sendall(reply())

    return answer


def one_at_a_time(result: Result) -> None:
    """A run's only connection was never slow for two requests at the same time."""
    assert result.service.above(90 * MS) * 90 * MS <= result.seconds * 1e9


def test_a_stall_counts_for_every_request_that_was_due(folder: Path | None) -> None:
    rate = 200.0
    with peer(stalling(20), folder) as served:
        result = load(served.address, seconds=0.6, rate=rate)
    assert (result.sent, result.answered, result.failed) == (120, 120, {})
    # These were due in the first 300 ms of the stall. So their answers are at least 100 ms late.
    held = int(rate * 0.3) - 1
    assert result.response.above(90 * MS) >= held
    assert result.response.percentile(100) >= STALL * 1e9
    # The server was slow once. On a busy machine it may have been slow a few more times.
    assert result.service.above(90 * MS) >= 1
    one_at_a_time(result)
    # The client was not late. It had no free connection for these requests.
    assert result.late.count <= 120 - held


def test_with_more_connections_they_are_sent_in_time(folder: Path | None) -> None:
    """Then the server has them, and it is its own time that grows."""
    lock = threading.Lock()
    answered = 0

    def answer(connection: socket.socket, number: int) -> None:
        nonlocal answered
        with lock:
            answered += 1
            if answered == 21:
                # The server answers only when all requests have come. So none waits.
                wait_until(lambda: served.requests == 120, PATIENCE / 2)
                time.sleep(STALL)
            connection.sendall(reply())

    with peer(answer, folder) as served:
        result = load(served.address, seconds=0.6, rate=200.0, connections=256)
    assert (result.sent, result.answered, result.failed) == (120, 120, {})
    for times in (result.response, result.service):
        assert times.above(90 * MS) >= 100
        assert times.percentile(100) >= STALL * 1e9
    # No more connections than were needed.
    assert 100 <= served.accepted <= 120


def test_a_closed_loop_hides_it_until_corrected(short_path: Path) -> None:
    with peer(stalling(20), short_path) as served:
        result = load(served.address, requests=100)
    assert (result.answered, result.failed) == (100, {})
    assert same(result.service, result.response)
    one_at_a_time(result)
    # The requests that a schedule would have sent beside the slow one.
    hidden = int((STALL - 0.1) * 200)
    seen = result.response.above(90 * MS)
    assert seen >= 1
    assert result.response.corrected(5 * MS).above(90 * MS) >= seen + hidden


# --- being a guest ----------------------------------------------------------------------------


def test_the_gil_is_free_meanwhile(ours_unix: Served) -> None:
    # A handler in Python: without the GIL it could never answer.
    result = load(ours_unix.address, post("dump_traceback?mode=gil"), requests=5)
    assert (result.answered, result.failed) == (5, {})


@pytest.mark.skipif(not Path("/proc/self/timerslack_ns").exists(), reason="Linux only")
def test_the_timers_of_the_thread_are_as_before(ours_unix: Served) -> None:
    def run() -> None:
        slack = Path(f"/proc/{threading.get_native_id()}/timerslack_ns")
        slack.write_text("43210")
        load(ours_unix.address, requests=5, rate=100.0)
        found.append(slack.read_text())

    found: list[str] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == ["43210\n"]


@untraced
@pytest.mark.parametrize(
    "options",
    [{}, {"connections": 3}, {"rate": 50.0}, {"fresh": True}],
)
def test_a_signal_ends_it(short_path: Path, options: dict[str, Any]) -> None:
    class Rung(Exception):
        pass

    def ring(number: int, frame: object) -> None:
        raise Rung

    def answer(connection: socket.socket, number: int) -> None:
        if number == 3:
            # Every connection has sent its next request, so it has had the reply before.
            wait_until(lambda: served.requests == 3 + options.get("connections", 1))
            os.kill(os.getpid(), signal.SIGALRM)
        if number >= 3:
            gate.wait(PATIENCE)
        connection.sendall(reply())

    gate = threading.Event()
    before = signal.signal(signal.SIGALRM, ring)
    with peer(answer, short_path) as served:
        stopped = Load(served.address, PING, seconds=PATIENCE, timeout=PATIENCE, **options)
        try:
            with pytest.raises(Rung):
                stopped.run()
        finally:
            signal.signal(signal.SIGALRM, before)
            gate.set()
    found = stopped.result
    assert found is not None
    check(found)
    assert (found.answered, found.failed) == (3, {})


def test_stop_ends_it(ours_unix: Served) -> None:
    running = Load(ours_unix.address, PING, seconds=PATIENCE)
    found: list[Result] = []
    thread = threading.Thread(target=lambda: found.append(running.run()))
    thread.start()
    wait_until(lambda: ours_unix.connections == 1)
    with pytest.raises(RuntimeError, match="running"):
        running.run()
    running.stop()
    thread.join(PATIENCE / 2)
    assert not thread.is_alive()
    check(found[0])
    assert found[0].failed == {}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"address": ""}, "address"),
        ({"address": "x" * 200}, "address"),
        ({"address": 5}, "address"),
        ({"address": ("127.0.0.1", 0)}, "address"),
        ({"address": ("127.0.0.1", "x")}, "address"),
        ({"request": b"GET / HTTP/1.1\r\n"}, "request"),
        ({"connections": 0}, "connections"),
        ({"connections": 5000}, "connections"),
        ({"requests": -1}, "requests"),
        ({"requests": 0}, "requests, seconds"),
        ({"requests": 10**12, "rate": 1.0}, "requests"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"rate": -1.0}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"per_connection": -1}, "per_connection"),
        ({"per_connection": 5, "fresh": True}, "per_connection"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], word: str) -> None:
    options = {"address": "/x", "request": PING, "requests": 5, **change}
    with pytest.raises(ValueError, match=f"^{word}: "):
        Load(options.pop("address"), options.pop("request"), **options)


def test_more_connections_than_files_are_refused() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        with pytest.raises(ValueError, match="may open 200 files"):
            Load("/x", PING, requests=5, connections=200)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptors_left(short_path: Path) -> None:
    """The client's own limit is a failure like any other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with peer(always(reply()), short_path) as served:
        taken = os.open("/", os.O_RDONLY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, hard))
        try:
            result = load(served.address, requests=2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(taken)
    assert (result.sent, result.failed) == (2, {"Too many open files": 2})
