"""One connection to the TCPStore of a job, without torch.

Both of torch's servers (libuv, the default, and the older one) speak this protocol since torch 2.1.
A connection begins with VALIDATE and a magic number. Then requests follow: a byte for the kind, and
the arguments. Integers are little-endian. A string is its length (8 bytes) and its bytes. A client
may send requests before earlier answers have come; answers come in order. This module uses three
kinds:

    CHECK        number of keys (8 bytes), keys   -> one byte: 0 if the store has all keys
    GET          key                              -> length (8 bytes), value
    COMPARE_SET  key, expected, desired           -> length (8 bytes), value

GET is sent only for a key that exists. For any other key the server ends the connection and writes
a line into the job's log. COMPARE_SET sets *desired* where the value is *expected*, or where there
is no value and *expected* is empty; it answers what the value is then.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence

__all__ = ["Store", "StoreError", "left_until"]

VALIDATE, COMPARE_SET, GET, CHECK = 0, 2, 3, 5
MAGIC = 0x3C85F7CE
READY = 0

#: Keys in one batch of requests, some 25 kB.
BATCH_KEYS = 512
#: Of a key: one URL.
MAX_VALUE_BYTES = 4096
#: All values that one connection reads. A whole job of 65,536 ranks needs a quarter of that.
MAX_VALUES_BYTES = 64 << 20


class StoreError(Exception):
    """What the other side sends is no TCPStore's answer, or too long. *kind*: ``malformed`` or
    ``too large``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Store:
    """On the connected *sock*. Every wait ends at the monotonic time *until*, with TimeoutError.
    OSError if the connection breaks."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until
        self._unread = bytearray()
        self._value_bytes = 0  # of all values so far
        self._send(struct.pack("<BI", VALIDATE, MAGIC))

    def has(self, keys: Sequence[str]) -> list[bool]:
        """Of each key, whether the store has it."""
        found: list[bool] = []
        for first in range(0, len(keys), BATCH_KEYS):
            batch = keys[first : first + BATCH_KEYS]
            self._send(b"".join(struct.pack("<BQ", CHECK, 1) + _text(key) for key in batch))
            found += (answer == READY for answer in self._read(len(batch)))
        return found

    def get(self, keys: Sequence[str]) -> list[bytes]:
        """The values of *keys*, which the store has."""
        values: list[bytes] = []
        for first in range(0, len(keys), BATCH_KEYS):
            batch = keys[first : first + BATCH_KEYS]
            self._send(b"".join(bytes([GET]) + _text(key) for key in batch))
            values += map(self._value, batch)
        return values

    def swap(self, key: str, expected: str, desired: str) -> str:
        """Set *desired* if the value is *expected*; the value that the key has then."""
        words = _text(key) + _text(expected) + _text(desired)
        self._send(bytes([COMPARE_SET]) + words)
        return self._value(key).decode("utf-8", "replace")

    def _value(self, key: str) -> bytes:
        (size,) = struct.unpack("<Q", self._read(8))
        if size > MAX_VALUE_BYTES:
            name = key.rpartition("/")[2]
            raise StoreError("malformed", f"the entry of {name} has {size} bytes")
        self._value_bytes += size
        if self._value_bytes > MAX_VALUES_BYTES:
            text = f"its entries have more than {MAX_VALUES_BYTES >> 20} MiB in all"
            raise StoreError("too large", f"{text}, so somebody writes false entries there")
        return self._read(size)

    def _send(self, data: bytes) -> None:
        self._sock.settimeout(left_until(self._until))
        self._sock.sendall(data)

    def _read(self, size: int) -> bytes:
        while len(self._unread) < size:
            self._sock.settimeout(left_until(self._until))
            part = self._sock.recv(1 << 16)
            if not part:
                raise StoreError("malformed", "connection closed; is it a TCPStore?")
            self._unread += part
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data


def left_until(until: float) -> float:
    """Seconds to the monotonic time *until*; TimeoutError if there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data
