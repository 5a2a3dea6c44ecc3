"""Why there is no usable answer, in words: for connections, protocols and whole workers."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping

from workerserver.cluster.model import Failure, FailureReason, RankState, Worker

__all__ = [
    "ENDED",
    "NO_SOCKET",
    "REFUSED",
    "SILENT",
    "UNKNOWN_WORKER",
    "Failed",
    "as_user",
    "closed",
    "cut",
    "describe",
    "lost_proof",
    "no_connection",
    "no_such_socket",
    "nobody_listens",
    "not_http",
    "not_permitted",
    "other_version",
    "short",
    "unauthorized",
    "unproven",
    "unusable",
    "user_name",
    "web_server",
]

#: OpenSSL's reasons for bytes that are no TLS.
_NOT_TLS = frozenset(
    {"HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "WRONG_VERSION_NUMBER"}
)
#: How a TLS server's alert begins (RFC 8446, section 5.1).
_TLS_ALERT = b"\x15\x03"
SILENT = Failure("unreachable", "it did not answer")
#: Nobody listens at the address: the worker has ended.
NO_SOCKET = "no such socket"
REFUSED = "connection refused: nobody listens there"
ENDED = "its process has ended"
#: Of a rank that has to exist.
UNKNOWN_WORKER = Failure("missing", "no worker is known for it")


class Failed(Exception):
    """A question to one worker has no answer; *failure* is what the caller gets."""

    def __init__(self, reason: FailureReason, text: str) -> None:
        self.failure = Failure(reason, text)
        super().__init__(text)


# ---- connections


def no_connection(error: OSError, worker: Worker) -> Failed:
    """Why *worker* could not be connected to."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failed("unreachable", f"certificate not accepted: {error.verify_message}")
    if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
        return Failed("unreachable", f"speaks no TLS: try http://{worker.address}")
    text = describe(error)
    if worker.unix and isinstance(error, ConnectionRefusedError) and not _is_socket(worker.address):
        text = "connection refused: not a socket"
    elif worker.unix and isinstance(error, PermissionError):
        text = not_permitted(worker.address)
    return Failed("unreachable", text)


def closed(worker: Worker) -> Failed:
    """*worker* took the connection and closed it before the first byte of an answer."""
    text = "connection closed without an answer"
    if not worker.unix and not worker.tls:
        text += f"; if the port speaks TLS, try https://{worker.address}"
    elif worker.tls:
        text += "; if it wants a certificate of its clients, give --cert"
    return Failed("unreachable", text)


def cut(missing: int | None, progress: object) -> Failed:
    """A worker closed the connection within an answer; *progress*: how much of the answer has come.
    *missing*: bytes of its body that have not, if the answer has a length."""
    if missing is None:
        return Failed("malformed", f"connection closed, {progress}")
    text = f"connection closed with {missing} bytes of the answer missing"
    return Failed("malformed", text)


def describe(error: OSError) -> str:
    """*error*, for people."""
    if isinstance(error, FileNotFoundError):
        return NO_SOCKET
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    return " ".join((error.strerror or str(error) or type(error).__name__)[:200].split())


def not_permitted(path: str) -> str:
    """Why this user may not use *path*, or a folder above it."""
    owner = _owner(path)
    if owner is None:
        return "permission denied"
    return f"permission denied; it belongs to {owner}{as_user(owner)}"


def _owner(path: str) -> str | None:
    """Who owns *path*, or, where *path* itself is hidden, the folder that hides it."""
    path = os.path.abspath(path)
    while True:
        try:
            number = os.stat(path).st_uid
        except PermissionError:
            path = os.path.dirname(path)
            continue
        except OSError:
            return None
        return user_name(number)


def user_name(number: int) -> str:
    """As people call the user of that *number*."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def as_user(name: str) -> str:
    """How to ask as the user of that *name*; empty where the user has none."""
    return f": sudo -u {name} workerserver ..." if " " not in name else ""


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True  # gone since


# ---- protocols


def not_http(start: bytes, error: Exception | None, worker: Worker) -> Failed:
    """An answer that begins with *start*. The HTTP parser refuses it with *error*; without one, it
    came before the question."""
    if start.startswith(_TLS_ALERT) and not worker.tls:
        text = f"not an HTTP answer: the port speaks TLS; try https://{worker.address}"
    elif start.startswith(b"HTTP/") and error is None:
        text = "it answered before it was asked"
    elif start.startswith(b"HTTP/"):
        what = type(error).__name__.removeprefix("HttpParser")
        text = f"not an HTTP answer: {what} {short(error)}"
    else:
        line = start.splitlines()[0].decode("latin-1") if start.strip() else ""
        text = f"not an HTTP answer: it begins with {short(line)}, so this is no worker server"
    return Failed("malformed", text)


def unauthorized(token: str | None) -> str:
    """A worker answered 401; *token* names the token that was sent, None if none was."""
    if token is None:
        return "HTTP 401: it needs a token: set WORKERSERVER_TOKEN or WORKERSERVER_TOKEN_FILE"
    return f"HTTP 401: {token} was not accepted"


def unproven(token: str) -> str:
    """A worker answered without a proof that it knows the token, which *token* names."""
    return (
        f"it did not prove that it knows {token}, so its answer does not count: it is a worker "
        "without a token, or no worker (ask without the token, or with --send-token)"
    )


def lost_proof(token: str) -> str:
    """A worker has proven that it knows *token*, and then did not accept our proof."""
    return (
        f"HTTP 401: it knows {token}, but the proof came on another connection, or changed: "
        "a proxy in front of it needs https, or --send-token"
    )


def other_version(token: str, *, bare: bool) -> str:
    """A worker takes no proof of this version; *bare*: it takes nothing but the token itself."""
    if not bare:
        return "HTTP 401: it speaks another version of the proof: use the workerserver of the job"
    return (
        f"HTTP 401: its workerserver is older and takes {token} only as it is: update it, ask "
        "through its Unix socket, or give --send-token, which shows the token to whoever listens"
    )


def web_server(status_line: str, fields: Mapping[str, str]) -> str:
    """What answers is some other HTTP server."""
    name = fields.get("server", "")
    return f"no worker server{f' ({short(name)[1:-1]})' if name else ''}: {status_line}"


# ---- words


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


def nobody_listens(state: RankState) -> bool:
    """Whether the worker has ended, as far as its address tells: nobody listens there."""
    failure = state.failures.get("healthz") or state.failures.get("digest")
    texts = (NO_SOCKET, REFUSED)
    return not state.responded and failure is not None and failure.text.startswith((*texts, ENDED))


def no_such_socket(state: RankState) -> bool:
    """Whether there is no file at the path of the worker's socket."""
    failure = state.failures.get("healthz") or state.failures.get("digest")
    return not state.responded and failure is not None and failure.text == NO_SOCKET


def unusable(state: RankState) -> Failure | None:
    """Why nothing that the worker says can be used; None if something can."""
    failures = [state.failures[question] for question in sorted(state.failures)]
    lies = [failure for failure in failures if failure.reason == "lied"]
    if lies:
        return lies[0]
    answers = (
        state.health,
        state.digest,
        state.flight_summary,
        state.flight,
        state.recorders,
    )
    if state.responded and (state.threads or any(each is not None for each in answers)):
        return None
    return failures[0] if failures else SILENT
