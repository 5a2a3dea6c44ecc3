"""TLS: a listener's certificate, and how its connections are accepted.

With TLS, a worker whose GIL is held does not answer: TLS runs on uvloop's transports. uvloop's own
server would begin any number of handshakes at a time, and each holds a descriptor that training may
need. So connections are accepted here, and the number of handshakes is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from workerserver.process.credentials import plain_reason

__all__ = ["Acceptor", "tls_from_environment"]

logger = logging.getLogger("workerserver")

CERTIFICATE, KEY = "WORKERSERVER_TLS_CERT", "WORKERSERVER_TLS_KEY"
#: Handshakes at one time.
MAX_HANDSHAKES = 64
#: Time that a client gets to end its side after we closed ours.
FAREWELL_SECONDS = 5.0
#: Time until the next accept() after the process ran out of descriptors.
PAUSE_SECONDS = 0.1


def tls_from_environment() -> ssl.SSLContext | None:
    """A context from the file WORKERSERVER_TLS_CERT (the certificate and its chain) and the file
    WORKERSERVER_TLS_KEY (the key; by default in the first file). None if neither variable is set.

    Raises ValueError if the files can't be used: if somebody asked for TLS, no server is better
    than a server without TLS.
    """
    certificate, key = os.environ.get(CERTIFICATE, ""), os.environ.get(KEY, "")
    if not certificate:
        if key:
            raise ValueError(f"{KEY} is set, but not {CERTIFICATE}")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key or None, password=_no_password)
    except (OSError, ValueError) as error:
        files = f"{CERTIFICATE} {certificate}" + (f", {KEY} {key}" if key else "")
        if isinstance(error, (ssl.SSLError, ValueError)):
            reason = str(error)
        else:
            reason = plain_reason(error)
        raise ValueError(f"{files}: no certificate with its key: {reason}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to be asked for its password")


class Acceptor:
    """Accepts the connections of one *listener* until close(). Only the loop's thread may use it.

    A handshake may take *timeout* seconds. After the handshake, *factory* makes the connection's
    protocol.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        factory: Callable[[], Any],
        timeout: float,
    ) -> None:
        self._context = context
        self._factory = factory
        self._timeout = timeout
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
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                self._make_room(peer[0])
                task = self._loop.create_task(self._take_in(sock))
                self._handshakes[task] = peer[0]
                task.add_done_callback(partial(self._ended, sock))

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

    def _ended(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)
        if task.cancelled():  # perhaps before its first step, in which uvloop takes the socket over
            sock.close()

    async def _take_in(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._factory,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=self._timeout,
                ssl_shutdown_timeout=FAREWELL_SECONDS,
            )
        except (OSError, asyncio.TimeoutError) as error:
            # The client spoke no TLS, or doesn't trust our certificate. It knows that itself.
            logger.debug("a TLS handshake failed: %s", error)
