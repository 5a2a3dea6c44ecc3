"""The token that the commands show."""

from __future__ import annotations

from workerserver.cli.errors import UsageError
from workerserver.process.credentials import Token, token_in, tokens_from_environment

__all__ = ["read_token", "token_name", "which_token"]


def read_token(path: str | None = None) -> str | None:
    """The token in the file *path*; without a path, that of the environment that permits most, or
    None.

    UsageError if the token can't be had or can't be part of a header field.
    """
    token = _token(path)
    if token is None:
        return None
    if not all("!" <= c <= "~" for c in token.secret):
        raise UsageError("the token holds characters that can't be sent")
    return token.secret


def which_token(path: str | None = None) -> str:
    """Its name: "" for the one for everything, else what it permits."""
    token = _token(path)
    return "" if token is None else token.name


def token_name(path: str | None = None) -> str:
    """What messages call the token: the variable, or the file, that it came from."""
    token = _token(path)
    return f"the token in {token.source.rpartition(' ')[2]}" if token is not None else "the token"


def _token(path: str | None) -> Token | None:
    try:
        if path is not None:
            return Token("", "admin", token_in(path, "--token-file"), path)
        tokens = tokens_from_environment()
    except ValueError as error:
        raise UsageError(str(error)) from None
    return tokens[0] if tokens else None
