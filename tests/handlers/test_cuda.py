"""The NCCL flight-recorder handlers on a real NCCL group of one rank, over HTTP.

Run by ``make test-cuda`` on a machine with an NVIDIA GPU; skipped elsewhere.
"""

from __future__ import annotations

import http.client
import json
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import workerserver  # noqa: E402 (after the check for torch)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        not hasattr(torch._C._distributed_c10d, "_dump_nccl_trace"), reason="torch without NCCL"
    ),
]

#: all_reduce calls that the group has made, and the process group's only operation.
OPERATIONS = 3


class UnixConnection(http.client.HTTPConnection):
    """HTTP to the Unix socket at *path*."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.content_type = response.getheader("Content-Type")
        self.body = response.read()


class Client:
    """Asks the handlers of the server at *path*."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, target: str) -> Answer:
        connection = UnixConnection(self.path)
        try:
            connection.request("POST", f"/handler/{target}")
            return Answer(connection.getresponse())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An NCCL group of this process alone, after OPERATIONS all-reduces that have finished."""
    # Read when the first group is made; 2,000 is the default, but an environment may say 0.
    os.environ["TORCH_FR_BUFFER_SIZE"] = "2000"
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=device)
    try:
        tensor = torch.ones(4, device=device)
        for _ in range(OPERATIONS):
            dist.all_reduce(tensor)
        torch.cuda.synchronize()
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ask(group: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    path = Path(tmp_path_factory.mktemp("s")) / "w.sock"
    with workerserver.WorkerServer(str(path)):
        yield Client(str(path))


def all_reduces(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [e for e in trace.get("entries", ()) if "all_reduce" in e["profiling_name"]]


def test_listed(ask: Client) -> None:
    connection = UnixConnection(ask.path)
    try:
        connection.request("GET", "/handler/")
        names = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    assert {"dump_nccl_trace_pickle", "dump_nccl_trace_json", "fr_summary"} <= set(names)


def test_pickle_is_a_dict_with_version_and_entries(ask: Client) -> None:
    answer = ask("dump_nccl_trace_pickle")
    assert (answer.status, answer.content_type) == (200, "application/octet-stream")
    trace = pickle.loads(answer.body)
    assert isinstance(trace["version"], str)
    operations = all_reduces(trace)
    assert len(operations) == OPERATIONS
    assert [operation["collective_seq_id"] for operation in operations] == [1, 2, 3]
    assert all(operation["frames"] for operation in operations)


@pytest.mark.parametrize("query", ["?includecollectives=false", "?includecollectives=false&x="])
def test_pickle_without_collectives(ask: Client, query: str) -> None:
    answer = ask(f"dump_nccl_trace_pickle{query}")
    if query.endswith("x="):
        assert answer.status == 400
        assert answer.body == b"Invalid parameters - unexpected param passed in"
    else:
        assert not pickle.loads(answer.body).get("entries")


def test_pickle_without_stack_traces(ask: Client) -> None:
    trace = pickle.loads(ask("dump_nccl_trace_pickle?includestacktraces=false").body)
    assert len(all_reduces(trace)) == OPERATIONS
    assert not any("frames" in operation for operation in all_reduces(trace))


def test_json_has_the_same_operations(ask: Client) -> None:
    answer = ask("dump_nccl_trace_json")
    assert (answer.status, answer.content_type) == (200, "application/json")
    trace = json.loads(answer.body)
    assert isinstance(trace["version"], str)
    assert len(all_reduces(trace)) == OPERATIONS


def test_json_parameters_take_effect(ask: Client) -> None:
    assert not json.loads(ask("dump_nccl_trace_json?includecollectives=false").body).get("entries")
    # All have finished, and the dump itself looks whether they have.
    assert not all_reduces(json.loads(ask("dump_nccl_trace_json?onlyactive=true").body))


@pytest.mark.parametrize("name", ["dump_nccl_trace_pickle", "dump_nccl_trace_json"])
def test_bad_parameters_in_torch_words(ask: Client, name: str) -> None:
    answer = ask(f"{name}?onlyactive=True&unknown=1")
    assert answer.status == 400
    assert answer.body == b"Invalid value for onlyactive valid values are true or false"
    answer = ask(f"{name}?includeCollectives=true")
    assert answer.status == 400
    assert answer.body == b"Invalid parameters - unexpected param passed in"


def test_summary_reads_the_nccl_recorder(ask: Client) -> None:
    answer = ask("fr_summary")
    assert answer.status == 200
    summary = json.loads(answer.body)
    (default,) = (g for g in summary["groups"] if g["desc"] == "default_pg")
    assert default["recorder"] == "nccl"
    assert default["ranks"] == "0"
    assert default["last_issued"]["op"] == "nccl:all_reduce"
    assert default["last_issued"]["seq"] == OPERATIONS
    assert default["last_retired"] == default["last_issued"]
    assert default["pending"] == 0


def test_fr_trace_json_still_answers(ask: Client) -> None:
    answer = ask("fr_trace_json")
    assert answer.status == 200
    assert "version" in json.loads(answer.body)
