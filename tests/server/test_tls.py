"""TLS listeners: whom they serve, what ends those who don't get that far, and how they are asked
for. What is served over TLS is what every transport serves: the tests of the protocol run on it."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import make_certificate
from support.served import Serve, Served
from support.waiting import wait_until
from support.wire import TlsAddress, ask, message, post

from workerserver.cluster.ask.client import run, tls_context
from workerserver.cluster.ask.rounds import collect
from workerserver.cluster.model import Worker
from workerserver.process import acceptor
from workerserver.registration import StoreRegistration
from workerserver.server import Limits, WorkerServer

MIB = 1 << 20


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A key and its certificate for localhost."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def from_environment(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> Iterator[WorkerServer]:
    monkeypatch.setenv("WORKERSERVER_TLS_KEY", files[0])
    monkeypatch.setenv("WORKERSERVER_TLS_CERT", files[1])
    with WorkerServer("127.0.0.1", 0) as server:
        yield server


def test_environment(from_environment: WorkerServer, files: tuple[str, str]) -> None:
    """With the cluster's client, which checks the certificate."""
    server = from_environment
    assert (server.tls, server.transport) == (True, "uvloop")
    worker = Worker(f"localhost:{server.port}", False, 0, tls=True)
    (look,) = run(
        lambda client: collect([worker], client=client, want=("health", "stacks")),
        tls=tls_context(files[1]),
    )
    (state,) = look.states
    assert state.kind == "workerserver"
    assert (state.failures, state.health is not None, bool(state.threads)) == ({}, True, True)
    (look,) = run(lambda client: collect([worker], client=client))
    assert "certificate not accepted" in look.states[0].failures["healthz"].text


def test_token_and_browsers_over_tls(serve: Serve) -> None:
    served = serve("tls", token="secret")
    assert ask(served.address, post("ping")).status == 401
    headers = [("Authorization", "Bearer secret")]
    assert ask(served.address, post("ping", b"", headers)).body == b"pong"
    headers += [("Origin", "https://evil.example")]
    assert ask(served.address, post("ping", b"", headers)).status == 403


def test_unix_sockets_stay_as_they_are(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, short_path: Path, no_leaks: None
) -> None:
    monkeypatch.setenv("WORKERSERVER_TLS_CERT", files[1])
    path = str(short_path / "s")
    with WorkerServer(path) as server:
        assert not server.tls
        assert ask(path, post("ping")).body == b"pong"


def test_certificate_that_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: tuple[str, str]
) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for certificate, key, text in (
        ("/nowhere.pem", "", "WORKERSERVER_TLS_CERT /nowhere.pem: no certificate"),
        (str(empty), files[0], f"WORKERSERVER_TLS_CERT {empty}, WORKERSERVER_TLS_KEY {files[0]}"),
        ("", files[0], "WORKERSERVER_TLS_KEY is set, but not WORKERSERVER_TLS_CERT"),
        (files[1], "", "no certificate with its key"),
    ):
        monkeypatch.setenv("WORKERSERVER_TLS_CERT", certificate)
        monkeypatch.setenv("WORKERSERVER_TLS_KEY", key)
        with pytest.raises(ValueError, match=text.replace(".", r"\.")):
            WorkerServer("127.0.0.1", 0)


def test_key_that_is_encrypted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: tuple[str, str]
) -> None:
    """OpenSSL asks for no password on the terminal: training would wait for it."""
    locked = tmp_path / "locked.pem"
    words = ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", files[0]]
    subprocess.run([*words, "-out", str(locked)], check=True, capture_output=True)
    monkeypatch.setenv("WORKERSERVER_TLS_CERT", files[1])
    monkeypatch.setenv("WORKERSERVER_TLS_KEY", str(locked))
    with pytest.raises(ValueError, match="encrypted"):
        WorkerServer("127.0.0.1", 0)


