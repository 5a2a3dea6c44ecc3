"""Many clients that send requests at random moments, in pieces, and account for every reply."""

from __future__ import annotations

import heapq
import itertools
import random
import re
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from support.wire import Address, Reply, message, parse_reply, post

#: Handlers that record an id. OTHERS maps all other handlers to the beginning of their answers.
RECORDING = ("inline", "plain", "coroutine")
OTHERS = {
    "ping": b"pong",
    "dump_traceback": b"Thread |Current |Python stacks",
    "dump_traceback?format=digest": b'{"version"',
    "missing": b"Handler ",
}
QUIET = 0.3  # seconds; after such a silence no more bytes are expected


@dataclass
class Asked:
    """One request. *id* is None if the handler records nothing."""

    id: int | None
    name: str


@dataclass
class Account:
    """The outcomes of the requests that handlers record, and of the other requests."""

    answered: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    unanswered: set[int] = field(default_factory=set)  # after a reply that ended the connection
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, ran: list[int]) -> None:
        """Check that exactly the requests that ran have their handler's answer, and ran once."""
        times = Counter(ran)
        assert not self.wrong, self.wrong[:10]
        assert not [id for id, number in times.items() if number > 1]
        lost = set(times) - self.answered
        assert not lost, f"ran, but {len(lost & self.refused)} of {len(lost)} got a 503"
        assert self.answered <= set(times)


class Peer:
    """One connection after the other. Sends the pieces of an exchange and reads the replies."""

    def __init__(self, race: Race, address: Address) -> None:
        self.race = race
        self.address = address
        self.sock: socket.socket | None = None
        self.asked: list[Asked] = []
        self.data = b""
        self.pieces: list[bytes] = []
        self.ended = False
        self.final = False  # the last reply said Connection: close

    def begin(self) -> None:
        """Choose an exchange and send its first piece now."""
        race = self.race
        if self.sock is None:
            self.sock = race.connect(self.address)
            race.selector.register(self.sock, selectors.EVENT_READ, self)
            self.data, self.ended, self.final = b"", False, False
        choose = race.choose
        requests = []
        self.asked = []
        for _ in range(choose.choice((1, 1, 1, 2, 3, 6))):
            asked, request = race.request()
            self.asked.append(asked)
            requests.append(request)
        data = b"".join(requests)
        race.begun.extend(asked.id for asked in self.asked if asked.id is not None)
        cuts = sorted(choose.sample(range(1, len(data)), choose.choice((0, 0, 1, 2))))
        self.pieces = [data[a:b] for a, b in itertools.pairwise((0, *cuts, len(data)))]
        self.send()

    def send(self) -> None:
        if self.sock is None or not self.pieces:  # the connection has ended since
            return
        piece = self.pieces.pop(0)
        try:
            self.sock.sendall(piece)
        except OSError as error:
            if not self.final:
                self.race.account.wrong.append(f"send: {error!r}")
            self.end()
            return
        if self.pieces:
            self.race.later(self.race.choose.choice((0.0, 0.01, 0.1, 0.25)), self.send)

    def read(self) -> None:
        assert self.sock is not None
        account = self.race.account
        try:
            piece = self.sock.recv(1 << 18)
        except OSError as error:
            piece = b""
            if not self.final:
                account.wrong.append(f"recv: {error!r} before {self.asked}")
        self.data += piece
        while (found := parse_reply(self.data)) is not None:
            reply, self.data = found
            self.take(reply)
        if not piece:
            self.end()
        elif not self.asked and not self.pieces:
            self.race.later(self.race.choose.choice((0.0, 0.0, 0.02, 0.1, 0.3)), self.next)

    def take(self, reply: Reply) -> None:
        account = self.race.account
        if not self.asked:
            account.wrong.append(f"one reply too many: {reply}")
            return
        asked = self.asked.pop(0)
        account.statuses[f"{asked.name} {reply.status}"] += 1
        if self.final:
            account.wrong.append(f"a reply behind the last: {reply}")
        self.final = reply.header("connection") == "close"
        if reply.status == 503:
            if reply.header("retry-after") is None:
                account.wrong.append(f"503 without Retry-After: {reply}")
            if asked.id is not None:
                account.refused.add(asked.id)
        elif asked.id is None:
            if not re.match(OTHERS[asked.name], reply.body):
                account.wrong.append(f"{asked.name}: {reply}")
        elif (reply.status, reply.text) == (200, str(asked.id)):
            account.answered.add(asked.id)
        else:
            account.wrong.append(f"{asked}: {reply}")

    def next(self) -> None:
        if self.asked or self.pieces or (self.final and self.sock is not None):
            return
        if self.race.over():
            self.race.idle(self)
        else:
            self.begin()

    def end(self) -> None:
        """The server has ended the connection. It may do so if its last reply announced the end."""
        if self.sock is None:
            return
        account = self.race.account
        if self.asked and not self.final:
            account.wrong.append(f"no reply to {self.asked}; read {self.data[:80]!r}")
        account.unanswered.update(asked.id for asked in self.asked if asked.id is not None)
        self.race.selector.unregister(self.sock)
        self.sock.close()
        self.sock = None
        self.asked, self.pieces = [], []
        self.race.later(0.0, self.next)


