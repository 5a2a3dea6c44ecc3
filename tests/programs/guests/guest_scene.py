"""``guest_scene.py KIND FOLDER``: a worker beside something that changes the ground it stands on.

KIND is a function below. Prints as JSON what the trainer got and what clients were answered.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from support.lifecycle import ask

import workerserver

FOLDER = Path(sys.argv[2])
PATH = str(FOLDER / "s")


def pong(path: str = PATH) -> str:
    return ask(path)[1]


def both(path: str = PATH) -> list[object]:
    """The answer of the I/O thread, and one that needs the loop's thread, or the GIL."""
    status, text = ask(path, "/handler/dump_traceback?mode=gil")
    return [pong(path), status, "Current thread" in text]


# --- event loops of the trainer's own


async def trained() -> str:
    await asyncio.sleep(0.01)
    pongs = [await asyncio.to_thread(both) for _ in range(3)]
    return f"{type(asyncio.get_running_loop()).__module__.split('.')[0]} {pongs}"


def in_loop(run: Callable[[], Any]) -> dict[str, Any]:
    policy = type(asyncio.get_event_loop_policy())
    with workerserver.WorkerServer(PATH):
        told = run()
    return {"told": told, "kept": type(asyncio.get_event_loop_policy()) is policy}


def own_asyncio() -> dict[str, Any]:
    return in_loop(lambda: asyncio.run(trained()))


def own_uvloop() -> dict[str, Any]:
    import uvloop

    def run() -> str:
        loop = uvloop.new_event_loop()
        try:
            return loop.run_until_complete(trained())
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    return in_loop(run)


def own_trio() -> dict[str, Any]:
    trio = importlib.import_module("trio")

    async def main() -> str:
        return f"trio {[await trio.to_thread.run_sync(both) for _ in range(3)]}"

    return in_loop(lambda: trio.run(main))


# --- debuggers


def traced() -> dict[str, Any]:
    """A tracer in every thread that Python starts, the server's too."""
    seen: set[str] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        seen.add(threading.current_thread().name.partition("_")[0])
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        with workerserver.WorkerServer(PATH):
            told = both()
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return {"told": told, "main": "MainThread" in seen}


def served() -> dict[str, Any]:
    """What pdb and debugpy run."""
    with workerserver.WorkerServer(PATH):
        return {"told": both()}


# --- sys.modules


def reloaded() -> dict[str, Any]:
    with workerserver.WorkerServer(PATH):
        for name in ("workerserver", "workerserver.control_plane", "workerserver.handlers"):
            importlib.reload(importlib.import_module(name))
        workerserver.heartbeat(7)
        told = both()
        status, text = ask(PATH, "/healthz", "GET")
    return {"told": told, "step": [status, json.loads(text)["step"]]}


def deleted() -> dict[str, Any]:
    """The package's modules are gone from sys.modules, and imported again."""
    server = workerserver.WorkerServer(PATH)
    for name in [each for each in sys.modules if each.partition(".")[0] == "workerserver"]:
        del sys.modules[name]
    try:
        importlib.import_module("workerserver.server")
        again = "imported"
    except ImportError as error:
        again = f"{type(error).__name__}: {error}"
    told = both()
    server.shutdown()
    return {"told": told, "again": again, "left": os.path.exists(PATH)}


# --- subinterpreters


def in_subinterpreter() -> dict[str, Any]:
    """The import fails there with a reason, and the server of the main interpreter goes on."""
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    interpreters: Any = importlib.import_module(name)
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "try:\n    import workerserver\n    said = 'imported'\n"
        "except ImportError as error:\n    said = f'ImportError: {error}'\n"
        f"open({str(FOLDER / 'said')!r}, 'w').write(said)"
    )
    with workerserver.WorkerServer(PATH):
        other = interpreters.create()
        interpreters.run_string(other, code)
        told = both()
        interpreters.destroy(other)
        after = both()
    return {"told": told, "after": after, "said": (FOLDER / "said").read_text()}


# --- daemons


def double_fork() -> None:
    for _ in range(2):
        if os.fork():
            os._exit(0)
        os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)


def python_daemon() -> None:
    context = importlib.import_module("daemon").DaemonContext(
        working_directory="/", detach_process=True
    )
    context.open()  # closes every descriptor, ours too


def daemon(library: str, moment: str) -> None:
    """Serve before or after the process becomes a daemon. The daemon writes what it got."""
    if moment == "late":
        workerserver.WorkerServer(PATH)
    {"double_fork": double_fork, "python_daemon": python_daemon}[library]()
    path = f"{PATH}2"
    try:
        with workerserver.WorkerServer(path):
            told: object = both(path)
    except Exception as error:
        told = repr(error)
    written = FOLDER / "told.part"
    written.write_text(json.dumps(told))
    written.rename(FOLDER / "told")
    os._exit(0)


def main() -> None:
    kind = sys.argv[1]
    if kind.startswith("daemon:"):
        daemon(*kind.split(":")[1:])
    print(json.dumps(globals()[kind]()), flush=True)


if __name__ == "__main__":
    main()