def test_what_cannot_have_it(files: tuple[str, str], short_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(ValueError, match="no TLS on a Unix socket"):
        WorkerServer(str(short_path / "s"), tls=context)
    with pytest.raises(ValueError, match="no TLS on transport native"):
        WorkerServer("127.0.0.1", 0, tls=context, transport="native")


def test_registered_as_https(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("MASTER_ADDR", "head"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    registration = StoreRegistration.from_environment("10.0.0.1", 80, tls=True)
    assert registration is not None
    assert registration.url == "https://10.0.0.1:80"


# --- connections that end before their first request --------------------------------------------


def plain(served: Served, source: str = "127.0.0.1") -> socket.socket:
    assert isinstance(served.address, TlsAddress)
    return socket.create_connection(served.address, 20, (source, 0))


def test_who_speaks_no_tls(serve: Serve) -> None:
    served = serve("tls")
    with plain(served) as sock:
        sock.sendall(message("GET", "/"))
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(4096):
                answer += piece
    assert not answer.startswith(b"HTTP")
    assert ask(served.address, post("ping")).body == b"pong"


def answered(served: Served) -> bool:
    try:
        return ask(served.address, post("ping")).body == b"pong"
    except (ssl.SSLError, ConnectionError):
        return False


def test_handshakes_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in time: each is a descriptor that training may need."""
    monkeypatch.setattr(acceptor, "MAX_HANDSHAKES", 8)
    before = len(os.listdir("/proc/self/fd"))
    served = serve("tls", limits=Limits(head_timeout=1.0))
    here = len(os.listdir("/proc/self/fd")) - before
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(plain(served)) for _ in range(40)]
        wait_until(lambda: sum(ended(sock) for sock in silent) >= 32)
        ours = len(os.listdir("/proc/self/fd")) - before - here - len(silent)
        assert ours <= 8 + 2  # one just accepted, and the loop's own
        wait_until(lambda: all(ended(sock) for sock in silent))
        # On a machine that has much else to do, our own handshake may be too late once or twice.
        wait_until(lambda: answered(served))


def ended(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_silent_clients_keep_nobody_out(serve: Serve) -> None:
    """The oldest handshake goes, not the newcomer; and not that of a peer which has few."""
    served = serve("tls")
    with contextlib.ExitStack() as stack:
        few = [stack.enter_context(plain(served, "127.0.0.2")) for _ in range(3)]
        silent = [stack.enter_context(plain(served)) for _ in range(80)]
        for _ in range(3):
            assert ask(served.address, post("ping")).body == b"pong"
        wait_until(lambda: sum(ended(sock) for sock in silent) >= 80 + 3 - acceptor.MAX_HANDSHAKES)
        assert not any(ended(sock) for sock in (*few, *silent[-10:]))
        assert all(ended(sock) for sock in silent[:15])


def test_client_that_takes_nothing(serve: Serve) -> None:
    """Unsent bytes below TLS can't be seen. So the time between two requests ends a connection."""
    served = serve("tls", limits=Limits(idle_timeout=0.5))
    body = os.urandom(MIB) * 16
    served.registry.register("large", lambda: body)
    began = time.monotonic()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with plain(served) as sock, context.wrap_socket(sock) as stalled:
        stalled.sendall(post("large"))
        wait_until(lambda: served.connections == 1)
        wait_until(lambda: served.connections == 0)
        assert time.monotonic() - began < 30


def test_shutdown_amid_handshakes(serve: Serve) -> None:
    served = serve("tls")
    with contextlib.ExitStack() as stack:
        before = len(os.listdir("/proc/self/fd"))
        silent = [stack.enter_context(plain(served)) for _ in range(5)]
        wait_until(lambda: len(os.listdir("/proc/self/fd")) >= before + 2 * len(silent))
        served.close()
        wait_until(lambda: all(ended(sock) for sock in silent))
    with pytest.raises(ConnectionRefusedError):
        plain(served)