class Race:
    """*peers* clients at *addresses* in turn, for *seconds*, and the account of their replies."""

    def __init__(self, addresses: list[Address], peers: int, seconds: float, seed: int) -> None:
        self.choose = random.Random(seed)
        self.selector = selectors.DefaultSelector()
        self.account = Account()
        self.begun: list[int] = []
        self._ids = itertools.count(1)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._until = time.monotonic() + seconds
        self._peers = [Peer(self, addresses[i % len(addresses)]) for i in range(peers)]
        self._busy = set(self._peers)

    def request(self) -> tuple[Asked, bytes]:
        choose = self.choose
        if choose.random() < 0.3:
            name = choose.choice(tuple(OTHERS))
            return Asked(None, name), post(name)
        name = choose.choice(RECORDING)
        id = next(self._ids)
        target = f"/handler/{name}?id={id}"
        form = choose.random()
        if form < 0.6:
            request = post(f"{name}?id={id}")
        elif form < 0.8:
            request = message("POST", target, b"x" * choose.choice((1, 40, 3000)))
        elif form < 0.9:
            chunked = [("Transfer-Encoding", "chunked")]
            request = message("POST", target, None, chunked) + b"4\r\nabcd\r\n0\r\n\r\n"
        else:
            request = message("POST", target, b"", [("Connection", "close")])
        return Asked(id, name), request

    def connect(self, address: Address) -> socket.socket:
        if isinstance(address, str):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address)
        else:
            sock = socket.create_connection(address)
        return sock

    def later(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), what))

    def over(self) -> bool:
        return time.monotonic() >= self._until

    def idle(self, peer: Peer) -> None:
        """*peer* has nothing more to do. A reply that still comes is one too many."""
        self._busy.discard(peer)

    def run(self, patience: float = 30.0) -> Account:
        """Raises AssertionError if replies are missing *patience* seconds after the end."""
        for peer in self._peers:
            self.later(self.choose.uniform(0.0, 0.3), peer.next)
        try:
            while self._busy:
                self._once()
                if time.monotonic() > self._until + patience:
                    owed = [(peer.asked, peer.data) for peer in self._peers if peer.asked]
                    raise AssertionError(f"{len(owed)} connections wait for replies: {owed[:5]}")
            quiet = time.monotonic() + QUIET
            while time.monotonic() < quiet:
                self._once()
        finally:
            self.selector.close()
            for peer in self._peers:
                if peer.sock is not None:
                    peer.sock.close()
        return self.account

    def _once(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        wait = min(0.05, self._timers[0][0] - now) if self._timers else 0.05
        for key, _ in self.selector.select(max(0.0, wait)):
            key.data.read()
