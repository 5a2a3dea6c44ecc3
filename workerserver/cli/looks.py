"""Rounds of questions one after another, for the commands that run until they are ended."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

from workerserver.cli.text import count, positive_seconds
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.rounds import Part, Round, collect
from workerserver.cluster.model import Worker

__all__ = ["add_every", "looks"]


def add_every(parser: argparse.ArgumentParser, every: float) -> None:
    parser.add_argument(
        "--every",
        type=positive_seconds,
        default=every,
        metavar="S",
        help=f"time between the starts of two rounds (default {every:g})",
    )
    parser.add_argument("--count", type=count, metavar="N", help="end after N rounds")


async def looks(
    client: Client,
    workers: Sequence[Worker],
    want: Collection[Part],
    *,
    every: float,
    most: int | None = None,
) -> AsyncIterator[Round]:
    """Rounds until there were *most*, or until the client is stopped. A round that the stop cuts
    short is left out."""
    loop = asyncio.get_running_loop()
    number = 0
    while True:
        began = loop.time()
        (found,) = await collect(workers, want=want, client=client)
        if client.stopped:
            return
        yield found
        number += 1
        if number == most:
            return
        while not client.stopped and (left := began + every - loop.time()) > 0:
            await asyncio.sleep(min(left, 0.1))
        if client.stopped:
            return
