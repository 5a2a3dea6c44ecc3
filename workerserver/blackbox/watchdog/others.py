"""The other hosts of the job: where their ranks serve, and which watchdog has taken an incident.

The watchdogs agree in the job's TCPStore, by one value. Whoever finds that value empty takes the
incident. Others wait until the incident is told or given back. The store is gone with rank 0's
host, so each incident that is taken is a small file in the folder of the boxes, too. Whoever can't
reach the taker that this file names is on another side of a job that is cut in two, and takes the
incident for its own side.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from workerserver.blackbox.format import BoxError
from workerserver.blackbox.read import read_bytes
from workerserver.blackbox.watchdog.ranks import Rank, restart_of
from workerserver.job.store import Store, StoreError

__all__ = ["Others", "State"]

T = TypeVar("T")
#: mine: this watchdog has it. taken: another one looks at it. told: another one has told it.
#: unknown: neither the store nor the folder answers.
State = Literal["mine", "taken", "told", "unknown"]

RANK, COLLECTOR = "/debug_server/rank{}", "/debug_server/collector{}"
INCIDENT, RUN = "/workerserver/incident", "/workerserver/run"
STORE_SECONDS = 2.0
#: To see whether a host is there. It answers, or refuses, at once.
REACH_SECONDS = 1.0
FOLDER_SECONDS = 1.0
#: Between two looks for ranks that have not announced themselves yet. Hosts that start together
#: must not all look together.
LEARN_SECONDS = 10.0
#: If rank 0's host is gone, one of the next ones looks at the whole job.
NEXT_HOSTS = 8
#: Who has taken an incident looks at it again within this time and a threshold, or is gone.
HOLD_SECONDS = 60.0
#: Sides that a job can be cut into.
MAX_SIDES = 8
OLD_SECONDS = 24 * 3600.0
_FILE = re.compile(r"incident-([0-9a-f]{16})-\d\.json\Z")
_TOLD = " told"
#: How our value begins: which attempt of torchrun's has the incident.
_ATTEMPT = re.compile(r"(\d{1,9}) ")
_ALL = ("", "::", "0.0.0.0")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the job's ranks serve, ``host:port``: by rank, if all are known; and its collectors."""

    ranks: tuple[str, ...] = ()
    collectors: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        return bool(self.ranks or self.collectors)


