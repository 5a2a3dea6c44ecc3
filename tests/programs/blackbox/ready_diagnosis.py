"""Diagnoses of a folder of black boxes, by a process that is ready for them.

    ready_diagnosis.py FOLDER

Prints a JSON object on what they answered, and what the process holds of this one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from workerserver.blackbox.watchdog.ready import Ready


def held(pid: int) -> list[str]:
    """What the descriptors of a process are, without sockets."""
    found = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return sorted(each for each in found if not each.startswith("socket:"))


with tempfile.TemporaryFile() as lock:
    os.set_inheritable(lock.fileno(), True)
    ready = Ready()
    words = ["--json", "--", sys.argv[1]]
    twice = [json.loads(ready.diagnosed(words, b"", 60) or b"{}") for _ in range(2)]
    (child,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    told: dict[str, object] = {"verdicts": [each.get("verdict") for each in twice]}
    told["held"] = held(int(child))
    # A command that waits for ever, and one for a process that is gone.
    os.mkfifo(f"{sys.argv[1]}-waits")
    told["late"] = ready.diagnosed(["--json", "--hosts", f"{sys.argv[1]}-waits"], b"", 0.5) == b""
    hosts = ready.diagnosed(["--json", "--hosts", "/dev/stdin"], b"127.0.0.1:1\n", 60)
    told["hosts"] = json.loads(hosts or b"{}").get("verdict")
    os.kill(int(child), signal.SIGKILL)
    told["gone"] = ready.diagnosed(words, b"", 60) is None
    ready.close()
print(json.dumps(told))
