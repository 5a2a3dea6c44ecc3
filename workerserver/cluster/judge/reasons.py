"""The one table of reasons for which a rank can be suspected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

__all__ = ["STRENGTH", "Reason"]

Reason = Literal[
    "mismatch",
    "order",
    "p2p cycle",
    "swallowed",
    "deadlock",
    "gil held",
    "dataloader",
    "lock",
    "shutdown",
    "behind",
    "unreachable",
    "p2p",
    "stalled",
]
"""From the strongest evidence to the weakest. A new reason is an entry here, a rule in
:mod:`suspicions` and a sentence in :mod:`sentences`."""

#: By reason: 0 is the strongest.
STRENGTH: Mapping[Reason, int] = {reason: number for number, reason in enumerate(get_args(Reason))}
