"""The NCCL handlers where torch has NCCL: their parameters and formats, over HTTP.

They need a CUDA build of torch and no device; what a real NCCL group records is in test_cuda.py.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.wire import Reply, ask, message, post

torch = pytest.importorskip("torch")

import workerserver  # noqa: E402 (after the check for torch)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        not hasattr(torch._C._distributed_c10d, "_dump_nccl_trace"), reason="torch without NCCL"
    ),
]

NAMES = ("dump_nccl_trace_pickle", "dump_nccl_trace_json")
BAD = "Invalid value for {} valid values are true or false"
UNKNOWN = "Invalid parameters - unexpected param passed in"


@pytest.fixture
def address(short_path: Path) -> Iterator[str]:
    path = str(short_path / "w.sock")
    with workerserver.WorkerServer(path):
        yield path


def run(address: str, target: str) -> Reply:
    return ask(address, post(target))


def test_listed(address: str) -> None:
    names = json.loads(ask(address, message("GET", "/handler/")).body)
    assert {*NAMES, "fr_summary"} <= set(names)


@pytest.mark.parametrize(
    "query",
    ["", "?includecollectives=false", "?includestacktraces=false", "?onlyactive=true", "?"],
)
def test_pickle_is_a_dict_with_version(address: str, query: str) -> None:
    reply = run(address, f"dump_nccl_trace_pickle{query}")
    assert (reply.status, reply.header("Content-Type")) == (200, "application/octet-stream")
    trace = pickle.loads(reply.body)
    assert isinstance(trace["version"], str)
    assert not trace.get("entries")  # no NCCL group was made here


@pytest.mark.parametrize("query", ["", "?includecollectives=false", "?onlyactive=true"])
def test_json_is_an_object_with_version(address: str, query: str) -> None:
    reply = run(address, f"dump_nccl_trace_json{query}")
    assert (reply.status, reply.header("Content-Type")) == (200, "application/json")
    assert isinstance(json.loads(reply.body)["version"], str)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("onlyactive=True&unknown=1", BAD.format("onlyactive")),
        ("unknown=1&onlyactive=True", BAD.format("onlyactive")),
        ("onlyactive=", BAD.format("onlyactive")),
        ("includecollectives=1", BAD.format("includecollectives")),
        ("includeCollectives=true", UNKNOWN),
        ("includecollectives=false&x=", UNKNOWN),
        ("backend=nccl2", UNKNOWN),
    ],
)
def test_bad_parameters_in_torch_words(address: str, name: str, query: str, text: str) -> None:
    reply = run(address, f"{name}?{query}")
    assert (reply.status, reply.header("Content-Type")) == (400, "text/plain")
    assert reply.text == text


def test_stack_traces_are_only_in_the_pickle(address: str) -> None:
    reply = run(address, "dump_nccl_trace_json?includestacktraces=false")
    assert (reply.status, reply.text) == (400, UNKNOWN)


def test_summary_and_the_other_recorder_still_answer(address: str) -> None:
    assert json.loads(run(address, "fr_summary").body)["groups"] == []
    assert "version" in json.loads(run(address, "fr_trace_json").body)
