"""``free_threaded_scene.py simulated|real``: the package in a trainer on a free-threaded CPython.

``simulated``: on another build, whose sys.version says what that of a free-threaded one says.
Prints as JSON what happened, and which compiled modules were loaded by then, ours or others'.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from types import ModuleType

KIND = sys.argv[1]
if KIND == "simulated":
    sys.version = f"{sys.version.split()[0]} free-threading build (simulated)"
before = set(sys.modules)
STANDARD = os.path.dirname(os.__file__)


def compiled(module: ModuleType) -> bool:
    path = getattr(module, "__file__", None) or ""
    return (
        not path.endswith(".py") and bool(path) and not path.startswith(STANDARD + "/lib-dynload")
    )


import workerserver  # noqa: E402

records: list[str] = []
listening = logging.Handler()
listening.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
logging.getLogger("workerserver").addHandler(listening)


@workerserver.handler("state", permission="read")
def state() -> str:
    return "a trainer's own handler"


@workerserver.worker_main()
def train(steps: int) -> str:
    for step in range(steps):
        workerserver.heartbeat(step)
    return f"{steps} steps, {state()}"


def error_of(work: object) -> str:
    assert callable(work)
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main() -> None:
    os.environ["TORCH_WORKER_SERVER_SOCKET"] = "/tmp/{rank}.sock"
    os.environ["WORKERSERVER_BLACKBOX"] = "/tmp"
    found = {
        "trained": train(3),
        "started": workerserver.start(),
        "handlers": workerserver.get_handler_names(),
        "server": error_of(lambda: workerserver.WorkerServer("/tmp/s")),
        "step": error_of(lambda: workerserver.heartbeat(1.5)),  # type: ignore[arg-type]
        "undone": workerserver.install()() is None,
        "logged": records,
        "compiled": sorted(
            name
            for name, module in list(sys.modules.items())
            if name not in before and compiled(module)
        ),
        "gil": getattr(sys, "_is_gil_enabled", lambda: None)() if KIND == "real" else None,
    }
    print(json.dumps(found))


main()
