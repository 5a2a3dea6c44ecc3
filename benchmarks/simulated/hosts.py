"""The collectors of a simulated job: each answers for the ranks of its host.

The code of real collectors makes the answers, from the answers of the simulated ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from urllib.parse import quote_plus

from benchmarks.simulated.workers import (
    ANYTHING,
    DIGEST,
    HEALTH,
    JSON,
    SUMMARY,
    TRACE,
    Job,
    Recording,
    Table,
    body,
)
from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.collector_format import MAX_WORKER_BYTES
from workerserver.cluster.ask.folded.encode import encode
from workerserver.cluster.ask.survey import Part
from workerserver.cluster.model import RankState, Worker
from workerserver.cluster.read.columns.summaries import summary_of

__all__ = ["RANKS", "collectors"]

#: Ranks of one host.
RANKS = 8
#: The questions to a collector about all its ranks, and the questions through it to one rank.
WANTED: Sequence[tuple[Part, ...]] = (
    ("stacks",),
    ("health", "stacks"),
    ("health", "stacks", "flight"),
)
RELAYED = (JSON, DIGEST, TRACE)


def collectors(job: Job, recording: Recording) -> Table:
    """A collector for every RANKS ranks of *job*."""
    looks = {looked(want): want for want in WANTED}
    relayed = [asked(place, question) for place in range(RANKS) for question in RELAYED]
    table = Table((*looks, *relayed, ANYTHING))
    host: list[Mapping[str, bytes]] = []
    for rank, own in enumerate(job.answers(recording)):
        host.append(own)
        if len(host) < RANKS:
            continue
        answers = {ANYTHING: own[ANYTHING]}
        for place, each in enumerate(host):
            answers.update((asked(place, question), each[question]) for question in RELAYED)
        for question, want in looks.items():
            states = [
                state(rank - RANKS + 1 + place, place, each, want)
                for place, each in enumerate(host)
            ]
            answers[question] = json_response(encode(states, MAX_WORKER_BYTES * RANKS))
        table.add(answers)
        host = []
    if host:
        raise ValueError(f"{job.ranks} ranks are no hosts of {RANKS}")
    return table


def path(place: int) -> str:
    """The socket of a host's rank. The path is the same on every host."""
    return f"/run/job/{place}.sock"


def looked(want: Collection[Part]) -> str:
    """The beginning of the question about all ranks."""
    return f"POST /handler/collect?want={quote_plus(','.join(sorted(want)))}&*"


def asked(place: int, question: str) -> str:
    """The beginning of *question* to one rank, as the rank's collector gets it."""
    target = question.partition(" ")[2]
    return f"POST /handler/ask?worker={quote_plus(path(place))}&target={quote_plus(target)}&*"


def state(rank: int, place: int, own: Mapping[str, bytes], want: Collection[Part]) -> RankState:
    """The state of a rank in its collector, after the rank has answered the small questions."""
    found = RankState(Worker(path(place), unix=True), rank, "workerserver", responded=True)
    # The collector asks for health, because the socket's name doesn't tell the rank.
    found.health = bodies.health(body(own[HEALTH]))
    if "stacks" in want:
        found.digest, found.main_digest = bodies.digest(body(own[DIGEST]))
        found.mode = "gil"
    if "flight" in want:
        found.flight_summary = summary_of(body(own[SUMMARY]))
    return found


def json_response(content: bytes) -> bytes:
    fields = f"Content-Type: application/json\r\nContent-Length: {len(content)}"
    return f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n".encode() + content
