"""TLS: which clients a listener takes, and new certificates in the files of the old ones."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.certificates import Authority, make_certificate
from support.waiting import wait_until
from support.wire import message, parse_reply

from workerserver.cli import main
from workerserver.process import tls
from workerserver.server import WorkerServer

Serve = Callable[..., WorkerServer]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A key and its certificate for localhost."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def serve(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> Iterator[Serve]:
    """``serve(CLIENT_CA=..., ...)``: a server whose environment has these, too."""
    servers: list[WorkerServer] = []

    def start(**more: str) -> WorkerServer:
        for name, value in {"KEY": files[0], "CERT": files[1], **more}.items():
            monkeypatch.setenv(f"WORKERSERVER_TLS_{name}", value)
        servers.append(WorkerServer("127.0.0.1", 0))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()


def ping(server: WorkerServer, client: tuple[str, str] | None = None) -> bool:
    """Whether a client, with its key and certificate, is served."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if client is not None:
        context.load_cert_chain(client[1], client[0])
    try:
        with (
            socket.create_connection(("127.0.0.1", server.port), 20) as plain,
            context.wrap_socket(plain) as sock,
        ):
            sock.sendall(message("POST", "/handler/ping", b""))
            data = b""
            while parse_reply(data) is None:
                piece = sock.recv(65536)
                if not piece:
                    return False
                data += piece
    except (ssl.SSLError, ConnectionError):
        return False
    found = parse_reply(data)
    return found is not None and found[0].status == 200


def test_clients_without_a_certificate(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    server = serve(CLIENT_CA=authority.certificate)
    assert ping(server, authority.issue("operator"))
    assert not ping(server)
    assert not ping(server, Authority(tmp_path / "other").issue("operator"))


@pytest.mark.parametrize(
    ("names", "good", "bad"),
    [
        ("operator", ("operator",), ("operators",)),
        ("a.example, *.ops.example", ("x", "DNS:n1.ops.example"), ("x", "DNS:ops.example")),
        ("OPERATOR@example", ("x", "email:operator@example"), ("operator@example", "DNS:x")),
        ("spiffe://job/ops", ("x", "URI:spiffe://job/ops"), ("x", "URI:spiffe://job/other")),
        ("*.example", ("x", "DNS:a.example"), ("x", "DNS:*.example")),
    ],
)
def test_names_of_clients(
    serve: Serve, authority: Authority, names: str, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    server = serve(CLIENT_CA=authority.certificate, CLIENT_NAMES=names)
    assert ping(server, authority.issue(*good))
    assert not ping(server, authority.issue(*bad))
    wait_until(lambda: not server.state.connections)
    wait_until(lambda: not server._thread.places._taken)


def test_what_is_half_said(
    monkeypatch: pytest.MonkeyPatch, files: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    for environment, text in (
        ({"CLIENT_CA": "x"}, "WORKERSERVER_TLS_CLIENT_CA is set, but not WORKERSERVER_TLS_CERT"),
        ({"CLIENT_NAMES": "x"}, "WORKERSERVER_TLS_CLIENT_NAMES is set, but not .*CLIENT_CA"),
        ({"CERT": files[1], "KEY": files[0], "CLIENT_CA": "/no"}, "CLIENT_CA /no: no certificates"),
        (
            {"CERT": files[1], "KEY": files[0], "CLIENT_CA": str(tmp_path / "empty")},
            "empty: no certificates",
        ),
    ):
        for name in ("CERT", "KEY", "CLIENT_CA", "CLIENT_NAMES"):
            monkeypatch.delenv(f"WORKERSERVER_TLS_{name}", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(f"WORKERSERVER_TLS_{name}", value)
        with pytest.raises(ValueError, match=text):
            WorkerServer("127.0.0.1", 0)


def certificate_of(server: WorkerServer) -> str:
    return ssl.get_server_certificate(("127.0.0.1", server.port))


def test_new_certificates_are_served(
    serve: Serve, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that don't fit each other change nothing; there is no moment without a certificate."""
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.0)
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    first, second = authority.issue("first"), authority.issue("second")
    for source, target in zip(first, (key, certificate), strict=True):
        shutil.copy(source, target)
    server = serve(KEY=str(key), CERT=str(certificate))
    assert certificate_of(server) == Path(first[1]).read_text()
    for name, target in ((second[1], certificate), (second[0], key)):
        shutil.copy(name, tmp_path / "new")
        os.replace(tmp_path / "new", target)
        expected = first[1] if target == certificate else second[1]
        assert certificate_of(server) == Path(expected).read_text()
        assert ping(server)
    certificate.unlink()
    assert certificate_of(server) == Path(second[1]).read_text()


def test_commands_show_a_certificate(
    serve: Serve,
    authority: Authority,
    files: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    server = serve(CLIENT_CA=authority.certificate)
    key, certificate = authority.issue("operator")
    words = ["call", "ping", f"https://localhost:{server.port}", "--cacert", files[1]]
    assert main(words) == 2
    assert "certificate" in capsys.readouterr().err
    assert main([*words, "--cert", certificate, "--key", key]) == 0
    assert capsys.readouterr().out == "pong"
    both = tmp_path / "both"
    both.write_text(Path(certificate).read_text() + Path(key).read_text())
    assert main([*words, "--cert", str(both)]) == 0
