"""How uvloop's listeners accept: which connections have a place, and how many handshakes there are.

uvloop's own server would accept whatever comes, and begin any number of TLS handshakes at a time.
Each holds a descriptor that training may need. The rules are those of native/engine/places.pyx.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

from workerserver.process.sockets import Figures, descriptor_line
from workerserver.process.tls import ServerTls

__all__ = ["Acceptor", "Place", "Places", "Rules"]

logger = logging.getLogger("workerserver")

#: Handshakes at one time.
MAX_HANDSHAKES = 64
#: Time that a client gets to end its side after we closed ours.
FAREWELL_SECONDS = 5.0
#: Time until the next accept() after the process ran out of descriptors.
PAUSE_SECONDS = 0.1
#: Places for Unix clients and for those with the token, whatever training has opened.
KEPT = 4

#: What is known of a client: it is on a Unix socket or has shown the token; it has not shown the
#: token yet; the listener has no token.
Standing = Literal["trusted", "unproven", "open"]
UNPROVEN: tuple[Standing, ...] = ("unproven",)
STRANGERS: tuple[Standing, ...] = ("unproven", "open")


class Rules(NamedTuple):
    """What holds for the connections of one listener."""

    standing: Standing
    max_unproven: int
    max_peer: int
    timeout: float  # seconds for a TLS handshake


class Place:
    """One connection's place. *close* ends the connection; *owes_since* gives the monotonic time
    since when the client owes us bytes, None if we owe it something."""

    def __init__(self, places: Places, standing: Standing, peer: str | None) -> None:
        self._places = places
        self.standing: Standing = standing
        self.peer = peer
        self.above = False  # its number is beyond the line
        taken = time.monotonic()
        self.owes_since: Callable[[], float | None] = lambda: taken
        self.close: Callable[[], object] = self.leave

    def trust(self) -> None:
        """The client has shown the token."""
        self._places.change(self, "trusted")

    def leave(self) -> None:
        """The connection is closed."""
        self._places.give(self)


class Places:
    """All connections that uvloop's listeners of one loop have. For the loop's thread only."""

    def __init__(self) -> None:
        self._taken: dict[Place, None] = {}
        self._standing: Counter[Standing] = Counter()
        self._peers: Counter[str] = Counter()
        self.evicted = 0  # connections that made room
        self.refused = 0  # newcomers without a place
        # uvloop closes what is evicted only in its next turn. So a newcomer may keep a number
        # beyond the line, and the number that has become free says nothing of how many are in use.
        # Until no place is beyond the line, the count of places does: at most as many as when the
        # line was last met.
        self._above = 0
        self._full = 0

    @property
    def figures(self) -> Figures:
        """What is taken; from any thread."""
        busiest = max(list(self._peers.values()), default=0)
        return Figures(self._standing["unproven"], busiest, self.evicted, self.refused)

    def take(self, sock: socket.socket, peer: str | None, rules: Rules) -> Place | None:
        """A place for *sock*, which was just accepted; None if there is none. The socket may get
        another descriptor."""
        if self._has_room(sock, peer, rules):
            place = Place(self, rules.standing, peer)
            place.above = sock.fileno() > descriptor_line()
            self._above += place.above
            self._taken[place] = None
            self._standing[rules.standing] += 1
            if peer is not None:
                self._peers[peer] += 1
            return place
        self.refused += 1
        return None

    def change(self, place: Place, standing: Standing) -> None:
        if place in self._taken:
            self._standing[place.standing] -= 1
            place.standing = standing
            self._standing[standing] += 1

    def give(self, place: Place) -> None:
        if self._taken.pop(place, self) is self:
            return
        self._above -= place.above
        self._standing[place.standing] -= 1
        if place.peer is not None:
            self._peers[place.peer] -= 1
            if not self._peers[place.peer]:
                del self._peers[place.peer]

    def _has_room(self, sock: socket.socket, peer: str | None, rules: Rules) -> bool:
        trusted = self._standing["trusted"]
        crowded = rules.standing == "unproven" and self._standing["unproven"] >= rules.max_unproven
        if crowded and not self.evict(UNPROVEN):
            return False
        crowded = peer is not None and self._peers[peer] >= rules.max_peer
        if crowded and not self.evict(get_args(Standing), peer):
            return False
        below = sock.fileno() <= descriptor_line()
        if not below:
            self._full = len(self._taken)
        if (below and (not self._above or len(self._taken) < self._full)) or (
            len(self._taken) < KEPT
        ):
            return True
        if rules.standing == "trusted" and trusted < KEPT:
            return True
        spare: tuple[Standing, ...] = ()
        if rules.standing == "trusted" or trusted > KEPT:
            spare = ("trusted",)
        if not self.evict(STRANGERS) and not self.evict(spare):
            return False
        # The number of the one that went may be free. With it, the next number that accept()
        # returns goes on to be a measure.
        lower = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 3)
        sock.close()
        sock.__init__(fileno=lower)  # type: ignore[misc]
        return True

    def evict(self, standings: Collection[Standing], peer: str | None = None) -> bool:
        """Close the connection, of one of *standings* and of *peer*, that has owed us bytes for the
        longest time; False if there is none."""
        oldest: tuple[float, Place] | None = None
        for place in self._taken:
            if place.standing in standings and peer in (None, place.peer):
                since = place.owes_since()
                if since is not None and (oldest is None or since < oldest[0]):
                    oldest = since, place
        if oldest is None:
            return False
        self.evicted += 1
        self.give(oldest[1])
        oldest[1].close()
        return True


class _Doorman(asyncio.Protocol):
    """Looks at the client's certificate. *protocol* gets the connection, or nobody does."""

    def __init__(self, protocol: Any, tls: ServerTls) -> None:
        self._protocol = protocol
        self._tls = tls

    def connection_made(self, transport: Any) -> None:
        certificate = transport.get_extra_info("peercert")
        if self._tls.admits(certificate):
            transport.set_protocol(self._protocol)
            self._protocol.connection_made(transport)
            return
        logger.warning(
            "TLS: a client at %s has a certificate without a name of the list",
            (transport.get_extra_info("peername") or ("?",))[0],
        )
        transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.place.leave()


