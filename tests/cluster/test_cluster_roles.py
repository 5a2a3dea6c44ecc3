"""Whose code a frame is, what a thread is there for, and what it waits in: made up and real."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.lifecycle import run_isolated

from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read import roles
from workerserver.cluster.read.blocked_on import TABLE, Blocked, Rule, blocked_on
from workerserver.cluster.read.owners import code_file, dotted, is_library
from workerserver.cluster.read.stacks import parse_json, parse_text

# ---- whose code it is


@pytest.mark.parametrize(
    ("file", "owner", "path"),
    [
        ("/opt/conda/lib/python3.10/threading.py", "library", "threading.py"),
        ("/usr/lib64/python3.13t/asyncio/events.py", "library", "asyncio/events.py"),
        ("/usr/lib/python312.zip/queue.py", "library", "queue.py"),
        ("/v/lib/python3.11/site-packages/torch/_tensor.py", "library", "torch/_tensor.py"),
        ("/usr/lib/python3/dist-packages/numpy/a.py", "package", "numpy/a.py"),
        (
            "/v/lib/python3.11/site-packages/workerserver/process/pool.py",
            "library",
            "workerserver/process/pool.py",
        ),
        ("/src/pytorch/torch/nn/modules/linear.py", "library", "torch/nn/modules/linear.py"),
        (
            "/src/workerserver/process/loop_thread.py",
            "library",
            "workerserver/process/loop_thread.py",
        ),
        ("/home/me/workerserver/train.py", "user", "/home/me/workerserver/train.py"),
        ("/home/me/torch/train.py", "user", "/home/me/torch/train.py"),
        ("train.py", "user", "train.py"),
        ("<frozen importlib._bootstrap>", "library", "importlib/_bootstrap.py"),
        ("<string>", "package", "<string>"),
        ("<stdin>", "user", "<stdin>"),
        ("<eval_with_key>.3", "package", "<eval_with_key>.3"),
        ("/tmp/torchinductor_me/ab/cabc.py", "library", "torchinductor/cabc.py"),
        ("???", "library", "???"),
        ("", "user", ""),
    ],
)
def test_places(file: str, owner: str, path: str) -> None:
    found = code_file(file)
    assert (found.owner, found.path) == (owner, path)
    assert code_file(found.file) == found
    assert is_library(Frame(file, 1, "f")) == (owner != "user")


@given(st.text("/<>abpython3.lib- \n") | st.text())
def test_any_place(file: str) -> None:
    found = code_file(file)
    assert code_file(found.file) == found


def main_of(*files: str, **more: Any) -> Thread:
    return Thread(tuple(Frame(file, n, "f") for n, file in enumerate(files)), main=True, **more)


TORCH = "/v/site-packages/torch/optim/adam.py"
PACKAGE = "/v/site-packages/trainer/loop.py"


@pytest.mark.parametrize(
    ("files", "line", "call"),
    [
        ((TORCH, "a.py", "b.py"), 1, "torch.optim.adam.f"),
        ((TORCH, PACKAGE, "b.py"), 2, "trainer.loop.f"),
        ((TORCH, PACKAGE, "<frozen runpy>"), 1, "torch.optim.adam.f"),
        ((PACKAGE, "<frozen runpy>"), 0, "computing"),
        ((TORCH, "<frozen runpy>"), 0, "runpy.f"),
        (("a.py", TORCH), 0, "computing"),
        ((), None, "computing"),
    ],
)
def test_location(files: tuple[str, ...], line: int | None, call: str) -> None:
    threads = [Thread((Frame("c.py", 9, "g"),)), main_of(*files, state="R")]
    found = blocked_on(threads).location
    assert (None if found is None else found.line) == line
    assert blocked_on(threads).call == call


def test_without_a_main_thread() -> None:
    threads = [Thread((Frame("c.py", 9, "g"),))]
    assert (blocked_on(threads).location, blocked_on(threads).call) == (None, "")


@pytest.mark.parametrize(
    ("state", "wchan", "kind"),
    [
        ("S", "hrtimer_nanosleep", "sleep"),
        ("S", "futex_do_wait", "wait"),
        ("S", "poll_schedule_timeout.constprop.0", "wait"),
        ("S", "pipe_read", "io"),
        ("S", "unix_stream_read_generic", "io"),
        ("S", "do_wait", "wait"),
        ("D", "folio_wait_bit_common", "io"),
        ("D", None, "io"),
        ("T", None, "stopped"),
        ("R", None, "computing"),
        ("S", "something_new", "wait"),
        (None, None, "unknown"),
    ],
)
def test_what_the_kernel_says(state: str | None, wchan: str | None, kind: str) -> None:
    main = main_of("a.py", state=state, wchan=wchan)
    assert blocked_on([main]).kind == kind
    holder = Thread((), holds_gil=True)
    both = blocked_on([main, holder]).call
    assert ("GIL" in both) == (wchan == "futex_do_wait")
    assert blocked_on([replace(main, holds_gil=True)]).call == blocked_on([main]).call


# ---- what it is blocked on

SITE = "/v/lib/python3.11/site-packages/"
USER = ("/home/me/train.py", "step")
BACKWARD = (f"{SITE}torch/autograd/graph.py", "_engine_run_backward")
NEXT = (f"{SITE}torch/utils/data/dataloader.py", "__next__")
REDUCE = (f"{SITE}torch/distributed/distributed_c10d.py", "all_reduce")
GET = ("/usr/lib/python3.11/queue.py", "get")
FIT = (f"{SITE}trainer/loop.py", "fit")


def blocked(*places: tuple[str, str]) -> Blocked:
    """The call on which a thread with these files and functions, newest first, is blocked."""
    frames = tuple(Frame(file, 1, function) for file, function in places)
    return blocked_on([Thread(frames, "MainThread", main=True, state="S", wchan="futex_do_wait")])


@pytest.mark.parametrize("rule", [rule for group in TABLE for rule in group])
def test_each_rule_of_the_table(rule: Rule) -> None:
    library = SITE if rule.path.startswith("torch/") else "/usr/lib/python3.11/"
    function = rule.function or "anything"
    found = blocked((library + rule.path, function), USER)
    assert (found.kind, found.location, found.inside) == (rule.kind, Frame(*_at(USER)), True)
    assert found.call == rule.call if rule.call is not None else found.call.endswith(function)


def _at(place: tuple[str, str]) -> tuple[str, int, str]:
    return place[0], 1, place[1]


@pytest.mark.parametrize(
    ("places", "kind", "call", "polls"),
    [
        # A wait for other ranks comes first, whatever function has called torch.distributed.
        ((REDUCE, NEXT, USER), "collective", "torch.distributed.all_reduce", True),
        ((REDUCE, BACKWARD, USER), "collective", "torch.distributed.all_reduce", True),
        ((GET, NEXT, USER), "dataloader", "next batch of a DataLoader", True),
        # A backward pass may take one lock after another.
        ((GET, BACKWARD, USER), "lock", "backward pass", False),
        ((BACKWARD, USER), "backward", "backward pass", False),
        ((GET, USER), "lock", "queue.get", True),
        # The user's code is nearer to the wait than the library that has called this code.
        ((USER, NEXT, USER), "wait", "a lock", True),
        # If all code is installed, a package may have wrapped a call of another package.
        ((FIT, REDUCE, FIT), "collective", "torch.distributed.all_reduce", True),
        ((FIT, BACKWARD, FIT), "wait", "a lock", True),
    ],
)
def test_which_rule_decides(
    places: tuple[tuple[str, str], ...], kind: str, call: str, polls: bool
) -> None:
    found = blocked(*places)
    assert (found.kind, found.call, found.polls) == (kind, call, polls)
    assert found.on_ranks == (kind == "collective")
    assert found.on_no_rank == (kind in ("dataloader", "lock"))


def test_no_rule_hides_another_one() -> None:
    calls = [(rule.path, rule.function) for group in TABLE for rule in group]
    assert len({*calls}) == len(calls)


def test_dotted() -> None:
    assert dotted("torch/_tensor.py", "backward") == "torch.backward"
    assert dotted("torch/optim/adam.py", "step") == "torch.optim.adam.step"
    assert dotted("<string>", "f") == "f"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("pt_nccl_watchdg", "nccl watchdog"),
        ("pt_nccl_heartbt", "nccl watchdog"),
        ("NCCL Service  0", "nccl"),
        ("pt_autograd_0", "autograd"),
        ("pt_data_pin", "dataloader"),
        ("pt_tcpstore_uv", "store"),
        ("cuda-EvtHandlr", "cuda"),
        ("workerserver-io", "workerserver"),
        ("python3", "other"),
        (None, "other"),
    ],
)
def test_roles_by_name(name: str | None, role: str) -> None:
    """C++ threads, where the kernel lists them: none has Python frames."""
    thread = Thread((), name=name, state="S")
    assert roles.role(thread) == role
    assert roles.is_idle(thread)
    assert roles.is_idle(replace(thread, holds_gil=True)) == (role == "workerserver")


def thread_of(*places: tuple[str, str], **more: Any) -> Thread:
    """Newest first; started by threading."""
    start = [
        ("/usr/lib/python3.11/threading.py", name) for name in ("_bootstrap_inner", "_bootstrap")
    ]
    return Thread(tuple(Frame(file, 1, function) for file, function in [*places, *start]), **more)


WAIT = ("/usr/lib/python3.11/threading.py", "wait")


@pytest.mark.parametrize(
    ("thread", "role", "idle"),
    [
        (thread_of(WAIT, (f"{SITE}wandb/sdk/a.py", "loop")), "logging", True),
        (thread_of((f"{SITE}wandb/sdk/a.py", "loop")), "logging", True),
        (thread_of((f"{SITE}wandb/sdk/a.py", "loop"), holds_gil=True), "logging", False),
        (thread_of((f"{SITE}ipykernel/parentpoller.py", "run")), "notebook", True),
        (thread_of((f"{SITE}zmq/sugar/__init__.py", "device")), "notebook", True),
        (thread_of(("/tmp/ipykernel_4/7.py", "load")), "other", False),
        (thread_of(WAIT, (f"{SITE}tensorboard/summary/writer/x.py", "run")), "logging", True),
        (thread_of(WAIT), "other", True),
        (thread_of(WAIT, ("/home/me/train.py", "prefetch")), "other", False),
        (
            thread_of(
                (f"{SITE}torch/_inductor/compile_worker/subproc_pool.py", "_recv_msg"),
                (f"{SITE}torch/_inductor/compile_worker/subproc_pool.py", "_read_thread"),
            ),
            "compile",
            True,
        ),
        (
            thread_of(
                (f"{SITE}torch/distributed/checkpoint/state_dict_saver.py", "save"),
                ("/usr/lib/python3.11/concurrent/futures/thread.py", "run"),
                ("/usr/lib/python3.11/concurrent/futures/thread.py", "_worker"),
            ),
            "checkpoint",
            False,
        ),
        (
            thread_of(
                ("/usr/lib/python3.11/multiprocessing/connection.py", "_send"),
                ("/usr/lib/python3.11/multiprocessing/queues.py", "_feed"),
            ),
            "queue feeder",
            False,
        ),
        (
            thread_of(
                (f"{SITE}torch/utils/data/_utils/pin_memory.py", "pin_memory"),
                (f"{SITE}torch/utils/data/_utils/pin_memory.py", "do_one_step"),
                (f"{SITE}torch/utils/data/_utils/pin_memory.py", "_pin_memory_loop"),
            ),
            "dataloader",
            False,
        ),
    ],
)
def test_roles_by_frames(thread: Thread, role: str, idle: bool) -> None:
    assert roles.role(thread) == role
    assert roles.is_idle(thread) == idle


def test_hooks_of_a_backward_pass() -> None:
    """A hook is called by autograd's C++ thread: the user's frame is its oldest."""
    hook = Thread((Frame("/home/me/train.py", 3, "hook"),))
    engine = Frame(f"{SITE}torch/autograd/graph.py", 1, "_engine_run_backward")
    main = Thread((engine, Frame("/home/me/train.py", 9, "<module>")), main=True)
    idle = Thread(main.frames[1:], main=True)
    assert roles.roles([hook, main]) == ["autograd", "main"]
    assert roles.roles([hook, idle]) == ["other", "main"]
    assert roles.roles([thread_of(("/home/me/train.py", "hook")), main]) == ["other", "main"]
    assert roles.roles([replace(hook, name="mine"), main]) == ["other", "main"]


# ---- real processes

Scenes = dict[str, tuple[list[Thread], list[Thread]]]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """For each scene: the stacks from the JSON, and the stacks from the text."""
    pytest.importorskip("torch")
    with tempfile.TemporaryDirectory(prefix="ws-") as folder:  # short enough for a socket
        done = run_isolated("cluster/cluster_scenes.py", folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        value = json.loads(line)
        found[value["scene"]] = (parse_json(value["json"]), parse_text(value["text"]))
    return found


@pytest.mark.torch
@pytest.mark.parametrize(
    ("scene", "call"),
    [
        ("loader", "next batch of a DataLoader"),
        ("pools", "concurrent.futures.result"),
        ("queue", "queue.get"),
        ("event", "threading.wait"),
        ("asyncio", "asyncio event loop"),
        ("child process", "subprocess.run"),
        ("nested backward", "backward pass"),
        ("all_reduce", "torch.distributed.all_reduce"),
        ("barrier", "torch.distributed.barrier"),
        ("monitored_barrier", "torch.distributed.monitored_barrier"),
        ("broadcast_object_list", "torch.distributed.broadcast_object_list"),
        ("all_gather", "torch.distributed.all_gather"),
        ("p2p", "torch.distributed.recv"),
        ("new_group", "torch.distributed.new_group"),
    ],
)
def test_calls_of_real_processes(scenes: Scenes, scene: str, call: str) -> None:
    for threads in scenes[scene]:
        here = blocked_on(threads).location
        assert here is not None
        assert here.file.endswith("cluster/cluster_scenes.py")
        assert blocked_on(threads).call == call


@pytest.mark.torch
@pytest.mark.parametrize(
    ("scene", "call"),
    [("lock", "a lock, or the GIL"), ("pools idle", "sleep"), ("async wait", "a lock, or the GIL")],
)
def test_calls_without_a_frame(scenes: Scenes, scene: str, call: str) -> None:
    by_json, by_text = scenes[scene]
    if roles.main_thread(by_json).wchan is None:  # type: ignore[union-attr]
        call = "waiting"  # this kernel doesn't tell where a thread sleeps
    assert (blocked_on(by_json).call, blocked_on(by_text).call) == (call, "")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        ("loader", [("queue feeder", True), ("queue feeder", True)]),
        ("pinning", [("dataloader", True)]),
        ("pools", [("pool", False), *[("pool", True)] * 4]),
        ("pools idle", [("pool", True)] * 5),
        ("nested backward", [("autograd", False)]),
        ("backward", []),
    ],
)
def test_roles_of_real_processes(
    scenes: Scenes, scene: str, expected: list[tuple[str, bool]]
) -> None:
    for threads in scenes[scene]:
        found = [
            (role, roles.is_idle(thread, role))
            for role, thread in zip(roles.roles(threads), threads, strict=True)
            if role != "main" and not any(frame.function == "watch" for frame in thread.frames)
        ]
        assert found == expected
        assert sum(thread.main for thread in threads) == 1


@pytest.mark.torch
def test_torch_s_own_server(scenes: Scenes) -> None:
    _, threads = scenes["torch's server"]
    asked = [
        (each, thread.frames) for each, thread in zip(roles.roles(threads), threads, strict=True)
    ]
    assert ("workerserver", ()) in asked
    assert [role for role, _ in roles.busy(threads)] == ["other", "main"]
