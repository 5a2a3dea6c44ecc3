"""Workers that hang, lie, or answer what they should not.

``python _misbehaving.py PLACE FOLDER [KEY CERTIFICATE]`` serves three good workers, and one worker
for each misbehaviour at one question. It serves on Unix sockets in FOLDER, or over TCP if FOLDER is
"-". It prints the addresses as JSON and ends with its stdin. It is a process of its own, so that a
flood of answers takes no time from the client.
"""

from __future__ import annotations

import gzip
import json
import socket
import struct
import sys
import time
from pathlib import Path

from support.jobs.workers import DIGEST, HEALTH, STACKS, SUMMARY, Answer, Canned, good, http

GOOD = (0, 1, 2)
FIRST_HOSTILE = 10


def send(data: bytes, then: str = "hang") -> Answer:
    """Send *data*; then "hang", "close", or "reset" the connection."""

    def act(connection: socket.socket) -> None:
        connection.sendall(data)
        if then == "hang":
            connection.recv(1)
        elif then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        else:
            connection.shutdown(socket.SHUT_RDWR)

    return act


def endless(start: bytes, more: bytes, pause: float = 0.0) -> Answer:
    """Send *start*, then *more* until the other side ends the connection."""

    def act(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(more)
            if pause:
                time.sleep(pause)

    return act


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(b"\0" * (1 << 24))
HUGE = OK + b"Content-Length: 10737418240\r\n\r\n"
DEEP = b"[" * 200_000

#: Stacks may have 8 MiB, which can take longer than the deadline.
BOUNDED = {"too large", "timeout"}

#: name -> (the bytes that are sent, the reasons that fit, a word of the text)
BEHAVIOURS: dict[str, tuple[Answer, set[str], str]] = {
    "hangs in the head": (send(b""), {"timeout"}, "no answer in 3 s"),
    "half a head, then hangs": (send(OK + b"Content-Le"), {"timeout"}, "in 3 s"),
    "drips the head": (endless(b"", b"H", 0.05), {"timeout", "malformed"}, ""),
    "drips fields": (endless(OK, b"a: b\r\n", 0.05), {"timeout"}, "in 3 s"),
    "hangs in the body": (send(OK + b"Content-Length: 9\r\n\r\n{"), {"timeout"}, "in 3 s"),
    "half a body, then closes": (
        send(OK + b"Content-Length: 9\r\n\r\n{", "close"),
        {"malformed"},
        "closed",
    ),
    "half a chunk, then closes": (send(CHUNKED + b"5\r\nab", "close"), {"malformed"}, "closed"),
    "closes without a word": (send(b"", "close"), {"unreachable"}, "closed"),
    "closes in the head": (send(b"HTTP/1.1 20", "close"), {"malformed", "unreachable"}, "closed"),
    "resets": (send(b"", "reset"), {"unreachable"}, ""),
    "broken JSON": (http(b'{"status": '), {"malformed"}, ""),
    "nothing": (http(b""), {"malformed"}, ""),
    "no UTF-8": (http(b'{"status": "\xff\xfe"}'), {"malformed"}, ""),
    "deep JSON": (http(DEEP), {"malformed", "too large"}, ""),
    "JSON of another kind": (http([1, 2, 3]), {"malformed"}, ""),
    "NaN": (http(b"NaN"), {"malformed"}, ""),
    "10 GB announced": (HUGE, {"too large"}, "10737418240"),
    "10 GB sent": (endless(HUGE, b"x" * 65536), {"too large"}, "10737418240"),
    "endless chunks": (endless(CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n"), BOUNDED, ""),
    "endless small chunks": (endless(CHUNKED, b"1\r\nx\r\n" * 8192), {"malformed"}, ""),
    "endless body": (endless(OK + b"\r\n", b"x" * 65536), BOUNDED, ""),
    "endless interim answers": (
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 512),
        {"too large", "timeout", "malformed"},
        "",
    ),
    "gzip bomb": (http(BOMB, "200 OK", "Content-Encoding: gzip"), {"malformed", "too large"}, ""),
    "redirect": (
        http(b"", "302 Found", "Location: http://127.0.0.1:1/elsewhere"),
        {"refused"},
        "302",
    ),
    "a field of 1 MB": (
        http(b"{}", "200 OK", "X: " + "y" * (1 << 20)),
        {"too large", "malformed"},
        "",
    ),
    "many fields": (
        http(b"{}", "200 OK", *(f"X-{i}: y" for i in range(100_000))),
        {"too large", "malformed"},
        "",
    ),
    "a status line of 1 MB": (
        http(b"{}", "200 " + "y" * (1 << 20)),
        {"too large", "malformed"},
        "",
    ),
    "HTTP/0.9": (send(b"<html>hello</html>", "close"), {"malformed", "unreachable"}, ""),
    "another protocol": (send(b"SSH-2.0-OpenSSH_9.6\r\n"), {"malformed", "timeout"}, ""),
    "binary": (send(bytes(range(256)) * 16, "close"), {"malformed", "unreachable"}, ""),
    "upgrade": (
        send(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n\0\0"),
        {"malformed", "refused", "timeout"},
        "",
    ),
    "two lengths": (
        send(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        {"malformed"},
        "",
    ),
    "length and chunks": (
        send(OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"),
        {"malformed"},
        "",
    ),
    "control characters in an error": (
        http(b"\x1b[2J\x07bad\nmore", "500 \x1b[31mred"),
        {"refused", "malformed"},
        "",
    ),
    "unauthorized": (http(b"who?", "401 Unauthorized"), {"refused"}, "401"),
}

#: The question at which workers misbehave, and the name of the failure in the state.
PLACES = {"healthz": HEALTH, "digest": DIGEST, "stacks": STACKS, "fr_summary": SUMMARY}


def hostile_answers(place: str, index: int, answer: Answer) -> dict[str, Answer]:
    """Good answers except for one. Each worker has different stacks and collectives, so that it is
    asked for everything."""
    answers = good(FIRST_HOSTILE + index, f"{index:04x}")
    return {**answers, PLACES[place]: answer}


def main() -> None:
    place, folder, *files = sys.argv[1:]
    tls = (files[0], files[1]) if files else None

    def path(rank: int) -> Path | None:
        return None if folder == "-" else Path(folder) / f"{rank}.s"

    workers = [Canned(good(rank), path(rank), tls) for rank in GOOD]
    for index, (answer, _, _) in enumerate(BEHAVIOURS.values()):
        answers = hostile_answers(place, index, answer)
        workers.append(Canned(answers, path(FIRST_HOSTILE + index), tls))
    print(json.dumps([worker.address for worker in workers]), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
