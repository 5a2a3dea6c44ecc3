"""``workerserver fr`` where little or nothing can be read: its exit status, and what it advises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.jobs.flight_entries import entry, trace
from support.jobs.workers import HEALTH, SUMMARY, TEXT, TRACE, Start, good, health, http

from workerserver.cli import main

NOTHING = {"recorder": None, "name": "0", "desc": "default_pg", "ranks": "0-1"}
STACKS = b'Thread 0x1 (most recent call first):\n  File "/job/a.py", line 3 in <module>\n'


@pytest.fixture
def start(short_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield Start(stack, short_path)


def fr(capsys: pytest.CaptureFixture[str], *targets: str) -> tuple[int, dict[str, Any], str]:
    status = main(["fr", "--json", *targets])
    fields = json.loads(capsys.readouterr().out)
    assert main(["fr", *targets]) == status
    return status, fields, capsys.readouterr().out


def test_groups_in_which_nothing_was_issued(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    told = http({"rank": 0, "version": "2.10", "groups": [NOTHING]})
    servers = [start({**good(rank), HEALTH: health(rank), SUMMARY: told}) for rank in range(2)]
    status, fields, text = fr(capsys, *(server.address for server in servers))
    assert (status, fields["unread"]) == (2, "")
    assert len(fields["process_groups"]) == 1
    assert "no flight recorder shows a collective" in text
    assert "TORCH_FR_BUFFER_SIZE is 0" in text


def test_a_rank_whose_recorder_can_not_be_read(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [start(good(0)), start({**good(1), HEALTH: health(1)})]
    del servers[1].answers[SUMMARY]
    status, fields, text = fr(capsys, *(server.address for server in servers))
    assert (status, fields["unread"]) == (1, "1")
    assert "rank 1: the flight recorders could not be read" in text


def test_a_torch_before_the_recorders_handlers(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = http(STACKS, "200 OK", "Content-Type: text/plain")
    server = start({"/handler/": http(["dump_traceback", "ping"]), TEXT: plain})
    status, _, text = fr(capsys, server.address)
    assert status == 2
    assert "this torch has no handler for flight recorders" in text
    assert "TORCH_FR_BUFFER_SIZE" not in text


def test_two_backends_of_a_group(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    plain = http(STACKS, "200 OK", "Content-Type: text/plain")
    other = entry(0, 1, profiling_name="nccl2:all_reduce")
    traces = {
        "/handler/": http(["fr_trace_json", "fr_dump_file"]),
        TRACE: http(trace(entry(0, 7, profiling_name="gloo:barrier"), ranks="[0]")),
        f"{TRACE}?backend=nccl2": http(trace(other, ranks="[0]")),
    }
    server = start({TEXT: plain, **traces})
    status, fields, text = fr(capsys, "--world-size", "1", server.address)
    assert status == 0
    assert [each["backend"] for each in fields["process_groups"]] == ["gloo", "nccl2"]
    assert "default_pg (0) nccl2: ranks 0" in text
