"""Request, Response and the error tree: the vocabulary of every other module.

Nothing here does I/O or knows of a socket. Each error carries its HTTP status, so the code that
answers never has to translate an error into a status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "BodyTooLarge",
    "BoundsError",
    "DuplicateParameter",
    "Forbidden",
    "HandlerBusy",
    "HandlerNotFound",
    "HeadTooLarge",
    "InvalidParameter",
    "MalformedRequest",
    "MethodNotAllowed",
    "MissingParameter",
    "NotFound",
    "NotImplementedHere",
    "ParameterError",
    "ProtocolError",
    "Range",
    "Request",
    "RequestTimeout",
    "Response",
    "ServerBusy",
    "TargetTooLong",
    "Unauthorized",
    "UnknownParameter",
    "UnsupportedExpectation",
    "UnsupportedMethod",
    "UnsupportedTransferCoding",
    "UnsupportedVersion",
    "WorkerServerError",
]


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds of a numeric parameter: ``Annotated[float, Range(0.1, 600)]``."""

    ge: float
    le: float

    def __post_init__(self) -> None:
        if not self.ge <= self.le:
            raise BoundsError(self.ge, self.le)


class Request:
    """One complete request, as a handler sees it.

    ``method`` and ``path`` are str (the path percent-decoded, without query), ``params`` maps each
    parameter name to its decoded value (the query wins over a form body), ``headers`` is a list of
    ``(lower-case name, value)`` byte pairs in wire order, ``body`` is bytes, ``http_version`` is
    ``"1.0"`` or ``"1.1"``, ``peer`` is the client's address or None on a Unix socket.
    """

    __slots__ = ("body", "headers", "http_version", "method", "params", "path", "peer")

    def __init__(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        http_version: str = "1.1",
        peer: str | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.params = params
        self.headers = headers
        self.body = body
        self.http_version = http_version
        self.peer = peer

    def get_param(self, name: str) -> str:
        """The value of a parameter, ``""`` if it is missing: torch's ``Request::getParam``."""
        return self.params.get(name, "")

    def header(self, name: str) -> str | None:
        """The first header field called *name* (in any case), or None."""
        wanted = name.lower().encode("latin-1")
        for key, value in self.headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"


Headers = Sequence[tuple[str, str]] | Mapping[str, str]

_COMMON_TYPES = frozenset(
    ("text/plain", "text/html", "application/json", "application/octet-stream")
)
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FRAMING = frozenset(("connection", "content-length", "content-type", "transfer-encoding"))


def _checked_headers(content_type: str, headers: Headers) -> tuple[tuple[str, str], ...]:
    """The pairs of *headers*. ValueError for a field that can't be sent or that the server sends
    itself: after a second Content-Length the client would misread the start of the next reply."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    checked = tuple((name, value) for name, value in pairs)
    for name, value in (("Content-Type", content_type), *checked):
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"bad header field name {name!r}")
        if any(c in value for c in "\r\n\0"):
            raise ValueError(f"control character in header field {name}: {value!r}")
    for name, _ in checked:
        if name.lower() in _FRAMING:
            raise ValueError(f"header field {name} is the server's own")
    return checked


class Response:
    """What a handler answers: a body, a status, a content type and further header fields.

    *headers* are pairs or a mapping. An empty content type is not sent. The constructor raises
    TypeError or ValueError for a value that HTTP can't carry: a status that is no integer from 200
    to 999, a bad header field, a header field that frames the message. So a mistake becomes a 500
    and not a broken connection.

    ``sent`` may be set to a function. It is called once, on the server's loop, when the response is
    nearly all sent, or can't be sent any more: a large body is in memory until then.
    """

    __slots__ = ("body", "content_type", "headers", "sent", "status")

    def __init__(
        self,
        body: bytes | bytearray | memoryview | str = b"",
        status: int = 200,
        content_type: str = "text/plain",
        headers: Headers = (),
    ) -> None:
        if not isinstance(status, int):
            raise TypeError(f"status must be int, not {type(status).__name__}")
        if not 200 <= status <= 999:
            raise ValueError(f"status {status} can't be sent: HTTP takes 200 to 999 here")
        if headers or content_type not in _COMMON_TYPES:
            headers = _checked_headers(content_type, headers)
        if isinstance(body, str):
            body = body.encode("utf-8", "backslashreplace")
        elif not isinstance(body, (bytes, bytearray, memoryview)):
            raise TypeError(f"body must be bytes or str, not {type(body).__name__}")
        self.body = bytes(body)
        self.status = status
        self.content_type = content_type
        self.headers: Headers = headers
        self.sent: Callable[[], object] | None = None

    def checked(self) -> Response:
        """This response, or a new one from its attributes if they changed after construction.

        Raises TypeError and ValueError, as the constructor does.
        """
        if (
            type(self.body) is bytes
            and not self.headers
            and self.content_type in _COMMON_TYPES
            and isinstance(self.status, int)
            and 200 <= self.status <= 999
        ):
            return self
        anew = Response(self.body, self.status, self.content_type, self.headers)
        anew.sent = self.sent
        return anew

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Headers = ()) -> Response:
        """*value* as compact JSON. TypeError or ValueError (NaN too) if JSON can't hold it."""
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        return cls(text, status, "application/json", headers)

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.content_type} {len(self.body)} bytes>"


class WorkerServerError(Exception):
    """Base of every error that this package raises on purpose.

    If the error ends a request, ``status`` is the status of the answer, ``headers`` are further
    header fields of the answer, and ``str(error)`` is its body.
    """

    status: ClassVar[int] = 500
    headers: Sequence[tuple[str, str]] = ()


