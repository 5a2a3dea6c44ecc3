"""torch's own server beside ours. Each scene runs in a forked process of its own.

``python torch_fallback_scene.py FOLDER SCENE...`` imports torch once and prints a JSON object for
each scene. Temporary files go to FOLDER, which also holds a ``py-spy`` for some scenes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from support.lifecycle import socket_names
from support.waiting import wait_until

FOLDER = sys.argv[1]
ROUNDS = int(os.environ.get("FALLBACK_ROUNDS", "2"))
NAMES = ("fr_trace_json", "wait_counter_values", "pyspy_dump")
# Not SIGKILL and SIGSTOP, nor the two that the C library keeps for itself.
BLOCKABLE = 0xFFFFFFFE7FFBFEFF
HANDLERS: list[Any] = []  # torch frees its Python handlers too late for them to go


class Leave(Exception):
    """Carries the way in which a process has to end to the end of the script."""

    def __init__(self, how: str) -> None:
        self.how = how


def started() -> Any:
    """This process's fallback, once it runs with all its threads."""
    from workerserver.native.torch_standby import fallback

    assert fallback.start_if_possible(), fallback.reason
    wait_until(lambda: fallback.threads >= expected_threads())
    return fallback


def expected_threads() -> int:
    return max(8, os.sysconf("SC_NPROCESSORS_ONLN") - 1) + 1


def fetch(name: str, timeout: float = 20.0, delay: float = 0.0) -> Any:
    from workerserver.native import _bridge
    from workerserver.native.torch_standby import fallback

    path = fallback.path_bytes()
    assert path is not None
    return _bridge.fetch(path, f"/handler/{name}".encode(), timeout, delay)


def forked(child: Callable[[], object]) -> int:
    """The wait status of a child that runs *child* and ends by os._exit(0), or 99 on an error."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return code(pid)


def code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def open_files() -> list[str]:
    """The files that this process's descriptors refer to."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listdir used
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def slow_pyspy() -> threading.Thread:
    """A request that keeps torch's server busy for an hour."""
    mark = os.path.join(FOLDER, f"running-{os.getpid()}")
    os.environ["PYSPY_MARK"] = mark

    def ask() -> None:
        try:
            fetch("pyspy_dump", 3600.0)
        except OSError:
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    wait_until(lambda: os.path.exists(mark))
    os.unlink(mark)
    return thread


# --- scenes: each runs in a forked process and returns what is printed


def start() -> dict[str, Any]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = set(os.listdir("/proc/self/task"))
    fallback = started()
    again = fallback.start_if_possible()
    blocked = []
    for tid in set(os.listdir("/proc/self/task")) - before:
        with open(f"/proc/self/task/{tid}/status", encoding="ascii") as file:
            (line,) = (line for line in file if line.startswith("SigBlk:"))
        blocked.append(int(line.split()[1], 16) & BLOCKABLE == BLOCKABLE)
    replies = {name: fetch(name) for name in ("ping", "fr_trace_json", "wait_counter_values")}
    return {
        "again": again,
        "reason": fallback.reason,
        "threads": fallback.threads - expected_threads(),
        "blocked": all(blocked),
        "mask": mask == signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "names": fallback.names(),
        "inheritable": [os.get_inheritable(fd) for fd in fallback.descriptors()],
        "left": [name for name in os.listdir(FOLDER) if name != "py-spy"],
        "replies": {name: (reply.status, reply.body.decode()) for name, reply in replies.items()},
    }


def under_install() -> dict[str, Any]:
    """The fallback works after our server has taken the place of torch's ``_WorkerServer``."""
    import torch

    import workerserver.control_plane

    undo = workerserver.control_plane.install()
    ours = torch._C._distributed_c10d._WorkerServer is workerserver.WorkerServer
    started()
    undo()
    return {"ours": ours, "ping": fetch("ping").body.decode()}


def closed_by_somebody() -> dict[str, Any]:
    """Other code closes the server's descriptors. The next connection would end the process."""
    from workerserver.native._bridge import listens

    fallback = started()
    listener, inode = fallback.listener()
    before = listens(listener, inode)
    os.close(listener)
    closed = listens(listener, inode)
    with socket.socket(socket.AF_UNIX) as other:  # takes the number
        return {
            "number": other.fileno() == listener,
            "listens": [before, closed, listens(listener, inode)],
        }


def registered_in_python() -> dict[str, Any]:
    """A Python handler under a free name of torch's C++ handlers doesn't count as a C++ handler."""
    import torch

    fallback = started()
    bindings: Any = torch._C._distributed_c10d
    for name in ("dump_nccl_trace_json", "torchcomms_health_check"):
        if name not in bindings._get_handler_names():
            HANDLERS.append(lambda request, response: None)
            bindings._register_handler(name, HANDLERS[-1])
    return {"names": fallback.names()}


