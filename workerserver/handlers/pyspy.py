"""``pyspy_dump``: this process's stacks as py-spy sees them, with native frames on request."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
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

#: Runs a command that is no child of this process. The shell ends at once; its child waits until
#: the shell has been waited for, runs the command, and writes a NUL and the exit status.
ORPHAN = """\
exec 3<&0 </dev/null
{ read -r go <&3; exec 3<&-; "$@"; printf '\\000%d' "$?"; } &
"""

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
        # py-spy would take itself for one of this process's children, and fail on itself.
        outcome = run_bounded(command) if not subprocesses else run_orphan(command)
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
    deadline, late = time.monotonic() + timeout, f"no end after {timeout:g} s"
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            output, errors, killed = _output(process, deadline, limit, late)
            if not killed:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    killed = late
        finally:
            process.kill()  # does nothing after a successful wait()
    return Outcome(None if killed else process.returncode, output, errors, killed)


def run_orphan(
    command: Sequence[str], timeout: float = TIMEOUT_SECONDS, limit: int = MAX_OUTPUT_BYTES
) -> Outcome:
    """As :func:`run_bounded`, but the command is a child of whoever takes in orphans: as a rule of
    process 1. It is a child of this process where this process takes them in.
    """
    deadline, late = time.monotonic() + timeout, f"no end after {timeout:g} s"
    with subprocess.Popen(
        ["/bin/sh", "-c", ORPHAN, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as shell:
        ended = False
        try:
            shell.wait(timeout)
            assert shell.stdin is not None
            shell.stdin.close()  # the end of this pipe lets the command begin
            output, errors, killed = _output(shell, deadline, limit, late)
            ended = not killed
        finally:
            if not ended:  # the members of its session keep the number from being used again
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
    if not ended:
        return Outcome(None, output, errors, killed)
    output, _, status = output.rpartition(b"\0")
    return Outcome(int(status) if status.isdigit() else None, output, errors)


def _output(
    process: subprocess.Popen[bytes], deadline: float, limit: int, late: str
) -> tuple[bytes, bytes, str]:
    """Both streams of *process*, and why they were not read to their ends: *late*, or *limit*."""
    output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    killed = ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "stdout")  # type: ignore[arg-type]
        selector.register(process.stderr, selectors.EVENT_READ, "stderr")  # type: ignore[arg-type]
        while selector.get_map() and not killed:
            left = deadline - time.monotonic()
            if left <= 0:
                killed = late
                break
            for key, _ in selector.select(left):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                output[key.data] += data
                if len(output[key.data]) > limit:
                    killed = f"more than {limit} bytes of output"
                    del output[key.data][limit:]
    return bytes(output["stdout"]), bytes(output["stderr"]), killed


def register(registry: Registry) -> None:
    registry.register("pyspy_dump", pyspy_dump, limit=1, permission="profile", shadow=True)
