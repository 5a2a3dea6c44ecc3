"""A table of raw inputs, and the answers that RFC 9110 and RFC 9112 ask for.

The suite cuts each case once, and sends it whole to the native transport too. ``make wire`` cuts
each case at every byte, on every transport.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from itertools import count

import pytest
from support.requests.raw import FOLDER, Raw, cuts, play, read_cases
from support.served import OURS, Kind, Serve, Served
from support.wire import Client

from workerserver import Limits, Request, Response

ALL = os.environ.get("WORKERSERVER_WIRE") == "all"
FILES = sorted(path.stem for path in FOLDER.glob("*.json"))
KINDS: tuple[Kind, ...] = (
    "unix", "tcp", "uvloop-unix", "uvloop-tcp", "asyncio-unix", "asyncio-tcp", "tls",
)  # fmt: skip
#: The loop may use all of a processor, and the clients' pauses may be long.
LIMITS = Limits(gil_share=1, head_timeout=60, body_timeout=60)


def echo(request: Request) -> Response:
    return Response(request.body)


def made(serve: Serve, kind: Kind) -> Served:
    server = serve(kind, limits=LIMITS)
    server.registry.register("echo", echo, inline=True)
    server.registry.register("thread", echo)
    return server


def ways(case: Raw, kind: Kind) -> list[tuple[int, ...]]:
    """Where *case* is cut, each time it is sent."""
    handshakes = kind == "tls" and case.then == "closed"  # one each time
    if ALL:
        places = cuts(case)
        step = 1 + len(places) // 8 if handshakes else 1
        return [(), *((place,) for place in places[::step]), tuple(places)[:200]]
    number = zlib.crc32(case.name.encode())
    if handshakes and number % 4:
        return []
    cut = (1 + number % (len(case.data) - 1),) if len(case.data) > 1 else ()
    return [(), cut] if kind in OURS else [cut]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(600)
def test_raw_inputs(serve: Serve, kind: Kind, name: str) -> None:
    """Each case gets its replies and no other, however its bytes are cut."""
    server = made(serve, kind)
    numbers = count()
    wrong: list[str] = []
    kept: Client | None = None
    for case in read_cases(name):
        for places in ways(case, kind):
            client = kept or Client(server.address, timeout=60)
            kept = None
            try:
                play(case, client, places, f"mark {next(numbers)}")
            except (AssertionError, EOFError, TimeoutError) as error:
                wrong.append(f"{case.name} ({case.why}), cut at {places[:3]}: {error}")
                client.close()
                break
            if case.then == "open":
                kept = client
            else:
                client.close()
    if kept is not None:
        kept.close()
    assert not wrong, "\n".join(wrong)


def test_the_table() -> None:
    cases = [case for name in FILES for case in read_cases(name)]
    assert len(cases) >= 588
    twice = [name for name, times in Counter(case.name for case in cases).items() if times > 1]
    assert twice == []
    assert all(case.why for case in cases)
    assert {case.then for case in cases} == {"open", "closed", "waits"}
