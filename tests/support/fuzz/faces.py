"""The parts that tools/fuzz.py feeds in C alone, through the modules of the package: for the suite.

The first byte of an input says how long the pieces are, as in tests/programs/fuzz/parts.pyx.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path

from support.requests.recognised import check
from workerserver.loadgen._loadgen import read_reply
from workerserver.native._bridge import Fetched, RelayError, fetch

__all__ = ["one_recognised", "one_relayed", "one_reply"]


def pieces_of(raw: bytes) -> tuple[bytes, list[bytes]]:
    data, step = raw[1:], 1 + raw[0] % 61
    return data, [data[at : at + step] for at in range(0, len(data), step)]


def one_recognised(raw: bytes) -> None:
    if raw:
        check(raw[1:])


def one_reply(raw: bytes) -> None:
    if not raw:
        return
    data, pieces = pieces_of(raw)
    options = {"head_only": raw[0] >= 128, "closed": bool(raw[0] & 64)}
    whole, cut = read_reply([data], **options), read_reply(pieces, **options)
    if "malformed" in (whole[0], cut[0]):
        assert whole[0] == cut[0], (whole, cut)
    else:
        assert whole == cut, (whole, cut)


def relayed(pieces: list[bytes]) -> Fetched | None:
    """What the relay makes of a peer that sends *pieces* and closes; None: it failed."""
    with (
        tempfile.TemporaryDirectory(prefix="ws-") as folder,
        socket.socket(socket.AF_UNIX) as listening,
    ):
        path = Path(folder) / "s"
        listening.bind(str(path))
        listening.listen(1)

        def serve() -> None:
            client, _ = listening.accept()
            with client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.recv(1 << 16)
                for piece in pieces:
                    client.sendall(piece)

        peer = threading.Thread(target=serve)
        peer.start()
        try:
            return fetch(bytes(path), b"/", timeout=60.0)
        except RelayError:
            return None
        finally:
            peer.join()


def one_relayed(raw: bytes) -> None:
    if not raw:
        return
    data, pieces = pieces_of(raw)
    whole, cut = relayed([data]), relayed(pieces)
    # Bytes behind the reply are an excess only if they are read together with it.
    if whole is not None:
        assert cut is not None
        assert whole[:3] == cut[:3]
