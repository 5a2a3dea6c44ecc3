"""The operator's side: find a job's workers, ask them all, and make one answer of what they say.

It works over the wire only, so also on stock torch workers, and needs neither torch nor the
server. Names are imported when first asked for: addresses and ranges need neither uvloop nor
httptools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workerserver.process.lazy import lazy_names

if TYPE_CHECKING:
    from workerserver.cluster.ask.client import Answer, Client, Question, ask
    from workerserver.cluster.ask.rounds import Round, collect
    from workerserver.cluster.errors import ClusterError
    from workerserver.cluster.find.discovery import Options, discover
    from workerserver.cluster.find.host_lists import expand_hosts, unfold
    from workerserver.cluster.model import Failure, Frame, Health, RankState, Thread, Worker
    from workerserver.ranks import fold

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
    **dict.fromkeys(("Answer", "Client", "Question", "ask"), f"{__name__}.ask.client"),
    **dict.fromkeys(("Round", "collect"), f"{__name__}.ask.rounds"),
    **dict.fromkeys(("Options", "discover"), f"{__name__}.find.discovery"),
    "ClusterError": f"{__name__}.errors",
    **dict.fromkeys(
        ("Failure", "Frame", "Health", "RankState", "Thread", "Worker"), f"{__name__}.model"
    ),
    **dict.fromkeys(("expand_hosts", "unfold"), f"{__name__}.find.host_lists"),
    "fold": "workerserver.ranks",
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
