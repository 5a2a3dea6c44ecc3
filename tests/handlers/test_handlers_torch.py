"""The bridge to torch's own registry, and the handlers that stand on torch: ping to profile."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS

from workerserver.handlers import ping, profiler, register_builtins, torch_bridge, wait_counters
from workerserver.handlers.torch_bridge import BinaryContent, ParametersNotPassed, TorchBridge
from workerserver.http.registry import Handler, Registry
from workerserver.types import (
    InvalidParameter,
    MissingParameter,
    NotImplementedHere,
    Request,
    Response,
)

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

c10d = torch._C._distributed_c10d


def ask(handler: Handler, body: bytes = b"", **params: str) -> Response:
    """Call *handler* as the dispatcher does, without its limits."""
    request = Request("POST", f"/handler/{handler.name}", params, body=body)
    kwargs = handler.validator.validate(list(params.items()))
    if handler.validator.request_name is not None:
        kwargs[handler.validator.request_name] = request
    response = handler.function(**kwargs)
    assert isinstance(response, Response)
    return response


@pytest.fixture(scope="module")
def registry() -> Registry:
    registry = Registry()
    register_builtins(registry)
    return registry


def found(name: str) -> Handler:
    handler = TorchBridge().find(name)
    assert handler is not None
    return handler


def register(name: str, function: Any) -> None:
    """In torch's registry, where a name stays for good.

    The registry drops its functions after the interpreter has ended, and a function that is freed
    then ends the process with SIGSEGV or SIGABRT (torch 2.13): one more reference prevents that.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(function))
    c10d._register_handler(name, function)


def everything(request: Any, response: Any) -> None:
    seen = {
        "same": isinstance(request, c10d._Request) and isinstance(response, c10d._Response),
        "body": request.body(),
        "a": request.get_param("a"),
        "missing": request.get_param("missing"),
        "params": request.params(),
    }
    response.set_content(json.dumps(seen), "application/json")


objects: list[Any] = []


def keep(request: Any, response: Any) -> None:
    objects.extend((request, response))
    response.set_content(b"\xff\x00", "application/x-bytes")
    response.set_status(777)


def set_status(request: Any, response: Any) -> None:
    response.set_status(int(request.get_param("status")))


def leave(request: Any, response: Any) -> None:
    raise SystemExit(3)


def fail(request: Any, response: Any) -> None:
    raise RuntimeError("Unable to cast Python instance, says the handler itself")


def wrong_content(request: Any, response: Any) -> None:
    response.set_content(5, "text/plain")


def wrong_type(request: Any, response: Any) -> None:
    response.set_content("x", None)


def wrong_status(request: Any, response: Any) -> None:
    response.set_status("200")


def silent(request: Any, response: Any) -> None:
    pass


for function in (
    everything,
    keep,
    set_status,
    leave,
    fail,
    wrong_content,
    wrong_type,
    wrong_status,
    silent,
):
    register(f"bridge_{function.__name__}", function)


# --- bridge -----------------------------------------------------------------------------------


def test_names_are_torchs() -> None:
    theirs = {name for name in c10d._get_handler_names() if name and "/" not in name}
    assert sorted(TorchBridge().names()) == sorted(theirs)


def test_unknown_name_is_not_found() -> None:
    assert TorchBridge().find("bridge_no_such") is None
    with pytest.raises(NotImplementedHere, match="no handler bridge_no_such"):
        torch_bridge.call("bridge_no_such", Request("POST", "/", {}))


@pytest.mark.parametrize("name", ["", "bridge/slash"])
def test_names_that_no_path_can_hold_are_left_out(name: str) -> None:
    register(name, silent)
    assert name in c10d._get_handler_names()
    assert name not in TorchBridge().names()
    assert TorchBridge().find(name) is None


