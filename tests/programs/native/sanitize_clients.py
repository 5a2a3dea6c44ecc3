"""Clients for sanitize_stress.py: ``sanitize_clients.py FOLDER SEED SECONDS THREADS``.

The clients run in a process of their own, without the sanitizer, so that the server's GIL doesn't
delay them. Each ``*.sock`` in FOLDER and the port in FOLDER/port is a server. A server may go at
any time; then it ends or refuses connections. A reply must never be malformed, superfluous, or for
another request. Prints one JSON object: counts by action, faults, and the ids of ``once`` requests
by outcome.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from support.wire import Client, Reply, message, post

FOLDER = Path(sys.argv[1])
SEED = int(sys.argv[2])
SECONDS = float(sys.argv[3])
THREADS = int(sys.argv[4])
BIG = 8 * 1024 * 1024
PIECES = (
    b"G",
    message("GET", "/", headers=[("Host", "y")]),
    b"\0" * 100,
    b"PRI * HTTP/2.0\r\n\r\n",
)

counts: Counter[str] = Counter()
faults: list[str] = []
answered: list[str] = []
refused: list[str] = []
lock = threading.Lock()


class Fault(Exception):
    """A reply that must not be."""


def connect(rng: random.Random, receive: int = 0) -> Client:
    """A connection to any server; *receive* bytes of receive buffer make for a slow reader."""
    for _ in range(100):
        servers: list[str | tuple[str, int]] = [str(path) for path in FOLDER.glob("*.sock")]
        with contextlib.suppress(OSError, ValueError):
            servers.append(("127.0.0.1", int((FOLDER / "port").read_text())))
        with contextlib.suppress(OSError, IndexError):
            chosen = rng.choice(servers)
            client = Client(chosen, timeout=30.0)
            # On TCP less than a segment, of 64 KiB on loopback, waits for timers.
            if receive and isinstance(chosen, str):
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
            return client
        time.sleep(0.01)  # none just now
    raise ConnectionRefusedError


def check(reply: Reply, *statuses: int) -> Reply:
    # 503: too many connections, a GIL that couldn't be had, a handler that is full.
    if reply.status not in (*statuses, 503):
        raise Fault(f"{reply.status} {reply.text[:200]!r} instead of {statuses}")
    return reply


def check_pong(reply: Reply) -> None:
    if check(reply, 200, 404).status == 200 and reply.body != b"pong":  # 404: not there just now
        raise Fault(f"ping gave {reply.body[:100]!r}")


def reset(client: Client) -> None:
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# --- what a client does with one connection


def ping(rng: random.Random) -> None:
    with connect(rng) as client:
        for _ in range(rng.randrange(1, 60)):
            check_pong(client.ask(post("ping")))


def pipelined(rng: random.Random) -> None:
    kinds = (
        (post("ping"), (200, 404)), (message("GET", "/"), (200,)),
        (message("GET", "/handler/"), (200,)), (message("GET", "/healthz"), (200,)),
        (post("quick"), (200,)), (post("plain"), (200,)), (post("fails"), (500,)),
        (post("nobody"), (404,)), (post("dump_traceback?mode=nogil"), (200, 404)),
    )  # fmt: skip
    chosen = [rng.choice(kinds) for _ in range(rng.randrange(2, 40))]
    with connect(rng) as client:
        client.send(b"".join(data for data, _ in chosen))
        for _, statuses in chosen:
            if check(client.reply(), *statuses).header("connection") == "close":
                return
        if rng.random() < 0.3 and not client.silent(0.02):
            with contextlib.suppress(EOFError):
                raise Fault(f"a reply to nothing: {client.reply()}")


def flood(rng: random.Random) -> None:
    """More pings than fit into the room for replies."""
    with connect(rng, 4096) as client:
        client.socket.settimeout(0.2)
        data = post("ping") * 200
        with contextlib.suppress(TimeoutError):
            for _ in range(rng.randrange(1, 40)):
                client.send(data)
        time.sleep(rng.random() * 0.5)
        client.socket.settimeout(30.0)
        if rng.random() < 0.3:
            reset(client)
        elif rng.random() < 0.6:
            for _ in range(rng.randrange(400)):
                check_pong(client.reply())


def big_reply(rng: random.Random) -> None:
    """Read a reply slowly, and often not to its end: most of the body leaves the server late."""
    with connect(rng, rng.choice((0, 8192, 65536))) as client:
        client.send(post(f"big?size={rng.choice((100_000, BIG))}"))
        for _ in range(rng.randrange(300)):
            if not client.socket.recv(rng.choice((1000, 65536, 1 << 20))):
                break
            if rng.random() < 0.05:
                time.sleep(0.01)
        if rng.random() < 0.5:
            reset(client)


def big_whole(rng: random.Random) -> None:
    with connect(rng) as client:
        for _ in range(2):
            reply = check(client.ask(post(f"big?size={BIG}")), 200)
            if reply.status == 200 and reply.body != b"x" * BIG:
                raise Fault("a big body is not what was sent")


def upload(rng: random.Random) -> None:
    body = rng.randbytes(rng.choice((10, 70_000, 2 * 1024 * 1024)))
    with connect(rng) as client:
        if rng.random() < 0.5:
            data = post("echo", body)
        else:
            size = rng.choice((1000, 100_000))
            pieces = [body[i : i + size] for i in range(0, len(body), size)]
            data = message("POST", "/handler/echo", headers=[("Transfer-Encoding", "chunked")])
            data += b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            data += b"0\r\n\r\n"
        stop = rng.randrange(len(data)) if rng.random() < 0.2 else len(data)
        for i in range(0, stop, 200_000):
            client.send(data[i : min(stop, i + 200_000)])
        if stop < len(data):
            if rng.random() < 0.5:
                reset(client)
            return
        # 413: all bodies together are too much just now.
        if check(client.reply(), 200, 413).status == 200:
            return


def half_closed(rng: random.Random) -> None:
    name = rng.choice(("ping", "quick", "slow", "dump_traceback?mode=nogil", "big?size=300000"))
    with connect(rng) as client:
        client.send(post(name) * rng.randrange(1, 4))
        client.half_close()
        client.rest()


def rude(rng: random.Random) -> None:
    """End the connection before a read, or in the middle of a request."""
    name = rng.choice(("ping", "quick", "slow", "echo", "big?size=300000", "wait_counter_values"))
    data = post(name) * rng.randrange(1, 5)
    with connect(rng) as client:
        client.send(data[: rng.randrange(1, len(data) + 1)])
        if rng.random() < 0.5:
            time.sleep(rng.random() * 0.05)
        if rng.random() < 0.7:
            reset(client)


def slow_sender(rng: random.Random) -> None:
    data = rng.choice((post("ping"), post("echo", b"abc" * 20), message("GET", "/healthz")))
    with connect(rng) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        at = 0
        while at < len(data):
            step = rng.randrange(1, 30)
            client.send(data[at : at + step])
            at += step
            time.sleep(rng.random() * 0.005)
        check(client.reply(), 200, 404, 408)


def dump(rng: random.Random) -> None:
    mode = rng.choice(("auto", "gil", "nogil"))
    form = rng.choice(("text", "json", "digest"))
    with connect(rng) as client:
        for _ in range(rng.randrange(1, 4)):
            reply = check(client.ask(post(f"dump_traceback?mode={mode}&format={form}")), 200, 404)
            if reply.status == 200 and form != "text":
                json.loads(reply.body)


def health(rng: random.Random) -> None:
    with connect(rng) as client:
        for _ in range(rng.randrange(1, 40)):
            query = rng.choice(("", "?max_step_age=100", "?max_step_age=0", "?max_step_age=0.001"))
            reply = check(client.ask(message("GET", "/healthz" + query)), 200)
            if reply.status == 200 and json.loads(reply.body)["status"] != "ok":
                raise Fault(reply.text)


def raising(rng: random.Random) -> None:
    with connect(rng) as client:
        for _ in range(3):
            check(client.ask(post(rng.choice(("fails", "fails_async", "fails_plain")))), 500)


def relayed(rng: random.Random) -> None:
    with connect(rng) as client:
        for _ in range(rng.randrange(1, 4)):
            check(client.ask(post("wait_counter_values")), 200, 404, 500)


def once(rng: random.Random) -> None:
    """A refused request must never have run. An answered request has run once."""
    with connect(rng) as client:
        for _ in range(rng.randrange(1, 6)):
            name = f"{rng.getrandbits(64):x}"
            kind = rng.choice(("once", "once_plain", "once_async"))
            reply = check(client.ask(post(f"{kind}?id={name}")), 200, 500)
            if reply.status == 500 and "CancelledError" not in reply.text:  # by a shutdown
                raise Fault(reply.text)
            with lock:
                if reply.status != 500:
                    (answered if reply.status == 200 else refused).append(name)


def malformed(rng: random.Random) -> None:
    with connect(rng) as client:
        client.send(rng.choice(PIECES))
        client.half_close()
        client.rest()


def idle(rng: random.Random) -> None:
    """Stay idle until the server ends the connection."""
    with connect(rng) as client:
        client.send(rng.choice((b"", post("ping"), b"GET / HT", post("echo", b"x" * 50)[:-10])))
        client.rest()


def crowd(rng: random.Random) -> None:
    """More connections than are allowed."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(60):
            clients.append(stack.enter_context(connect(rng)))
        for client in clients:
            with contextlib.suppress(ConnectionError, EOFError):
                check_pong(client.ask(post("ping")))


