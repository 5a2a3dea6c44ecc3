"""Whom a client shows the token, and how; whose answers count. Workers are real or false ones."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.certificates import make_certificate
from support.jobs.store import fake_store, serve_one
from support.jobs.workers import HEALTH, Answer, Canned, Start, good, health, http
from support.served import Kind, Serve
from support.waiting import becomes

from workerserver.cli import main
from workerserver.cluster.ask.client import Question, run, tls_context
from workerserver.cluster.ask.collectors import behind_collectors
from workerserver.cluster.find.store import workers_in_store
from workerserver.cluster.model import Failure, Source, Worker
from workerserver.server import WorkerServer

TOKEN = "the-secret-of-this-job"
PING = Question.handler("ping", limit=1024)
OLD = http(b"no", "401 Unauthorized", "WWW-Authenticate: Bearer")
PONG: dict[str, Answer] = {"/": OLD, "/handler/ping": http(b"pong")}
LINUX = sys.platform == "linux"
KINDS: tuple[Kind, ...] = ("tcp", "uvloop-tcp") if LINUX else ("uvloop-tcp",)


def outcome(worker: Worker, question: Question = PING, **options: Any) -> Any:
    """The answer of *worker* to a client that has the token, or a Failure."""
    options = {"token": TOKEN, "deadline": 20.0, **options}
    (result,) = run(lambda client: client.ask([worker], question), **options).values()
    return result


def at(served: Any, rank: int | None = None, **more: Any) -> Worker:
    return Worker("{}:{}".format(*served.address), False, rank, **more)


# --- real workers


@pytest.mark.parametrize("kind", KINDS)
def test_both_prove_it(serve: Serve, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    served = serve(kind, token=TOKEN)
    served.registry.register("large", lambda: b"x" * 100_000)
    for known in (None, 3):
        assert outcome(at(served, known)).body == b"pong"
    assert outcome(at(served, 5, assumed=True)).body == b"pong"
    large = Question.handler("large", limit=1 << 20)
    assert len(outcome(at(served), large).body) == 100_000
    missing = outcome(at(served), Question.handler("nope"))
    assert missing.reason == "missing"

    async def often(visit: Any) -> list[bytes]:
        return [(await visit.ask(question)).body[:4] for question in (PING, large) * 5]

    workers = [at(served, 3)]
    (bodies,) = run(lambda client: client.visit(workers, often), token=TOKEN).values()
    assert bodies == [b"pong", b"xxxx"] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_another_rank_is_refused(serve: Serve, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is relayed to another worker of the job hears of it before any question."""
    monkeypatch.setenv("RANK", "5")
    served = serve(kind, token=TOKEN)
    assert outcome(at(served, 3)) == Failure("lied", "found as rank 3, proves that it is rank 5")
    assert ("ping", 200) not in served.state.requests


@pytest.mark.parametrize("kind", KINDS)
def test_another_token(serve: Serve, kind: Kind) -> None:
    served = serve(kind, token="another")
    failure = outcome(at(served), token_name="the token in X")
    assert failure == Failure("refused", "HTTP 401: the token in X was not accepted")


def test_one_more_round_trip_for_each_connection(serve: Serve) -> None:
    served = serve(KINDS[0], token=TOKEN)
    targets: list[bytes] = []
    with relay(at(served), seen=targets) as worker:

        async def thrice(visit: Any) -> None:
            for _ in range(3):
                await visit.ask(PING)

        run(lambda client: client.visit([worker], thrice), token=TOKEN)
    lines = [line for line in b"".join(targets).split(b"\r\n") if line.endswith(b" HTTP/1.1")]
    assert lines == [b"GET / HTTP/1.1"] + [b"POST /handler/ping HTTP/1.1"] * 3
    assert TOKEN.encode() not in b"".join(targets)


# --- somebody between the client and the worker


