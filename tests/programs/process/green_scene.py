"""``green_scene.py LIBRARY MOMENT FOLDER``: a worker whose threads gevent or eventlet has replaced,
``before`` or ``after`` the import of workerserver.

Prints as JSON what the main function gave, what was logged, and what the constructor says.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys


def patch(library: str) -> None:
    if library == "gevent":
        importlib.import_module("gevent.monkey").patch_all()
    else:
        importlib.import_module("eventlet").monkey_patch()


def main(library: str, moment: str, folder: str) -> None:
    if moment == "before":
        patch(library)
    from workerserver import WorkerServer, worker_main

    if moment == "after":
        patch(library)
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("workerserver").addHandler(handler)
    path = os.path.join(folder, "s")
    os.environ["TORCH_WORKER_SERVER_SOCKET"] = path

    @worker_main()
    def train() -> str:
        return "trained"

    found = {"trained": train(), "logged": logged}
    for transport in ("native", "uvloop"):
        try:
            WorkerServer(path, transport=transport).shutdown()
        except RuntimeError as error:
            found[transport] = f"{error}: {error.__cause__}"
    found["left"] = os.listdir(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
