"""A collector's answer for all ranks of its host, and questions to one rank through a collector.

The answer to ``collect`` is JSON of a version that the question names; :mod:`ask.folded` has
version 2. Version 1 is ``{"version": 1, "workers": [WORKER]}``. A WORKER has the fields of a
RankState after the small questions: ``address``, ``unix``, ``tls``, ``rank``, ``kind``,
``responded``, ``health``, ``digest``, ``main``, ``mode``, ``summary`` (``fr_summary``) and
``failures`` ({question: [reason, text]}). For a stock torch worker the answer tells only that the
worker is one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args
from urllib.parse import urlencode

from workerserver.cluster.ask.bodies import MAX_RANKS, digest_of, health_of, json_object
from workerserver.cluster.ask.exchange import Answer, Question
from workerserver.cluster.failures import Failed, short
from workerserver.cluster.model import (
    FAILURE_REASONS,
    MAX_HOST_WORKERS,
    Failure,
    Kind,
    RankState,
    Worker,
)

__all__ = [
    "FAILURE_FIELD",
    "MAX_RELAYED_BYTES",
    "MAX_SECONDS",
    "MAX_WORKER_BYTES",
    "MIN_SECONDS",
    "collect_question",
    "decode",
    "encode",
    "relay_failure",
    "relayed",
]

#: Workers that an answer may have beyond the host's ranks, if those ranks are known.
MAX_MORE_WORKERS = 64
#: One worker's part of the answer. A job with 50 process groups has 35 KB of summary.
MAX_WORKER_BYTES = 256 << 10
MAX_TEXT_CHARACTERS = 4096
#: One worker's answer that a collector passes on.
MAX_RELAYED_BYTES = 64 << 20
#: Why a rank does not count that its collector was not expected to answer for.
STRANGER = "its host's collector answers for a rank that is none of its own"
QUESTIONS = frozenset({"healthz", "digest", "stacks", "fr_summary", "flight"})
MODES = (None, "gil", "nogil", "kernel")
#: A collector's deadline is this share of the caller's time, within these bounds.
SHARE = 0.8
MIN_SECONDS, MAX_SECONDS = 0.05, 600.0
#: The header field that says why the collector has no answer from the worker.
FAILURE_FIELD = "X-Collector-Failure"


def collect_question(
    want: Collection[str], seconds: float, collector: Worker, version: int = 1
) -> Question:
    """Asks *collector* for all its workers. The deadline of each worker is a share of *seconds*. A
    *version* above 1 is one that older collectors refuse to give."""
    limit = MAX_WORKER_BYTES * (len(collector.ranks) or MAX_MORE_WORKERS)
    query = {
        "want": ",".join(sorted(want)),
        "deadline": f"{min(max(seconds * SHARE, MIN_SECONDS), MAX_SECONDS):.3f}",
        "limit": limit,
    }
    if version > 1:
        query["version"] = version
    return Question.handler("collect", urlencode(query), limit=limit)


def relayed(question: Question, worker: Worker, seconds: float) -> Question:
    """*question*, put to *worker* through its collector within a share of *seconds*."""
    limit = min(question.limit, MAX_RELAYED_BYTES)
    query = {
        "worker": worker.address,
        "target": question.path,
        "method": question.method,
        "limit": limit,
        "deadline": f"{min(max(seconds * SHARE, MIN_SECONDS), MAX_SECONDS):.3f}",
    }
    path = f"/handler/ask?{urlencode(query)}"
    return replace(question, path=path, method="POST", limit=limit)


def relay_failure(answer: Answer) -> Failed | None:
    """Why the collector has no answer from the worker; None if it has one."""
    reason = answer.fields.get(FAILURE_FIELD.lower())
    if reason is None:
        return None
    text = answer.body[:200].decode("utf-8", "backslashreplace")
    for known in FAILURE_REASONS:
        if reason == known:
            return Failed(known, text)
    return Failed("malformed", f"its collector's failure is {short(reason)}")


def encode(states: Sequence[RankState], limit: int) -> bytes:
    """The answer to ``collect``, of at most *limit* bytes.

    A summary that is too large or that JSON can't hold is left out. Its worker gets a failure.
    """
    most = share(states, limit)
    parts = [passed_on(state, most)[1] for state in states]
    return f'{{"version":1,"workers":[{",".join(parts)}]}}'.encode("ascii")


def share(states: Sequence[RankState], limit: int) -> int:
    """So many bytes of an answer of at most *limit* bytes are for each of *states*."""
    return min(limit // max(len(states), 1), MAX_WORKER_BYTES) - 16


def passed_on(state: RankState, most: int) -> tuple[Mapping[str, Any], str]:
    """The fields of a WORKER, and their JSON, of at most *most* bytes if the summary is all that
    may be left out."""
    fields = _fields(state)
    try:
        part = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        part, why = "", ("malformed", f"fr_summary can't be passed on: {short(error)}")
    else:
        why = ("too large", f"a summary of {len(part)} bytes, more than {most}")
    if not part or len(part) > most:
        fields["summary"] = None
        fields["failures"]["fr_summary"] = why
        part = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    return fields, part


def _fields(state: RankState) -> dict[str, Any]:
    failures = {name: (each.reason, each.text) for name, each in state.failures.items()}
    return {
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
        "summary": None if state.flight_summary is None else dict(state.flight_summary),
        "failures": failures,
    }


def decode(answer: Answer, collector: Worker) -> list[RankState]:
    """The states of the collector's workers, to be asked further through *collector*.

    ValueError if the answer as a whole is wrong. If one worker's part is wrong, only that worker
    gets a failure. A worker that is none of the collector's ranks gets a failure too, and so does a
    rank that is missing in the answer.
    """
    return decode_workers(json_object(answer.body), collector)


def decode_workers(fields: Mapping[str, Any], collector: Worker) -> list[RankState]:
    """As :func:`decode`, from the decoded JSON object."""
    version, workers = fields.get("version"), fields.get("workers")
    if version != 1:
        raise ValueError(f"version is {short(version)}, and this reads versions 1 and 2")
    most = most_workers(collector)
    if not isinstance(workers, list) or len(workers) > most:
        raise ValueError(f"workers is no list, or of more than {most}")
    states: dict[Worker, RankState] = {}
    for number, each in enumerate(workers):
        try:
            state = _state(each, collector)
        except ValueError as error:
            state = _misread(each, collector, f"workers[{number}]: {error}")
        states[state.worker] = state
    return with_missing(states, collector)


def most_workers(collector: Worker) -> int:
    """So many workers *collector* may tell of."""
    return len(collector.ranks) + MAX_MORE_WORKERS if collector.ranks else MAX_HOST_WORKERS


def with_missing(states: dict[Worker, RankState], collector: Worker) -> list[RankState]:
    """*states*, and one for each of the collector's ranks that has none."""
    told = {state.rank for state in states.values()}
    for rank in collector.ranks:
        if rank not in told:
            text = "the collector of its host left it out"
            missing = RankState(worker_behind(collector, "", rank), rank)
            missing.failures["healthz"] = Failure("missing", text)
            states[missing.worker] = missing
    return list(states.values())


