"""TLS: a listener's certificate, and which clients it takes.

With TLS, a worker whose GIL is held does not answer: TLS runs on uvloop's transports.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from workerserver.process.credentials import plain_reason

__all__ = ["ServerTls", "tls_from_environment"]

CERTIFICATE, KEY = "WORKERSERVER_TLS_CERT", "WORKERSERVER_TLS_KEY"
CLIENT_AUTHORITY = "WORKERSERVER_TLS_CLIENT_CA"
CLIENT_NAMES = "WORKERSERVER_TLS_CLIENT_NAMES"
#: Time between two looks whether the files have changed.
LOOK_SECONDS = 1.0
logger = logging.getLogger("workerserver")


class Files(NamedTuple):
    """PEM files: a certificate with its chain, its key ("": in the same file), and the authorities
    of clients ("": clients need no certificate)."""

    certificate: str
    key: str = ""
    authority: str = ""

    @property
    def state(self) -> tuple[object, ...]:
        """What changes when somebody writes or replaces one of them."""
        return tuple(map(_state, filter(None, self)))


class ServerTls:
    """The context of a listener. Handshakes get the certificate that the *files* hold by then.

    *names*: clients have to have a certificate with one of them. For the loop's thread.
    """

    def __init__(
        self, context: ssl.SSLContext, files: Files | None = None, names: Iterable[str] = ()
    ) -> None:
        self._context = context
        self._files = files
        self._state = None if files is None else files.state
        self._looked = time.monotonic()
        self.names = tuple(name.lower() for name in names)

    @property
    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        now = time.monotonic()
        if self._files is not None and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look(self._files)
        return self._context

    def _look(self, files: Files) -> None:
        state = files.state
        if state == self._state:
            return
        self._state = state
        try:
            self._context = _context(files)
        except ValueError as error:
            # Certificate and key are replaced one after the other: the next change is soon.
            logger.warning("TLS goes on with the certificate from before: %s", error)
        else:
            logger.info("TLS has the new certificate of %s", files.certificate)

    def admits(self, certificate: Mapping[str, Any] | None) -> bool:
        """Whether a client with *certificate*, as ``getpeercert()`` gives it, is one of ours."""
        if not self.names:
            return True
        return any(_fits(name, self.names) for name in _names(certificate or {}))


def tls_from_environment() -> ServerTls | None:
    """A context from the file WORKERSERVER_TLS_CERT (the certificate and its chain) and the file
    WORKERSERVER_TLS_KEY (the key; by default in the first file). None if neither variable is set.

    With WORKERSERVER_TLS_CLIENT_CA each client has to show a certificate of an authority in that
    file, and with WORKERSERVER_TLS_CLIENT_NAMES one with a name in that list.

    Raises ValueError if the files can't be used: if somebody asked for TLS, no server is better
    than a server without TLS.
    """
    files = Files(*(os.environ.get(name, "") for name in (CERTIFICATE, KEY, CLIENT_AUTHORITY)))
    names = [name.strip() for name in os.environ.get(CLIENT_NAMES, "").split(",") if name.strip()]
    if not files.certificate:
        for name, value in ((KEY, files.key), (CLIENT_AUTHORITY, files.authority)):
            if value:
                raise ValueError(f"{name} is set, but not {CERTIFICATE}")
    if names and not files.authority:
        raise ValueError(f"{CLIENT_NAMES} is set, but not {CLIENT_AUTHORITY}")
    return ServerTls(_context(files), files, names) if files.certificate else None


def _context(files: Files) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(files.certificate, files.key or None, password=_no_password)
    except (OSError, ValueError) as error:
        named = f"{CERTIFICATE} {files.certificate}"
        named += f", {KEY} {files.key}" if files.key else ""
        raise ValueError(f"{named}: no certificate with its key: {_why(error)}") from error
    if files.authority:
        try:
            context.load_verify_locations(files.authority)
        except (OSError, ValueError) as error:
            text = f"{CLIENT_AUTHORITY} {files.authority}: no certificates: {_why(error)}"
            raise ValueError(text) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return plain_reason(error)
    return str(error)


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to be asked for its password")


def _state(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _names(certificate: Mapping[str, Any]) -> list[str]:
    """The names in *certificate*: the alternative ones, or else the common one (RFC 9525, 2)."""
    names = [text for _, text in certificate.get("subjectAltName", ())]
    if not names:
        pairs = [pair for part in certificate.get("subject", ()) for pair in part]
        names = [text for field, text in pairs if field == "commonName"]
    return [name.lower() for name in names]


def _fits(name: str, allowed: Iterable[str]) -> bool:
    """Whether *name* is one of *allowed*: ``name``, or ``*.domain`` for each name below a domain.
    A star in a certificate is no name of anybody."""
    return "*" not in name and any(
        name == each or (each.startswith("*.") and name.endswith(each[1:])) for each in allowed
    )