ACTIONS: tuple[Callable[[random.Random], None], ...] = (
    ping, pipelined, flood, big_reply, big_whole, upload, half_closed, rude, rude, slow_sender,
    dump, health, raising, relayed, once, once, malformed, idle, crowd,
)  # fmt: skip


def run(seed: int, until: float) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until and len(faults) < 20:
        action = rng.choice(ACTIONS)
        outcome = "done"
        try:
            action(rng)
        except (OSError, EOFError) as error:
            # A server that goes may end any connection. A server that is silent for 30 s is stuck.
            outcome = "ended"
            if isinstance(error, TimeoutError):
                faults.append(f"{action.__name__}: 30 s of silence: {traceback.format_exc()}")
        except Exception as error:
            faults.append(f"{action.__name__}: {type(error).__name__}: {error}"[:500])
        with lock:
            counts[f"{action.__name__} {outcome}"] += 1


# --- a peer in the place of torch's own server


def peer(path: str) -> None:
    """Answers well, slowly, badly or not at all."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    rng = random.Random(SEED)
    held: list[socket.socket] = []
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError):
            connection.settimeout(1.0)
            connection.recv(65536)
            body = b"[" + b" " * rng.choice((0, 1000, 1_000_000)) + b"]"
            data = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            data += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            kind = rng.randrange(6)
            if kind == 0:
                held.append(connection)
                if len(held) > 8:
                    held.pop(0).close()
                continue
            if kind == 1:
                data = data[: rng.randrange(len(data))]
            elif kind == 2:
                data = b"nonsense\r\n\r\n"
            elif kind == 3:
                for i in range(0, min(len(data), 200), 20):
                    connection.sendall(data[i : i + 20])
                    time.sleep(0.002)
                data = data[200:]
            connection.sendall(data)
        connection.close()


def main() -> None:
    if SEED % 2:
        threading.Thread(target=peer, args=(str(FOLDER / "torch"),), daemon=True).start()
    until = time.monotonic() + SECONDS
    threads = [
        threading.Thread(target=run, args=(SEED * 1000 + i, until), daemon=True)
        for i in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 60)
    if any(thread.is_alive() for thread in threads):
        faults.append("a client hangs")
    with lock:
        print(
            json.dumps(
                {"counts": counts, "faults": faults, "answered": answered, "refused": refused}
            ),
            flush=True,
        )
    os._exit(0)


main()
