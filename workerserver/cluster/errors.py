"""What the cluster side raises when it can't begin; what goes wrong at one rank is a Failure."""

from __future__ import annotations

__all__ = ["ClusterError"]


class ClusterError(Exception):
    """The question can't be put to anybody; the text is one line that names what is wrong."""
