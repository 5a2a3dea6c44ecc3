"""Announce a TCP server in the job's TCPStore, where torch's debug frontend looks for workers."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import socket
import threading
import time
from datetime import timedelta
from typing import Any

from workerserver.process import threads
from workerserver.process.loaded import imported

__all__ = ["StoreRegistration"]

logger = logging.getLogger("workerserver")

PREFIX = "debug_server"  # torch.distributed.debug._store.tcpstore_client's default
CONNECT_SECONDS = 5.0
FIRST_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 30.0
EXIT_SECONDS = 5.0


class StoreRegistration:
    """Sets ``debug_server/KEY`` to a server's URL, once, from a thread of its own.

    The thread tries until it succeeds or ``stop()`` is called: torch may be imported late, and the
    store may start after us. Training never waits for the thread and never sees its errors.
    """

    def __init__(self, store_host: str, store_port: int, key: str, url: str) -> None:
        self.store_host = store_host
        self.store_port = store_port
        self.key = key
        self.url = url
        self.attempts = 0  # so far, of talking to the store
        self.done = threading.Event()
        self._in_torch = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workerserver-register", daemon=True)

    @classmethod
    def from_environment(cls, host: str, port: int, tls: bool = False) -> StoreRegistration | None:
        """For a worker's server, bound to *host* and *port*. Its key is ``rank{R}``, where torch's
        frontend looks. None if no launcher has named a store."""
        return cls._as("rank", os.environ.get("RANK", ""), _url(host, port, tls))

    @classmethod
    def of_collector(
        cls, host: str, port: int, ranks: str, tls: bool = False
    ) -> StoreRegistration | None:
        """For this host's collector. Its key is ``collector{N}``, where N is the number that
        torchrun gives the host; the *ranks* that it answers for follow its URL."""
        number = os.environ.get("GROUP_RANK", "")
        return cls._as("collector", number, f"{_url(host, port, tls)}#{ranks}")

    @classmethod
    def _as(cls, kind: str, number: str, url: str) -> StoreRegistration | None:
        store_host = os.environ.get("MASTER_ADDR", "")
        store_port = os.environ.get("MASTER_PORT", "")
        if not (store_host and number.isdecimal() and store_port.isdecimal()):
            return None
        return cls(store_host, int(store_port), f"{kind}{int(number)}", url)

    def start(self) -> None:
        _live.add(self)
        try:
            threads.start(self._thread)
        except OSError as error:  # no more threads: training goes on without the entry
            _live.discard(self)
            logger.warning("not registered with the job's store: %s", error)

    def stop(self) -> None:
        """Try no more. An attempt under way ends by itself; nobody waits for it."""
        self._stop.set()

    def _run(self) -> None:
        try:
            self._try()
        finally:
            _live.discard(self)

    def _try(self) -> None:
        wait = FIRST_WAIT_SECONDS
        while not self._stop.is_set():
            before = self.attempts
            try:
                if self._attempt():
                    self.done.set()
                    logger.info("registered %s as %s", self.key, self.url)
                    return
            except Exception as error:  # whatever torch's store raises: never training's problem
                logger.debug("not yet registered with the store: %s", error)
            # A thousand ranks that start together must not all come back together.
            self._stop.wait(wait * random.uniform(0.5, 1.0))
            if self.attempts > before:  # to look whether torch is there yet bothers nobody
                wait = min(wait * 2, MAX_WAIT_SECONDS)

    def _attempt(self) -> bool:
        distributed = _torch_distributed()
        if distributed is None:
            return False
        self.attempts += 1
        # torch prints warnings for each try while the store isn't up: look first.
        with contextlib.closing(
            socket.create_connection((self.store_host, self.store_port), CONNECT_SECONDS)
        ):
            pass
        self._in_torch = True
        try:
            if self._stop.is_set():
                return False
            store = distributed.TCPStore(
                host_name=self.store_host,
                port=self.store_port,
                is_master=False,
                timeout=timedelta(seconds=CONNECT_SECONDS),
                wait_for_workers=False,
            )
            distributed.PrefixStore(PREFIX, store).set(self.key, self.url)
        finally:
            self._in_torch = False
        return True


def _url(host: str, port: int, tls: bool) -> str:
    """The URL at which other machines reach a server that is bound to *host*."""
    name = socket.gethostname() if host in ("", "::", "0.0.0.0") else host
    scheme = "https" if tls else "http"
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"


_live: set[StoreRegistration] = set()


def _wait_at_exit() -> None:
    """Let an attempt that is inside torch come out before the interpreter is taken apart: a thread
    that comes back from C++ after that aborts the process."""
    give_up = time.monotonic() + EXIT_SECONDS
    for registration in list(_live):
        registration.stop()
    for registration in list(_live):
        while registration._in_torch and time.monotonic() < give_up:
            registration._thread.join(0.05)


atexit.register(_wait_at_exit)


def _torch_distributed() -> Any:
    """``torch.distributed`` once the process has imported it completely, else None."""
    module = imported("torch.distributed")
    return module if hasattr(module, "TCPStore") else None
