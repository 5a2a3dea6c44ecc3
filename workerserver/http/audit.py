"""Lines in the log about who was refused, and about who asked for what costs or changes something.

They go to the logger ``workerserver.audit``, at INFO: a training script that wants them says so. No
line has a query, a header field or a body, since any of them may hold a secret.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workerserver.types import WorkerServerError

if TYPE_CHECKING:
    from workerserver._parser import ParsedRequest

__all__ = ["Audit"]

logger = logging.getLogger("workerserver.audit")

#: At most so many lines in so many seconds; the others are only counted.
MAX_LINES = 20
SECONDS = 10.0
REFUSALS = (401, 403)
MAX_PATH_CHARACTERS = 100


class Audit:
    """The lines of one server. For the loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._lines = 0
        self._left_out = 0

    def failed(
        self, error: WorkerServerError, transport: Any, request: ParsedRequest | None = None
    ) -> None:
        """*error* is the answer to *request*; None: to a connection, or to a request whose body has
        not come. A line if somebody is refused."""
        if error.status not in REFUSALS:
            return
        if request is None:
            self._write("refused with %d: %s", (error.status, _shown(str(error))), transport)
            return
        what = request.method.decode("latin-1"), request.path.decode("latin-1")
        self._write("refused with %d: %s %s", (error.status, *map(_shown, what)), transport)

    def refused_many(self, count: int) -> None:
        """The I/O thread has refused *count* requests without a valid token by itself."""
        self._write("refused with 401: %d more requests", (count,))

    def served(self, permission: str, name: str, transport: Any) -> None:
        """Handler *name*, which needs *permission*, is about to run."""
        self._write("%s: handler %s", (permission, _shown(name)), transport)

    def _write(self, text: str, values: tuple[object, ...], transport: Any = None) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        now = self._clock()
        if now - self._since >= SECONDS:
            if self._left_out:
                logger.info("%d more lines were left out", self._left_out)
            self._since = now
            self._lines = self._left_out = 0
        if self._lines >= MAX_LINES:
            self._left_out += 1
            return
        self._lines += 1
        logger.info(f"{text}%s", *values, _from(transport))


def _shown(text: str) -> str:
    """For one line of a log: ASCII without control characters."""
    return ascii(text[:MAX_PATH_CHARACTERS])[1:-1]


def _from(transport: Any) -> str:
    """Who it was, as far as *transport* tells; "" without one."""
    if transport is None:
        return ""
    peer = transport.get_extra_info("peername")
    if not peer or not isinstance(peer, tuple):
        return ", on a Unix socket"
    return f", from {peer[0]}:{peer[1]}"