@contextlib.contextmanager
def relay(
    worker: Worker,
    change: Callable[[bytes], bytes] = lambda data: data,
    seen: list[bytes] | None = None,
    forth: Callable[[bytes], bytes] = lambda data: data,
) -> Iterator[Worker]:
    """A stranger who passes on what comes: requests after *forth*, answers after *change*."""
    host, _, port = worker.address.rpartition(":")
    threads: list[threading.Thread] = []

    def pass_on(source: socket.socket, target: socket.socket, how: Callable[..., bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if seen is not None and how is forth:
                    seen.append(data)
                target.sendall(how(data))
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(connection: socket.socket) -> None:
        with connection, socket.create_connection((host, int(port))) as other:
            back = threading.Thread(target=pass_on, args=(other, connection, change))
            back.start()
            pass_on(connection, other, forth)
            back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield Worker(f"127.0.0.1:{listener.getsockname()[1]}", False)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


CHANGED: dict[str, Callable[[bytes], bytes]] = {
    "body": lambda data: data.replace(b"pong", b"gnop"),
    "status": lambda data: data.replace(b" 200 OK", b" 404 OK"),
    "no proof": lambda data: re.sub(rb"Authentication-Info: [^\r]*\r\n", b"", data),
    "rank": lambda data: re.sub(rb"w=([0-9a-f]+)", lambda m: b"w=" + b"1 9 ".hex().encode(), data),
    "challenge": lambda data: re.sub(rb", m=(.)", rb", m=0\1", data),
}


@pytest.mark.parametrize("how", CHANGED)
def test_a_changed_answer_does_not_count(serve: Serve, how: str) -> None:
    served = serve(KINDS[0], token=TOKEN)
    with relay(at(served)) as worker:
        assert outcome(worker).body == b"pong"  # who changes nothing is not noticed: see the docs
    with relay(at(served), CHANGED[how]) as worker:
        failure = outcome(worker)
        assert isinstance(failure, Failure)
        assert failure.reason == "refused"


def test_a_changed_question_is_not_run(serve: Serve) -> None:
    served = serve(KINDS[0], token=TOKEN)
    ran: list[int] = []
    served.registry.register("stop", lambda: ran.append(1))
    with relay(at(served), forth=lambda data: data.replace(b"/ping", b"/stop")) as worker:
        failure = outcome(worker)
    assert failure.reason == "refused"
    assert "it knows the token, but the proof came on another connection" in failure.text
    assert not ran


# --- false workers


COMMANDS = [
    "ping TARGET --deadline 3",
    "stacks TARGET --deadline 3",
    "diagnose TARGET --deadline 3 --rounds 1",
    "fr TARGET --deadline 3",
    "ls TARGET",
    "call ping TARGET",
    "call dump_traceback TARGET",
    "bench TARGET",
    "slow TARGET --deadline 3",
    "profile TARGET --deadline 3 -o FOLDER/trace",
    "watch TARGET --deadline 3 --folder FOLDER --count 1",
    "top TARGET --deadline 3 --count 1",
]


def challenge() -> bytes:
    """A challenge of somebody who does not know the token."""
    nonce, mac = os.urandom(16).hex(), os.urandom(32).hex()
    ours = f"WWW-Authenticate: WorkerServer v=1, n={nonce}, w={b'1 0 job'.hex()}, m={mac}"
    return http(b"no", "401 Unauthorized", "WWW-Authenticate: Bearer", ours)


FALSE: dict[str, Callable[[], dict[str, Answer]]] = {
    "says yes to all": lambda: {**good(0), "/": http(b"hello"), "/handler/ping": http(b"pong")},
    "asks for the token": lambda: dict.fromkeys(("/", *good(0), "/handler/ping"), OLD),
    "makes a proof up": lambda: {
        target: challenge() for target in ("/", *good(0), "/handler/ping")
    },
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda text: "-".join(text.split()[:2]))
@pytest.mark.parametrize("way", FALSE)
def test_a_false_worker_learns_nothing(
    start: Start,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    way: str,
) -> None:
    """Nobody is sent the token, or anything but a greeting, and no answer counts."""
    monkeypatch.setenv("WORKERSERVER_TOKEN", TOKEN)
    false = start(FALSE[way]())
    words = command.replace("TARGET", false.address).replace("FOLDER", str(folder)).split()
    with contextlib.suppress(SystemExit):
        assert main(words) != 0, capsys.readouterr()
    out = "".join(capsys.readouterr())
    assert TOKEN not in out
    if words[0] != "bench":
        assert becomes(lambda: false.accepted), "the command did not even try"
    assert {target for _, target in false.asked} <= {"/"}
    for head in false.heads:
        assert TOKEN.encode() not in head
        assert re.search(rb"\r\nAuthorization: WorkerServer v=1, n=[0-9a-f]{32}(\r\n|\Z)", head)


def test_an_older_worker(start: Start) -> None:
    """The client says what can be done. It sends the token only if told to."""
    worker = start(PONG)
    failure = outcome(worker.worker(), token_name="the token in X")
    assert failure.reason == "refused"
    for words in ("older", "the token in X", "--send-token"):
        assert words in failure.text
    assert [target for _, target in worker.asked] == ["/"]
    assert outcome(worker.worker(), send_token=True).body == b"pong"
    assert b"\r\nAuthorization: Bearer the-secret" in worker.heads[-1]


def test_a_newer_worker(start: Start) -> None:
    newer = http(b"no", "401 Unauthorized", "WWW-Authenticate: WorkerServer v=2, x=y")
    failure = outcome(start({"/": newer}).worker())
    assert failure == Failure(
        "refused",
        "HTTP 401: it speaks another version of the proof: use the workerserver of the job",
    )


def test_a_worker_without_a_token(serve: Serve) -> None:
    """It can't prove anything, so its answers count only without a token, or with --send-token."""
    served = serve(KINDS[0])
    failure = outcome(at(served))
    assert failure.reason == "refused"
    assert "did not prove" in failure.text
    assert outcome(at(served), send_token=True).body == b"pong"
    assert outcome(at(served), token=None).body == b"pong"


def test_errors_that_nobody_proves(start: Start) -> None:
    """What an overloaded server or a proxy says is told, and is no answer. A missing page is none
    either: only who is no worker at all lacks it."""
    for status, body, text in (
        ("503 Service Unavailable", b"busy", "HTTP 503 Service Unavailable: busy"),
        ("404 Not Found", b"", "HTTP 404 Not Found"),
    ):
        failure = outcome(start({"/": http(body, status)}).worker())
        assert failure == Failure("refused", text)


# --- Unix sockets and https


def test_a_socket_of_ones_own_gets_the_token(start: Start) -> None:
    worker = start({"/handler/ping": http(b"pong")}, "unix")
    assert outcome(worker.worker()).body == b"pong"
    assert [b"Authorization: Bearer the-secret" in head for head in worker.heads] == [True]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask another user's worker")
def test_root_asks_any_users_worker(short_path: Path) -> None:
    """In a folder where anybody could have made the socket, since no secret goes there."""
    short_path.chmod(0o777)
    path = str(short_path / "s")
    os.seteuid(65534)  # the kernel notes the user that calls listen()
    try:
        server = WorkerServer(path, token=TOKEN)
    finally:
        os.seteuid(0)
    with server:
        assert outcome(Worker(path, True)).body == b"pong"
        assert "was not accepted" in outcome(Worker(path, True), token="another").text
        sent = outcome(Worker(path, True), send_token=True)
        assert "the socket belongs to" in sent.text


def test_https(short_path: Path, stack: contextlib.ExitStack) -> None:
    """The certificate vouches for a host that the operator has named: an older worker there gets
    the token as it is. For an address from the job's store it needs the operator's authority."""
    key, certificate = make_certificate(short_path)
    old = Canned(PONG, tls=(key, certificate))
    stack.callback(old.close)
    trusted = tls_context(certificate)
    assert outcome(old.worker(), tls=trusted).body == b"pong"
    assert outcome(old.worker(source="store"), tls=trusted).body == b"pong"
    assert [b"Bearer" in head for head in old.heads] == [False, True] * 2


@pytest.mark.parametrize("source", ["store", "torchrun"])
def test_https_by_the_systems_authorities(
    short_path: Path,
    stack: contextlib.ExitStack,
    source: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anybody can have a certificate of those, for a host of his own."""
    key, certificate = make_certificate(short_path)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    old = Canned(PONG, tls=(key, certificate))
    stack.callback(old.close)
    assert "--send-token" in outcome(old.worker(source=source)).text
    assert not any(b"Bearer" in head for head in old.heads)
    assert outcome(old.worker()).body == b"pong"


def proxy(served: Any, tls: tuple[str, str] | None = None) -> Canned:
    """A reverse proxy: each request reaches the worker on a connection of its own."""

    def upstream(head: bytes) -> bytes:
        with socket.create_connection(served.address, 30) as sock:
            sock.sendall(head + b"\r\nConnection: close\r\n\r\n")
            parts = iter(lambda: sock.recv(65536), b"")
            return b"".join(parts).replace(b"Connection: close\r\n", b"")

    def pass_on(client: socket.socket) -> None:
        client.sendall(upstream(found.heads[-1]))
        unread = b""
        while part := client.recv(65536):
            head, end, unread = (unread + part).partition(b"\r\n\r\n")
            if end:
                found.heads.append(head)
                client.sendall(upstream(head))
            else:
                unread = head

    found = Canned({"/": pass_on, "/handler/ping": pass_on}, tls=tls)
    return found


def shown(heads: list[bytes]) -> list[str]:
    """How each request shows that the token is known."""
    fields = [re.search(rb"\r\nAuthorization: (\w+) (?:v=1, )?(\w)", head) for head in heads]
    names = {b"n": "greets", b"c": "proves"}
    return [names.get(each[2], "sends the token") for each in fields if each is not None]


def test_a_proxy_gets_the_token_over_https(
    serve: Serve, short_path: Path, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its certificate vouches for it. Each proof is one for the wrong connection."""
    served = serve(KINDS[0], token=TOKEN)
    key, certificate = make_certificate(short_path)
    secure, plain = proxy(served, (key, certificate)), proxy(served)
    stack.callback(secure.close)
    stack.callback(plain.close)

    async def twice(client: Any) -> list[Any]:
        worker = secure.worker()
        return [(await client.ask([worker], PING))[worker].body for _ in range(2)]

    answers = run(twice, token=TOKEN, deadline=60.0, tls=tls_context(certificate))
    assert answers == [b"pong", b"pong"]
    assert shown(secure.heads) == ["greets", "proves", "sends the token", "sends the token"]

    failure = outcome(plain.worker(), deadline=60.0)
    assert "it knows the token, but the proof came on another connection" in failure.text
    assert shown(plain.heads) == ["greets", "proves"]

    # An address from the job's store, with a certificate that anybody could have.
    secure.heads.clear()
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    failure = outcome(secure.worker(source="store"), deadline=60.0)
    assert "--send-token" in failure.text
    assert shown(secure.heads) == ["greets", "proves"]


# --- the job's store


def entries(**values: str) -> dict[bytes, bytes]:
    return {f"/debug_server/{key}".encode(): value.encode() for key, value in values.items()}


def test_a_false_store(
    start: Start,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Somebody has written entries that lead all ranks to himself. He is sent nothing of use, and
    the rank whose entry is right is asked all the same."""
    monkeypatch.setenv("WORKERSERVER_TOKEN", TOKEN)
    monkeypatch.setenv("RANK", "1")
    false = start({**good(0), "/": http(b"hello"), "/handler/ping": http(b"pong")})
    served = serve(KINDS[0], token=TOKEN)
    real = "{}:{}".format(*served.address)
    told = entries(
        rank0=f"http://{false.address}",
        rank1=f"http://{real}",
        collector0=f"http://{false.address}#0-3",
    )
    for command in ("ping", "stacks", "diagnose"):
        with serve_one(fake_store(told)) as store:
            assert main([command, "--store", store, "--deadline", "3", "--json"]) != 0
        told_of = json.loads(capsys.readouterr().out)
        assert told_of["responded"] == 1
    assert {target for _, target in false.asked} == {"/"}
    assert not any(TOKEN.encode() in head for head in false.heads)
    false.close()


def test_a_workers_address_as_a_collectors(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not keep that worker from being asked."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORKERSERVER_TOKEN", TOKEN)
    real = "{}:{}".format(*serve(KINDS[0]).address)
    told = entries(rank1=f"http://{real}", collector0=f"http://{real}#0-3")
    with serve_one(fake_store(told)) as store:
        main(["ping", "--store", store, "--deadline", "3", "--json"])
    rows = json.loads(capsys.readouterr().out)["workers"]
    assert [(row["rank"], row["status"]) for row in rows if row["address"]] == [(1, "ok")]


def test_a_claim_hides_no_rank(start: Start) -> None:
    """Without a proof, a collector that only the store names does not keep a rank's own entry from
    being asked; one that the operator names does."""
    state = {
        "address": "x", "unix": True, "tls": False, "rank": 0, "kind": "workerserver",
        "responded": True, "health": None, "digest": None, "main": None, "mode": None,
        "summary": None, "failures": {},
    }  # fmt: skip
    claim = {"version": 1, "workers": [state]}

    class Every(dict[str, Answer]):
        """The same answer to each question."""

        def get(self, key: str, default: Any = None) -> Any:
            return http(claim)

    false = start({})
    false.answers = Every()
    own = start(good(0)).worker(0, source="store")
    cases: tuple[tuple[Source, bool], ...] = (
        ("store", True),
        ("torchrun", True),
        ("argument", False),
    )
    for source, direct in cases:
        door = Worker(false.address, False, None, "h", source, collector=True, ranks=(0,))
        found = run(partial(behind_collectors, [door, own]))
        assert (own in found) == direct, source
        assert (door in {worker.via for worker in found}) == (not direct)


def test_no_entry_talks_a_job_down_from_https(
    start: Start, short_path: Path, stack: contextlib.ExitStack
) -> None:
    key, certificate = make_certificate(short_path)
    secure = Canned(good(1), tls=(key, certificate))
    stack.callback(secure.close)
    plain = start(good(0))
    told = entries(rank0=f"http://{plain.address}", rank1=f"https://{secure.address}")
    with serve_one(fake_store(told)) as store:
        first, second = workers_in_store(store)
    assert (first.downgraded, second.downgraded) == (True, False)
    failure = outcome(first, HEALTHZ, token=None)
    assert failure.reason == "refused"
    assert "https" in failure.text
    assert plain.accepted == 0
    assert outcome(second, HEALTHZ, token=None, tls=tls_context(certificate)).ok
    # All entries are false: then only the operator's authority tells that the job speaks https.
    with serve_one(fake_store(entries(rank0=f"http://{plain.address}"))) as store:
        (alone,) = workers_in_store(store)
    assert not alone.downgraded
    assert outcome(alone, HEALTHZ, token=None).ok
    assert outcome(alone, HEALTHZ, token=None, tls=tls_context(certificate)).reason == "refused"


HEALTHZ = Question("healthz", HEALTH, "GET")


def test_nothing_of_the_token_is_in_an_error(start: Start, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORKERSERVER_TOKEN", TOKEN)
    worker = start({"/": http(json.dumps(health(0).decode()).encode())})
    assert main(["ping", worker.address, "--deadline", "3"]) == 2
    assert TOKEN not in "".join(capsys.readouterr())
