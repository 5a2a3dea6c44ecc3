"""Requests, responses and the error tree."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workerserver import types
from workerserver.types import Range, Request, Response, WorkerServerError


def test_response_defaults() -> None:
    response = Response("pong")
    assert (response.body, response.status, response.content_type) == (b"pong", 200, "text/plain")
    assert list(response.headers) == []
    assert repr(response) == "<Response 200 text/plain 4 bytes>"


@pytest.mark.parametrize(
    "body",
    [b"a\xff", bytearray(b"a\xff"), memoryview(b"a\xff")],
    ids=lambda body: type(body).__name__,
)
def test_response_takes_bytes_like_bodies(body: Any) -> None:
    response = Response(body)
    assert response.body == b"a\xff"
    assert type(response.body) is bytes


def test_response_survives_what_is_no_unicode() -> None:
    assert Response("é\ud800").body == b"\xc3\xa9\\ud800"


@pytest.mark.parametrize("body", [None, 5, ["a"], {"a": 1}])
def test_response_refuses_other_bodies(body: Any) -> None:
    with pytest.raises(TypeError, match="body must be bytes or str"):
        Response(body)


@pytest.mark.parametrize("status", [200, 204, 304, 418, 599, 999])
def test_status_in_range(status: int) -> None:
    assert Response(status=status).status == status


@pytest.mark.parametrize("status", [-1, 0, 99, 100, 101, 199, 1000, 10**9])
def test_status_out_of_range(status: int) -> None:
    with pytest.raises(ValueError, match=f"status {status} can't be sent"):
        Response(status=status)


def test_headers_are_pairs_or_a_mapping() -> None:
    wanted = (("X-Step", "1"), ("X-Rank", "2"))
    assert Response(headers=dict(wanted)).headers == wanted
    assert Response(headers=list(wanted)).headers == wanted


@pytest.mark.parametrize("headers", [[("a", "b", "c")], ["ab", "xyz"], [("a",)], [1]])
def test_headers_of_another_shape(headers: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Response(headers=headers)


@pytest.mark.parametrize("name", ["", "A B", "A:", "é", "Content-Length", "connection",
                                  "Transfer-Encoding", "Content-Type"])  # fmt: skip
def test_header_names_that_are_not_a_handlers(name: str) -> None:
    with pytest.raises(ValueError, match="header field"):
        Response(headers=[(name, "x")])


@pytest.mark.parametrize("status", ["200", 200.0, None])
def test_status_of_another_type(status: Any) -> None:
    with pytest.raises(TypeError, match="status must be int"):
        Response(status=status)


@pytest.mark.parametrize("error", ["InvalidParameter", "UnknownParameter", "MissingParameter"])
def test_errors_repeat_long_names_in_part(error: str) -> None:
    assert len(str(getattr(types, error)("n" * 10_000, ("a",)))) < 300
    assert str(types.HandlerNotFound("n" * 10_000)).count("n" * 200 + "...") == 2


@pytest.mark.parametrize("bad", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"])
def test_header_injection(bad: str) -> None:
    for headers in ([(bad, "x")], [("X-A", bad)], [("X-A", "fine"), ("X-B", bad)]):
        with pytest.raises(ValueError, match=r"control character|bad header field name"):
            Response(headers=headers)
        with pytest.raises(ValueError, match=r"control character|bad header field name"):
            Response.json({}, headers=headers)
    with pytest.raises(ValueError, match="control character"):
        Response(content_type=bad)


def test_headers_are_kept() -> None:
    headers = [("X-Traceback-Mode", "gil"), ("X-A", "")]
    assert list(Response(headers=headers).headers) == headers
    assert Response(content_type="text/html; charset=utf-8").content_type.startswith("text/html")


@pytest.mark.parametrize("value", [None, [], {"a": [1, 2.5, "é", True]}, "text", 10**30])
def test_json(value: Any) -> None:
    response = Response.json(value, 418, [("A", "b")])
    assert json.loads(response.body) == value
    assert b", " not in response.body
    assert (response.status, response.content_type) == (418, "application/json")
    assert list(response.headers) == [("A", "b")]


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {1, 2}, b"a", object()])
def test_json_refuses_what_it_cannot_hold(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Response.json(value)


def test_request() -> None:
    headers = [(b"host", b"h"), (b"x", b"\xe9"), (b"x", b"2")]
    request = Request("POST", "/handler/é", {"a": "1"}, headers, b"body", "1.0", "::1")
    assert (request.get_param("a"), request.get_param("b")) == ("1", "")
    assert (request.header("X"), request.header("Host"), request.header("y")) == ("é", "h", None)
    assert (request.body, request.http_version, request.peer) == (b"body", "1.0", "::1")
    assert repr(request) == "<Request POST /handler/é>"
    request = Request("GET", "/", {})
    assert (request.body, request.http_version, request.peer) == (b"", "1.1", None)


def test_range() -> None:
    assert Range(1, 1) == Range(1.0, 1)
    with pytest.raises(ValueError, match="lower bound 2 is above upper bound 1"):
        Range(2, 1)
    with pytest.raises(WorkerServerError):
        Range(float("nan"), 1)


#: Each error class with its arguments, status, body and header fields.
ERRORS: list[tuple[str, tuple[Any, ...], int, str, dict[str, str]]] = [
    ("BoundsError", (2, 1), 500, "lower bound 2 is above upper bound 1", {}),
    ("MalformedRequest", ("bad",), 400, "Malformed request: bad", {}),
    ("TargetTooLong", (9,), 414, "Request target longer than 9 bytes", {}),
    ("HeadTooLarge", (9, "bytes"), 431, "Request head holds more than 9 bytes", {}),
    ("BodyTooLarge", (9,), 413, "Request body larger than 9 bytes", {}),
    ("RequestTimeout", ("head", 10.0), 408, "Request head not complete after 10 s", {}),
    ("UnsupportedExpectation", ("x",), 417, "Expectation not supported: x", {}),
    ("UnsupportedMethod", ("X",), 501, "Method not supported: X", {}),
    ("UnsupportedTransferCoding", ("x",), 501, "Transfer coding not supported: x", {}),
    ("UnsupportedVersion", ("HTTP/2.0",), 505, "HTTP version not supported: HTTP/2.0", {}),
    ("ServerBusy", ("full", 2), 503, "Server busy: full", {"Retry-After": "2"}),
    ("Forbidden", ("no",), 403, "Forbidden: no", {}),
    ("Unauthorized", (), 401, "Unauthorized: a valid bearer token is required",
     {"WWW-Authenticate": "Bearer"}),
    ("NotFound", (), 404, "", {}),
    ("HandlerNotFound", ("x",), 404, "Handler x not found: Failed to find handler x", {}),
    ("MethodNotAllowed", ("GET",), 405, "Method not allowed; allowed: GET", {"Allow": "GET"}),
    ("HandlerBusy", ("x", 3, 4), 503, "Handler x is busy: 3 requests at a time",
     {"Retry-After": "4"}),
    ("NotImplementedHere", ("no NCCL",), 501, "no NCCL", {}),
    ("InvalidParameter", ("x", "a or b"), 400, "Invalid value for x valid values are a or b", {}),
    ("MissingParameter", ("x", "integers"), 400, "Missing parameter x valid values are integers",
     {}),
    ("DuplicateParameter", ("x",), 400, "Duplicate parameter x", {}),
    ("UnknownParameter", ("x", ()), 400, "Unknown parameter x; parameters are: none", {}),
]  # fmt: skip
BASES = {"WorkerServerError", "ProtocolError", "ParameterError"}
PARSER_ERRORS = {"MalformedRequest", "TargetTooLong", "HeadTooLarge", "BodyTooLarge",
                 "RequestTimeout", "UnsupportedExpectation", "UnsupportedMethod",
                 "UnsupportedTransferCoding", "UnsupportedVersion"}  # fmt: skip


@pytest.mark.parametrize(("name", "args", "status", "body", "headers"), ERRORS)
def test_errors(
    name: str, args: tuple[Any, ...], status: int, body: str, headers: dict[str, str]
) -> None:
    error = getattr(types, name)(*args)
    assert isinstance(error, WorkerServerError)
    assert (error.status, str(error), dict(error.headers)) == (status, body, headers)
    assert isinstance(error, types.ProtocolError) == (name in PARSER_ERRORS)
    assert isinstance(error, types.ParameterError) == name.endswith("Parameter")
    parameters = getattr(type(error).__init__, "__code__", None)
    names = parameters.co_varnames[1 : 1 + len(args)] if parameters else ()
    for attribute, value in zip(names, args, strict=False):
        if hasattr(error, attribute):  # an error has data besides its sentence
            assert getattr(error, attribute) == value


def test_every_error_is_in_the_table() -> None:
    classes = {
        name
        for name, value in vars(types).items()
        if isinstance(value, type) and issubclass(value, WorkerServerError)
    }
    assert classes == {name for name, *_ in ERRORS} | BASES
    public = {name for name, value in vars(types).items() if isinstance(value, type)
              and value.__module__ == types.__name__}  # fmt: skip
    assert set(types.__all__) == public


def test_error_data() -> None:
    assert types.UnknownParameter("x", ["a", "b"]).valid == ("a", "b")
    assert str(types.UnknownParameter("x", ["a"], "own words")) == "own words"
    assert str(types.UnknownParameter("x", ["a", "b"])).endswith("parameters are: a, b")
    assert types.HandlerBusy("x", 3).limit == 3
    assert dict(types.ServerBusy("full").headers) == {"Retry-After": "1"}
