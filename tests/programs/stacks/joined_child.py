"""``joined_child.py MODE``: a thread joins a child of multiprocessing; prints what it waits for."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time

from workerserver.stacks import known
from workerserver.stacks._stacks import snapshot


def main() -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(1000,))
    child.start()
    threading.Thread(target=child.join, name="joins", daemon=True).start()
    known.publish()
    end = time.monotonic() + 60
    found: dict[str, object] = {}
    while "pid" not in found and time.monotonic() < end:
        time.sleep(0.02)
        taken = snapshot(mode=sys.argv[1], facts=True)  # type: ignore[arg-type]
        for thread in json.loads(taken.render("json"))["threads"]:
            if thread["name"] == "joins":
                found = thread.get("waits_for", {})
                found = found if found.get("source") == "locals" else {}
    child.kill()
    print(json.dumps({"pid": found.get("pid"), "child": child.pid}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
