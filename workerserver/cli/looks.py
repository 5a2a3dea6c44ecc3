"""Looks at a job one after another, for the commands that run until they are ended.

Each look finds the workers anew: a job that torchrun has restarted has new ones. What equal
answers have told in one look is not asked for again in the next one.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

from workerserver.cli.errors import CommandError
from workerserver.cli.job_command import nobody
from workerserver.cli.text import count, positive_seconds
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.questions import Memory
from workerserver.cluster.ask.rounds import Part, Round, collect
from workerserver.cluster.find.discovery import Found
from workerserver.cluster.model import RankState, Worker

__all__ = ["Look", "Looker", "add_every"]

#: Stacks that are remembered from earlier looks.
MAX_STACKS = 4096


def add_every(parser: argparse.ArgumentParser, every: float) -> None:
    parser.add_argument(
        "--every",
        type=positive_seconds,
        default=every,
        metavar="S",
        help=f"seconds between the starts of two looks (default {every:g})",
    )
    parser.add_argument("--count", type=count, metavar="N", help="end after N looks")


@dataclass
class Look:
    """One look. *vanished*: the last states of workers of this job that are found no more. *why*:
    why nobody was found. *changed*: other workers than in the look before."""

    round: Round
    found: Found
    vanished: list[RankState]
    why: str | None = None
    changed: bool = False

    @property
    def begins(self) -> bool:
        """Whether the looks before tell nothing of this one: other workers, or all have ended."""
        return self.changed or nobody(self.round.states)


class Looker:
    """*first*: the workers of the first look. *find* finds those of each later look, in a thread,
    since a look-up may take its time; CommandError if nobody is there."""

    def __init__(
        self, first: Found, find: Callable[[], Found], *, every: float, most: int | None = None
    ) -> None:
        self._found = first
        self._find = find
        self._every = every
        self._most = most
        self._memory = Memory()
        self._last: dict[Worker, RankState] = {}
        self._vanished: list[RankState] = []
        self._begun = False

    async def looks(
        self,
        client: Client,
        want: Callable[[], Collection[Part]],
        between: Callable[[], None] | None = None,
    ) -> AsyncIterator[Look]:
        """Looks until there were enough, or until the client is stopped. A look that the stop cuts
        short is left out. *want*: what to ask in the next look. *between* is called ten times a
        second while nothing is asked."""
        loop = asyncio.get_running_loop()
        number, why = 0, None
        while True:
            began = loop.time()
            if number:
                why = await self._find_again()
            look = await self._look(client, want(), why)
            if client.stopped:
                return
            yield look
            number += 1
            if number == self._most:
                return
            while not client.stopped and (left := began + self._every - loop.time()) > 0:
                if between is not None:
                    between()
                await asyncio.sleep(min(left, 0.1))
            if client.stopped:
                return

    async def _find_again(self) -> str | None:
        """Why there is nobody; None if there is somebody."""
        try:
            self._found = await asyncio.to_thread(self._find)
        except CommandError as error:
            self._found = Found([])
            return str(error)
        return None

    async def _look(self, client: Client, want: Collection[Part], why: str | None) -> Look:
        memory = self._memory
        if len(memory.threads) > MAX_STACKS:
            self._memory = memory = Memory()
        (found,) = await collect(self._found.workers, want=want, client=client, memory=memory)
        now = {state.worker: state for state in found.states}
        before, self._last = self._last, now
        for worker in before.keys() - now.keys():
            memory.summaries.pop(worker, None)
            memory.recorders.pop(worker, None)
        gone = [*self._vanished, *(before[worker] for worker in before if worker not in now)]
        if before and now and before.keys().isdisjoint(now.keys()):  # the job has been restarted
            gone = []
        ranks = {state.rank for state in found.states} - {None}
        self._vanished = [
            each for each in gone if each.worker not in now and each.rank not in ranks
        ]
        changed = self._begun and before.keys() != now.keys()
        self._begun = True
        return Look(found, self._found, self._vanished, why, changed)
