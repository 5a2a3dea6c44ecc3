"""What the watchdogs of this host's jobs have reported, in the collector's ``/metrics``."""

from __future__ import annotations

from workerserver.blackbox.watchdog.state import living_states
from workerserver.process._pulse import label, set_watchdogs

__all__ = ["publish"]

MAX_JOB_BYTES = 80


def publish() -> None:
    """Read it now. A watchdog that has ended is shown no longer."""
    set_watchdogs(
        (
            b'job="%b"' % label(each.job, MAX_JOB_BYTES),
            each.status,
            each.stall,
            each.gone,
            each.looked,
        )
        for each in living_states()
    )
