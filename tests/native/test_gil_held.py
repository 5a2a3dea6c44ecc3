"""A C call holds the GIL: some requests are answered, the others are refused and never run.

``make long`` runs it for a minute with a million pings; then times are asserted, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS, Talker, talking
from support.pings import descriptors, pings
from support.requests.race import Race
from support.requests.speaker import Speaker
from support.waiting import wait_until
from support.wire import Address, Client, Reply, ask, message, post

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the native I/O thread is Linux's")

#: Seconds that the GIL is held (0: the short form), and seconds of the race.
SOAK = float(os.environ.get("WORKERSERVER_SOAK_GIL", "0"))
METRICS = message("GET", "/metrics")
TORCH_STANDS_BY = re.compile(rb"\nworkerserver_torch_fallback_threads [1-9]")
RACE = float(os.environ.get("WORKERSERVER_SOAK_RACE", "2"))
PINGS = 1_000_000 if SOAK else 300
DUMPS = 1000 if SOAK else 150
REQUESTS = 200 if SOAK else 60

HELD_LINE = next(
    number
    for number, line in enumerate((PROGRAMS / "native/gil_scene.py").read_text().splitlines(), 1)
    if line.endswith("# held here")
)


class Scene:
    """The scene's process and where it serves."""

    def __init__(self, talker: Talker, folder: Path) -> None:
        self.talker = talker
        self.path = str(folder / "s")
        self.release = folder / "release"
        self.tcp = ("127.0.0.1", int(self.hear()))

    def hear(self, seconds: float = 60.0) -> Any:
        return json.loads(self.talker.hear(seconds))

    def say(self, line: str) -> Any:
        self.talker.say(line)
        return self.hear()

    def _dumps_without_gil(self, probe: bytes) -> bool:
        with Client(self.path) as client:
            # The loop may have claimed the request in the moment in which the GIL was taken: that
            # answer comes when the GIL is free.
            client.socket.settimeout(3)
            with contextlib.suppress(TimeoutError):
                return client.ask(probe).header("x-traceback-mode") == "nogil"
        return False

    @contextlib.contextmanager
    def held(self, seconds: float = 0.0, fields: Iterable[tuple[str, str]] = ()) -> Iterator[None]:
        """The GIL is held, from before until after, for *seconds* at least. *fields* of a request
        that may be answered."""
        until = time.monotonic() + seconds
        assert self.say("hold") == "holding"
        probe = post("dump_traceback", b"", fields)
        while not self._dumps_without_gil(probe):
            assert time.monotonic() < until + 60, "the GIL is not held"
        try:
            yield
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            with open(self.release, "wb", buffering=0) as pipe:
                pipe.write(b"+")
        assert self.hear() == "held"


@contextlib.contextmanager
def scene(folder: Path, *arguments: str, **environment: str) -> Iterator[Scene]:
    os.mkfifo(folder / "release")
    with talking("native/gil_scene.py", str(folder), *arguments, **environment) as talker:
        yield Scene(talker, folder)


def asked_at_once(address: Address, requests: list[bytes]) -> list[Client]:
    """A connection for each request, all sent before anything is read."""
    clients = []
    for request in requests:
        clients.append(Client(address))
        clients[-1].send(request)
    return clients


def only_replies(clients: list[Client]) -> list[Reply]:
    """The reply of each, and nothing behind it."""
    replies = []
    for client in clients:
        with client:
            replies.append(client.reply())
            client.half_close()
            assert client.rest() == b""
    return replies


