"""What went wrong at one worker, in words: no usable answer, and why."""

from __future__ import annotations

from workerserver.cluster.model import Failure, RankState, Reason

__all__ = ["SILENT", "UNKNOWN_WORKER", "Failed", "describe", "short", "unusable"]

SILENT = Failure("unreachable", "it did not answer")
#: Of a rank that has to exist.
UNKNOWN_WORKER = Failure("missing", "no worker is known for it")


class Failed(Exception):
    """A question to one worker has no answer; *failure* is what the caller gets."""

    def __init__(self, reason: Reason, text: str) -> None:
        self.failure = Failure(reason, text)
        super().__init__(text)


def describe(error: OSError) -> str:
    """Why a connection failed, for people."""
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nobody listens there"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    return " ".join((error.strerror or str(error) or type(error).__name__)[:200].split())


def short(value: object) -> str:
    """*value* in one short line; a text from a worker is not repeated at length."""
    if isinstance(value, int) and abs(value) >= 10**30:  # repr() of it may take very long
        return "a number of too many digits"
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    if isinstance(value, str):
        value = value[:200]
    text = str(value) if isinstance(value, Exception) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def unusable(state: RankState) -> Failure | None:
    """Why nothing that the worker says can be used; None if something can."""
    failures = [state.failures[question] for question in sorted(state.failures)]
    lies = [failure for failure in failures if failure.reason == "lied"]
    if lies:
        return lies[0]
    answers = (state.health, state.digest, state.flight_summary, state.flight)
    if state.responded and (state.threads or any(each is not None for each in answers)):
        return None
    return failures[0] if failures else SILENT