def worker_behind(
    collector: Worker, address: str, rank: int | None, *, unix: bool = False, tls: bool = False
) -> Worker:
    return Worker(address, unix, rank, collector.host, collector.source, tls=tls, via=collector)


def _misread(fields: Any, collector: Worker, text: str) -> RankState:
    """The state of a worker whose part is wrong except for the rank; ValueError without a rank."""
    rank = fields.get("rank") if isinstance(fields, dict) else None
    if type(rank) is not int or not 0 <= rank < MAX_RANKS:
        raise ValueError(text)
    return malformed(rank, collector, text)


def malformed(rank: int, collector: Worker, text: str) -> RankState:
    """The state of a rank of which the collector has told nonsense."""
    state = RankState(worker_behind(collector, "", rank), rank)
    state.failures["healthz"] = Failure("malformed", text)
    return state


def _state(fields: Any, collector: Worker) -> RankState:
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    rank: int | None = checked(fields, "rank", int, type(None))
    if rank is not None and not 0 <= rank < MAX_RANKS:
        raise ValueError(f"rank is {short(rank)}")
    kind = checked_kind(fields)
    address = checked_text(fields.get("address"), "address")
    unix, tls = checked(fields, "unix", bool), checked(fields, "tls", bool)
    worker = worker_behind(collector, address, rank, unix=unix, tls=tls)
    state = RankState(worker, rank, kind=kind, responded=checked(fields, "responded", bool))
    health = checked(fields, "health", dict, type(None))
    state.health = None if health is None else health_of(health)
    if fields.get("digest") is not None:
        state.digest, state.main_digest = digest_of(fields)
        state.mode = fields["mode"]
    state.flight_summary = checked(fields, "summary", dict, type(None))
    state.failures = checked_failures(checked(fields, "failures", dict))
    if rank is not None and collector.ranks and rank not in collector.ranks:
        state.failures["healthz"] = Failure("lied", STRANGER)
    return state


def checked_kind(fields: Mapping[str, Any]) -> Kind:
    """The kind of the worker that *fields* tell of. ValueError if that is none, or if there is no
    such mode."""
    kind: Kind = fields.get("kind", "unknown")
    if kind not in get_args(Kind) or kind == "dump":
        raise ValueError(f"kind is {short(kind)}")
    if fields.get("mode") not in MODES:
        raise ValueError(f"mode is {short(fields.get('mode'))}")
    return kind


def checked(fields: Mapping[str, Any], name: str, *types: type) -> Any:
    value = fields.get(name)
    if type(value) not in types:
        raise ValueError(f"{name} is {short(value)}")
    return value


def checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"{name} is {short(value)}")
    return value


def checked_failures(given: dict[Any, Any]) -> dict[str, Failure]:
    failures = {}
    for question, failure in given.items():
        if question not in QUESTIONS or not isinstance(failure, list) or len(failure) != 2:
            raise ValueError(f"failures: {short(question)} is no failure")
        reason, text = failure
        if reason not in FAILURE_REASONS:
            raise ValueError(f"failures: {short(question)} is {short(reason)}")
        failures[question] = Failure(reason, checked_text(text, "failures"))
    return failures
