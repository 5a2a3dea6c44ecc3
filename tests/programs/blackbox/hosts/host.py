"""The first process of a host that is made of namespaces: runs a command, and ends after the last
process of the host.

    host.py NAME HOSTS COMMAND...

It has a host name and a /dev/shm of its own, and the file HOSTS as its /etc/hosts. The exit status
is the command's. Whoever kills this process kills the host: the kernel ends all processes of its
pid namespace.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

socket.sethostname(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
subprocess.run(["mount", "--bind", sys.argv[2], "/etc/hosts"], check=True)
command = subprocess.Popen(sys.argv[3:])
status = 1
with contextlib.suppress(ChildProcessError):
    while True:  # whoever loses its parent becomes a child of this process
        pid, result = os.wait()
        if pid == command.pid:
            command.returncode = os.waitstatus_to_exitcode(result)
            status = command.returncode
sys.exit(status & 0xFF)
