"""TLS: what a listener is given, and how it takes connections in.

TLS runs on uvloop's transports, so nothing is answered without the GIL here. uvloop's own server
would begin any number of handshakes at a time, each of them a descriptor that training may need:
so connections are accepted here, a bounded number at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

__all__ = ["Acceptor", "tls_from_environment"]

logger = logging.getLogger("workerserver")

CERTIFICATE, KEY = "WORKERSERVER_TLS_CERT", "WORKERSERVER_TLS_KEY"
#: Handshakes under way; what comes beyond is closed.
HANDSHAKES = 64
#: Seconds that the other side may take to end its part of a connection that is closed.
FAREWELL = 5.0
#: Seconds until the next attempt where no descriptor was to be had.
PAUSE = 0.1


def tls_from_environment() -> ssl.SSLContext | None:
    """A context with the certificate (and its chain) in the file WORKERSERVER_TLS_CERT and the key
    in WORKERSERVER_TLS_KEY, by default in the same file; None if neither is set.

    Raises ValueError for files that hold none: serving in the clear where somebody asked for TLS
    would be worse than not serving.
    """
    certificate, key = os.environ.get(CERTIFICATE, ""), os.environ.get(KEY, "")
    if not certificate:
        if key:
            raise ValueError(f"{KEY} is set, but not {CERTIFICATE}")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key or None, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = f"{CERTIFICATE} {certificate}" + (f", {KEY} {key}" if key else "")
        raise ValueError(f"{files}: no certificate with its key: {error}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to be asked for its password")


class Acceptor:
    """Takes the connections of one *listener* in, until it is closed. Belongs to the loop.

    *factory* makes a protocol for each, once the handshake is done, in as many seconds as a head
    may take.
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
        self._handshakes: set[asyncio.Task[None]] = set()
        self._task = self._loop.create_task(self._accept(listener))

    def close(self) -> None:
        """No more connections; handshakes under way end. The listener is closed soon."""
        for task in (self._task, *self._handshakes):
            task.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        # Here and not in close(): until the task has ended, the loop watches the descriptor.
        with listener:
            while True:
                try:
                    sock, _ = await self._loop.sock_accept(listener)
                except OSError as error:
                    logger.debug("no connection could be accepted: %s", error)
                    await asyncio.sleep(PAUSE)
                    continue
                if len(self._handshakes) >= HANDSHAKES:
                    sock.close()
                    continue
                task = self._loop.create_task(self._take_in(sock))
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)

    async def _take_in(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._factory,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=self._timeout,
                ssl_shutdown_timeout=FAREWELL,
            )
        except (OSError, asyncio.TimeoutError) as error:
            # Whoever it was spoke no TLS, or doesn't trust us: that is theirs to tell.
            logger.debug("a connection ended before it was one of TLS: %s", error)