def check_dump(reply: Reply) -> None:
    """The main thread holds the GIL in load_checkpoint(), and the loader waits."""
    assert reply.status == 200
    assert reply.header("x-traceback-mode") == "nogil"
    holder = reply.header("x-gil-holder")
    assert holder is not None
    (current,) = re.findall(r"^Current thread (0x\w+) .*:\n  File (.*)$", reply.text, re.M)
    assert holder.partition(" ")[::2] == (current[0], "(MainThread)")
    assert re.fullmatch(rf'".*/gil_scene\.py", line {HELD_LINE} in load_checkpoint', current[1])
    assert re.search(r'gil_scene\.py", line \d+ in wait_for_batch$', reply.text, re.M)


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_held_from_the_start(short_path: Path) -> None:
    """The constructor returns once the I/O thread no longer needs the GIL. So whoever takes the
    GIL right behind the constructor keeps nobody from an answer."""
    os.mkfifo(short_path / "release")
    path = str(short_path / "s")
    with talking("native/held_from_the_start.py", str(short_path)) as talker:
        try:
            wait_until(lambda: listens(path))
            assert ask(path, post("ping")).body == b"pong"
            held = "x-traceback-mode"
            wait_until(lambda: ask(path, post("dump_traceback")).header(held) == "nogil")
        finally:
            with open(short_path / "release", "wb", buffering=0) as pipe:
                pipe.write(b"+")
        assert talker.hear(60.0) == "ended"


def test_no_rule_is_forgotten(short_path: Path) -> None:
    """Nothing is answered where a rule can't be asked without the GIL: neither at once nor late."""
    with scene(short_path, "closed", WORKERSERVER_GIL_TIMEOUT="60") as held:
        closed = str(short_path / "closed"), ("127.0.0.1", int(held.hear()))
        modes = ("", "?mode=auto", "?mode=gil", "?mode=nogil")
        requests = [post(name) for name in ("ping", "inline?id=1", "nope")]
        requests += [post(f"dump_traceback{mode}") for mode in modes]
        requests += [message("GET", path) for path in ("/", "/healthz", "/handler/", "/nope")]
        with held.held():
            waiting = [client for place in closed for client in asked_at_once(place, requests * 2)]
            for place in closed:
                waiting.append(Client(place))
                waiting[-1].send(post("ping") * 3)
            # This request came last, and its deadline has passed. So all deadlines have passed.
            assert ask(held.path, message("GET", "/handler/")).status == 200
            assert ask(held.path, message("GET", "/")).status == 200
        for client in waiting[-2:]:
            assert [client.reply().status for _ in range(2)] == [403, 403]
        for reply in only_replies(waiting):
            assert (reply.status, reply.text) == (403, "Forbidden: closed today")
        assert held.say("ran") == []


def test_a_missing_token_is_refused(short_path: Path) -> None:
    """401 at once, and not 503 after a while: a rule's sure refusal needs no GIL."""
    environment = {"WORKERSERVER_TOKEN": "s3cret", "WORKERSERVER_GIL_TIMEOUT": "60"}
    token = [("Authorization", "Bearer s3cret")]
    with scene(short_path, **environment) as held:
        unsure = [("Authorization", "Bearer  wrong")]  # so that the policy itself decides
        with held.held(fields=token):
            waiting = asked_at_once(held.path, [post("dump_traceback", b"", unsure)] * 2)
            waiting += asked_at_once(held.tcp, [message("GET", "/handler/", None, unsure)] * 2)
            for address in (held.path, held.tcp):
                for request in (post("ping"), post("inline?id=1"), message("GET", "/nope")):
                    assert ask(address, request).status == 401
                wrong = post("inline?id=1", b"", [("Authorization", "Basic s3cret")])
                assert ask(address, wrong).status == 401
                assert ask(address, post("ping", b"", token)).status == 200
                late = ask(address, post("dump_traceback", b"", token))
                assert (late.status, late.header("x-traceback-mode")) == (200, "nogil")
        assert [reply.status for reply in only_replies(waiting)] == [401] * 4
        assert held.say("ran") == []


