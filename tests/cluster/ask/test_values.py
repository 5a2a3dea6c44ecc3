"""The reader of health in C finds what the reader in Python finds, or leaves the body to that."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.engine import at_once

pytestmark = pytest.mark.skipif(at_once._ask is None, reason="needs epoll")

REAL = (
    b'{"status":"ok","pid":8749,"rank":0,"uptime_s":3.218,"step":63,"step_age_s":0.044535,'
    b'"gil_wait_s":0.001342,"gil_wait_max_s":12,"gil_unavailable_s":0.0,"cpu_s":1.261928,'
    b'"rss_bytes":245383168,"step_median_s":0.05,"step_thread":140278918933376,'
    b'"job":"job.py-8749","job_from":"process","agent":"8749:6568454","restart":null,'
    b'"world_size":2,"local_rank":0,"local_world_size":null,"group_rank":null,"host":"vm",'
    b'"started":1795951262.54}'
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, 0.1, -0.0, 1e300, 1e11, 1e12, 10**12 - 1, 2**24 - 1, 2**24,
    2**53 + 1, 10**16, 10**17, 2**63 - 1, 2**63, 10**40, float("nan"), float("inf"), "", "ok", "x",
    "stalled", "é", '"', "\\", "\n", "\x7f", "x" * 256, "x" * 257, [], {}, [1],
)  # fmt: skip
RAW = (
    b"01", b"1.", b".5", b"1e3", b"1E-2", b"+1", b"0x1", b"1.5.2", b"nul", b"nullnull", b'"a', b"-",
    b"0", b"00", b"0.0", b"1 ", b" 1", b"Infinity", b"12345678901234567", b"123456789012345678",
    b"0.12345678901234567", b"999999999999.9", b"1000000000000.0",
)  # fmt: skip


def outcome(reader: Any, body: bytes) -> Any:
    try:
        found = reader(body)
    except ValueError as error:
        return str(error)
    # Of equal numbers an int and a float are not the same.
    return [(type(value), value) for value in (getattr(found, n) for n, _ in bodies.HEALTH_FIELDS)]


def in_python(body: bytes) -> Any:
    return bodies.health_of(bodies.json_object(body))


def same(body: bytes) -> None:
    assert outcome(bodies.health, body) == outcome(in_python, body), body


def read_in_c(body: bytes) -> bool:
    values = at_once._ask.plain_values(body, bodies._PLACES, len(bodies.HEALTH_FIELDS))
    return values is not None


def test_a_real_answer_is_read_in_c() -> None:
    assert read_in_c(REAL)
    assert bodies.health(REAL) == in_python(REAL)
    assert bodies.health(REAL).gil_wait_max_s == 12.0
    assert not read_in_c(REAL.replace(b'"pid"', b'"pids"'))
    assert bodies.health(REAL.replace(b'"pid"', b'"pids"')).newer


def test_each_field_with_each_value() -> None:
    fields = json.loads(REAL)
    for name in (*fields, "newer", "another"):
        for value in VALUES:
            same(json.dumps({**fields, name: value}, separators=(",", ":")).encode())
        for raw in RAW:
            same(REAL[:-1] + b',"' + name.encode() + b'":' + raw + b"}")
            same(b'{"status":"ok","' + name.encode() + b'":' + raw + b"}")
        same(json.dumps({key: fields[key] for key in fields if key != name}).encode())


def test_cut_and_changed_bytes() -> None:
    for size in range(len(REAL)):
        same(REAL[:size])
    for body in (b"", b"{", b"{}", b"[]", b'{"', b'{"status":', REAL + b" ", b" " + REAL, REAL * 2):
        same(body)
    chance = random.Random(1)
    for _ in range(5000):
        changed = bytearray(REAL)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(REAL))] = chance.choice(b'"{}:,.0189-e\\ n\x00\xc3\xff')
        same(bytes(changed))
