"""Who may ask: the rules of a listener.

Each rule is the one owner of what it demands. The policy asks all of them about every request, on
every transport. What a rule says beside that only saves time: a rule that says nothing is asked
each time, in Python, and then the I/O thread answers nothing by itself.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from workerserver.http._protocol import is_proof, proof_key
from workerserver.http.ui import UI
from workerserver.process.credentials import Permission, Token, permits
from workerserver.types import Forbidden, Unauthorized, WorkerServerError

if TYPE_CHECKING:
    from workerserver._parser import ParsedRequest

__all__ = [
    "PEER_REFUSED",
    "AccessPolicy",
    "BearerToken",
    "HostNames",
    "NativeForm",
    "NoWebPages",
    "OwnUser",
    "Rule",
    "hosts_from_environment",
    "standard_rules",
]

HOSTS = "WORKERSERVER_HOSTS"
_HOST = re.compile(r"(\*\.)?[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*\.?")
logger = logging.getLogger("workerserver")
#: The tokens by name, as a greeting names them (http/proof.c): "" is for everything.
PLACES = ("", "read", "profile", "admin")
PEER_REFUSED = "this socket serves its own user only"


class NativeForm(NamedTuple):
    """A rule as the I/O thread can judge it, without the GIL (native/requests/rules.pyx).

    Where the I/O thread is sure that the rule passes, it has to be right. *fields* are the header
    fields that the rule's ``check()`` reads, in lower case. The I/O thread answers nothing if it
    passes over one of them. *refusal* is what ``check()`` raises where the I/O thread is sure that
    the rule refuses.
    """

    kind: Literal["web_page", "host", "token", "peer"]
    fields: tuple[bytes, ...]
    names: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    #: By place: for everything, read, profile, admin; b"" where there is none.
    tokens: tuple[bytes, ...] = ()
    keys: tuple[bytes, ...] = ()
    uid: int = -1
    refusal: type[Unauthorized] | None = None


class Rule:
    """One demand on the requests of a listener, or on its connections.

    ``check()`` and ``admit()`` are the rule itself; a subclass has one of them, or both.
    ``native()`` and ``only_cross_site`` save time. They count only if they were written for these
    very methods: a subclass that replaces the rule itself does not inherit them.
    """

    #: Whether check() can only ever refuse a request whose ``cross_site`` is true.
    only_cross_site: bool = False
    #: Whether who passes check() has shown a secret. A client that has not yet gets fewer places.
    asks_secret: bool = False

    def check(self, request: ParsedRequest) -> None:
        """Raises Forbidden or Unauthorized for a request that is refused.

        Asked twice about a request with a body: when its head is complete, so that no body of a
        request that is refused is read, and when its body is there.
        """

    def admit(self, sock: socket.socket | None) -> None:
        """Raises Forbidden for a new connection that is refused. *sock* is its socket, or
        uvloop's stand-in for it; None where the transport has none."""

    def native(self) -> NativeForm | None:
        """The whole rule as the I/O thread can judge it; None: it can't."""
        return None


class NoWebPages(Rule):
    """No request that a browser sends on behalf of a web page, unless it is this server's own.

    *scheme*, http or https, is that of the server's own page (http/ui); None: it has no page. The
    browser says that the request comes from that page: the Origin is the scheme with the Host of
    the request, and Sec-Fetch-Site is same-origin. Whether the Host is a name of this server, the
    rule HostNames says.
    """

    only_cross_site = True

    def __init__(self, scheme: str | None = None) -> None:
        self._own = None if scheme is None else f"{scheme}://".encode()

    def check(self, request: ParsedRequest) -> None:
        if request.cross_site and not self._is_own_page(request):
            raise Forbidden("requests made by a web page are not served")

    def _is_own_page(self, request: ParsedRequest) -> bool:
        if self._own is None or not request.host:
            return False
        said = [
            (name, value)
            for name, value in request.headers
            if name in (b"origin", b"sec-fetch-site")
        ]
        own = (b"origin", self._own + request.host.lower())
        return sorted(said) == [own, (b"sec-fetch-site", b"same-origin")]

    def native(self) -> NativeForm:
        # A request with a field by which a page shows is never recognised: see recognise.pyx.
        return NativeForm("web_page", (b"origin", b"sec-fetch-site"))


