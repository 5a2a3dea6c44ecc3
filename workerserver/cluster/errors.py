"""What the cluster side raises when it can't begin. What goes wrong at one rank is a Failure."""

from __future__ import annotations

__all__ = ["ClusterError", "NotATarget"]


class ClusterError(Exception):
    """Nobody can be asked. The text is one line that names what is wrong."""


class NotATarget(ClusterError):
    """A text that can't be the address of a worker."""
