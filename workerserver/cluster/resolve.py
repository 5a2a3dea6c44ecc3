"""Look up host names, with a bound on the time that a slow name server can take."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading

from workerserver.cluster.failures import Failed, describe

__all__ = ["Resolver", "look_up"]

#: Look-ups at one time.
MAX_THREADS = 16


class Resolver:
    """Looks each name up once. Belongs to one event loop.

    getaddrinfo() can't be stopped, so it runs in daemon threads.
    """

    def __init__(self) -> None:
        self._found: dict[str, asyncio.Future[list[str] | Failed]] = {}
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def known(self, host: str) -> list[str] | None:
        """The IP addresses of *host*, if they are known without a look-up."""
        if _is_literal(host):
            return [host]
        future = self._found.get(host)
        if future is None or not future.done():
            return None
        found = future.result()
        return None if isinstance(found, Failed) else found

    async def addresses(self, host: str) -> list[str]:
        """The IP addresses of *host*, at least one; Failed if there are none."""
        if _is_literal(host):
            return [host]
        future = self._found.get(host)
        if future is None:
            self._loop = asyncio.get_running_loop()
            future = self._found[host] = self._loop.create_future()
            self._queue.put(host)
            if self._threads < MAX_THREADS:
                self._threads += 1
                threading.Thread(target=self._work, name="resolver", daemon=True).start()
        # Shielded: a caller that gives up must not cancel what others wait for.
        result = await asyncio.shield(future)
        if isinstance(result, Failed):
            raise Failed(result.failure.reason, result.failure.text)
        return result

    def _work(self) -> None:
        while True:
            host = self._queue.get()
            result = _look_up(host)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._settle, host, result)

    def _settle(self, host: str, result: list[str] | Failed) -> None:
        if not self._found[host].done():
            self._found[host].set_result(result)


def look_up(host: str, seconds: float) -> list[str]:
    """The IP addresses of *host*, for callers without an event loop. Failed if there are none, or
    if the look-up takes longer than *seconds*."""
    if _is_literal(host):
        return [host]
    found: list[list[str] | Failed] = []
    thread = threading.Thread(target=lambda: found.append(_look_up(host)), daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise Failed("timeout", f"{host}: the name was not found in {seconds:g} s")
    if isinstance(found[0], Failed):
        raise found[0]
    return found[0]


def _look_up(host: str) -> list[str] | Failed:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return Failed("unreachable", f"{host}: {describe(error)}")
    except UnicodeError:
        return Failed("unreachable", f"{host!r} can't be a host name")
    return list(dict.fromkeys(str(address[0]) for *_, address in found)) or Failed(
        "unreachable", f"no address for {host}"
    )


def _is_literal(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True