class HostNames(Rule):
    """The Host is an IP address, localhost, or a name that the server was given.

    A DNS name that somebody else controls could make a browser talk to this server as if it were
    that name's own. *hosts* are names of the server: ``name``, or ``*.domain`` for every name
    below a domain. The machine's hostname always is one.
    """

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        own = socket.gethostname().lower()
        given = [host.lower().rstrip(".") for host in hosts]
        self.names = {"localhost", own, own.partition(".")[0]} - {""}
        self.names.update(host for host in given if host and not host.startswith("*."))
        self.suffixes = tuple(sorted({host[1:] for host in given if host.startswith("*.")}))
        self._good: bytes | None = None  # the last Host that passed

    def check(self, request: ParsedRequest) -> None:
        if request.host != self._good:
            self._check_name(request.host)
            self._good = request.host

    def _check_name(self, raw: bytes) -> None:
        if not raw:
            return  # HTTP/1.0 without Host: no browser
        text = raw.decode("latin-1").lower()
        zone = text.startswith("[")  # only an IPv6 address may have one (RFC 6874)
        if zone:
            name = text[1:].partition("]")[0]
        else:
            name = text.rpartition(":")[0] if ":" in text else text
        name = name.rstrip(".")
        if name in self.names:
            return
        if name.endswith(self.suffixes) and not name.startswith("."):
            return
        import ipaddress  # needed by few

        try:
            ipaddress.ip_address(name.partition("%")[0] if zone else name)
        except ValueError:
            raise Forbidden(
                f"Host {text[:200]} is not a name of this server ({HOSTS} adds names)"
            ) from None

    def native(self) -> NativeForm:
        return NativeForm(
            "host", (b"host",), names=tuple(sorted(self.names)), suffixes=self.suffixes
        )


def hosts_from_environment() -> tuple[str, ...]:
    """The names in WORKERSERVER_HOSTS, separated by commas: ``name`` or ``*.domain``.

    Raises ValueError for anything else, since a name that can never match protects nobody and
    helps nobody.
    """
    found = []
    for piece in os.environ.get(HOSTS, "").split(","):
        host = piece.strip()
        if not host:
            continue
        if not _HOST.fullmatch(host):
            raise ValueError(
                f"{HOSTS}: {host!r} is no host name: write node7.example.org, without a port, or "
                "*.example.org for all names below example.org"
            )
        found.append(host)
    return tuple(found)


class BearerToken(Rule):
    """The request carries a token (RFC 6750, 2.1), or proves that its client knows one, or asks for
    the page where a person types the token in.

    *page* is the path of that page, if there is one. It tells nothing of the job, so a browser gets
    it without a token. Who asks for it has shown no secret: see connection.pyx. *needs* gives the
    permission that a request needs; it is asked only if some token does not permit everything.
    ``graded``: there is such a token.
    """

    asks_secret = True

    def __init__(
        self,
        tokens: str | Iterable[Token],
        page: str | None = None,
        needs: Callable[[ParsedRequest], Permission] | None = None,
    ) -> None:
        from hmac import compare_digest  # with hashlib: milliseconds that not everybody pays

        if isinstance(tokens, str):
            tokens = (Token("", "admin", tokens),)
        secrets, permissions = [b""] * len(PLACES), ["admin"] * len(PLACES)
        for token in tokens:
            place = PLACES.index(token.name)
            secrets[place] = token.secret.encode()
            permissions[place] = token.permission
        self._tokens = tuple(secrets)
        self._real = [(place, secret) for place, secret in enumerate(secrets) if secret]
        self._permissions: tuple[Any, ...] = tuple(permissions)
        self._keys = tuple(proof_key(secret) if secret else b"" for secret in secrets)
        self._same = compare_digest
        self._page = None if page is None else page.encode()
        self._needs = needs
        self.graded = any(
            secret and permission != "admin"
            for secret, permission in zip(secrets, permissions, strict=True)
        )

    def check(self, request: ParsedRequest) -> None:
        if request.path == self._page and request.method in (b"GET", b"HEAD"):
            return
        place = self._place(request)
        if self.graded:
            need: Permission = "admin" if self._needs is None else self._needs(request)
            have: Permission = self._permissions[place]
            if not permits(have, need):
                raise Forbidden(f"this needs a token that permits {need}, not {have}")

    def _place(self, request: ParsedRequest) -> int:
        """Which of the tokens the client shows; Unauthorized if it is none."""
        if is_proof(request.authorization):
            session = request.session
            if session is None:
                raise Unauthorized
            place: int = session.judge(self._keys, request)
            if place < 0:
                raise Unauthorized(session.challenge(self._keys))
            return place
        scheme, _, given = (request.authorization or b"").partition(b" ")
        given = given.strip()
        found = -1
        for place, token in self._real:  # all of them, whichever the first is that fits
            if self._same(given, token):
                found = place
        if scheme.lower() != b"bearer" or found < 0:
            raise Unauthorized
        return found

    def native(self) -> NativeForm:
        return NativeForm(
            "token",
            (b"authorization",),
            tokens=self._tokens,
            keys=self._keys,
            refusal=Unauthorized,
        )


