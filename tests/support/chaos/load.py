"""Mixed requests to the ranks, and what came of each."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from support.wire import Client, Reply, message, post

__all__ = ["ASKED", "Load", "Tally"]

BODY = b"0123456789abcdef" * 4096
LARGE = bytes(range(256)) * 8192


def _pong(reply: Reply) -> bool:
    return reply.body == b"pong"


def _stacks(reply: Reply) -> bool:
    return b"hread" in reply.body and b"rank.py" in reply.body


def _stacks_or_mark(reply: Reply) -> bool:
    """A dump without the GIL tells of what can be read at this moment, and marks what it can't."""
    return _stacks(reply) or (
        b"No Python stacks: " in reply.body
        or reply.body.endswith(b"\n...\n")
        or b"\n  ...\n" in reply.body
        or b"\n  (unstable" in reply.body
    )


#: Requests, and whether the body of a 200 is right.
ASKED: dict[str, tuple[bytes, Callable[[Reply], bool]]] = {
    "ping": (post("ping"), _pong),
    "ping, chunked": (
        message("POST", "/handler/ping", None, [("Transfer-Encoding", "chunked")]) + b"0\r\n\r\n",
        _pong,
    ),
    "dump, GIL": (post("dump_traceback?mode=gil"), _stacks),
    "dump, no GIL": (post("dump_traceback?mode=nogil"), _stacks_or_mark),
    "metrics": (message("GET", "/metrics"), lambda reply: b"workerserver_" in reply.body),
    "healthz": (message("GET", "/healthz"), lambda reply: bool(reply.body)),
    "steps": (post("steps"), lambda reply: bool(reply.body)),
    "thread": (post("slow"), lambda reply: reply.body == b"slow"),
    "file": (post("file"), lambda reply: reply.body in (b"kept", b"full")),
    "echo": (post("echo", BODY), lambda reply: reply.body == BODY),
    "large": (post("large"), lambda reply: reply.body == LARGE),
}


@dataclass
class Tally:
    """*wrong*: replies that are never right, or that were not right although nothing, or nothing
    that excuses them, was the matter."""

    asked: int = 0
    replies: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Load:
    """Threads that ask at random. *excuse*: the fault that is there, and that may cost a reply;
    the empty text where there is none."""

    def __init__(self, paths: list[str], seed: int, pause: float, threads: int = 2) -> None:
        self.paths = paths
        self.tally = Tally()
        self._pause = pause
        self._lock = threading.Lock()
        self._excuses = 0
        self._excuse = ""
        self._ends = threading.Event()
        self._goes = threading.Event()
        self._goes.set()
        self._busy = 0
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {number}"),))
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def excuse(self, name: str) -> None:
        """From now on *name* explains what has no answer; a request counts by all its time."""
        with self._lock:
            self._excuse = name
            self._excuses += 1

    def hold(self) -> None:
        """Return when no request is under way; none begins until ``go()``."""
        self._goes.clear()
        while self._busy:
            time.sleep(0.01)

    def go(self) -> None:
        self._goes.set()

    def end(self) -> None:
        self._ends.set()
        self._goes.set()
        for thread in self._threads:
            thread.join()

    def _run(self, chance: random.Random) -> None:
        kept: dict[str, Client] = {}
        while not self._ends.wait(self._pause * chance.random()):
            if not self._goes.is_set():
                for client in kept.values():
                    client.close()
                kept.clear()
                self._goes.wait()
                continue
            with self._lock:
                if not self._goes.is_set():
                    continue
                self._busy += 1
            try:
                self._one(chance, kept)
            finally:
                with self._lock:
                    self._busy -= 1
        for client in kept.values():
            client.close()

    def _one(self, chance: random.Random, kept: dict[str, Client]) -> None:
        path = chance.choice(self.paths)
        name = chance.choice(list(ASKED))
        request, right = ASKED[name]
        with self._lock:
            before, mark = self._excuse, self._excuses
        leaves = chance.random() < 0.03
        fresh = path not in kept or chance.random() < 0.3
        client = kept.pop(path, None)
        came, body = "", b""
        try:
            if client is None or fresh:
                if client is not None:
                    client.close()
                client = Client(path, 60.0)
            if leaves:  # in the middle of its own request
                client.send(request[: chance.randrange(1, len(request))])
                client.close()
                return
            reply = client.ask(request)
            came = str(reply.status)
            if reply.status == 200 and not right(reply):
                came, body = "another body", reply.body[:2000]
            elif reply.header("connection") == "close":
                client.close()
            else:
                kept[path] = client
        except (OSError, EOFError) as error:
            came = type(error).__name__
            if client is not None:
                client.close()
        except AssertionError as error:
            came = f"malformed: {error}"
        with self._lock:
            tally = self.tally
            tally.asked += 1
            tally.replies[came] += 1
            if came in ("200", "503"):  # 503: refused, as documented, and said
                return
            excuse = before or self._excuse or ("a fault" if mark != self._excuses else "")
            if came in ("another body", "500") or came.startswith("malformed") or not excuse:
                tally.wrong.append(f"{name}: {came} ({excuse or 'no fault'}) {body!r}")
            else:
                tally.excused[f"{excuse}: {came}"] += 1
