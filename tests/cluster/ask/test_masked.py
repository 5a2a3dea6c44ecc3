"""Summaries that are found equal in C but for rank and times are those that Python finds equal."""

from __future__ import annotations

import random
from typing import Any

import pytest

from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.engine import at_once
from workerserver.cluster.read.columns.summaries import Summary, summary_of

pytestmark = pytest.mark.skipif(at_once._ask is None, reason="needs epoll")

REAL = (
    b'{"rank":12,"version":"2.10","groups":[{"id":0,"name":"0","ranks":"0-1","pending":1,'
    b'"last_issued":{"seq":65,"time_created_ns":1795951262540000001,"state":"scheduled",'
    b'"time_started_ns":null},"last_retired":{"seq":64,"time_created_ns":1795951262540000000,'
    b'"end_ns":1795951262540000001}}],"now_ns":1795951262550000000}'
)
NUMBERS = (
    b"0", b"00", b"1", b"01", b"7", b"-5", b"1.5", b"1e3", b"3999999999999999999", b"null", b'""',
    b"4000000000000000000", b"12345678901234567890", b"999999999999999999", b"4611686018427387904",
)  # fmt: skip


def learned(reader: Any, body: bytes) -> Any:
    try:
        found = reader(body)
    except ValueError as error:
        return str(error)
    if isinstance(found, Summary):
        return found.shape, found.times, found.rank
    return found


def same(body: bytes) -> None:
    """At first, and when the shape is known."""
    kept = learned(summary_of, body)
    for _ in range(2):
        assert learned(bodies.summary, body) == kept, body


def test_a_real_answer() -> None:
    assert at_once._ask.masked(REAL) is not None
    others = [REAL.replace(b"12,", b"7,"), REAL.replace(b"540000001", b"540000077")]
    first, *more = map(bodies.summary, (REAL, *others))
    assert isinstance(first, Summary)
    for body, found in zip(others, more, strict=True):
        assert isinstance(found, Summary)
        assert found.shape is first.shape
        assert found == summary_of(body)
    assert first.times == (1795951262540000001, 1795951262540000000, 1795951262550000000)
    same(REAL)


def test_numbers_of_each_kind() -> None:
    for number in NUMBERS:
        same(REAL.replace(b"12,", number + b","))
        for old in (b"1795951262540000001", b"1795951262540000000", b"1795951262550000000"):
            same(REAL.replace(old, number))
            same(REAL.replace(old, number, 1))


def test_cut_and_changed_bytes() -> None:
    for size in range(len(REAL)):
        same(REAL[:size])
    rank = b'{"rank":1'
    for body in (rank + b"}", rank + b',"a_ns":5}', b'{"rank":"1","a_ns":5}', b'[1,"a_ns":5]'):
        same(body)
    chance = random.Random(1)
    for _ in range(3000):
        changed = bytearray(REAL)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(REAL))] = chance.choice(
                b'"{}:,.0189-e_ns\\ \x00\x80\xc3\xff'
            )
        same(bytes(changed))


def test_bodies_that_are_not_short() -> None:
    times = b",".join(b'{"a_ns":%d}' % (10**18 + number) for number in range(200))
    same(b'{"rank":1,"groups":[' + times + b"]}")
    same(b'{"rank":1,"text":"' + b"x" * 20_000 + b'"}')
    for size in range(16_370, 16_390):
        same(b'{"rank":1,"t":"' + b"x" * (size - 30) + b'","a_ns":5}')
