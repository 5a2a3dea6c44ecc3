"""Proof that a worker and we know the same token, which is not sent. docs/security.md has it whole.

On each connection the client greets first, and sends nothing else before the worker has proven
itself. From then on each request and each answer carries a MAC of its own. The worker's half is
workerserver/http/proof.c.
"""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from hmac import compare_digest
from typing import Literal

__all__ = ["Proof", "key_of"]

LABEL = b"workerserver proof 1"
BYTES = 32  # of a key, of a MAC and of a hash
NONCE_BYTES = 16
NOTHING = bytes(BYTES)

_SCHEME = re.compile(r"WorkerServer v=([0-9]{1,9})\b")
_CHALLENGE = re.compile(
    r"WorkerServer v=1, n=([0-9a-f]{32}), w=((?:[0-9a-f]{2}){1,192}), m=([0-9a-f]{64})"
)
_WORKER = re.compile(rb"([0-9]{1,19}) (-|[0-9]{1,19}) (.*)", re.DOTALL)
_PROVEN = re.compile(r"m=([0-9a-f]{64})")

#: How a worker answers a greeting. proven: it knows the token. other: it knows another one, or
#: none. version: it speaks another version of the protocol only. unknown: it knows no proof.
Meeting = Literal["proven", "other", "version", "unknown"]


def key_of(token: str) -> bytes:
    """The key that stands for *token*."""
    return blake2b(token.encode(), key=LABEL, digest_size=BYTES).digest()


class Proof:
    """The client's half, on one connection, with the key of a token; *token* is its name: "" is the
    one for everything, else its permission. ``rank`` and ``pid`` are the worker's own, once it has
    proven itself; ``rank`` is None if it has none."""

    __slots__ = (
        "_asked", "_counter", "_guest", "_key", "_nonce", "_token", "_worker", "met", "pid", "rank",
    )  # fmt: skip

    def __init__(self, key: bytes, token: str = "") -> None:
        self.met = False
        self.pid: int | None = None
        self.rank: int | None = None
        self._key = key
        self._token = token
        self._guest = os.urandom(NONCE_BYTES)
        self._nonce = b""
        self._worker = NOTHING
        self._counter = 0
        self._asked = NOTHING  # the hash of the last request's method and target

    def greeting(self) -> str:
        """The Authorization field of the first request."""
        which = f", t={self._token}" if self._token else ""
        return f"WorkerServer v=1, n={self._guest.hex()}{which}"

    def meet(self, challenge: str) -> Meeting:
        """Read the WWW-Authenticate field of the answer to the greeting."""
        found = _CHALLENGE.fullmatch(challenge)
        if found is None:
            scheme = _SCHEME.match(challenge)
            if scheme is None:
                return "unknown"
            return "other" if scheme[1] == "1" else "version"
        worker = bytes.fromhex(found[2])
        self._nonce = bytes.fromhex(found[1])
        self._worker = _hash(worker)
        who = _WORKER.fullmatch(worker)
        right = self._mac(b"w", 0, 0, NOTHING, NOTHING)
        if who is None or not compare_digest(bytes.fromhex(found[3]), right):
            return "other"
        self.pid = int(who[1])
        self.rank = None if who[2] == b"-" else int(who[2])
        self.met = True
        return "proven"

    def request(self, method: str, target: str, body: bytes = b"") -> str:
        """The Authorization field of the next request."""
        self._counter += 1
        self._asked = _hash(_hash(method.encode("ascii")) + _hash(target.encode("ascii")))
        hashed = _hash(body)
        proof = self._mac(b"q", self._counter, 0, self._asked, hashed)
        return f"WorkerServer v=1, c={self._counter:016x}, b={hashed.hex()}, m={proof.hex()}"

    def answered(self, status: int, body: bytes, info: str) -> bool:
        """Whether an answer to the last request is the worker's own, as it was sent. *info*: its
        Authentication-Info field."""
        found = _PROVEN.fullmatch(info)
        right = self._mac(b"a", self._counter, status, self._asked, _hash(body))
        return found is not None and compare_digest(bytes.fromhex(found[1]), right)

    def _mac(self, role: bytes, counter: int, status: int, asked: bytes, body: bytes) -> bytes:
        text = b"".join(
            (
                LABEL,
                role,
                self._nonce,
                self._guest,
                self._worker,
                counter.to_bytes(8, "big"),
                status.to_bytes(2, "big"),
                asked,
                body,
            )
        )
        return blake2b(text, key=self._key, digest_size=BYTES).digest()


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=BYTES).digest()