class OwnUser(Rule):
    """The process at the other end of a Unix socket is root's or of our own user.

    Where the kernel can't tell, the mode of the socket file (0600) has to be enough.
    """

    only_cross_site = True  # it refuses no request at all

    def admit(self, sock: socket.socket | None) -> None:
        if sock is not None and _peer_uid(sock) not in (None, 0, os.geteuid()):
            raise Forbidden(PEER_REFUSED)

    def native(self) -> NativeForm:
        return NativeForm("peer", (), uid=os.geteuid())


def _peer_uid(sock: socket.socket) -> int | None:
    """The user of the process at the other end: -1 if the kernel should know but doesn't say,
    None on a platform that never does."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    try:
        if hasattr(sock, "getsockopt"):
            raw = sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
        else:  # uvloop's stand-in: a socket object on a copy of the descriptor can ask
            with socket.socket(fileno=os.dup(sock.fileno())) as copy:
                raw = copy.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    except OSError:
        return -1
    return int(struct.unpack("3i", raw)[1])


def standard_rules(
    *,
    unix: bool,
    token: str | Sequence[Token] | None = None,
    hosts: Iterable[str] = (),
    tls: bool = False,
    needs: Callable[[ParsedRequest], Permission] | None = None,
) -> tuple[Rule, ...]:
    """The rules of a listener on a Unix socket, else of one on TCP. *needs*: the permission that a
    request needs; without it, only a token for everything is of use."""
    scheme = None if unix else "https" if tls else "http"
    rules: list[Rule] = [NoWebPages(scheme), OwnUser() if unix else HostNames(hosts)]
    if token is not None and token != ():  # an empty text lets nobody in
        rules.append(BearerToken(token, None if unix else UI, needs))
    return tuple(rules)


class AccessPolicy:
    """The rules of one listener; immutable. The first rule that refuses gives the reason.

    ``native`` has the form of every rule, or is None if a rule has no such form: then the I/O
    thread may answer nothing. ``checks`` are the rules' check() methods, all of them;
    ``plain_checks`` are enough for a request that isn't cross-site. ``asks_secret``: a request that
    passes all rules shows a secret.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        #: Whether not every token permits everything. Then the I/O thread answers only what needs
        #: no more than ``read``.
        self.graded = any(getattr(rule, "graded", False) for rule in self.rules)
        self.asks_secret = any(rule.asks_secret for rule in self.rules)
        self.native = _native_forms(self.rules)
        self.checks = tuple(rule.check for rule in self.rules)
        self.plain_checks = tuple(
            rule.check
            for rule in self.rules
            if not (_describes(rule, "only_cross_site") and rule.only_cross_site)
        )

    def check(self, request: ParsedRequest) -> None:
        """Raises Forbidden or Unauthorized for a request that a rule refuses."""
        for check in self.checks if request.cross_site else self.plain_checks:
            check(request)

    def check_head(self, request: ParsedRequest) -> None:
        """check(), for a request whose body has not come. A rule that fails by a mistake of its
        own refuses nothing yet: it is asked again once the body is there."""
        try:
            self.check(request)
        except WorkerServerError:
            raise
        except Exception:
            logger.debug("a rule failed", exc_info=True)

    def admit(self, sock: socket.socket | None) -> None:
        """Raises Forbidden for a new connection that a rule refuses."""
        for rule in self.rules:
            rule.admit(sock)


def _native_forms(rules: Iterable[Rule]) -> tuple[NativeForm, ...] | None:
    """The form of every rule, in order; None if a rule has none."""
    forms = []
    for rule in rules:
        form = rule.native() if _describes(rule, "native") else None
        if form is None:
            return None
        forms.append(form)
    return tuple(forms)


def _describes(rule: Rule, name: str) -> bool:
    """Whether the class that defines *name* also has the check() and admit() that *rule* runs."""
    kind = type(rule)
    owner: type = next(each for each in kind.__mro__ if name in vars(each))
    return all(
        getattr(owner, method, None) is getattr(kind, method) for method in ("check", "admit")
    )
