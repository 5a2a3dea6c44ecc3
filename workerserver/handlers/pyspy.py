"""``pyspy_dump``: this process's stacks as py-spy sees them, with native frames on request."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from workerserver.http.registry import Registry
from workerserver.types import Response

__all__ = ["pyspy_dump", "register"]

TIMEOUT_SECONDS = 30.0
MAX_OUTPUT_BYTES = 16 * 1024 * 1024  # of each stream

INSTALL = (
    "py-spy not found, neither on PATH nor beside the interpreter: install it (pip install py-spy)"
)
PERMIT = (
    "py-spy needs leave to trace this process: run the container with the SYS_PTRACE capability, "
    "or set kernel.yama.ptrace_scope to 0"
)


class Outcome(NamedTuple):
    """How a command ended: exit status (None if it was killed), output, and why it was killed."""

    status: int | None
    stdout: bytes
    stderr: bytes
    killed: str = ""


def pyspy_dump(native: str = "", subprocesses: str = "", nonblocking: str = "") -> Response:
    """py-spy's dump of this process. Any value except ``""`` turns a parameter on.

    Answers 200 with py-spy's standard output, or 500 with all output of py-spy and with what to
    install or permit.
    """
    program = find_program()
    if program is None:
        return Response(INSTALL + "\n", 500)
    command = [program, "dump", "--pid", str(os.getpid())]
    options = {"--native": native, "--subprocesses": subprocesses, "--nonblocking": nonblocking}
    command += [option for option, value in options.items() if value]
    try:
        outcome = run_bounded(command)
    except OSError as error:
        return Response(f"{program} can't be run: {error.strerror}\n", 500)
    if outcome.status == 0:
        return Response(outcome.stdout)
    parts = [outcome.stdout, outcome.stderr]
    if outcome.killed:
        parts.append(f"py-spy was killed: {outcome.killed}\n".encode())
    if not any(parts):
        parts.append(f"py-spy failed with exit status {outcome.status}\n".encode())
    complaint = b"".join(parts).lower()
    if b"permission denied" in complaint or b"not permitted" in complaint:
        parts.append(f"\n{PERMIT}\n".encode())
    return Response(b"".join(parts), 500)


def find_program() -> str | None:
    """py-spy on PATH, else beside the interpreter (for a virtual environment that isn't active)."""
    import shutil

    return shutil.which("py-spy") or shutil.which(
        "py-spy", path=os.path.dirname(sys.executable) or os.defpath
    )


def run_bounded(
    command: Sequence[str], timeout: float = TIMEOUT_SECONDS, limit: int = MAX_OUTPUT_BYTES
) -> Outcome:
    """Run *command* without a shell, for at most *timeout* s and *limit* bytes of each stream.

    The command gets no input and none of our descriptors. Our threads block all signals and the
    command inherits that, so only SIGKILL ends it.
    """
    killed = ""
    output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    deadline = time.monotonic() + timeout
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
        selectors.DefaultSelector() as selector,
    ):
        try:
            selector.register(process.stdout, selectors.EVENT_READ, "stdout")  # type: ignore[arg-type]
            selector.register(process.stderr, selectors.EVENT_READ, "stderr")  # type: ignore[arg-type]
            while selector.get_map() and not killed:
                left = deadline - time.monotonic()
                if left <= 0:
                    killed = f"no end after {timeout:g} s"
                    break
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    output[key.data] += data
                    if len(output[key.data]) > limit:
                        killed = f"more than {limit} bytes of output"
                        del output[key.data][limit:]
            if not killed:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    killed = f"no end after {timeout:g} s"
        finally:
            process.kill()  # does nothing after a successful wait()
    status = None if killed else process.returncode
    return Outcome(status, bytes(output["stdout"]), bytes(output["stderr"]), killed)


def register(registry: Registry) -> None:
    registry.register("pyspy_dump", pyspy_dump, limit=1, shadow=True)
