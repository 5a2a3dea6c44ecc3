"""What a handler gave back, as a Response: its value, or what it raised."""

from __future__ import annotations

import contextlib
import traceback
from types import TracebackType
from typing import Any

from workerserver.types import Response, WorkerServerError

__all__ = ["error_response", "failure", "to_response"]


def to_response(name: str, value: Any) -> Response:
    """A Response as it is; bytes and str as bodies; anything else as JSON.

    A value that JSON can't hold is the handler's failure: 500, like an exception.
    """
    if isinstance(value, Response):
        return value.checked()
    if isinstance(value, str):
        return Response(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Response(bytes(value), content_type="application/octet-stream")
    try:
        return Response.json(value)
    except (TypeError, ValueError, RecursionError) as error:
        text = f"Handler {name} failed: its answer can't be sent as JSON: {error}\n"
        return Response(text, 500)


def failure(name: str, error: BaseException) -> Response:
    """An error of ours as the status it carries; anything else as 500, in the words of torch's
    server: ``Handler NAME failed: Type: text``, then where it was raised, innermost first.

    Never raises: the client gets an answer even if the exception's own methods fail.
    """
    try:
        return _failure(name, error)
    except BaseException:
        return Response(f"Handler {name} failed\n", 500)


def _failure(name: str, error: BaseException) -> Response:
    if isinstance(error, WorkerServerError):
        with contextlib.suppress(Exception):  # somebody's subclass may hold what can't be sent
            return error_response(error)
    try:
        text = str(error)
    except BaseException as second:
        text = f"<its text can't be read: {type(second).__name__}>"
    lines = [f"Handler {name} failed: {type(error).__name__}: {text}\n", "\nAt:\n"]
    lines += reversed(
        [f"  {file}({line}): {function}\n" for file, line, function in _places(error.__traceback__)]
    )
    if len(lines) == 2:
        lines.pop()
    return Response("".join(lines), 500)


def error_response(error: WorkerServerError) -> Response:
    text = str(error)
    return Response(text, error.status, "text/plain" if text else "", error.headers)


def _places(trace: TracebackType | None) -> list[tuple[str, int, str]]:
    """(file, line, function) of each level, outermost first; without the frames that only pass a
    call on to the handler. Their modules say so by a global ``_passes_calls_on``.

    Bounded: a handler may fail by running out of stack.
    """
    summary = traceback.StackSummary.extract(
        (
            (frame, line)
            for frame, line in traceback.walk_tb(trace)
            if "_passes_calls_on" not in frame.f_globals
        ),
        limit=-50,
        lookup_lines=False,
    )
    return [(entry.filename, entry.lineno or 0, entry.name) for entry in summary]
