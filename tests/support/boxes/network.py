"""Hosts that are network namespaces, with a switch between them, another one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.waiting import wait_until

__all__ = ["Network", "hosts", "ip", "needs_hosts"]

#: What ip prints where it may not make a namespace.
REFUSALS = ("not permitted", "not supported", "denied", "Read-only", "Unknown device type")

needs_hosts = [
    pytest.mark.netns,
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip, of iproute2"),
]


def ip(*words: str) -> str:
    return subprocess.run(
        ["ip", *words], check=True, capture_output=True, text=True, timeout=30
    ).stdout


class Network:
    """Hosts, each with a cable ``eth0`` to the switch. The network exists only inside the
    namespaces."""

    def __init__(self, name: str, count: int) -> None:
        self.switch = f"{name}-switch"
        self.hosts = [f"{name}-host{number}" for number in range(count)]
        self.addresses = [f"10.77.0.{number + 1}" for number in range(count)]

    def make(self) -> None:
        """CalledProcessError if that isn't permitted."""
        for name in (self.switch, *self.hosts):
            ip("netns", "add", name)
            ip("netns", "exec", name, "ip", "link", "set", "dev", "lo", "up")
        ip("-n", self.switch, "link", "add", "dev", "bridge", "up", "type", "bridge")
        for number, (host, address) in enumerate(zip(self.hosts, self.addresses, strict=True)):
            port = ("peer", "name", f"port{number}", "netns", self.switch)
            ip("link", "add", "name", "eth0", "netns", host, "type", "veth", *port)
            ip("-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "dev", "eth0", "up")
            ip("-n", self.switch, "link", "set", "dev", f"port{number}", "up")
            self.join(number)

    def cut_off(self, number: int) -> None:
        """Pull the host's cable out of the switch: no link goes down at another host, nothing is
        reset or refused."""
        ip("-n", self.switch, "link", "set", "dev", f"port{number}", "nomaster")

    def join(self, number: int) -> None:
        ip("-n", self.switch, "link", "set", "dev", f"port{number}", "master", "bridge")

    def link(self, number: int, state: str) -> None:
        """*state*: "down" or "up", of the host's own end of its cable."""
        ip("-n", self.hosts[number], "link", "set", "dev", "eth0", state)

    def on(self, number: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.hosts[number], *command]

    def pids(self, *numbers: int) -> list[int]:
        names = [self.hosts[number] for number in numbers]
        there = [name for name in self._there() if name in names]
        return [int(pid) for name in there for pid in ip("netns", "pids", name).split()]

    def end_processes(self) -> None:
        """Of all that was started on the hosts, whatever became of its parent."""

        def ended() -> bool:
            pids = self.pids(*range(len(self.hosts)))
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not pids

        wait_until(ended)

    def remove(self) -> None:
        try:
            self.end_processes()
        finally:
            for name in self._there():
                ip("netns", "delete", name)

    def _there(self) -> list[str]:
        found = [line.split()[0] for line in ip("netns", "list").splitlines() if line.strip()]
        return [name for name in found if name in (self.switch, *self.hosts)]


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Network]:
    """A network of *count* hosts; the test is skipped where none may be made."""
    network = Network(f"ws-{secrets.token_hex(4)}", count)
    try:
        try:
            network.make()
        except subprocess.CalledProcessError as error:
            if not any(text in error.stderr for text in REFUSALS):
                raise AssertionError(f"{error.cmd}: {error.stderr}") from None
            pytest.skip(f"may not make network namespaces: {error.stderr.strip()}")
        yield network
    finally:
        network.remove()
