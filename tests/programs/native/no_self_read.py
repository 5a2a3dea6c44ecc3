"""``no_self_read.py before|after``: which answers are left if a seccomp filter forbids self-reads.

The filter refuses process_vm_readv and pread64, before stacks are prepared for or after. Prints as
JSON: why they can't be prepared for, and the status, mode and text that the handler answers.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

from support.seccomp import forbid

from workerserver.handlers.stacks import dump_traceback
from workerserver.stacks._stacks import prepare, snapshot
from workerserver.types import NotImplementedHere

#: Call numbers of process_vm_readv and pread64.
REFUSED = {"x86_64": (310, 17), "aarch64": (270, 67)}


def answer() -> dict[str, Any]:
    try:
        response = dump_traceback("text", "nogil")
    except NotImplementedHere as error:
        return {"status": error.status, "text": str(error)}
    return {
        "status": response.status,
        "headers": dict(response.headers),
        "text": bytes(response.body).decode("ascii"),
    }


def main() -> None:
    if sys.argv[1] == "after":
        assert prepare() is None
        assert snapshot(mode="nogil").threads
    if not forbid(REFUSED[platform.machine()]):
        sys.exit(77)
    found: dict[str, Any] = {"problem": prepare(), **answer(), "pid": os.getpid()}
    found["gil"] = snapshot().mode
    print(json.dumps(found))


if __name__ == "__main__":
    main()