class Acceptor:
    """Accepts the connections of one *listener* until close(). Only the loop's thread may use it.

    *factory* makes a connection's protocol, which gets its Place as the attribute ``place``. With
    *tls*, the protocol hears of the connection after the handshake, and of no client whose
    certificate has a wrong name.
    """

    def __init__(
        self,
        listener: socket.socket,
        tls: ServerTls | None,
        factory: Callable[[], Any],
        places: Places,
        rules: Rules,
    ) -> None:
        self._tls = tls
        self._factory = factory
        self._places = places
        self._rules = rules
        self._loop: Any = asyncio.get_running_loop()  # uvloop's knows more than mypy
        # The oldest first; with the peer's host.
        self._handshakes: dict[asyncio.Task[None], str] = {}
        self._task = self._loop.create_task(self._accept(listener))

    def close(self) -> None:
        """Accept no more connections, and end the handshakes under way. The task closes the
        listener soon after."""
        for task in (self._task, *self._handshakes):
            task.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        # Here and not in close(): until the task has ended, the loop watches the descriptor.
        with listener:
            while True:
                try:
                    sock, peer = await self._loop.sock_accept(listener)
                except OSError as error:
                    logger.debug("no connection could be accepted: %s", error)
                    if error.errno in (errno.EMFILE, errno.ENFILE):
                        self._places.evict(STRANGERS)
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                host = peer[0] if isinstance(peer, tuple) else None
                place = self._places.take(sock, host, self._rules)
                if place is None:
                    sock.close()
                elif self._tls is None:
                    await self._take_in(sock, place)
                else:
                    self._make_room(peer[0])
                    task = self._loop.create_task(self._take_in(sock, place))
                    place.close = task.cancel
                    self._handshakes[task] = peer[0]
                    task.add_done_callback(partial(self._ended, sock, place))

    def _make_room(self, host: str) -> None:
        """If no place is left for *host*, end the oldest handshake of the peer that has most.

        So who says nothing loses the place, and not who comes next; and a peer with a few
        handshakes keeps them, however many another peer begins.
        """
        if len(self._handshakes) < MAX_HANDSHAKES:
            return
        counts = Counter(self._handshakes.values())
        counts[host] += 1
        ((busiest, _),) = counts.most_common(1)
        task = next((each for each, peer in self._handshakes.items() if peer == busiest), None)
        if task is None:  # each peer has one
            task = next(iter(self._handshakes))
        del self._handshakes[task]
        task.cancel()

    def _ended(self, sock: socket.socket, place: Place, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)
        if task.cancelled():  # perhaps before its first step, in which uvloop takes the socket over
            place.leave()
            sock.close()

    async def _take_in(self, sock: socket.socket, place: Place) -> None:
        protocol = first = self._factory()
        options: dict[str, Any] = {}
        if self._tls is not None:
            first = _Doorman(protocol, self._tls) if self._tls.names else protocol
            options = {
                "ssl": self._tls.context,
                "ssl_handshake_timeout": self._rules.timeout,
                "ssl_shutdown_timeout": FAREWELL_SECONDS,
            }
        protocol.place = place
        try:
            await self._loop.connect_accepted_socket(lambda: first, sock, **options)
        except (OSError, asyncio.TimeoutError) as error:
            # The client spoke no TLS, or doesn't trust our certificate. It knows that itself.
            logger.debug("a connection was not taken in: %s", error)
            place.leave()
            with contextlib.suppress(OSError):
                sock.close()