def test_a_token_for_less_runs_nothing(short_path: Path) -> None:
    """A request that needs more than its token permits, asked in seven ways while the GIL is held:
    nothing of it runs, then or later. What the token permits is answered at once."""
    environment = {
        "WORKERSERVER_TOKEN": "for-all",
        "WORKERSERVER_TOKEN_READ": "to-read",
        "WORKERSERVER_GIL_TIMEOUT": "60",
    }
    read = [("Authorization", "Bearer to-read")]
    body = [*read, ("Transfer-Encoding", "chunked")]
    ways = {
        "plain": post("inline?id=1", b"", read),
        "a slash": post("inline/?id=2", b"", read),
        "an escape": post("%69nline?id=3", b"", read),
        "HTTP/1.0": message("POST", "/handler/inline?id=4", b"", read, version="1.0"),
        "chunked": message("POST", "/handler/inline?id=5", None, body) + b"1\r\nx\r\n0\r\n\r\n",
        "behind a ping": post("ping", b"", read) + post("inline?id=6", b"", read),
    }
    with scene(short_path, **environment) as held, contextlib.ExitStack() as stack:
        asked = []
        with held.held(fields=[("Authorization", "Bearer for-all")]):
            for address in (held.path, held.tcp):
                for name, request in ways.items():
                    client = stack.enter_context(Client(address))
                    client.send(request)
                    asked.append((name, client))
                client = stack.enter_context(Client(address))
                speaker = Speaker(client, "to-read", "read")  # the seventh way: by proof
                assert speaker.greet() == "proven"
                assert speaker.ask("POST", "/handler/ping").text == "pong"
                client.send(speaker.post("inline?id=7"))
                asked.append(("proof", client))
                assert ask(address, post("ping", b"", read)).status == 200
                assert ask(address, post("dump_traceback?mode=nogil", b"", read)).status == 200
        for name, client in asked:
            if name == "behind a ping":
                assert client.reply().status == 200
            reply = client.reply()
            assert (reply.status, "not read" in reply.text) == (403, True), name
        assert held.say("ran") == []


def test_a_proof_needs_no_gil(short_path: Path) -> None:
    """Both ends prove the token while the GIL is held, and what the loop alone can answer gets a
    503 that is proven too."""
    environment = {"WORKERSERVER_TOKEN": "s3cret", "WORKERSERVER_GIL_TIMEOUT": "2"}
    token = [("Authorization", "Bearer s3cret")]
    with scene(short_path, **environment) as held:
        for address in (held.path, held.tcp):
            with Client(address) as client, held.held(fields=token):
                speaker = Speaker(client)
                assert speaker.greet() == "proven"
                assert speaker.ask("POST", "/handler/ping").text == "pong"
                assert speaker.ask("GET", "/handler/").status == 200
                check_dump(speaker.ask("POST", "/handler/dump_traceback"))
                wrong = speaker.post("ping").replace(b", m=", b", m=0")
                assert client.ask(wrong).status == 401
                assert speaker.ask("GET", "/healthz").status == 200
                refused = speaker.ask("POST", "/handler/inline?id=1")
                assert (refused.status, "was not run" in refused.text) == (503, True)
                assert speaker.ask("POST", "/handler/ping").text == "pong"
                again = speaker.post("ping")
                assert [client.ask(again).status for _ in range(2)] == [200, 401]
        assert held.say("ran") == []