def _short(name: str) -> str:
    """*name*, cut to 200 characters for an error's text: a client may send a name of any size."""
    return name if len(name) <= 200 else f"{name[:200]}..."


class BoundsError(WorkerServerError, ValueError):
    """A Range whose lower bound is above its upper bound."""

    def __init__(self, ge: float, le: float) -> None:
        super().__init__(f"lower bound {ge} is above upper bound {le}")


# --- the bytes on the wire --------------------------------------------------------------------


class ProtocolError(WorkerServerError):
    """The bytes are not a request that can be answered: reply once, then close."""

    status = 400


class MalformedRequest(ProtocolError):
    """A request that RFC 9112 forbids; *reason* says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Malformed request: {reason}")


class TargetTooLong(ProtocolError):
    status = 414

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"Request target longer than {limit} bytes")


class HeadTooLarge(ProtocolError):
    """Too many bytes or too many fields (*what*) before the body."""

    status = 431

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.what = what
        super().__init__(f"Request head holds more than {limit} {what}")


class BodyTooLarge(ProtocolError):
    status = 413

    def __init__(self, limit: int, what: str = "bytes") -> None:
        self.limit = limit
        self.what = what
        super().__init__(f"Request body larger than {limit} {what}")


class RequestTimeout(ProtocolError):
    """The request (*part*: head or body) was not complete in time."""

    status = 408

    def __init__(self, part: str, seconds: float) -> None:
        self.part = part
        self.seconds = seconds
        super().__init__(f"Request {part} not complete after {seconds:g} s")


class UnsupportedExpectation(ProtocolError):
    status = 417

    def __init__(self, value: str) -> None:
        self.value = value
        super().__init__(f"Expectation not supported: {value}")


class UnsupportedMethod(ProtocolError):
    status = 501

    def __init__(self, method: str) -> None:
        self.method = method
        super().__init__(f"Method not supported: {method}")


class UnsupportedTransferCoding(ProtocolError):
    status = 501

    def __init__(self, coding: str) -> None:
        self.coding = coding
        super().__init__(f"Transfer coding not supported: {coding}")


class UnsupportedVersion(ProtocolError):
    status = 505

    def __init__(self, version: str) -> None:
        self.version = version
        super().__init__(f"HTTP version not supported: {version}")


class ServerBusy(WorkerServerError):
    """The server is at a limit of its own (*what*); ask again in *retry_after* seconds."""

    status = 503

    def __init__(self, what: str, retry_after: int = 1) -> None:
        self.what = what
        self.retry_after = retry_after
        self.headers = (("Retry-After", str(retry_after)),)
        super().__init__(f"Server busy: {what}")


# --- who may ask --------------------------------------------------------------------------------


class Forbidden(WorkerServerError):
    status = 403

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Forbidden: {reason}")


class Unauthorized(WorkerServerError):
    """No token came, or one that is not right. *challenge*: the fields that say how to show it."""

    status = 401
    headers: tuple[tuple[str, str], ...] = (("WWW-Authenticate", "Bearer"),)

    def __init__(self, challenge: tuple[tuple[str, str], ...] = ()) -> None:
        if challenge:
            self.headers = challenge
        super().__init__("Unauthorized: a valid bearer token is required")


# --- what was asked for ------------------------------------------------------------------------


class NotFound(WorkerServerError):
    """No such path. The body is empty, as torch's server answers it."""

    status = 404

    def __init__(self) -> None:
        super().__init__("")


class HandlerNotFound(WorkerServerError):
    status = 404

    def __init__(self, name: str) -> None:
        self.name = name
        text = _short(name)
        super().__init__(f"Handler {text} not found: Failed to find handler {text}")


class MethodNotAllowed(WorkerServerError):
    status = 405

    def __init__(self, allow: str, hint: str = "") -> None:
        self.allow = allow
        self.headers = (("Allow", allow),)
        super().__init__(f"Method not allowed; allowed: {allow}{hint and f'. {hint}'}")


class HandlerBusy(WorkerServerError):
    """The handler already runs for as many requests as it may serve at one time."""

    status = 503

    def __init__(self, name: str, limit: int, retry_after: int = 1) -> None:
        self.name = name
        self.limit = limit
        self.headers = (("Retry-After", str(retry_after)),)
        super().__init__(f"Handler {name} is busy: {limit} requests at a time")


class NotImplementedHere(WorkerServerError):
    """The handler needs something that is missing in this process; the text says what."""

    status = 501


class ParameterError(WorkerServerError):
    """A parameter is wrong; ``name`` is its name."""

    status = 400
    name: str


class InvalidParameter(ParameterError):
    """*valid* completes the sentence "valid values are ..."."""

    def __init__(self, name: str, valid: str) -> None:
        self.name = name
        self.valid = valid
        super().__init__(f"Invalid value for {_short(name)} valid values are {valid}")


class MissingParameter(ParameterError):
    def __init__(self, name: str, valid: str) -> None:
        self.name = name
        self.valid = valid
        super().__init__(f"Missing parameter {_short(name)} valid values are {valid}")


class DuplicateParameter(ParameterError):
    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"Duplicate parameter {_short(name)}")


class UnknownParameter(ParameterError):
    """*text* replaces the default sentence, for handlers that keep torch's text to the letter."""

    def __init__(self, name: str, valid: Sequence[str], text: str | None = None) -> None:
        self.name = name
        self.valid = tuple(valid)
        listing = ", ".join(valid) or "none"
        super().__init__(text or f"Unknown parameter {_short(name)}; parameters are: {listing}")
