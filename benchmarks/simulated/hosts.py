"""The collectors of a simulated job: what each says for the ranks of its host.

Its answers are made by the code that real collectors run, of what the simulated ranks answer.
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
from workerserver.cluster.ask.collector_format import MAX_WORKER_BYTES, encode
from workerserver.cluster.ask.survey import Part
from workerserver.cluster.model import RankState, Worker

__all__ = ["RANKS", "collectors"]

#: Of one host.
RANKS = 8
#: What a collector may be asked for all its ranks, and what of one of them is asked through it.
WANTED: Sequence[tuple[Part, ...]] = (
    ("stacks",),
    ("health", "stacks"),
    ("health", "stacks", "flight"),
)
RELAYED = (JSON, DIGEST, TRACE)


def collectors(job: Job, recording: Recording) -> Table:
    """One for every RANKS ranks of *job*."""
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
    """The socket of a host's rank, whose name doesn't depend on the host."""
    return f"/run/job/{place}.sock"


def looked(want: Collection[Part]) -> str:
    """The beginning of what asks for all ranks."""
    return f"POST /handler/collect?want={quote_plus(','.join(sorted(want)))}&*"


def asked(place: int, question: str) -> str:
    """The beginning of what asks a collector for the answer of one of its ranks to *question*."""
    target = question.partition(" ")[2]
    return f"POST /handler/ask?worker={quote_plus(path(place))}&target={quote_plus(target)}&*"


def state(rank: int, place: int, own: Mapping[str, bytes], want: Collection[Part]) -> RankState:
    """As a collector knows the rank once it has answered the small questions."""
    found = RankState(Worker(path(place), unix=True), rank, "workerserver", responded=True)
    # That a socket's name doesn't tell the rank is what the collector asks for its health for.
    found.health = bodies.health(body(own[HEALTH]))
    if "stacks" in want:
        found.digest, found.main_digest = bodies.digest(body(own[DIGEST]))
        found.mode = "gil"
    if "flight" in want:
        found.flight_summary = bodies.json_object(body(own[SUMMARY]))
    return found


def json_response(content: bytes) -> bytes:
    fields = f"Content-Type: application/json\r\nContent-Length: {len(content)}"
    return f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n".encode() + content
