"""What a collector says for all ranks of its host in one answer, and how one of them is asked
through it.

The answer to ``collect`` is JSON: ``{"version": 1, "workers": [WORKER]}``, where WORKER has what a
RankState has after the small questions: ``address``, ``unix``, ``tls``, ``rank``, ``kind``,
``responded``, ``health``, ``digest``, ``main``, ``mode``, ``summary`` (``fr_summary``) and
``failures`` ({question: [reason, text]}). Of a stock torch worker it only says that it is one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args
from urllib.parse import urlencode

from workerserver.cluster.model import REASONS, Failure, Kind, RankState, Worker
from workerserver.cluster.wire import (
    MOST_RANKS,
    Answer,
    Failed,
    Question,
    digest_of,
    health_of,
    json_object,
    short,
)

__all__ = [
    "FAILURE_FIELD",
    "LONGEST",
    "MOST_WORKERS",
    "SHORTEST",
    "collect_question",
    "decode",
    "encode",
    "relay_failure",
    "relayed",
]

#: Workers of one host, bytes of one's part of the answer, and characters of a text.
MOST_WORKERS = 4096
MOST_BYTES = 64 << 10
MOST_TEXT = 4096
QUESTIONS = frozenset({"healthz", "digest", "stacks", "fr_summary", "flight"})
MODES = (None, "gil", "nogil", "kernel")
#: A collector has this much of the time that its caller has, within these bounds (seconds).
SHARE = 0.8
SHORTEST, LONGEST = 0.05, 600.0
#: A header field: why the collector itself has no answer of the worker.
FAILURE_FIELD = "X-Collector-Failure"


def collect_question(want: Collection[str], deadline: float, ranks: int) -> Question:
    """Ask a collector for all its workers, *ranks* of them as far as is known; each has a share
    of *deadline* seconds."""
    seconds = min(max(deadline * SHARE, SHORTEST), LONGEST)
    query = urlencode({"want": ",".join(sorted(want)), "deadline": f"{seconds:.3f}"})
    limit = MOST_BYTES * max(min(ranks, MOST_WORKERS), 64)
    return Question.handler("collect", query, limit=limit)


def relayed(question: Question, worker: Worker, seconds: float) -> Question:
    """*question*, put to *worker* through its collector, which has a share of *seconds*."""
    query = {
        "worker": worker.address,
        "target": question.path,
        "method": question.method,
        "limit": question.limit,
        "deadline": f"{min(max(seconds * SHARE, SHORTEST), LONGEST):.3f}",
    }
    return replace(question, path=f"/handler/ask?{urlencode(query)}", method="POST")


def relay_failure(answer: Answer) -> Failed | None:
    """Why the collector has no answer of the worker; None if it has one."""
    reason = answer.fields.get(FAILURE_FIELD.lower())
    if reason is None:
        return None
    text = answer.body[:200].decode("utf-8", "backslashreplace")
    for known in REASONS:
        if reason == known:
            return Failed(known, text)
    return Failed("malformed", f"its collector's failure is {short(reason)}")


def encode(states: Sequence[RankState]) -> dict[str, Any]:
    """The answer to ``collect``."""
    workers = [
        {
            "address": state.worker.address,
            "unix": state.worker.unix,
            "tls": state.worker.tls,
            "rank": state.rank,
            "kind": state.kind,
            "responded": state.responded,
            "health": None if state.health is None else asdict(state.health),
            "digest": state.digest,
            "main": state.main_digest,
            "mode": state.mode,
            "summary": state.flight_summary,
            "failures": {
                question: [failure.reason, failure.text]
                for question, failure in state.failures.items()
            },
        }
        for state in states
    ]
    return {"version": 1, "workers": workers}


def decode(answer: Answer, collector: Worker) -> list[RankState]:
    """The states of its workers, each to be asked via *collector*; ValueError names what can't be
    right. Who is none of its ranks is there with a failure."""
    fields = json_object(answer.body)
    version, workers = fields.get("version"), fields.get("workers")
    if version != 1:
        raise ValueError(f"version is {short(version)}, and this reads version 1")
    if not isinstance(workers, list) or len(workers) > MOST_WORKERS:
        raise ValueError(f"workers is no list, or of more than {MOST_WORKERS}")
    states = {}
    for number, each in enumerate(workers):
        try:
            state = _state(each, collector)
        except ValueError as error:
            raise ValueError(f"workers[{number}]: {error}") from None
        states[state.worker] = state
    return list(states.values())


def _state(fields: Any, collector: Worker) -> RankState:
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    rank: int | None = _of(fields, "rank", int, type(None))
    if rank is not None and not 0 <= rank < MOST_RANKS:
        raise ValueError(f"rank is {short(rank)}")
    kind: Kind = fields.get("kind", "unknown")
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {short(kind)}")
    if fields.get("mode") not in MODES:
        raise ValueError(f"mode is {short(fields.get('mode'))}")
    worker = Worker(
        _text(fields.get("address"), "address"),
        _of(fields, "unix", bool),
        rank,
        collector.host,
        collector.source,
        tls=_of(fields, "tls", bool),
        via=collector,
    )
    state = RankState(worker, rank, kind=kind, responded=_of(fields, "responded", bool))
    health = _of(fields, "health", dict, type(None))
    state.health = None if health is None else health_of(health)
    if fields.get("digest") is not None:
        state.digest, state.main_digest = digest_of(fields)
        state.mode = fields["mode"]
    state.flight_summary = _of(fields, "summary", dict, type(None))
    state.failures = _failures(_of(fields, "failures", dict))
    if collector.ranks and rank not in collector.ranks:
        text = "its host's collector answers for a rank that is none of its own"
        state.failures["healthz"] = Failure("lied", text)
    return state


def _of(fields: dict[str, Any], name: str, *types: type) -> Any:
    value = fields.get(name)
    if type(value) not in types:
        raise ValueError(f"{name} is {short(value)}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise ValueError(f"{name} is {short(value)}")
    return value


def _failures(given: dict[Any, Any]) -> dict[str, Failure]:
    failures = {}
    for question, failure in given.items():
        if question not in QUESTIONS or not isinstance(failure, list) or len(failure) != 2:
            raise ValueError(f"failures: {short(question)} is no failure")
        reason, text = failure
        if reason not in REASONS:
            raise ValueError(f"failures: {short(question)} is {short(reason)}")
        failures[question] = Failure(reason, _text(text, "failures"))
    return failures