def test_name_that_is_not_text() -> None:
    """It hides the others from torch's own listing; they can still be asked for."""
    script = (
        "import torch\n"
        "from workerserver.handlers.torch_bridge import TorchBridge\n"
        "torch._C._distributed_c10d._register_handler(b'\\xff', print)\n"
        "bridge = TorchBridge()\n"
        "print(bridge.names(), bridge.find('ping'), bridge.find('\\udcff'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[] <Handler ping thread> None\n", done.stderr


def test_fork_forgets_who_was_inside() -> None:
    bridge = TorchBridge()
    handler = bridge.find("ping")
    assert handler is not None
    assert handler.acquire()
    assert handler.lock.acquire()
    assert bridge._lock.acquire()
    bridge.after_fork()
    assert bridge.find("ping") is handler
    assert handler.running == 0
    assert handler.acquire()


def test_one_handler_per_name() -> None:
    bridge = TorchBridge()
    assert bridge.find("ping") is bridge.find("ping")


def test_python_handler_sees_body_and_parameters() -> None:
    response = ask(found("bridge_everything"), "ü".encode(), a="1", b="2")
    assert response.content_type == "application/json"
    assert json.loads(response.body) == {
        "same": True,
        "body": "ü",
        "a": "1",
        "missing": "",
        "params": {"a": "1", "b": "2"},
    }


def test_body_that_is_not_text_fails_in_the_handler_as_on_torch() -> None:
    with pytest.raises(UnicodeDecodeError):
        ask(found("bridge_everything"), b"\xff")


def test_python_handler_may_answer_bytes_and_any_status() -> None:
    response = ask(found("bridge_keep"))
    assert (response.body, response.status) == (b"\xff\x00", 777)
    assert response.content_type == "application/x-bytes"
    assert type(objects[0]).__name__ == "TorchRequest"  # the very objects, not a copy of torch's


def test_handler_that_sets_nothing_answers_200() -> None:
    response = ask(found("bridge_silent"))
    assert (response.status, response.body) == (200, b"")


@pytest.mark.parametrize("status", [0, -1, 99, 1000, 2**31 - 1])
def test_status_that_http_cannot_carry(status: int) -> None:
    with pytest.raises(ValueError, match=f"status {status} can't be sent"):
        ask(found("bridge_set_status"), status=str(status))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bridge_wrong_content", "content must be str or bytes, not int"),
        ("bridge_wrong_type", "content_type must be str, not NoneType"),
        ("bridge_wrong_status", "status must be int, not str"),
    ],
)
def test_wrong_types_are_named(name: str, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        ask(found(name))


def test_system_exit_reaches_the_dispatcher() -> None:
    with pytest.raises(SystemExit) as caught:
        ask(found("bridge_leave"))
    assert caught.value.code == 3


def test_handlers_own_error_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match="says the handler itself"):
        ask(found("bridge_fail"))


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("ping", "text/plain"), ("wait_counter_values", "application/json")],
)
def test_cpp_handlers_work_through_the_bridge(name: str, content_type: str) -> None:
    response = ask(found(name))
    assert (response.status, response.content_type) == (200, content_type)
    assert response.body


def test_cpp_handler_that_reads_parameters_says_what_is_the_matter() -> None:
    with pytest.raises(ParametersNotPassed, match="pyspy_dump reads its parameters") as caught:
        ask(found("pyspy_dump"))
    assert caught.value.status == 501


def test_cpp_content_that_is_not_text() -> None:
    """No C++ handler of a CPU build answers with bytes. pybind would raise this error for one."""
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        translated = torch_bridge._translated("binary", error)
    assert isinstance(translated, BinaryContent)
    assert translated.status == 500
    assert "C++ handler binary" in str(translated)


# --- built-ins --------------------------------------------------------------------------------


def test_builtins_stand_before_torchs_and_torchs_are_served_too(registry: Registry) -> None:
    names = registry.names()
    assert names == sorted(set(names))
    assert {"ping", "dump_traceback", "fr_summary", "torch_profile", "bridge_keep"} <= set(names)
    assert registry.find("ping").function is ping.ping
    assert ask(registry.find("bridge_silent")).status == 200


def test_ping_ignores_parameters(registry: Registry) -> None:
    handler = registry.find("ping")
    response = ask(handler, what="ever")
    assert (response.status, response.content_type, response.body) == (200, "text/plain", b"pong")
    assert handler.kind == "inline"


def test_wait_counters_are_torchs(registry: Registry) -> None:
    assert registry.find("wait_counter_values").function is wait_counters.wait_counter_values
    response = ask(registry.find("wait_counter_values"), x="1")
    assert (response.status, response.content_type) == (200, "application/json")
    for counter in json.loads(response.body).values():
        assert set(counter) == {"active_count", "total_calls", "total_time_us", "max_time_us"}


# --- profile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "60.1", "nan", "inf", "1e9"])
def test_profile_duration_has_bounds(registry: Registry, value: str) -> None:
    handler = registry.find("torch_profile")
    with pytest.raises(InvalidParameter) as caught:
        handler.validator.validate([("duration", value)])
    assert (caught.value.status, caught.value.name) == (400, "duration")
    assert "60" in str(caught.value)


