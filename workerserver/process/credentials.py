"""What gives access, from the environment: the one reader, for servers and for those who ask."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple, get_args

__all__ = [
    "PERMISSIONS",
    "Permission",
    "Token",
    "permits",
    "plain_reason",
    "token_from_environment",
    "token_in",
    "tokens_from_environment",
]

#: What a token, or a handler, is for; each includes those before it.
Permission = Literal["read", "profile", "admin"]
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
TOKEN = "WORKERSERVER_TOKEN"
#: By the variable's end.
_OF: dict[str, Permission] = {
    "": "admin",
    "_READ": "read",
    "_PROFILE": "profile",
    "_ADMIN": "admin",
}
MAX_LINE_CHARACTERS = 64 * 1024


class Token(NamedTuple):
    """A secret and what it permits. *name*: "" for the token for everything, else the permission
    that its variable names. *source*: the variable, and the file if it names one."""

    name: str
    permission: Permission
    secret: str
    source: str = ""

    def __repr__(self) -> str:
        """Without the secret, which must not come into a log."""
        return f"<Token for {self.permission}>"


def permits(have: Permission, need: Permission) -> bool:
    """Whether a token for *have* is enough for what needs *need*."""
    return PERMISSIONS.index(have) >= PERMISSIONS.index(need)


def tokens_from_environment() -> tuple[Token, ...]:
    """The tokens of ``WORKERSERVER_TOKEN`` (for everything), ``WORKERSERVER_TOKEN_ADMIN``,
    ``_PROFILE`` and ``_READ``, the one that permits most first; with ``_FILE`` behind its name, a
    variable names a file with the token in its first line. Spaces around a token are left out, and
    an empty variable counts as not set.

    Raises ValueError for a file that can't be read or has no token in its first line, for a token
    that no request can carry, and for two tokens that are the same: to serve without the protection
    that somebody asked for would be worse than not to serve.
    """
    found: list[Token] = []
    for end in ("", "_ADMIN", "_PROFILE", "_READ"):
        secret, source = _read(f"{TOKEN}{end}")
        if secret is None:
            continue
        for other in found:
            if other.secret == secret:
                raise ValueError(f"{source}: the same token as in {other.source}")
        found.append(Token(end[1:].lower(), _OF[end], secret, source))
    return tuple(found)


def token_from_environment() -> str | None:
    """The token that permits most, for who asks; None if there is none. ValueError as above."""
    tokens = tokens_from_environment()
    return tokens[0].secret if tokens else None


def _read(variable: str) -> tuple[str | None, str]:
    """The token that *variable* holds or points to, and where it is from."""
    token = os.environ.get(variable, "").strip()
    path = os.environ.get(f"{variable}_FILE", "")
    if not token and path:
        return token_in(path, f"{variable}_FILE"), f"{variable}_FILE {path}"
    return _checked(token, variable) or None, variable


def token_in(path: str, named_by: str) -> str:
    """The first line of the file *path*, without spaces around it. ValueError, which begins with
    *named_by*, if there is none, or if no request can carry it."""
    source = f"{named_by} {path}"
    try:
        with open(path, encoding="utf-8") as file:
            token = file.readline(MAX_LINE_CHARACTERS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{source}: {plain_reason(error)}") from error
    if not token:
        raise ValueError(f"{source}: the first line is empty, so there is no token")
    return _checked(token, source)


def _checked(token: str, source: str) -> str:
    if not token.isprintable():
        raise ValueError(f"{source}: the token holds a line break or another control character")
    return token


def plain_reason(error: OSError | UnicodeDecodeError) -> str:
    """Why a file can't be read, in a few words; the caller names the file."""
    if isinstance(error, UnicodeDecodeError):
        return "not a text file in UTF-8"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if isinstance(error, PermissionError):
        return "permission denied"
    return (error.strerror or str(error) or type(error).__name__).lower()