def beyond_the_binding() -> dict[str, Any]:
    """A C++ handler that reads its parameters; Python's binding of torch can't hand them over."""
    from workerserver.handlers import torch_bridge
    from workerserver.native import torch_standby
    from workerserver.types import Request, Response

    os.environ["PYSPY_MARK"] = ""

    def call(body: bytes = b"", media_type: bytes = b"", **params: str) -> Response:
        headers = [(b"content-type", media_type)] if media_type else []
        request = Request("POST", "/handler/pyspy_dump", params, headers, body)
        return torch_bridge.call("pyspy_dump", request)

    def answer(body: bytes = b"", media_type: bytes = b"", **params: str) -> list[Any]:
        response = call(body, media_type, **params)
        return [response.status, response.content_type, response.body.decode()]

    def error(**arguments: Any) -> Exception:
        try:
            call(**arguments)
        except Exception as raised:
            return raised
        raise AssertionError("an answer")

    form = b"application/x-www-form-urlencoded; charset=utf-8"
    found: dict[str, Any] = {
        "first": answer(native="1"),  # and starts the server
        "again": answer(subprocesses="a&b", nonblocking="\u00fc"),
        "form": answer(b"native=1", form, native="1"),  # as the dispatcher reads it
        "other body": type(error(body=b"{}", native="1")).__name__,
    }
    os.environ["PYSPY_MARK"] = os.path.join(FOLDER, f"running-{os.getpid()}")
    torch_standby.ASK_SECONDS = 0.2
    slow = error(native="1")
    wait_until(lambda: os.path.exists(os.environ["PYSPY_MARK"]))
    os.unlink(os.environ["PYSPY_MARK"])
    found["slow"] = [type(slow).__name__, getattr(slow, "status", None), "in time" in str(slow)]
    os.close(torch_standby.fallback.listener()[0])  # no connection may follow
    found["without"] = type(error(native="1")).__name__
    return found


def switched_off() -> dict[str, Any]:
    from workerserver.native.torch_standby import SWITCH, fallback

    logged: list[str] = []

    class Listed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(f"{record.levelname}: {record.getMessage()}")

    logger = logging.getLogger("workerserver")
    logger.addHandler(Listed())
    logger.setLevel(logging.INFO)
    os.environ[SWITCH] = "0"
    ran = fallback.start_if_possible()
    del os.environ[SWITCH]
    return {
        "ran": [ran, fallback.start_if_possible()],
        "reason": fallback.reason,
        "logged": logged,
        "rest": [fallback.threads, fallback.names(), fallback.path_bytes(), fallback.descriptors()],
    }


def long_folder() -> dict[str, Any]:
    """The path of the folder for temporary files is too long for a socket's address."""
    os.environ["TMPDIR"] = os.path.join(FOLDER, "x" * 100)
    os.mkdir(os.environ["TMPDIR"])
    fallback = started()
    os.rmdir(os.environ["TMPDIR"])
    return {"ping": fetch("ping").body.decode(), "reason": fallback.reason}


def no_room_for_threads() -> dict[str, Any]:
    """If torch can't start one of its threads, torch ends the process (std::terminate)."""
    from workerserver.native.torch_standby import fallback

    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), hard))
    ran = fallback.start_if_possible()
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return {"ran": ran, "reason": fallback.reason, "final": fallback.start_if_possible()}


def forks() -> dict[str, Any]:
    """Children of every kind hold no part of the server. Their ends don't disturb the parent."""
    import multiprocessing

    import torch
    from torch.utils.data import DataLoader

    fallback = started()
    path = fallback._path
    slow_pyspy()  # a connection that torch has accepted
    before = socket_names().count(path)

    def bare() -> None:
        """Check that a child has neither the server's sockets nor the path to them."""
        assert path not in socket_names(), socket_names()
        assert not any(name.startswith(path) for name in open_files())
        assert not fallback.running
        assert (fallback.threads, fallback.path_bytes(), fallback.names()) == (0, None, ())

    def own() -> None:
        bare()
        assert started()._path != path
        assert fetch("ping").body == b"pong"

    codes = [forked(bare) for _ in range(ROUNDS)]
    codes.append(forked(own))
    for how in ("normal", "exit"):
        for _ in range(ROUNDS):
            pid = os.fork()
            if pid == 0:
                bare()
                raise Leave(how)
            codes.append(code(pid))
    process = multiprocessing.get_context("fork").Process(target=bare)
    process.start()
    process.join()
    rows = DataLoader(torch.arange(64), batch_size=8, num_workers=2, collate_fn=Checked(bare))
    total = sum(int(row.sum()) for row in rows)
    return {
        "codes": codes,
        "multiprocessing": process.exitcode,
        "loaded": total,
        "before": before,
        "after": socket_names().count(path) - before,
        "ping": fetch("ping").body.decode(),
    }


