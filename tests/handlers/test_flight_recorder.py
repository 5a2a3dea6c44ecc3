"""The flight-recorder handlers: their parameters, their summary, and two real gloo ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS, run_isolated

from workerserver.handlers import flight_recorder
from workerserver.http.registry import Registry
from workerserver.types import InvalidParameter, NotImplementedHere, UnknownParameter

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

#: torch 2.15 and later.
HAS_BACKENDS = hasattr(torch._C._distributed_c10d, "_reset_fr_trace")
HAS_NCCL = hasattr(torch._C._distributed_c10d, "_dump_nccl_trace")
NCCL_HANDLERS = ("dump_nccl_trace_pickle", "dump_nccl_trace_json")
UNKNOWN = "Invalid parameters - unexpected param passed in"


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    flight_recorder.register(registry)
    return registry


# --- parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NCCL_HANDLERS)
@pytest.mark.parametrize("parameter", ["includecollectives", "onlyactive"])
@pytest.mark.parametrize("value", ["True", "1", "", "TRUE", " true"])
def test_bad_bool_in_torch_words(registry: Registry, name: str, parameter: str, value: str) -> None:
    text = f"^Invalid value for {parameter} valid values are true or false$"
    with pytest.raises(InvalidParameter, match=text) as caught:
        registry.find(name).validator.validate([(parameter, value)])
    assert caught.value.status == 400


@pytest.mark.parametrize("name", NCCL_HANDLERS)
@pytest.mark.parametrize("parameter", ["includeCollectives", "x", "ONLYACTIVE"])
def test_unknown_parameter_in_torch_words(registry: Registry, name: str, parameter: str) -> None:
    with pytest.raises(UnknownParameter, match=f"^{UNKNOWN}$") as caught:
        registry.find(name).validator.validate([(parameter, "true")])
    assert caught.value.status == 400


@pytest.mark.parametrize("name", NCCL_HANDLERS)
def test_bad_value_wins_over_unknown_name(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidParameter):
        registry.find(name).validator.validate([("x", "1"), ("onlyactive", "yes")])


def test_stack_traces_are_only_in_the_pickle(registry: Registry) -> None:
    query = [("includestacktraces", "false")]
    assert registry.find("dump_nccl_trace_pickle").validator.validate(query) == {
        "includestacktraces": False
    }
    with pytest.raises(UnknownParameter):
        registry.find("dump_nccl_trace_json").validator.validate(query)


def test_fr_trace_json_ignores_parameters(registry: Registry) -> None:
    handler = registry.find("fr_trace_json")
    odd = handler.validator.validate([("onlyactive", "perhaps"), ("onlyactive", "true"), ("x", "")])
    response = handler.function(**odd)
    assert (response.status, response.content_type) == (200, "application/json")
    assert response.body == handler.function(**handler.validator.validate(())).body
    trace = json.loads(response.body)
    assert isinstance(trace["version"], str)
    assert {"pg_config", "pg_status"} <= trace.keys()


@pytest.mark.skipif(HAS_NCCL, reason="this torch has NCCL")
@pytest.mark.parametrize("name", NCCL_HANDLERS)
def test_no_nccl_is_501_and_names_the_way_out(registry: Registry, name: str) -> None:
    with pytest.raises(NotImplementedHere, match="without NCCL") as caught:
        registry.find(name).function()
    assert caught.value.status == 501
    assert "fr_trace_json" in str(caught.value)


def test_listed_only_when_the_process_has_torch() -> None:
    code = (
        "import sys\n"
        "from workerserver.http.registry import Registry\n"
        "from workerserver.handlers import flight_recorder, profiler, wait_counters\n"
        "registry = Registry()\n"
        "for family in (flight_recorder, profiler, wait_counters):\n"
        "    family.register(registry)\n"
        "assert registry.names() == [], registry.names()\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "print(*registry.names())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.split() == [
        "dump_nccl_trace_json",
        "dump_nccl_trace_pickle",
        "fr_summary",
        "fr_trace_json",
        "torch_profile",
        "wait_counter_values",
    ]


def test_torch_without_distributed_is_501() -> None:
    """A module called torch that has no torch.distributed, as some builds of torch have none."""
    code = (
        "import sys, types\n"
        "sys.modules['torch'] = types.ModuleType('torch')\n"
        "from workerserver.handlers import flight_recorder as fr\n"
        "from workerserver.handlers.torch_bridge import TorchBridge\n"
        "from workerserver.handlers.wait_counters import wait_counter_values\n"
        "from workerserver.types import NotImplementedHere\n"
        "for function in (fr.dump_nccl_trace_pickle, fr.dump_nccl_trace_json, fr.fr_trace_json,\n"
        "                 fr.fr_summary, wait_counter_values):\n"
        "    try:\n"
        "        function()\n"
        "    except NotImplementedHere as error:\n"
        "        print(error)\n"
        "assert TorchBridge().names() == []\n"
        "assert TorchBridge().find('ping') is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all("torch.distributed" in line for line in lines)


# --- the summary ------------------------------------------------------------------------------


def entry(record: int, seq: int, **changes: Any) -> dict[str, Any]:
    """One entry as torch 2.13 writes it for gloo, retired."""
    return {
        "collective_seq_id": seq,
        "input_dtypes": ["Float"],
        "input_sizes": [[4]],
        "is_p2p": False,
        "op_id": seq,
        "output_dtypes": ["Float"],
        "output_sizes": [[4]],
        "p2p_seq_id": 0,
        "pg_id": 0,
        "process_group": ["0", "default_pg"],
        "profiling_name": "gloo:all_reduce",
        "record_id": record,
        "retired": True,
        "state": "scheduled",
        "thread_id": "1",
        "thread_name": "python",
        "time_created_ns": 1000 + record,
        "time_discovered_completed_ns": 0,
        "time_discovered_started_ns": 0,
        "timeout_ms": 60000,
        **changes,
    }


def test_empty_dump_has_no_groups() -> None:
    dump = {"version": "2.10", "pg_config": {}, "pg_status": {}, "nccl_comm_state": {}}
    assert flight_recorder.summarize({"fr": dump}, {}) == {"version": "2.10", "groups": []}


def test_gloo_operation_is_finished_when_retired_though_it_says_scheduled() -> None:
    dump = {
        "version": "2.10",
        "pg_config": {"": {"name": "", "desc": "", "ranks": "[]"}},
        "pg_status": {
            "0": {
                "last_enqueued_collective": "3",
                "last_started_collective": "-1",
                "last_completed_collective": "1",
            }
        },
        "entries": [
            entry(0, 1),
            entry(1, 2, retired=False, profiling_name="gloo:broadcast"),
            entry(2, 3, retired=False),
        ],
    }
    world = {"0": {"desc": "default_pg", "ranks": [0, 1]}}
    (group,) = flight_recorder.summarize({"fr": dump}, world)["groups"]
    assert (group["recorder"], group["id"], group["name"]) == ("fr", 0, "0")
    assert group["ranks"] == "0-1"
    assert group["status"] == {"enqueued": 3, "started": -1, "completed": 1}
    assert group["pending"] == 2
    assert group["last_retired"]["seq"] == 1
    assert (group["first_pending"]["seq"], group["first_pending"]["op"]) == (2, "gloo:broadcast")
    assert (group["last_issued"]["seq"], group["last_issued"]["created_ns"]) == (3, 1002)
    assert group["last_issued"]["started_ns"] is None


def test_nccl_operation_is_finished_when_completed_though_not_yet_retired() -> None:
    dump = {
        "version": "2.10",
        "pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1, 2]"}},
        "entries": [
            entry(
                7,
                9,
                retired=False,
                state="completed",
                time_discovered_started_ns=5,
                time_discovered_completed_ns=6,
                duration_ms=0.5,
            )
        ],
    }
    (group,) = flight_recorder.summarize({"nccl": dump}, {})["groups"]
    assert group["ranks"] == "0-2"
    assert group["status"] is None
    assert group["pending"] == 0
    assert group["first_pending"] is None
    assert group["last_retired"] == group["last_issued"]
    assert group["last_retired"]["completed_ns"] == 6
    assert group["last_retired"]["duration_ms"] == 0.5


def test_groups_of_both_recorders_and_groups_without_entries() -> None:
    gloo = {"version": "2.10", "entries": [entry(0, 1)]}
    nccl = {
        "version": "2.10",
        "entries": [entry(0, 4, pg_id=1, process_group=["1", "tp"], profiling_name="nccl:send")],
    }
    world = {
        "0": {"desc": "default_pg", "ranks": [0, 1]},
        "1": {"desc": "tp", "ranks": [0, 1]},
        "2": {"desc": "dp", "ranks": [0]},
    }
    groups = flight_recorder.summarize({"fr": gloo, "nccl": nccl}, world)["groups"]
    assert [(g["recorder"], g["id"], g["name"]) for g in groups] == [
        ("fr", 0, "0"),
        ("nccl", 1, "1"),
        (None, None, "2"),
    ]
    assert (groups[2]["last_issued"], groups[2]["ranks"]) == (None, "0")


def test_entries_are_ordered_by_record_and_shapes_are_bounded() -> None:
    many = [[1]] * (flight_recorder.MAX_SHAPES + 5)
    dump = {"entries": [entry(5, 3, input_sizes=many), entry(4, 2)], "pg_config": {"0": {}}}
    (group,) = flight_recorder.summarize({"fr": dump}, {})["groups"]
    assert group["last_issued"]["seq"] == 3
    assert len(group["last_issued"]["input_sizes"]) == flight_recorder.MAX_SHAPES
    assert group["ranks"] is None


# --- a real job -------------------------------------------------------------------------------


def run_ranks(tmp_path: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "TORCH_FR_BUFFER_SIZE": "2000"}
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                str(PROGRAMS / "handlers/flight_recorder_rank.py"),
                str(rank),
                str(tmp_path),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    answers = []
    try:
        for process in ranks:
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0, err
            answers.append(json.loads(out.splitlines()[-1]))  # torch 2.10 prints lines before
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return answers


def test_summary_names_the_operation_that_a_rank_has_not_entered(tmp_path: Path) -> None:
    answers = run_ranks(tmp_path)
    groups = [{group["desc"]: group for group in answer["summary"]["groups"]} for answer in answers]
    ahead, behind = (by_desc["default_pg"] for by_desc in groups)

    assert [answer["summary"]["rank"] for answer in answers] == [0, 1]
    assert (ahead["ranks"], behind["ranks"]) == ("0-1", "0-1")
    assert ahead["last_issued"]["op"] == "gloo:broadcast"
    assert ahead["last_issued"]["input_sizes"] == [[7, 2]]
    assert ahead["first_pending"] == ahead["last_issued"]
    assert (ahead["pending"], behind["pending"]) == (1, 0)
    assert behind["last_issued"]["op"] == "gloo:all_reduce"
    assert behind["last_issued"]["seq"] == ahead["last_issued"]["seq"] - 1
    assert behind["last_retired"] == behind["last_issued"]
    assert ahead["last_retired"]["seq"] == behind["last_retired"]["seq"] == 3

    for answer, by_desc in zip(answers, groups, strict=True):
        assert by_desc["pair"]["last_retired"]["op"] == "gloo:all_gather"
        assert ("evens" in by_desc) == answer["member"]
    assert groups[0]["evens"]["last_issued"] is None
    assert groups[0]["evens"]["ranks"] == "0"

    for answer in answers:
        # Both answers come from one recorder. So thread_name and all other fields are equal.
        assert answer["fr_trace_json"] == answer["torch"]
        assert answer["torch"][0] == "application/json"


@pytest.mark.timeout(280)  # on a busy machine a CUDA build of torch takes a minute to import
@pytest.mark.skipif(not HAS_BACKENDS, reason="this torch has one recorder for all but NCCL")
def test_a_recorder_for_each_backend(short_path: Path) -> None:
    done = run_isolated(
        "handlers/hooked_backend.py",
        str(short_path),
        seconds=240.0,
        WORKERSERVER_TORCH_FALLBACK="1",
        TORCH_FR_BUFFER_SIZE="2000",
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    summary, afterwards = answers.pop("fr_summary"), answers.pop("afterwards")
    for target, (ours, theirs) in answers.items():
        if target == "fr_dump_file?backend=mine":  # the first dump may still run
            assert (ours[0], theirs[0]) == (200, 200)
            assert ours[2] == "Flight Recorder dump initiated for rank 0"
        else:
            assert ours == theirs, target
    assert answers["fr_dump_file"][0][0] == 503
    trace = json.loads(answers["fr_trace_json?backend=mine"][0][2])
    assert trace != json.loads(answers["fr_trace_json"][0][2])

    (group,) = summary["groups"]
    assert list(group)[-1] == "backend"
    assert (group["recorder"], group["backend"], group["ranks"]) == ("fr", "mine", "0")
    assert (group["last_issued"]["op"], group["last_issued"]["seq"]) == ("mine:all_reduce", 2)
    (group,) = afterwards["groups"]
    assert (group["backend"], group["last_issued"]["seq"]) == ("mine", 2)
