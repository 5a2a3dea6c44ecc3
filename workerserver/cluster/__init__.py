"""The operator's side: find a job's workers, ask them all, and make one answer of what they say.

It works over the wire only, so also on stock torch workers, and needs neither torch nor the
server. Names are imported when first asked for: addresses and ranges need no aiohttp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
