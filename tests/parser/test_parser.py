"""The request parser: a table of requests, each delivered in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.requests.messages import (
    CASES,
    FIRST,
    NEXT,
    Bad,
    Case,
    Good,
    Outcome,
    drive,
    head,
)

from workerserver._parser import RequestParser

FIRST_CHUNKED = head(b"PUT /first HTTP/1.1", b"Host: first\r\nTransfer-Encoding: chunked\r\n")
FIRST_CHUNKED += b"3\r\nabc\r\n0\r\nHost: trailer\r\nConnection: close\r\n\r\n"


def each_byte(data: bytes) -> Iterator[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


def expect(outcome: Outcome, *expected: Good | Bad) -> None:
    """*expected* is what came, up to the first error or the last request of a connection."""
    requests, error = outcome
    wanted = list(expected)
    for i, one in enumerate(wanted):
        if isinstance(one, Bad) or not one.keep_alive:
            wanted = wanted[: i + 1]
            break
    bad = wanted.pop() if isinstance(wanted[-1], Bad) else None
    assert len(requests) == len(wanted)
    for request, good in zip(requests, wanted, strict=True):
        assert isinstance(good, Good)
        good.check(request)
    if not isinstance(bad, Bad):
        assert error is None
    else:
        assert type(error) is bad.error
        assert bad.text in str(error)


def whole(case: Case) -> None:
    expect(drive(RequestParser(**case.limits), [case.data]), case.expected)


def bytewise(case: Case) -> None:
    """Also: nothing comes out before the last byte is in, neither early nor late."""
    parser = RequestParser(**case.limits)
    outcome = drive(parser, each_byte(case.data))
    expect(outcome, case.expected)
    if isinstance(case.expected, Good):
        assert drive(RequestParser(**case.limits), each_byte(case.data[:-1])) == ([], None)


def split(case: Case) -> None:
    for cut in range(1, len(case.data)):
        pieces = [case.data[:cut], case.data[cut:]]
        expect(drive(RequestParser(**case.limits), pieces), case.expected)


def trailing(case: Case) -> None:
    after = Good(path=b"/next", host=b"next", headers=((b"host", b"next"),))
    data = case.data + NEXT
    for pieces in ([data], each_byte(data), [case.data[:-1], case.data[-1:] + NEXT]):
        expect(drive(RequestParser(**case.limits), pieces), case.expected, after)


def pipelined(case: Case) -> None:
    before = [(FIRST, Good(path=b"/first", host=b"first"))]
    if not case.limits:  # it fits
        before.append((FIRST_CHUNKED, Good(b"PUT", b"/first", host=b"first", body=b"abc")))
    for data, first in before:
        for pieces in ([data + case.data], each_byte(data + case.data), [data, case.data]):
            expect(drive(RequestParser(**case.limits), pieces), first, case.expected)


def repeated(case: Case) -> None:
    """The same bytes again and again, with another request and split deliveries in between."""
    if isinstance(case.expected, Bad) or not case.expected.keep_alive:
        expect(drive(RequestParser(**case.limits), [case.data, case.data]), case.expected)
        return
    half = len(case.data) // 2
    halves = [case.data[:half], case.data[half:]]
    parser = RequestParser(**case.limits)
    once = [case.expected]
    expect(drive(parser, [case.data] * 3), *once * 3)
    expect(drive(parser, [*halves, case.data, *halves, *halves]), *once * 4)
    after = Good(path=b"/next", host=b"next")
    expect(drive(parser, [NEXT, case.data, case.data]), after, *once * 2)
    expect(drive(parser, [b"\r\n" + case.data, case.data, b"\r\n", case.data]), *once * 3)
    expect(drive(parser, [case.data * 3]), *once * 3)


@pytest.fixture(params=[whole, bytewise, split, trailing, pipelined, repeated])
def delivery(request: pytest.FixtureRequest) -> Callable[[Case], None]:
    way: Callable[[Case], None] = request.param
    return way


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_delivery(case: Case, delivery: Callable[[Case], None]) -> None:
    delivery(case)
