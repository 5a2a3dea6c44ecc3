"""Forks with connections in every state. In the child, transports do nothing and no descriptor of
the hub is open. The parent goes on serving."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from support.native import PING, PONG, Rig, receive

STATUS = 7


def child(rig: Rig, protocols: list[Any], inherited: set[str]) -> None:
    left = inherited & sockets()
    assert not left, left
    for protocol in protocols:
        transport = protocol.transport
        if protocol.may_write:
            transport.write(b"from the child")
            transport.write(bytes(1 << 20))
        transport.pause_reading()
        transport.resume_reading()
        transport.want_bytes(True)
        transport.set_write_buffer_limits(100)
        transport.get_write_buffer_size()
        transport.get_extra_info("peername")
        transport.get_extra_info("socket")
        transport.is_closing()
        transport.write_eof()
    assert rig.listener.requests is not None
    rig.listener.ignore()
    rig.listener.drop(False)


def sockets() -> set[str]:
    """The open sockets of this process, by inode."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return {link for link in found if link.startswith("socket:")}


def main() -> None:
    before = sockets()
    rig = Rig("asyncio-unix")
    plain = sockets()  # the loop's own sockets, and the listening socket, which is Python's
    opened = [rig.open() for _ in range(6)]
    protocols = [protocol for _, protocol in opened]
    clients = [sock for sock, _ in opened]
    raw = rig.client()
    raw.sendall(PING)
    assert receive(raw, len(PONG)) == PONG
    rig.call(lambda: protocols[1].transport.write(bytes(8 << 20)))
    rig.call(lambda: protocols[2].transport.want_bytes(True))
    rig.call(lambda: protocols[3].transport.want_bytes(False))
    for number, protocol in enumerate(protocols):
        protocol.may_write = number != 4
    rig.call(protocols[4].transport.write_eof)
    rig.call(protocols[5].transport.pause_reading)
    ours = {os.readlink(f"/proc/self/fd/{sock.fileno()}") for sock in (*clients, raw)}
    inherited = sockets() - plain - ours - before
    assert len(inherited) == 7, inherited
    inherited.add(os.readlink(f"/proc/self/fd/{rig.socket.fileno()}"))
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                child(rig, protocols, inherited)
                os._exit(STATUS)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == STATUS, status
    raw.sendall(PING)
    assert receive(raw, len(PONG)) == PONG
    for sock, protocol in opened[:1]:
        rig.call(lambda p=protocol: p.transport.write(b"from the parent"))  # type: ignore[misc]
        assert receive(sock, 15) == b"from the parent"
    assert receive(clients[1], 8 << 20) == bytes(8 << 20)
    for sock in (*clients, raw):
        sock.close()
    rig.close()


if __name__ == "__main__":
    main()
