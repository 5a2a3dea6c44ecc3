"""Workers of this user on this machine, found without a word of where they are.

Three places tell of workers: the records in the user's run folders, also in those of containers
whose files may be read; TORCH_WORKER_SERVER_SOCKET in what a process was started with, which is
how stock torch workers are found; sockets in the user's own run folder, which older versions of
``workerserver run`` made. Who listens is read from /proc: nobody is connected to, and whoever is
not known to be a worker is never asked anything.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from workerserver.cluster.model import Worker
from workerserver.job import proc
from workerserver.job.identity import Identity, of_process, rank_in
from workerserver.job.left import read_folder
from workerserver.job.records import Address, Record
from workerserver.process.run_folder import run_folder, run_folders

__all__ = ["Ended", "Here", "Living", "ancestors", "look_here", "of_process_or_launcher", "serves"]

_PLACEHOLDER = re.compile(r"\{(rank|local_rank|pid)\}")
_SOCKET = re.compile(r"(?:rank([0-9]{1,9})[-.])?([0-9]{1,10})\.sock\Z")
#: Where a process keeps temporary files.
_TEMPORARY = ("TMPDIR", "TEMP", "TMP")
MAX_ANCESTORS = 64


@dataclass(frozen=True, slots=True)
class Living:
    """A worker that serves. *pid* is its pid here, whatever container it is in."""

    worker: Worker
    pid: int


@dataclass(frozen=True, slots=True)
class Ended:
    """What a worker has left that serves no more. *pid* is None where only a socket is left."""

    path: str
    rank: int | None = None
    pid: int | None = None
    known: Identity | None = None


@dataclass(slots=True)
class Here:
    living: list[Living] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)


class _Look:
    def __init__(self, user: int | None) -> None:
        self.user = os.geteuid() if user is None else user
        self.here = Here()
        self.environments: dict[int, Mapping[str, str]] = {}
        self.inner: dict[int, int] = {}  # the pid here, by the pid in its own container
        self._listening: dict[int | None, proc.Listening] = {}
        self._sockets: dict[int, set[int]] = {}
        for pid in proc.of_user(self.user):
            environment = proc.environment_of(pid)
            if environment:
                self.environments[pid] = environment
        self.roots = {pid: root for pid in self.environments if (root := proc.root_of(pid))}
        self.recorded: set[int] = set()
        self.heard: set[str] = set()  # sockets of workers that are known

    # ---- what listens

    def listens(self, pid: int, bound: str | int) -> bool:
        """Whether process *pid* itself listens on the path, as it was bound, or the TCP port."""
        where = proc.namespace("net", pid)
        if where not in self._listening:
            self._listening[where] = proc.listening(pid)
        table = self._listening[where]
        inodes = table.ports.get(bound) if isinstance(bound, int) else table.paths.get(bound)
        if not inodes:
            return False
        if pid not in self._sockets:
            self._sockets[pid] = proc.sockets_of(pid)
        return not inodes.isdisjoint(self._sockets[pid])

    # ---- records

    def folders(self) -> Iterator[tuple[str, int | None]]:
        """Each run folder once, with a process that sees it. None: this process does."""
        seen: set[tuple[int, int]] = set()
        for folder, pid in self._folders():
            try:
                status = os.stat(folder)
            except OSError:
                continue
            private = status.st_uid == self.user and not status.st_mode & 0o077
            if private and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield folder, pid

    def _folders(self) -> Iterator[tuple[str, int | None]]:
        for folder in run_folders(user=self.user):
            yield folder, None
        usual = os.path.basename(run_folder(user=self.user))
        places: dict[str, tuple[str, int | None]] = {}
        for pid, environment in self.environments.items():
            root = self.roots.get(pid, "")
            named = [environment[name] for name in _TEMPORARY if environment.get(name)]
            for place in (*named, *(("/tmp", "/var/tmp") if root else ())):
                if place.startswith("/"):
                    places.setdefault(root + place, (root, pid))
        for place, (root, seen_by) in places.items():
            try:
                names = os.listdir(place)
            except OSError:
                continue
            for name in sorted(names):
                # Inside a container the user may have another number.
                if name.startswith("workerserver-" if root else usual):
                    yield os.path.join(place, name), seen_by

    def from_records(self) -> None:
        for folder, seen_by in self.folders():
            for record in read_folder(folder, self.user):
                pid = self._process_of(record, seen_by)
                if pid is None:
                    path = record.addresses[0].address if record.addresses else record.path
                    ended = Ended(path, record.identity.rank, record.pid, record.identity)
                    self.here.ended.append(ended)
                    continue
                worker = self._worker(record, pid)
                if worker is not None and pid not in self.recorded:
                    self.recorded.add(pid)
                    self.here.living.append(Living(worker, pid))

    def _process_of(self, record: Record, seen_by: int | None) -> int | None:
        """The pid here of the process that wrote the record; None if it has ended."""
        candidates = [record.pid] if seen_by is None else []
        if record.pid_namespace != proc.namespace("pid"):
            candidates = [
                pid
                for pid in self.environments
                if proc.namespace("pid", pid) == record.pid_namespace
                and proc.own_pid_in(pid) == record.pid
            ]
        elif seen_by is not None:
            candidates = [record.pid]
        for pid in candidates:
            if proc.lives(pid, record.ticks):
                return pid
        return None

    def _worker(self, record: Record, pid: int) -> Worker | None:
        """Where the process is asked: on a Unix socket, if it has one."""
        root = self.roots.get(pid, "")
        for each in sorted(record.addresses, key=lambda address: not address.unix):
            if each.unix:
                bound = self._bound(pid, each.address)
                if bound is not None and not _leads_out(root, each.address):
                    self.heard.add(root + each.address)
                    return _unix(root + each.address, record.identity)
            elif not proc.is_elsewhere("net", pid) and self.listens(pid, _port(each)):
                return _tcp(each, record.identity)
        return None

    def _bound(self, pid: int, path: str) -> str | None:
        """The name under which the process listens on *path*: it may be relative."""
        names = [path]
        with contextlib.suppress(OSError):
            names.append(os.path.relpath(path, os.readlink(f"/proc/{pid}/cwd")))
        return next((name for name in names if self.listens(pid, name)), None)

    # ---- what processes were started with

    def from_environments(self) -> None:
        for pid, environment in self.environments.items():
            template = environment.get("TORCH_WORKER_SERVER_SOCKET", "")
            if not template or pid in self.recorded:
                continue
            path = _expanded(template, environment, pid)
            if path is None or not self.listens(pid, path):
                continue
            whole = path
            if not path.startswith("/"):
                try:
                    whole = os.path.join(os.readlink(f"/proc/{pid}/cwd"), path)
                except OSError:
                    continue
            root = self.roots.get(pid, "")
            if _leads_out(root, whole):
                continue
            address = root + whole
            self.heard.add(address)
            worker = _unix(address, of_process(pid, environment))
            self.here.living.append(Living(worker, pid))

    # ---- sockets in the run folder

    def from_sockets(self) -> None:
        for folder in run_folders(user=self.user):
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            for name in sorted(names):
                match = _SOCKET.match(name)
                path = os.path.join(folder, name)
                if match is None or path in self.heard:
                    continue
                pid, rank = int(match[2]), int(match[1]) if match[1] else None
                if pid in self.recorded:
                    continue
                if pid in self.environments and self.listens(pid, path) and serves(pid):
                    known = of_process(pid, self.environments[pid])
                    worker = Worker(path, unix=True, source="process", known=known)
                    self.here.living.append(Living(worker, pid))
                elif proc.stat_of(pid) is None and not self._has_record(path):
                    self.here.ended.append(Ended(path, rank, pid))

    def _has_record(self, path: str) -> bool:
        return any(each.path == path for each in self.here.ended)


def look_here(user: int | None = None) -> Here:
    """All workers of this user on this machine, and what ended ones have left. *user*: those of
    another one, which only root can see."""
    look = _Look(user)
    look.from_records()
    look.from_environments()
    look.from_sockets()
    look.here.living.sort(key=lambda each: _order(each.worker))
    return look.here


def of_process_or_launcher(here: Here, pid: int) -> list[Living]:
    """The worker that process *pid* is, or else the workers that it has started, or else the worker
    that has started it: a DataLoader's process, say."""
    own = [each for each in here.living if each.pid == pid]
    if own:
        return own
    started = [each for each in here.living if pid in ancestors(each.pid)]
    if started:
        return started
    workers = {each.pid: each for each in here.living}
    return [workers[above] for above in ancestors(pid) if above in workers][:1]