def test_profile_needs_a_duration(registry: Registry) -> None:
    handler = registry.find("torch_profile")
    with pytest.raises(MissingParameter) as caught:
        handler.validator.validate([])
    assert caught.value.status == 400
    assert handler.limit == 1


def isolated(script: str, *arguments: str) -> Any:
    """What *script* prints; a crash fails the test."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


PROFILES = int(os.environ.get("WORKERSERVER_PROFILES", "15"))


def overlap(case: str) -> Any:
    return isolated("handlers/profiler_overlap.py", case, str(PROFILES))


@pytest.mark.slow
@pytest.mark.timeout(300)  # a profile takes 1 s of processor time
@pytest.mark.parametrize(
    ("case", "statuses"),
    [
        ("alone", []),
        ("trainer_profiles", [409]),
        ("trainer_warms_up", [200, 409]),
        ("trainer_warms_up_frozen", [409]),
        ("trainer_starts", [409]),
        ("start_fails", []),
        ("process_grows", [200]),
        ("disk_is_full", [507]),
        ("second_request", [503, 200]),
        ("many_beside_busy_threads", [200] * PROFILES),
    ],
)
def test_profile_beside_the_trainers_own(case: str, statuses: list[int]) -> None:
    result = overlap(case)
    outcomes = result["outcomes"]
    assert [outcome["status"] for outcome in outcomes if "status" in outcome] == statuses
    # The trainer's own profile holds what the trainer did.
    assert all(outcome["trainer_mm"] > 0 for outcome in outcomes if "trainer_mm" in outcome)
    assert result["next"]["status"] == 200
    assert result["next"]["mm"] > 0  # the operators of a thread that is not the profile's
    assert result["restored"]
    if case == "start_fails":
        assert outcomes == [{"enabled": False}]
    if case == "process_grows":
        headers, note = outcomes[0]["early"]
        assert note["ended_early"] == headers["X-Ended-Early"]
        assert "of 60 s: the process grew" in headers["X-Ended-Early"]
        assert outcomes[0]["mm"] > 0
    if case == "disk_is_full":
        assert outcomes[1] == {"left": [], "named": True}


@pytest.mark.slow
def test_nothing_touches_a_torch_that_is_being_imported() -> None:
    result = isolated("handlers/half_imported.py")
    assert result["import"] == 3.0
    assert result["half"] > 10  # rounds of questions while torch was half imported
    assert set(map(tuple, result["during"].values())) == {(501,)}
    assert result["names"] == [0]
    assert set(result["after"].values()) == {200}
    assert result["imported"] == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (torch.autograd.profiler, "_prepare_profiler"),
        (torch.autograd.profiler, "_enable_profiler"),
        (torch.autograd.profiler, "_toggle_collection_dynamic"),
        (torch.autograd.profiler, "_is_profiler_enabled"),
        (torch.autograd.profiler, "_ProfilerResult"),
        (torch.profiler, "_ExperimentalConfig"),
        (torch.profiler, "_KinetoProfile"),
    ],
)
def test_profile_needs_what_it_uses_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    monkeypatch.delattr(module, name)
    with pytest.raises(NotImplementedHere, match=name) as caught:
        profiler.torch_profile(0.01)
    assert caught.value.status == 501


def test_profile_needs_room_for_a_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(profiler, "MAX_TRACE_BYTES", 2**62)
    with pytest.raises(profiler.NoRoom, match=str(tmp_path)) as caught:
        profiler.torch_profile(0.01)
    assert caught.value.status == 507
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(profiler, "MAX_TRACE_BYTES", 1)
    with pytest.raises(profiler.NoRoom, match="0 bytes are free"):
        profiler.torch_profile(0.01)


@pytest.mark.slow
def test_process_may_exit_while_a_profile_runs() -> None:
    assert overlap("process_exits")["text"].endswith("the process is ending")


def test_trace_that_is_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(profiler, "MAX_TRACE_BYTES", 10)
    with pytest.raises(profiler.TraceTooLarge, match="shorter duration") as caught:
        profiler.torch_profile(0.01)
    assert caught.value.size > 10
    assert list(tmp_path.iterdir()) == []
    assert not profiler._state.running.locked()


def test_profile_is_a_chrome_trace() -> None:
    response = profiler.torch_profile(0.01)
    assert response.content_type == "application/json"
    assert "traceEvents" in json.loads(response.body)
