"""One question to a worker, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["GREETING", "Answer", "Progress", "Question", "request_parts"]


@dataclass(slots=True)
class Answer:
    """A complete answer. *fields* maps lower-case names to values. *received* is the size of the
    whole answer in bytes, with the head."""

    status: int
    reason: str
    fields: Mapping[str, str]
    body: bytes
    received: int

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def content_type(self) -> str:
        return self.fields.get("content-type", "")

    @property
    def is_html(self) -> bool:
        return self.content_type.lower().startswith("text/html")

    @property
    def status_line(self) -> str:
        return f"HTTP {self.status} {self.reason}".rstrip()


@dataclass(frozen=True, slots=True)
class Question:
    """What a worker is asked.

    *limit* is the largest body that is read, in bytes. *parse* makes the result from the Answer, or
    raises ValueError. Without *parse* the result is the Answer itself. An answer with an HTTP error
    status becomes a Failure, unless *any_status* is set.
    """

    name: str
    path: str
    method: str = "POST"
    limit: int = 8 << 20
    parse: Callable[[Answer], Any] | None = None
    any_status: bool = False

    @classmethod
    def handler(cls, name: str, query: str = "", **options: Any) -> Question:
        """A question to handler *name*. *name* and *query* are sent unchanged, without escaping."""
        return cls(name, f"/handler/{name}{f'?{query}' if query else ''}", **options)


#: The first request on a connection where both ends prove the token. It asks for nothing that a
#: stranger may not know.
GREETING = Question("greeting", "/", "GET", limit=64 << 10, any_status=True)


@dataclass(slots=True)
class Progress:
    """How much of an answer has arrived: *received* bytes; *head*: whether the head is whole."""

    received: int = 0
    head: bool = False

    def __str__(self) -> str:
        if not self.received:
            return "no answer"
        if not self.head:
            return "the head of the answer incomplete"
        return f"the answer incomplete after {self.received} bytes"


def request_parts(question: Question, fields: Mapping[str, str]) -> tuple[bytes, bytes]:
    """The bytes of a request before and after the host's name. *fields* are in its head."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    # A POST without a length makes torch's server wait for the connection's end.
    length = "" if question.method == "GET" else "Content-Length: 0\r\n"
    before = f"{question.method} {question.path} HTTP/1.1\r\nHost: "
    return before.encode("ascii"), f"\r\n{lines}{length}\r\n".encode("ascii")
