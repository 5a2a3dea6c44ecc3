"""The bearer token that the commands send."""

from __future__ import annotations

import os

from workerserver.cli.errors import UsageError

__all__ = ["read_token", "token_name"]


def read_token() -> str | None:
    """The bearer token from WORKERSERVER_TOKEN or WORKERSERVER_TOKEN_FILE, or None.

    UsageError if the file can't be read or if the token can't be part of a header field.
    """
    token = os.environ.get("WORKERSERVER_TOKEN", "")
    path = os.environ.get("WORKERSERVER_TOKEN_FILE", "")
    if not token and path:
        try:
            with open(path, encoding="utf-8") as file:
                token = file.read(65536)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"WORKERSERVER_TOKEN_FILE {path}: {error}") from None
    token = token.strip()
    if not all("!" <= c <= "~" for c in token):
        raise UsageError("the token holds characters that can't be sent")
    return token or None


def token_name() -> str:
    """What messages call the token: the variable, or the file, that it came from."""
    if os.environ.get("WORKERSERVER_TOKEN", "").strip():
        return "the token in WORKERSERVER_TOKEN"
    return f"the token in {os.environ.get('WORKERSERVER_TOKEN_FILE', '')}"