def test_what_is_answered(short_path: Path) -> None:
    environment = {"WORKERSERVER_GIL_TIMEOUT": "1", "WORKERSERVER_GIL_WATCH": "0.2"}
    with descriptors(4096), scene(short_path, **environment) as held:
        names = json.loads(ask(held.path, message("GET", "/handler/")).body)
        facts: dict[str, Any] = {}
        with held.held(SOAK):
            begin = time.monotonic()
            check_dump(ask(held.path, post("dump_traceback")))
            facts["dump"] = time.monotonic() - begin
            check_dump(ask(held.tcp, post("dump_traceback?mode=nogil")))
            shape = json.loads(ask(held.path, post("dump_traceback?format=json")).body)
            stacks = {thread["name"]: thread for thread in shape["threads"]}
            assert stacks["MainThread"]["current"]
            assert stacks["MainThread"]["ident"] == shape["gil_holder"]
            assert "wait_for_batch" in {f["function"] for f in stacks["loader"]["frames"]}
            assert ask(held.tcp, message("GET", "/")).status == 200
            assert json.loads(ask(held.path, message("GET", "/handler/")).body) == names
            health = json.loads(ask(held.path, message("GET", "/healthz")).body)
            assert health["gil_unavailable_s"] > 0
            for address in (held.path, held.tcp):
                told = json.loads(ask(address, post("steps")).body)
                assert [step for step, _ in told["beats"]] == [6, 7]

            # Each request for a Python handler gets one 503, and no such handler ever runs.
            requests = [
                post(f"{('inline', 'plain', 'coroutine')[id % 3]}?id={id}")
                for id in range(REQUESTS)
            ]
            waiting = asked_at_once(held.path, requests[: REQUESTS // 2])
            waiting += asked_at_once(held.tcp, requests[REQUESTS // 2 :])
            for reply in only_replies(waiting):
                assert reply.status == 503
                assert int(reply.header("retry-after") or 0) >= 1
                assert "GIL" in reply.text

            facts["ping"] = pings(short_path, held.path, PINGS)
            facts["ping over TCP"] = pings(short_path, held.tcp, PINGS // 10)
            waiting = asked_at_once(held.path, [post("dump_traceback")] * DUMPS)
            facts["ping beside dumps"] = pings(short_path, held.path, PINGS // 50)
            for reply in only_replies(waiting):
                check_dump(reply)
        assert held.say("ran") == []
        assert ask(held.path, post("inline?id=7")).text == "7"
        assert held.say("ran") == [7]
        health = json.loads(ask(held.path, message("GET", "/healthz")).body)
        assert health["gil_unavailable_s"] < 1 <= health["gil_wait_max_s"]
    if SOAK:
        print(json.dumps(facts, indent=1))
        assert facts["dump"] < 0.5
        for name in ("ping", "ping over TCP", "ping beside dumps"):
            assert facts[name]["p99"] < 1000


def test_a_large_reply_goes_on(short_path: Path) -> None:
    """While no thread can run Python, the I/O thread still sends an earlier answer of a handler."""
    size = 251 * 40_000
    with scene(short_path) as held:
        for address in (held.path, held.tcp):
            with Client(address) as client:
                client.send(post(f"large?size={size}"))
                first = client.socket.recv(1)  # it has been answered
                with held.held():
                    client._data = first
                    reply = client.reply()
                    assert reply.body == bytes(range(251)) * 40_000


@pytest.mark.torch
def test_what_torch_answers(short_path: Path) -> None:
    """torch's C++ handlers, through torch's own server."""
    pytest.importorskip("torch")
    environment = {"TORCH_FR_BUFFER_SIZE": "2000", "WORKERSERVER_TORCH_FALLBACK": "1"}
    with scene(short_path, "torch", **environment) as held:
        # torch's own server is started some milliseconds after ours.
        wait_until(lambda: TORCH_STANDS_BY.search(ask(held.path, METRICS).body) is not None)
        before = {
            name: json.loads(ask(held.path, post(name)).body)
            for name in ("fr_trace_json?includestacktraces=false", "wait_counter_values")
        }
        with held.held():
            for name, content in before.items():
                reply = ask(held.path, post(name))
                assert reply.status == 200, reply
                assert json.loads(reply.body).keys() == content.keys()
            check_dump(ask(held.path, post("dump_traceback")))
        for name in before:
            assert ask(held.path, post(name)).status == 200


@pytest.mark.parametrize("seed", [1, 2])
def test_every_request_gets_one_reply(seed: int, short_path: Path) -> None:
    """The GIL comes and goes around the deadlines: what ran was answered by its handler, what was
    refused never ran, whole, in pieces and pipelined."""
    environment = {"WORKERSERVER_GIL_DEADLINE": "0.05", "WORKERSERVER_GIL_TIMEOUT": "0.1"}
    with descriptors(4096), scene(short_path, **environment) as held:
        addresses: list[Address] = [held.path, held.tcp]
        held.talker.say(f"bursts {RACE + 1} {seed}")
        account = Race(addresses, 300 if RACE > 10 else 80, RACE, seed).run()
        assert held.hear(RACE + 30) > RACE
        account.check(held.say("ran"))
        assert account.answered
        assert account.refused
    if RACE > 10:
        print(json.dumps(account.statuses, indent=1, sort_keys=True))
