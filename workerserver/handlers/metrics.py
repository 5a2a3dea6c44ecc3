"""What ``GET /metrics`` shows and only Python knows: who the process is, which handlers it has, and
torch's process groups.

All of it is published into C memory on the loop, at most once a second. process/exposition.pyx
writes the answer from there, without the GIL.
"""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Iterable, Mapping

from workerserver.handlers.flight_recorder import counters
from workerserver.http._protocol import wants_openmetrics
from workerserver.http.registry import Registry
from workerserver.process._pulse import METRICS_TYPES, Meter, label, set_groups, set_info
from workerserver.process.loaded import imported
from workerserver.types import Request, Response

__all__ = ["Published", "openmetrics_for", "response"]

logger = logging.getLogger("workerserver")
#: Bytes of one label's value. All labels together have a bound in C.
MAX_VALUE = 160


class Published:
    """What one server publishes for its scrapes. ``refresh()`` is for the loop's thread, or for
    another one that holds the GIL."""

    def __init__(self, meter: Meter, registry: Registry) -> None:
        self._meter = meter
        self._registry = registry
        self._scrapes = -1

    def refresh(self, who: Mapping[str, object], standby: int | None) -> None:
        """*who*: the process's labels beside its versions; a value that nobody knows is empty.
        *standby*: threads of torch's own server."""
        self._meter.list(self._registry.names())
        self._meter.standby = standby
        set_info(_info(who))
        if self._meter.scrapes != self._scrapes:  # torch is asked for nobody's sake otherwise
            self._scrapes = self._meter.scrapes
            try:
                set_groups(_groups())
            except Exception:  # whatever a new torch makes of it, the other metrics stay
                logger.debug("torch's process groups can't be told", exc_info=True)


def _info(who: Mapping[str, object]) -> bytes:
    torch = imported("torch")
    labels = {
        **{name: "" if value is None else value for name, value in who.items()},
        "version": getattr(sys.modules.get("workerserver"), "__version__", ""),
        "python": platform.python_version(),
        "torch": getattr(torch, "__version__", ""),
    }
    return _joined(labels)


def _groups() -> Iterable[tuple[bytes, int, int]]:
    for backend, group, issued, retired in counters():
        yield _joined({"backend": backend, "group": group}, 32), issued, retired


def _joined(labels: Mapping[str, object], most: int = MAX_VALUE) -> bytes:
    return b",".join(
        b'%b="%b"' % (name.encode(), label(str(value), most)) for name, value in labels.items()
    )


def openmetrics_for(request: Request) -> bool:
    """Whether *request* is answered as OpenMetrics."""
    accepted = [value for name, value in request.headers if name == b"accept"]
    return wants_openmetrics(b",".join(accepted))


def response(body: bytes, openmetrics: bool) -> Response:
    return Response(body, content_type=METRICS_TYPES[openmetrics])
