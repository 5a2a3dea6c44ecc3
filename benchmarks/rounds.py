"""Interleaved rounds of requests against several subjects, and what they show."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.context import Context
from benchmarks.subjects.servers import KINDS, start
from workerserver.loadgen._loadgen import Histogram, Load, Result

__all__ = ["Case", "Measured", "Subject", "measure", "placed"]

#: torch's server closes a connection after 30 requests. So every subject gets a new one earlier.
PER_CONNECTION = 25
#: A request without an answer after this long counts as not answered.
TIMEOUT_SECONDS = 2.0


class Subject(NamedTuple):
    """A server, and the request to it."""

    kind: str
    request: str = "ping"

    @property
    def label(self) -> str:
        """``ours``, or with the mode of a dump ``ours nogil``."""
        mode = self.request.partition("?mode=")[2]
        return f"{self.kind} {mode}".rstrip()


@dataclass(frozen=True)
class Case:
    """Requests to some subjects under one load.

    *placement*: with ``one core`` client and server share a core, with ``two cores`` each has its
    own core, with ``free`` the scheduler decides. *number*: requests in a round. *rate*: requests
    per second; 0 sends the next request after each answer.
    """

    request: str
    load: str
    subjects: Sequence[Subject]
    number: int
    rate: float = 0.0
    placement: str = "free"
    tcp: bool = False
    fresh: bool = False

    @property
    def connections(self) -> int:
        """Enough connections for all requests that can be under way. So in an open loop a slow
        answer never delays a later request, and no slow time is omitted. A time begins when the
        request is sent: the delay of a late client timer is not the server's."""
        return int(self.rate * TIMEOUT_SECONDS) + 1

    @property
    def name(self) -> str:
        """``ping idle one-core tcp``."""
        parts = [self.request, self.load]
        if self.load == "idle":
            parts.append(self.placement.replace(" ", "-"))
        parts += ["tcp"] if self.tcp else []
        parts += ["fresh"] if self.fresh else []
        return " ".join(parts)


@dataclass
class Measured:
    """One subject's rounds in one case."""

    results: list[Result] = field(default_factory=list)
    problem: str = ""

    def figures(self, percentile: float) -> list[float]:
        """The percentile of each round, in microseconds; empty if a round had no answer."""
        if any(result.service.count == 0 for result in self.results):
            return []
        return [result.service.percentile(percentile) / 1000 for result in self.results]

    def figure(self, percentile: float) -> float | None:
        """The median of the rounds' figures, in microseconds."""
        found = self.figures(percentile)
        return statistics.median(found) if found else None

    def merged(self) -> Histogram:
        whole = Histogram()
        for result in self.results:
            whole.merge(result.service)
        return whole

    @property
    def failed(self) -> dict[str, int]:
        """Requests that got no good answer, by reason."""
        found: dict[str, int] = {}
        for result in self.results:
            for reason, count in result.failed.items():
                found[reason] = found.get(reason, 0) + count
        return found


@contextlib.contextmanager
def placed(cpus: set[int]) -> Iterator[None]:
    """Keep this thread, which is the client, on *cpus* during the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(case: Case, context: Context, missing: dict[str, str]) -> Mapping[Subject, Measured]:
    """Rounds in which the subjects take turns. The first round warms up and is not kept."""
    cpus = os.sched_getaffinity(0)
    first, last = {min(cpus)}, {max(cpus)}
    server_cpus = {"one core": first, "two cores": last}.get(case.placement, cpus)
    found = {subject: Measured() for subject in case.subjects}
    number = max(case.number // 4, 5) if context.quick else case.number
    with contextlib.ExitStack() as stack:
        servers = start(
            stack,
            dict.fromkeys(subject.kind for subject in case.subjects),
            missing,
            folder=context.folder,
            load=case.load,
            tcp=case.tcp,
        )
        for server in servers.values():
            server.place(server_cpus)
        stack.enter_context(placed(cpus if case.placement == "free" else first))
        for turn in range(context.rounds + 1):
            for subject, measured in found.items():
                if subject.kind not in servers or measured.problem:
                    continue
                server = servers[subject.kind]
                load = Load(
                    server.address,
                    server.request(subject.request),
                    requests=number if turn else max(number // 10, 2),
                    seconds=2 * TIMEOUT_SECONDS,
                    rate=case.rate,
                    connections=case.connections,
                    fresh=case.fresh,
                    timeout=TIMEOUT_SECONDS,
                    per_connection=0 if case.fresh else PER_CONNECTION,
                )
                try:
                    with server.awake():
                        result = load.run()
                except RuntimeError as error:
                    measured.problem = str(error)
                    measured.results.clear()
                    continue
                if turn:
                    measured.results.append(result)
                elif result.answered == 0:
                    measured.problem = f"no answer in {TIMEOUT_SECONDS:g} s"
    return {subject: found[subject] for subject in sorted(found, key=order)}


def order(subject: Subject) -> int:
    return KINDS.index(subject.kind)