class Others:
    """Of one watchdog, whose thread uses it. *store*: ``host:port``; "": the job has no other
    hosts, or they can't be reached. *folder*: that the user named, or "". *world*: ranks."""

    def __init__(self, store: str, folder: str, label: str, world: int) -> None:
        self._store = store
        self._folder = folder
        self._label = f"{label}#{os.urandom(4).hex()}"
        self._world = world
        self.reachable = bool(store)
        self.places = Places()
        self._run = ""
        self._restart: int | None = None
        self._next = 0.0
        self._held = ""  # our value in the store
        self._going: int | None = None  # the attempt that was seen to make steps
        self._turn = 0
        self._file = ""
        self._attempt = 0  # of it
        self._mine: Sequence[str] = ()
        self._seen: tuple[str, float] = ("", 0.0)  # another's value, and since when
        self._asking: dict[str, threading.Thread] = {}

    @property
    def holds(self) -> bool:
        return bool(self._held or self._file)

    # ---- while nothing happens

    def learn(self, living: Sequence[Rank], now: float) -> None:
        """Read where all ranks of the job serve, once they are there. *living*: of this host."""
        if not self._store:
            return
        self._mine = [each for rank in living for each in _outside(rank)]
        restart = restart_of(living)
        if restart != self._restart:
            self._restart, self.places, self._next = restart, Places(), 0.0
        # Only a host that may have to look at all ranks without the store reads where they serve.
        known = [rank.rank for rank in living if rank.rank is not None]
        every = bool(known) and min(known) < NEXT_HOSTS * len(known)
        if now < self._next or (self._run and (self.places.any or not every)):
            return
        self._next = now + LEARN_SECONDS * (0.5 + os.urandom(1)[0] / 256)
        self._ask(lambda store: self._read(store, every))

    def _read(self, store: Store, every: bool) -> None:
        self._name(store)
        if not every:
            return
        found = []
        for key in (RANK, COLLECTOR):
            keys = [key.format(number) for number in range(self._world)]
            known = [k for k, there in zip(keys, store.has(keys), strict=True) if there]
            whole = key == COLLECTOR or len(known) == self._world
            found.append(tuple(map(_place, store.get(known))) if whole else ())
        # A collector may begin later than a rank: then its host is asked rank by rank.
        self.places = Places(*found) if found[0] else Places((), found[1])

    def _name(self, store: Store) -> None:
        """Know this run of the job by one name on all hosts, or give it that name."""
        if not self._run:
            run = store.swap(RUN, "", os.urandom(8).hex())
            self._run = run if re.fullmatch("[0-9a-f]{16}", run) else ""

    # ---- an incident

    def take(self, restart: int | None, threshold: float) -> State:
        """Take the incident of this attempt, or look again at the one that is taken."""
        if not self._store:
            return "unknown"
        restart = (self._restart if restart is None else restart) or 0
        self._turn += 1
        value = f"{restart} {self._label}.{self._turn}"

        def swap(store: Store) -> str:
            self._name(store)
            there = store.swap(INCIDENT, self._held, value)
            if self._held and there != value:  # another one thinks that this watchdog is gone
                there = store.swap(INCIDENT, "", value)
            return self._patient(store, there, value, threshold)

        there = self._ask(swap)
        self.reachable = there is not None
        if there is None:
            seconds = FOLDER_SECONDS + MAX_SIDES * REACH_SECONDS
            return self._in_folder(lambda: self._take_file(restart), "unknown", seconds)
        if there == value:
            self._held = value
            self._in_folder(lambda: self._take_file(restart), "unknown")
            return "mine"
        self._held = ""
        return "told" if there.endswith(_TOLD) else "taken"

    def _patient(self, store: Store, there: str, value: str, threshold: float) -> str:
        """*there*, or *value* in place of another's that has stayed the same for too long."""
        now = time.monotonic()
        if there != self._seen[0]:
            self._seen = (there, now)
        late = now - self._seen[1] > HOLD_SECONDS + threshold
        if there == value or there.endswith(_TOLD) or not late:
            return there
        return store.swap(INCIDENT, there, value)

    @property
    def mark(self) -> tuple[str, str]:
        """For the watchdog of the next attempt on this host: of what is told, see restore()."""
        return self._held, self._file

    def restore(self, mark: tuple[str, str]) -> None:
        self._held, self._file = mark

    def told(self) -> None:
        """The incident that this watchdog has taken is told."""
        if self._held:
            self._change(f"{self._held}{_TOLD}")
        if self._file:
            self._in_folder(lambda: self._write_file(True), None)

    def free(self) -> None:
        """The job goes on: the incident that this watchdog has taken, if any, is over, or was none.
        One that another watchdog has told is over after HOLD_SECONDS."""
        if self._held:
            self._change("")
        self._held = ""
        told, since = self._seen
        if told.endswith(_TOLD) and time.monotonic() - since > HOLD_SECONDS:
            # The host that told it may be gone, and the job goes on.
            self._ask(lambda store: store.swap(INCIDENT, told, ""))
            self._seen = ("", 0.0)
        if self._file:
            self._in_folder(self._remove_file, None)

    def goes_on(self, restart: int | None) -> None:
        """Steps are made in this attempt: what was told of earlier ones is over, even if the host
        that told it is gone. No attempt before this one has made any since."""
        if not self._store or restart is None or restart == self._going:
            return
        self._going = restart

        def clear(store: Store) -> None:
            there = store.swap(INCIDENT, "", "")
            began = _ATTEMPT.match(there)
            if began is not None and int(began[1]) < restart:
                store.swap(INCIDENT, there, "")

        if restart:
            self._ask(clear)
            self._in_folder(lambda: self._sweep(restart), None)

    def _change(self, value: str) -> None:
        if self._ask(lambda store: store.swap(INCIDENT, self._held, value)) == value:
            self._held = value

    # ---- the store

    def _ask(self, work: Callable[[Store], T]) -> T | None:
        """None if the store does not answer."""
        host, _, port = self._store.rpartition(":")
        until = time.monotonic() + STORE_SECONDS

        def ask() -> T:
            with socket.create_connection((host.strip("[]"), int(port)), STORE_SECONDS) as sock:
                return work(Store(sock, until))

        return self._within("store", ask, 2 * STORE_SECONDS)

    def _in_folder(self, work: Callable[[], T], otherwise: T, seconds: float = FOLDER_SECONDS) -> T:
        found = self._within("folder", work, seconds) if self._folder else None
        return otherwise if found is None else found

    def _within(self, what: str, work: Callable[[], T], seconds: float) -> T | None:
        """What *work* gives. A name server or a folder may block: nobody waits for more than
        *seconds*, and as long as *what* blocks a thread no other thread is started."""
        before = self._asking.get(what)
        if before is not None and before.is_alive():
            return None
        found: list[T] = []

        def run() -> None:
            with contextlib.suppress(OSError, StoreError, ValueError):
                found.append(work())

        thread = self._asking[what] = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        return found[0] if found else None

    # ---- the folder, in a thread that it may block

    def _take_file(self, restart: int) -> State:
        if not self._folder or not self._run:
            return "unknown"
        if self._file:
            return "mine"
        for side in range(MAX_SIDES):
            name = f"incident-{self._run}-{side}.json"
            path = os.path.join(self._folder, name)
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(path, flags, 0o600))
            except FileExistsError:
                taker = _taker(path)
                if any(map(_is_reached, taker.get("addresses", ()))):
                    return "told" if taker.get("told") is True else "taken"
                continue
            self._file = path
            self._attempt = restart
            self._write_file(False)
            self._sweep()
            return "mine"
        return "unknown"

    def _write_file(self, told: bool) -> None:
        if self._file:
            taker = {"label": self._label, "restart": self._attempt, "told": told}
            taker["addresses"] = list(self._mine[:4])
            part = f"{self._file}.{self._label}.part"
            with open(part, "w", encoding="ascii", opener=_private) as file:
                json.dump(taker, file)
            os.replace(part, self._file)

    def _remove_file(self) -> None:
        path, self._file = self._file, ""
        if path:
            os.unlink(path)

    def _sweep(self, restart: int = 0) -> None:
        """Of runs that have ended in their incident, and of this run before attempt *restart*."""
        for name in os.listdir(self._folder):
            path, match = os.path.join(self._folder, name), _FILE.match(name)
            if match is None or path == self._file:
                continue
            earlier = False
            if restart and match[1] == self._run:
                began = _taker(path).get("restart")
                earlier = type(began) is int and began < restart
            if earlier or os.lstat(path).st_mtime < time.time() - OLD_SECONDS:
                os.unlink(path)


def _place(value: bytes) -> str:
    """``host:port`` or an ``https`` URL, of an entry in the store."""
    url = value.decode("utf-8", "replace").partition("#")[0]
    return url.removeprefix("http://")


def _outside(rank: Rank) -> Iterator[str]:
    """Where other hosts reach *rank*."""
    for each in rank.addresses:
        if not each.unix:
            host, _, port = each.address.rpartition(":")
            yield f"{socket.gethostname() if host.strip('[]') in _ALL else host}:{port}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _taker(path: str) -> dict[str, Any]:
    """Who has taken an incident. A file that is being written says nothing yet: then again."""
    for _ in range(5):
        with contextlib.suppress(OSError, ValueError, BoxError):
            value = json.loads(read_bytes(path))
            if isinstance(value, dict) and isinstance(value.get("addresses"), list):
                return value
        time.sleep(0.1)
    return {}


def _is_reached(address: object) -> bool:
    """Whether the host of *address* is there: somebody listens, or the host itself refuses."""
    host, _, port = str(address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except OSError as error:
        return error.errno in (errno.ECONNREFUSED, errno.ECONNRESET)
    except ValueError:
        return False
    return True