class Checked:
    """Runs a check, then collates."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __call__(self, items: list[Any]) -> Any:
        import torch

        self._check()
        return torch.stack(items)


def killed() -> dict[str, Any]:
    """A parent is killed while its child lives: no process listens any more, no file is left."""
    ours, theirs = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(ours)
        fallback = started()
        child = os.fork()
        if child:
            os.write(theirs, f"{child} {fallback._path}".encode())
        time.sleep(3600)
    os.close(theirs)
    pid, path = os.read(ours, 4096).decode().split(" ", 1)

    def listed() -> bool:
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
            return path in file.read()

    before = listed()
    os.kill(middle, signal.SIGKILL)
    code(middle)
    wait_until(lambda: not listed())
    os.kill(int(pid), signal.SIGKILL)  # was alive; pid 1 or a subreaper waits for it
    return {"before": before, "after": listed(), "path": os.path.lexists(path)}


def exits() -> dict[str, Any]:
    """All ways in which a process with the server can end: status, and the slowest end in s."""
    hows = ("normal", "exit", "raise", "os_exit", "terminated", "busy", "at_once")
    found: dict[str, Any] = {}
    for how in hows:
        codes, slowest = set(), 0.0
        for _ in range(ROUNDS):
            ours, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(ours)
                if how == "at_once":
                    from workerserver.native.torch_standby import fallback

                    assert fallback.start_if_possible()
                else:
                    started()
                if how == "busy":
                    slow_pyspy()
                os.close(theirs)
                raise Leave(how)
            os.close(theirs)
            os.read(ours, 1)  # its end of the pipe is closed
            begun = time.monotonic()
            codes.add(code(pid))
            slowest = max(slowest, time.monotonic() - begun)
            os.close(ours)
        found[how] = {"codes": sorted(codes), "slowest": round(slowest, 3)}
    return found


def held() -> dict[str, Any]:
    """torch's server gets questions while C code holds the GIL. gloo's operations are recorded."""
    import torch
    import torch.distributed as dist

    store = dist.FileStore(os.path.join(FOLDER, "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    dist.all_reduce(torch.ones(2))
    started()
    os.environ["PYSPY_MARK"] = ""
    names = [*NAMES]
    for name in ("c10d_health_check", "fr_dump_file"):  # torch 2.15
        if name in torch._C._distributed_c10d._get_handler_names():
            names.append(name)
    replies: dict[str, Any] = {}
    ready = threading.Semaphore(0)

    def ask(name: str) -> None:
        ready.release()
        replies[name] = fetch(name, delay=1.0)  # releases the GIL, and doesn't need it again

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for _ in threads:
        ready.acquire()
    time.sleep(0.1)  # every thread is in its delay now
    begun = time.monotonic()
    ctypes.PyDLL(None).usleep(3_000_000)
    ended = time.monotonic()
    for thread in threads:
        thread.join()
    dist.destroy_process_group()
    os.unlink(os.path.join(FOLDER, "store"))
    trace = json.loads(replies["fr_trace_json"].body)
    return {
        "inside": [begun < r.started and r.ended < ended for r in replies.values()],
        "status": {name: replies[name].status for name in names},
        "entries": [entry["profiling_name"] for entry in trace["entries"]],
        "counters": isinstance(json.loads(replies["wait_counter_values"].body), dict),
        "pyspy": replies["pyspy_dump"].body.decode(),
        "seconds": {name: round(r.ended - r.started, 4) for name, r in replies.items()},
    }


def main() -> None:
    if os.environ.get("WITHOUT_TORCH"):
        from workerserver.native.torch_standby import fallback

        ran = fallback.start_if_possible()
        print(json.dumps({"ran": ran, "reason": fallback.reason, "torch": "torch" in sys.modules}))
        return
    import torch.distributed  # noqa: F401

    import workerserver.native.torch_standby  # noqa: F401

    for name in sys.argv[2:]:
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            said = json.dumps(globals()[name]())
            os.write(theirs, said.encode())
            os.close(theirs)
            return
        os.close(theirs)
        with open(ours, encoding="utf-8") as file:
            said = file.read()
        ended = code(pid)
        print(json.dumps({"scene": name, "code": ended, **json.loads(said or "{}")}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Leave as leave:
        if leave.how == "exit":
            sys.exit(3)
        if leave.how == "raise":
            raise ValueError("as it should") from None
        if leave.how == "os_exit":
            os._exit(4)
        if leave.how == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3600)
