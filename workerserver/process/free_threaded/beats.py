"""``heartbeat``: the compiled one, or on a free-threaded build the one in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workerserver.process import FREE_THREADED

if TYPE_CHECKING or not FREE_THREADED:
    from workerserver.process._pulse import heartbeat, last_heartbeat
else:
    from workerserver.process.free_threaded.stand_ins import heartbeat, last_heartbeat

__all__ = ["heartbeat", "last_heartbeat"]
