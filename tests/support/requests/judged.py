"""The expected verdict of the native recogniser on a request, computed by other code."""

from __future__ import annotations

import pytest

from support.requests.messages import head
from support.requests.recognised import TABLE, same_request
from workerserver._parser import parse_query
from workerserver.http.access import AccessPolicy, standard_rules
from workerserver.http.registry import Registry
from workerserver.http.routes import Router
from workerserver.native._bridge import Look, Table
from workerserver.types import Unauthorized


def seen(data: bytes, table: Table = TABLE) -> Look:
    look = table.look(data)
    assert not isinstance(look, str)
    return look


def guarded(token: str | None = None, hosts: tuple[str, ...] = ()) -> tuple[Table, AccessPolicy]:
    """A TCP listener's rules, in both forms."""
    policy = AccessPolicy(standard_rules(unix=False, token=token, hosts=hosts))
    assert policy.native is not None
    table = Table([], rules=[(form, None) for form in policy.native])
    return table, policy


def let_in(table: Table, policy: AccessPolicy, data: bytes) -> bool:
    """Whether *table* lets *data* in. Checks that the policy agrees with every sure verdict."""
    look = table.look(data)
    if isinstance(look, str):
        return False
    if look.refused:
        assert not look.allowed
        with pytest.raises(Unauthorized):
            policy.check(same_request(look, data))
    if not look.allowed:
        return False
    policy.check(same_request(look, data))
    return True


ROUTES = Table(
    [
        ("GET", "/", "any", 1),
        ("GET", "/handler/", "any", 2),
        ("POST", "/handler/ping", "any", 3),
        ("GET", "/healthz", "healthz", 4),
        ("POST", "/handler/dump_traceback", "dump", 5),
        ("POST", "/handler/fr_trace_json", "opaque", 6),
        ("POST", "/handler/none", "none", 7),
    ]
)


def asked(line: str, table: Table = ROUTES) -> Look:
    return seen(head(line.encode() + b" HTTP/1.1"), table)


def judge_query(method: str, path: str, query: str, router: Router) -> Look:
    """The verdict on *query*. If it is accepted, the handler has to read the same values in it."""
    look = asked(f"{method} {path}?{query}")
    if look.action is not None:
        handler, _ = router.resolve(method.encode(), path.encode())
        values = handler.validator.validate(parse_query(look.query))
        if look.action in (4, 5):
            assert values.get("format", "text") == look.format
            assert values.get("mode", "auto") == look.mode
            assert values.get("max_step_age") == look.max_step_age
    return look


def judge_age(query: str) -> float | None:
    look = judge_query("GET", "/healthz", query, Router(Registry()))
    return None if look.action is None else look.max_step_age
