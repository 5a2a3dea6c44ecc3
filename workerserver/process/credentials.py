"""What gives access, from the environment: the one reader, for servers and for those who ask."""

from __future__ import annotations

import os

__all__ = ["plain_reason", "token_from_environment", "token_in"]

TOKEN = "WORKERSERVER_TOKEN"
TOKEN_FILE = "WORKERSERVER_TOKEN_FILE"
MAX_LINE_CHARACTERS = 64 * 1024


def token_from_environment() -> str | None:
    """``WORKERSERVER_TOKEN``, or the first line of the file that ``WORKERSERVER_TOKEN_FILE`` names,
    without spaces around it; None if neither is set. An empty variable counts as not set.

    Raises ValueError for a file that can't be read or has no token in its first line, and for a
    token that no request can carry: to serve without the protection that somebody asked for would
    be worse than not to serve.
    """
    token = os.environ.get(TOKEN, "").strip()
    path = os.environ.get(TOKEN_FILE, "")
    if not token and path:
        return token_in(path, TOKEN_FILE)
    return _checked(token, TOKEN) or None


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
