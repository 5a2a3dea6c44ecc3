"""The token that the commands show."""

from __future__ import annotations

from typing import NamedTuple

from workerserver.cli.errors import UsageError
from workerserver.process.credentials import Token, token_in, tokens_from_environment

__all__ = ["Shown", "shown_token"]


class Shown(NamedTuple):
    """*name*: what messages call it, by the variable or the file that it came from. *which*: "" for
    the one for everything, else what it permits."""

    secret: str | None = None
    name: str = "the token"
    which: str = ""


def shown_token(path: str | None = None) -> Shown:
    """The token in the file *path*; without a path, that of the environment that permits most, if
    there is any. It is read once: the file may be a pipe.

    UsageError if the token can't be had or can't be part of a header field.
    """
    token = _token(path)
    if token is None:
        return Shown()
    if not all("!" <= c <= "~" for c in token.secret):
        raise UsageError("the token holds characters that can't be sent")
    return Shown(token.secret, f"the token in {token.source.rpartition(' ')[2]}", token.name)


def _token(path: str | None) -> Token | None:
    try:
        if path is not None:
            return Token("", "admin", token_in(path, "--token-file"), path)
        tokens = tokens_from_environment()
    except ValueError as error:
        raise UsageError(str(error)) from None
    return tokens[0] if tokens else None
