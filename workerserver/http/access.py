"""Who may ask: bearer token, browsers, Host on TCP, and the peer's user on a Unix socket."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from workerserver.types import Forbidden, Unauthorized

if TYPE_CHECKING:
    from workerserver._parser import ParsedRequest

__all__ = ["PEER_REFUSED", "AccessPolicy", "peer_allowed", "token_from_environment"]

PEER_REFUSED = "this socket serves its own user only"


def token_from_environment() -> str | None:
    """``WORKERSERVER_TOKEN``, or the first line of the file ``WORKERSERVER_TOKEN_FILE`` names.

    A variable that is empty counts as not set. Raises ValueError for a file that can't be read or
    holds no token: serving without the protection that somebody asked for would be worse than not
    serving.
    """
    token = os.environ.get("WORKERSERVER_TOKEN", "").strip()
    path = os.environ.get("WORKERSERVER_TOKEN_FILE")
    if not token and path:
        try:
            with open(path, encoding="utf-8") as file:
                token = file.readline().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"WORKERSERVER_TOKEN_FILE {path} can't be read: {error}") from error
        if not token:
            raise ValueError(f"WORKERSERVER_TOKEN_FILE {path} holds no token")
    return token or None


class AccessPolicy:
    """The rules of one listener. ``check()`` raises Forbidden or Unauthorized.

    *hosts* are further names that this machine answers to (its hostname always is one).
    """

    def __init__(
        self, *, token: str | None = None, check_host: bool = False, hosts: tuple[str, ...] = ()
    ) -> None:
        self.token = None if token is None else token.encode()
        if token is not None:
            from hmac import compare_digest  # with hashlib: milliseconds that not everybody pays

            self._same = compare_digest
        self.check_host = check_host
        own = socket.gethostname().lower()
        short = own.partition(".")[0]
        self.names = {"localhost", own, short, *(h.lower() for h in hosts)} - {""}
        self.prefix = f"{short}." if short not in ("", "localhost") else None
        self._good_host: bytes | None = None  # the last one that passed
        #: False if check() can only ever object to a cross-site request.
        self.strict = check_host or token is not None

    def check(self, request: ParsedRequest) -> None:
        if request.cross_site:
            raise Forbidden("requests made by a web page are not served")
        if self.check_host and request.host != self._good_host:
            self._check_host_name(request.host)
            self._good_host = request.host
        if self.token is not None:
            scheme, _, given = (request.authorization or b"").partition(b" ")
            matches = self._same(given.strip(), self.token)
            if scheme.lower() != b"bearer" or not matches:
                raise Unauthorized

    def _check_host_name(self, raw: bytes) -> None:
        """An IP literal, localhost, or a name of ours: else a DNS name under somebody else's
        control could make a browser talk to us as if it were that name's own server."""
        if not raw:
            return  # HTTP/1.0 without Host: no browser
        text = raw.decode("latin-1").lower()
        if text.startswith("["):
            name = text[1:].partition("]")[0]
        else:
            name = text.rpartition(":")[0] if ":" in text else text
        name = name.rstrip(".")
        if name in self.names or (self.prefix and name.startswith(self.prefix)):
            return
        import ipaddress  # needed by few

        try:
            ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            raise Forbidden(f"Host {text[:200]} is not a name of this server") from None


def peer_allowed(sock: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket is root's or of our own user.

    Where the kernel can't tell, the socket file's mode (0600) has to be enough.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    except OSError:
        return False
    _, uid, _ = struct.unpack("3i", raw)
    return uid in (0, os.geteuid())
