"""The table of raw inputs in tests/wire/cases: how it is read, sent and judged.

A case is one line of JSON:

* ``name``; ``why``: what asks for the answer, mostly a section of an RFC;
* ``send``: the bytes, as Latin-1; a list has texts, and pairs of a text and how often it comes;
* ``answers``: for each reply its status, and behind a space its body, if that is known. ``HEAD``
  before the status: the reply to a HEAD, which has no body;
* ``then``: ``open`` if the connection serves another request, ``closed`` if the server ends it,
  ``waits`` if the server waits for the rest of a request;
* ``interim``: 100 Continue may come before the first reply, depending on what has come already;
* ``fields``: fields that the first reply has; ``without``: a text that no reply has;
* ``choice``: the RFC leaves a choice, and the answer is ours.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

from support.wire import Client, Reply, message

__all__ = ["FOLDER", "Answer", "Raw", "cuts", "play", "read_cases"]

FOLDER = Path(__file__).parents[2] / "wire" / "cases"
#: Seconds between two pieces, so that the server most likely reads them apart.
PAUSE = 0.0002
#: Longer inputs are not split at every byte, but at as many places.
WHOLE = 700
SOME = 40


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes | None = None  # None: not looked at
    to_head: bool = False

    @classmethod
    def of(cls, text: str) -> Answer:
        status = text.removeprefix("HEAD ")
        return cls(
            int(status[:3]), status[4:].encode("latin-1") if status[3:] else None, status != text
        )


@dataclass(frozen=True)
class Raw:
    name: str
    data: bytes
    answers: tuple[Answer, ...]
    then: Literal["open", "closed", "waits"]
    why: str
    interim: bool = False
    choice: bool = False
    without: str = ""
    fields: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, *, send: Any, answers: list[str], **rest: Any) -> Raw:
        pieces = [send] if isinstance(send, str) else send
        texts = [each if isinstance(each, str) else each[0] * each[1] for each in pieces]
        data = "".join(texts).encode("latin-1")
        return cls(data=data, answers=tuple(map(Answer.of, answers)), **rest)


def read_cases(name: str) -> list[Raw]:
    """The cases of the file *name*."""
    return [Raw.of(**each) for each in json.loads((FOLDER / f"{name}.json").read_text())]


def cuts(case: Raw) -> range:
    """Where *case* is split: at every byte, or at some places if it is long."""
    size = len(case.data)
    return range(1, size, 1 if size <= WHOLE else size // SOME)


def play(case: Raw, client: Client, places: tuple[int, ...] = (), mark: str = "") -> None:
    """Send *case* on *client*, cut at *places*, and check each reply and what follows.

    With *mark*, a request behind a case that leaves the connection open asks for it; then the next
    case may come on the same connection.
    """
    if client.socket.family == socket.AF_INET:  # else each pause is one of Nagle's
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A server that has refused a request may have closed already.
    with contextlib.suppress(ConnectionError):
        begin = 0
        for place in (*places, len(case.data)):
            if begin:
                time.sleep(PAUSE)
            client.send(case.data[begin:place])
            begin = place
        if case.then == "open":
            client.send(message("POST", "/handler/echo", mark.encode()))
    replies = [_reply(client, case, answer, i) for i, answer in enumerate(case.answers)]
    for reply in replies:
        _check_reply(reply, case)
    if replies:
        for name, value in case.fields.items():
            assert replies[0].header(name) == value, replies[0]
    connection = replies[-1].header("connection") if replies else None
    if case.then == "closed":
        assert connection == "close", connection
        assert client.rest() == b""
        return
    assert connection != "close"
    if case.then == "open":
        reply = client.reply()
        assert (reply.status, reply.text) == (200, mark), reply
    else:
        _check_waits(client)


def _reply(client: Client, case: Raw, answer: Answer, index: int) -> Reply:
    reply = client.reply(head_only=answer.to_head)
    if case.interim and index == 0 and reply.status == 100:
        assert reply.headers == []
        reply = client.reply(head_only=answer.to_head)
    assert reply.status == answer.status, f"reply {index}: {reply}"
    assert answer.body is None or reply.body == answer.body, f"reply {index}: {reply}"
    return reply


def _check_reply(reply: Reply, case: Raw) -> None:
    """What holds for every reply: a date, once, and a length (the reader has checked that)."""
    date = reply.header("date")
    assert date is not None
    parsedate_to_datetime(date)
    if case.without:
        fields = [f"{name}: {value}" for name, value in reply.headers]
        assert case.without not in "\r\n".join([*fields, reply.body.decode("latin-1")]), reply


def _check_waits(client: Client) -> None:
    """Nothing comes, also when the client ends its side: an incomplete request has no answer."""
    if isinstance(client.socket, ssl.SSLSocket):  # TLS has no half of a connection
        assert client.silent(0.02)
        return
    client.half_close()
    assert client.rest() == b""
