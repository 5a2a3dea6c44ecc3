"""How a command of ours is handed to the process that has imported it: three files over a socket.

The files: a JSON list with the seconds that the command may take, the environment that it gets
(null: that of the process) and its words; its stdin; its stdout. The answer is one byte, once the
command has ended. The process is that of watchdog/ready.py, its other half cli/ready.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence

__all__ = ["hand_over"]


def hand_over(
    sock: socket.socket,
    words: Sequence[str],
    seconds: float,
    given: bytes,
    stdout: int,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Does not wait for the answer. *given*: what the command reads. *stdout*: a descriptor.
    OSError if it can't be sent."""
    asked = json.dumps([seconds, environment and dict(environment), list(words)]).encode("ascii")
    with contextlib.ExitStack() as stack:
        files = []
        for name, data in (("asked", asked), ("in", given)):
            files.append(os.memfd_create(name, os.MFD_CLOEXEC))
            stack.callback(os.close, files[-1])
            os.pwrite(files[-1], data, 0)
        socket.send_fds(sock, [b"?"], [*files, stdout])
