"""accept() without a descriptor left: new clients wait until a descriptor is free."""

from __future__ import annotations

import os
import resource
import socket

from support.native import PING, PONG, Rig, receive


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    rig = Rig("uvloop-unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = rig.client()
    first.sendall(PING)
    assert receive(first, len(PONG)) == PONG
    waiting = [rig.client() for _ in range(3)]  # connected, and accepted or not
    for sock in waiting:
        sock.sendall(PING)
        assert receive(sock, len(PONG)) == PONG
    unconnected = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
    fill = []
    try:
        while True:
            fill.append(os.dup(0))
    except OSError:
        pass
    for sock in unconnected:
        sock.settimeout(0.5)
        sock.connect(rig.socket.getsockname())
        sock.sendall(PING)
    before = cpu()
    try:
        unconnected[0].recv(100)
    except TimeoutError:
        pass
    else:
        raise SystemExit("a client was accepted without a descriptor")
    used = cpu() - before
    first.sendall(PING)  # an accepted client is still served
    assert receive(first, len(PONG)) == PONG
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for fd in fill:
        os.close(fd)
    for sock in unconnected:
        sock.settimeout(20)
        assert receive(sock, len(PONG)) == PONG
    if used > 0.25:
        raise SystemExit(f"{used:.2f} s of CPU in half a second of waiting")
    for sock in (first, *waiting, *unconnected):
        sock.close()
    rig.close()


if __name__ == "__main__":
    main()
