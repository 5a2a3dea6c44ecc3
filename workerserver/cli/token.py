"""The bearer token that the commands send."""

from __future__ import annotations

import os

from workerserver.cli.errors import UsageError
from workerserver.process.credentials import token_from_environment, token_in

__all__ = ["read_token", "token_name"]


def read_token(path: str | None = None) -> str | None:
    """The bearer token in the file *path*; without a path, that from WORKERSERVER_TOKEN or
    WORKERSERVER_TOKEN_FILE, or None.

    UsageError if the token can't be had or can't be part of a header field.
    """
    try:
        token = token_from_environment() if path is None else token_in(path, "--token-file")
    except ValueError as error:
        raise UsageError(str(error)) from None
    if token is None:
        return None
    if not all("!" <= c <= "~" for c in token):
        raise UsageError("the token holds characters that can't be sent")
    return token


def token_name(path: str | None = None) -> str:
    """What messages call the token: the variable, or the file, that it came from."""
    if path is not None:
        return f"the token in {path}"
    if os.environ.get("WORKERSERVER_TOKEN", "").strip():
        return "the token in WORKERSERVER_TOKEN"
    return f"the token in {os.environ.get('WORKERSERVER_TOKEN_FILE', '')}"