def ancestors(pid: int) -> list[int]:
    """The processes that have started *pid*, the nearest one first."""
    found: list[int] = []
    while len(found) < MAX_ANCESTORS:
        stat = proc.stat_of(pid)
        if stat is None or stat.parent <= 0:
            break
        pid = stat.parent
        found.append(pid)
    return found


def _leads_out(root: str, path: str) -> bool:
    """Whether *path* in the files of a container holds a link, which would be followed here: to a
    socket of another service, say."""
    if not root:
        return False
    place = root
    for part in path.strip("/").split("/"):
        place = os.path.join(place, part)
        if part == ".." or os.path.islink(place):
            return True
    return False


def serves(pid: int) -> bool:
    """Whether threads of a server of ours run in the process. A name alone proves nothing."""
    return any(name.startswith("workerserver") for name in proc.thread_names(pid))


def _unix(path: str, known: Identity) -> Worker:
    return Worker(path, unix=True, source="process", known=known)


def _tcp(address: Address, known: Identity) -> Worker:
    host, _, port = address.address.rpartition(":")
    if host in ("", "[::]", "0.0.0.0"):
        host = "127.0.0.1"
    name = host.strip("[]")
    where = f"{host}:{port}"
    return Worker(where, False, host=name, source="process", tls=address.tls, known=known)


def _port(address: Address) -> int:
    port = address.address.rpartition(":")[2]
    return int(port) if port.isdecimal() else 0


def _expanded(template: str, environment: Mapping[str, str], pid: int) -> str | None:
    """The path that a process makes of its template; None if its launcher told no rank."""
    values = {
        "rank": rank_in(environment),
        "local_rank": rank_in(environment, local=True),
        "pid": proc.own_pid_in(pid),
    }
    names = _PLACEHOLDER.findall(template)
    if any(values[name] is None for name in names):
        return None
    return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), template)


def _order(worker: Worker) -> tuple[str, bool, int, str]:
    known = worker.known
    rank = known.rank if known is not None else None
    return (known.job if known is not None else "", rank is None, rank or 0, worker.address)
