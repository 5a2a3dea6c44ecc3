"""The operator's side: find a job's workers, ask them all, and make one answer of what they say.

It works over the wire only, so also on stock torch workers, and needs neither torch nor the
server. Names are imported when first asked for: addresses and ranges need neither uvloop nor
httptools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workerserver.deferred import lazy_names

if TYPE_CHECKING:
    from workerserver.cluster.client import Answer, Client, Question, ask
    from workerserver.cluster.collect import Round, collect
    from workerserver.cluster.discovery import Options, discover
    from workerserver.cluster.errors import ClusterError
    from workerserver.cluster.model import Failure, Frame, Health, RankState, Thread, Worker
    from workerserver.cluster.ranges import expand_hosts, fold, unfold

__all__ = [
    "Answer",
    "Client",
    "ClusterError",
    "Failure",
    "Frame",
    "Health",
    "Options",
    "Question",
    "RankState",
    "Round",
    "Thread",
    "Worker",
    "ask",
    "collect",
    "discover",
    "expand_hosts",
    "fold",
    "unfold",
]

_LAZY = {
    **dict.fromkeys(("Answer", "Client", "Question", "ask"), "client"),
    **dict.fromkeys(("Round", "collect"), "collect"),
    **dict.fromkeys(("Options", "discover"), "discovery"),
    "ClusterError": "errors",
    **dict.fromkeys(("Failure", "Frame", "Health", "RankState", "Thread", "Worker"), "model"),
    **dict.fromkeys(("expand_hosts", "fold", "unfold"), "ranges"),
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
