"""Proof of the token: what a worker takes for one, and what it proves, on every transport."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from hashlib import blake2b

import pytest
from support.requests.speaker import TOKEN, Speaker, challenge_of
from support.served import Connect, Kind, Ours, Serve, Served
from support.waiting import wait_until
from support.wire import Client, Reply, message, parse_reply, post

from workerserver.cluster.ask.token.proof import Proof, key_of
from workerserver.http._protocol import proof_key
from workerserver.types import Request, Response

LINUX = sys.platform == "linux"
ALL: tuple[Kind, ...] = (
    "unix", "tcp", "uvloop-unix", "uvloop-tcp", "asyncio-unix", "asyncio-tcp", "tls",
)  # fmt: skip
LARGE = b"x" * 300_000
REQUESTS = [
    ("POST", "/handler/ping", 200),
    ("POST", "/handler/dump_traceback?mode=x", 400),
    ("GET", "/", 200),
    ("GET", "/?", 200),
    ("GET", "/healthz", 200),
    ("GET", "/healthz?max_step_age=0.001", 503),
    ("GET", "/handler/", 200),
    ("POST", "/handler/dump_traceback", 200),
    ("POST", "/handler/dump_traceback?mode=nogil&format=json", 200),
    ("POST", "/handler/dump_traceback?mode=gil", 200),
    ("POST", "/handler/steps", 200),
    ("POST", "/handler/large", 200),
    ("POST", "/handler/later", 200),
    ("POST", "/handler/nope", 404),
    ("GET", "/nope", 404),
    ("GET", "/metrics", 200),
]


@pytest.fixture(params=ALL)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def ran() -> list[bytes]:
    """The bodies that the handler ``act`` has got."""
    return []


@pytest.fixture
def served(kind: Kind, serve: Serve, ran: list[bytes]) -> Served:
    served = start(kind, serve)

    def act(request: Request) -> str:
        ran.append(request.body)
        return "done"

    served.registry.register("act", act, inline=True)
    return served


def start(kind: Kind, serve: Serve) -> Served:
    served = serve(kind, token=TOKEN)

    async def later() -> str:
        return "later"

    if "large" not in served.registry.names():  # two servers of a test have one registry
        served.registry.register("large", lambda: Response(LARGE), inline=True)
        served.registry.register("later", later)
    return served


def met(connect: Connect, served: Served) -> Speaker:
    speaker = Speaker(connect(served.address))
    assert speaker.greet() == "proven"
    return speaker


def refused(reply: Reply) -> None:
    """Without a challenge, and without a proof."""
    assert reply.status == 401
    assert challenge_of(reply) == "WorkerServer v=1"
    assert reply.header("authentication-info") is None


@pytest.mark.parametrize("token", ["", "s", "s3cret", "x" * 127, "x" * 128, "x" * 129, "ключ" * 99])
def test_both_sides_hash_alike(token: str) -> None:
    assert proof_key(token.encode()) == key_of(token)


def test_both_ends_prove_the_token(served: Served, connect: Connect) -> None:
    speaker = met(connect, served)
    for _ in range(2):
        for method, target, status in REQUESTS:
            if target == "/metrics" and served.kind.startswith("asyncio"):
                status = 404
            assert speaker.ask(method, target).status == status, target
        assert speaker.ask("POST", "/handler/act", b"work").text == "done"
    assert speaker.proof.rank is None
    assert speaker.proof.pid == json_pid(speaker)
    # Who proves nothing is refused on the same connection, and the proven client is not.
    assert speaker.client.ask(post("ping")).status == 401
    assert speaker.ask("POST", "/handler/ping").text == "pong"


def json_pid(speaker: Speaker) -> int:
    found = re.search(rb'"pid":([0-9]+)', speaker.ask("GET", "/healthz").body)
    assert found is not None
    return int(found[1])


def test_many_at_a_time(served: Served, connect: Connect) -> None:
    """Requests that the I/O thread answers, and others, in one piece and in pieces of any size."""
    speaker = met(connect, served)
    targets = [(method, target) for method, target, _ in REQUESTS if target != "/metrics"] * 2
    # Each answer is judged by the state of its own request.
    requests = []
    states = []
    for method, target in targets:
        requests.append(speaker.request(method, target))
        states.append((speaker.proof._counter, speaker.proof._asked))
    data = b"".join(requests)
    for at in range(0, len(data), 700):
        speaker.client.send(data[at : at + 700])
    for asked, state in zip(targets, states, strict=True):
        speaker.proof._counter, speaker.proof._asked = state
        assert speaker.holds(speaker.client.reply()), asked


def test_a_proof_is_used_up(served: Served, connect: Connect, ran: list[bytes]) -> None:
    """The same bytes again prove nothing: on this connection, on another, and before a greeting."""
    speaker = met(connect, served)
    sent = [speaker.post("ping"), speaker.post("act", b"once"), speaker.post("large")]
    for data in sent:
        assert speaker.client.ask(data).status == 200
    for data in reversed(sent):
        refused(connect(served.address).ask(data))
        other = met(connect, served)
        refused(other.client.ask(data))
    for data in sent:  # a refused request with a body is the last of its connection
        if not data.endswith(b"once"):
            refused(speaker.client.ask(data))
    assert speaker.ask("POST", "/handler/ping").status == 200
    refused(speaker.client.ask(sent[1]))
    assert ran == [b"once"]


def test_counters_may_jump_but_not_go_back(served: Served, connect: Connect) -> None:
    speaker = met(connect, served)
    early = speaker.post("ping")
    speaker.proof._counter = 1 << 40
    assert speaker.ask("POST", "/handler/ping").status == 200
    refused(speaker.client.ask(early))
    speaker.proof._counter = (1 << 64) - 2
    assert speaker.ask("GET", "/healthz").status == 200
    speaker.proof._counter = 0
    refused(speaker.client.ask(speaker.post("ping")))


def test_a_new_greeting_ends_the_session(served: Served, connect: Connect) -> None:
    speaker = met(connect, served)
    old = speaker.post("ping")
    assert speaker.greet() == "proven"
    refused(speaker.client.ask(old))
    assert speaker.ask("POST", "/handler/ping").status == 200


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


TAMPERED: dict[str, Callable[[bytes], bytes]] = {
    "method": lambda data: changed(data, b"POST /", b"GET /"),
    "target": lambda data: changed(data, b"/handler/act", b"/handler/large"),
    "query": lambda data: changed(data, b"/act ", b"/act?x=1 "),
    "body": lambda data: changed(data, b"\r\n\r\nwork", b"\r\n\r\nwerk"),
    "body and its hash": lambda data: changed(
        changed(data, b"\r\n\r\nwork", b"\r\n\r\nwerk"),
        blake2b(b"work", digest_size=32).hexdigest().encode(),
        blake2b(b"werk", digest_size=32).hexdigest().encode(),
    ),
    "counter": lambda data: changed(data, b"c=0000000000000001", b"c=0000000000000002"),
    "last digit": lambda data: re.sub(
        rb"m=([0-9a-f]{63})([0-9a-f])", lambda m: b"m=" + m[1] + b"%x" % (int(m[2], 16) ^ 1), data
    ),
    "no proof": lambda data: re.sub(rb", m=[0-9a-f]{64}", b"", data),
    "upper case": lambda data: re.sub(rb"m=[0-9a-f]{64}", lambda m: b"m=" + m[0][2:].upper(), data),
    "longer": lambda data: re.sub(rb"m=[0-9a-f]{64}", lambda m: m[0] + b"0", data),
    "zeros": lambda data: re.sub(rb"m=[0-9a-f]{64}", b"m=" + b"0" * 64, data),
    "other version": lambda data: changed(data, b"v=1", b"v=2"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_changed_request(served: Served, connect: Connect, how: str, ran: list[bytes]) -> None:
    speaker = met(connect, served)
    refused(speaker.client.ask(TAMPERED[how](speaker.post("act", b"work"))))
    assert not ran


def test_a_changed_request_without_a_body(served: Served, connect: Connect) -> None:
    """As the I/O thread judges them."""
    speaker = met(connect, served)
    for change in (
        lambda data: changed(data, b"/ping ", b"/steps "),
        lambda data: changed(data, b"/ping ", b"/ping? "),
        lambda data: changed(data, b"POST /handler/ping", b"GET /"),
        TAMPERED["counter"],
        TAMPERED["last digit"],
        TAMPERED["no proof"],
        TAMPERED["longer"],
        TAMPERED["other version"],
    ):
        speaker.proof._counter = 0
        refused(speaker.client.ask(change(speaker.post("ping"))))
    speaker.proof._counter = 0
    assert speaker.ask("POST", "/handler/ping").status == 200


def test_a_bad_proof_is_refused_before_the_body(served: Served, connect: Connect) -> None:
    speaker = met(connect, served)
    field = speaker.proof.request("POST", "/handler/large", b"x" * 1000)
    fields = [("Authorization", field), ("Content-Length", "1000")]
    refused(speaker.client.ask(message("POST", "/handler/act", None, fields)))
    assert speaker.client.rest() == b""


def test_a_worker_that_proves_cannot_be_made_to_ask(served: Served, connect: Connect) -> None:
    """The proof in a challenge, or in an answer, is none for a request."""
    speaker = met(connect, served)
    client = connect(served.address)
    reply = client.ask(Speaker(client).greeting())
    greeting = re.findall(r"m=([0-9a-f]{64})", challenge_of(reply))
    answer = speaker.ask("POST", "/handler/ping").header("authentication-info") or ""
    for mac in (*greeting, answer.removeprefix("m=")):
        data = re.sub(rb"m=[0-9a-f]{64}", f"m={mac}".encode(), speaker.post("ping"))
        refused(speaker.client.ask(data))


def test_another_token(served: Served, connect: Connect) -> None:
    speaker = Speaker(connect(served.address), "another")
    assert speaker.greet() == "other"
    refused(speaker.client.ask(speaker.post("ping")))


@pytest.mark.parametrize(
    "field",
    [
        "WorkerServer v=2, n=" + "0" * 32,
        "WorkerServer v=1",
        "WorkerServer v=1, n=" + "0" * 31,
        "WorkerServer v=1, n=" + "0" * 33,
        "WorkerServer v=1, n=" + "g" * 32,
        "WorkerServer v=1, n=" + "A" * 32,
        "WorkerServer v=1,n=" + "0" * 33,
        "WorkerServer " + "x" * 4000,
    ],
)
def test_what_is_no_greeting(served: Served, connect: Connect, field: str) -> None:
    """It is told the version that this worker speaks."""
    refused(connect(served.address).ask(message("GET", "/", None, [("Authorization", field)])))


def test_other_schemes_are_answered_as_before(served: Served, connect: Connect) -> None:
    client = connect(served.address)
    for field in ("Basic x", "workerserver v=1, n=" + "0" * 32, "WorkerServer", "WorkerServerv=1"):
        reply = client.ask(message("GET", "/", None, [("Authorization", field)]))
        assert (reply.status, reply.header("www-authenticate")) == (401, "Bearer")
    bearer = [("Authorization", f"Bearer {TOKEN}")]
    for request in (post("ping", b"", bearer), message("GET", "/nope", None, bearer)):
        reply = client.ask(request)
        assert reply.status in (200, 404)
        assert reply.header("authentication-info") is None


def test_an_answer_to_head_is_proven(served: Served, connect: Connect) -> None:
    speaker = met(connect, served)
    reply = speaker.client.ask(speaker.request("HEAD", "/"), head_only=True)
    assert (reply.status, speaker.holds(reply)) == (200, True)


def test_a_changed_answer(served: Served, connect: Connect) -> None:
    speaker = met(connect, served)
    reply = speaker.ask("POST", "/handler/later")
    assert not speaker.holds(reply._replace(body=b"Later"))
    assert not speaker.holds(reply._replace(status=404))
    before = reply.headers
    reply = speaker.ask("POST", "/handler/later")
    assert not speaker.holds(reply._replace(headers=before))  # that of an earlier request


def test_the_last_reply_of_a_connection_is_proven(served: Served, connect: Connect) -> None:
    for target in ("/handler/ping", "/handler/later"):
        speaker = met(connect, served)
        field = speaker.proof.request("POST", target)
        fields = [("Authorization", field), ("Connection", "close")]
        reply = speaker.client.ask(message("POST", target, b"", fields))
        assert (reply.header("connection"), speaker.holds(reply)) == ("close", True)
        assert speaker.client.rest() == b""


def test_a_worker_without_a_token_takes_no_notice(
    kind: Kind, serve: Serve, connect: Connect
) -> None:
    speaker = Speaker(connect(serve(kind).address))
    reply = speaker.client.ask(speaker.greeting())
    assert (reply.status, reply.header("www-authenticate")) == (200, None)


def test_a_proven_client_has_a_place(serve: Serve, connect: Connect) -> None:
    served = serve("tcp", token=TOKEN)
    assert isinstance(served, Ours)
    speaker = Speaker(connect(served.address))
    speaker.greet()
    assert served.server.places.unproven == 1
    speaker.ask("POST", "/handler/ping")
    wait_until(lambda: served.server.places.unproven == 0)


# --- native and uvloop


def transcript(kind: Kind, serve: Serve) -> list[bytes]:
    """All replies of a server to the same questions. Nonces and proofs are judged and then left
    out, since they differ each time, and so do dates."""
    served = start(kind, serve)
    seen = []
    with Client(served.address) as client:
        speaker = Speaker(client)

        def say(data: bytes, proven: bool = False) -> None:
            client.send(data)
            reply = client.reply()
            raw = f"{reply.status} {reply.reason} {reply.headers}".encode() + reply.body
            assert speaker.holds(reply) == proven, raw
            if reply.status == 401 and "n=" in challenge_of(reply):
                assert speaker.proof.meet(challenge_of(reply)) == "proven"
            raw = re.sub(rb"\b(m|n)=[0-9a-f]+", rb"\1=...", raw)
            seen.append(re.sub(rb"'date', '[^']*'", b"date", raw))

        say(speaker.post("ping"))
        say(speaker.greeting())
        for method, target in [
            ("POST", "/handler/ping"), ("GET", "/"), ("GET", "/handler/"), ("GET", "/nope"),
            ("POST", "/handler/later"), ("POST", "/handler/large"), ("POST", "/handler/nope"),
        ]:  # fmt: skip
            data = speaker.request(method, target)
            say(data, True)
            say(data)  # again
        say(speaker.greeting())
        say(message("GET", "/", None, [("Authorization", "WorkerServer v=9")]))
        field = speaker.proof.request("GET", "/")
        end = [("Authorization", field), ("Connection", "close")]
        say(message("GET", "/", None, end), True)
        assert client.rest() == b""
    return seen


@pytest.mark.skipif(not LINUX, reason="the native I/O thread is Linux's")
def test_native_and_uvloop_answer_alike(serve: Serve) -> None:
    native = transcript("tcp", serve)
    assert native == transcript("uvloop-tcp", serve)
    assert len(native) == 19


@pytest.mark.skipif(not LINUX, reason="the native I/O thread is Linux's")
def test_the_loop_is_not_needed(serve: Serve) -> None:
    """The I/O thread greets, judges and proves by itself."""
    served = serve("tcp", token=TOKEN)
    with Client(served.address) as client:
        speaker = Speaker(client)
        assert speaker.greet() == "proven"
        for _ in range(3):
            speaker.ask("POST", "/handler/ping")
            refused(client.ask(re.sub(rb"m=.", b"m=x", speaker.post("ping"))))
        speaker.ask("POST", "/handler/dump_traceback?mode=nogil")
        speaker.ask("GET", "/healthz")
    assert not served.state.requests


def test_parse_reply_is_strict() -> None:
    """What the tests above rest on: a reply has one proof at most."""
    assert parse_reply(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") is not None
    assert Proof(b"k" * 32).answered(200, b"", "") is False
