"""The questions to workers, and one shared copy of answers that are equal on many workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.exchange import Answer, Question
from workerserver.cluster.model import Thread, Worker
from workerserver.cluster.read import stacks
from workerserver.cluster.read.columns.summaries import Summary
from workerserver.cluster.read.summary import GLOO, NCCL, share

__all__ = [
    "DIGEST",
    "HANDLERS",
    "HEALTH",
    "HEALTH_AND_CLOCK",
    "NATIVE_STACKS",
    "STACKS",
    "SUMMARY",
    "TEXT",
    "TRACES",
    "Memory",
    "trace",
]

#: Enough for the stacks of 1,000 threads, and for a trace with 20,000 entries.
MAX_STACKS_BYTES = 8 << 20
MAX_TRACE_BYTES = 32 << 20


def _digest(answer: Answer) -> tuple[bodies.Digest, str | None] | str:
    """Our digest. A stock torch worker ignores the wanted format and answers with its text."""
    if answer.content_type.startswith("text/plain") and answer.body[:1] != b"{":
        return _text(answer)
    return bodies.digest(answer.body), _mode(answer)


def _text(answer: Answer) -> str:
    return answer.body.decode("utf-8", "backslashreplace")


def _mode(answer: Answer) -> str | None:
    mode = answer.fields.get("x-traceback-mode")
    return mode if mode in ("gil", "nogil", "kernel") else None


@dataclass(slots=True)
class Memory:
    """One copy of what is equal on many ranks or in many rounds: stacks by digest and mode, each
    worker's last summary, and which handlers of recorders a worker has. *telling*: the stacks of
    which each rank knows more for itself. *apart*: those in which no rank waits for ranks.
    *older*: collectors that answer for each worker by itself.
    *stock*: torch's own servers, which know no short forms. *held*: workers whose GIL could not be
    had, so a summary would have to wait."""

    threads: dict[tuple[str, str | None], tuple[Thread, ...]] = field(default_factory=dict)
    telling: set[tuple[str, str | None]] = field(default_factory=set)
    apart: set[tuple[str, str | None]] = field(default_factory=set)
    summaries: dict[Worker, Mapping[str, Any]] = field(default_factory=dict)
    recorders: dict[Worker, frozenset[str]] = field(default_factory=dict)
    older: set[Worker] = field(default_factory=set)
    stock: set[Worker] = field(default_factory=set)
    held: set[Worker] = field(default_factory=set)
    backends: Sequence[str] = ()
    """Recorders that somebody has named, to ask torch's own servers for: they tell no names."""

    def kept(self, worker: Worker, summary: Mapping[str, Any]) -> Mapping[str, Any]:
        """*summary*, or an equal summary of the last round. In a job that hangs, summaries don't
        change, and they are most of the memory of a round."""
        known = self.summaries.get(worker)
        if known is not None and known == summary:
            return known
        if not isinstance(summary, Summary):  # that has its shape in common with others
            share(summary)
        self.summaries[worker] = summary
        return summary


HEALTH = Question(
    "healthz", "/healthz", "GET", limit=4096, parse=lambda answer: bodies.health(answer.body)
)
HEALTH_AND_CLOCK = replace(
    HEALTH, parse=lambda answer: (bodies.health(answer.body), bodies.clock_ahead(answer.fields))
)
HANDLERS = Question(
    "handlers", "/handler/", "GET", limit=1 << 20, parse=lambda a: bodies.handler_names(a.body)
)
DIGEST = Question.handler("dump_traceback", "format=digest", limit=MAX_STACKS_BYTES, parse=_digest)
STACKS = Question.handler(
    "dump_traceback",
    "format=json",
    limit=MAX_STACKS_BYTES,
    parse=lambda a: stacks.read_json(a.body),
)
NATIVE_STACKS = replace(STACKS, path=STACKS.path + "&native=1")
TEXT = Question.handler("dump_traceback", limit=MAX_STACKS_BYTES, parse=_text)
SUMMARY = Question.handler("fr_summary", limit=1 << 20, parse=lambda a: bodies.summary(a.body))


def trace(target: str) -> Question:
    """The trace that handler *target* gives: its name, with its query."""
    name, _, query = target.partition("?")
    return Question.handler(
        name, query, limit=MAX_TRACE_BYTES, parse=lambda a: bodies.json_object(a.body)
    )


#: The recorders with handlers of their own.
TRACES = {
    GLOO: trace("fr_trace_json"),
    NCCL: trace("dump_nccl_trace_json?includecollectives=true"),
}
