"""What the cluster side raises when it can't begin. What goes wrong at one rank is a Failure."""

from __future__ import annotations

__all__ = ["ClusterError", "NoJob", "NotATarget", "NotPermitted", "Unanswered"]


class ClusterError(Exception):
    """Nobody can be asked. The text is one line that names what is wrong."""


class NotATarget(ClusterError):
    """A text that can't be the address of a worker."""


class NotPermitted(ClusterError):
    """A place that this user may not read."""


class NoJob(ClusterError):
    """There is no worker at the place, and nobody listens: no job, or one that has ended. *advice*:
    lines that say what to do."""

    def __init__(self, text: str, *advice: str) -> None:
        super().__init__(text)
        self.advice = advice


class Unanswered(ClusterError):
    """Where the workers are could not be learned, because somebody gave no answer in time."""
