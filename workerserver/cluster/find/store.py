"""Read from torch's TCPStore where the workers are, without torch.

Both of torch's servers (libuv, the default, and the older one) speak this protocol since torch 2.1.
A connection begins with VALIDATE and a magic number. Then requests follow: a byte for the kind, and
the arguments. Integers are little-endian. A string is its length (8 bytes) and its bytes. A client
may send requests before earlier answers have come; answers come in order. This module uses the two
kinds that only read:

    CHECK  number of keys (8 bytes), keys   -> one byte: 0 if the store has all keys
    GET    key                              -> length (8 bytes), value

This module sends GET only for a key that exists. For any other key the server ends the connection
and writes a line into the job's log.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import replace

from workerserver.cluster.addresses import host_port, tcp_worker
from workerserver.cluster.errors import ClusterError, NoJob, Unanswered
from workerserver.cluster.failures import Failed, describe
from workerserver.cluster.find.host_lists import MAX_HOSTS, unfold
from workerserver.cluster.model import MAX_HOST_WORKERS, Worker
from workerserver.cluster.resolve import look_up

__all__ = ["workers_in_store"]

VALIDATE, GET, CHECK = 0, 3, 5
MAGIC = 0x3C85F7CE
READY = 0

#: TCPStore puts "/" before every key. The rest is torch.distributed.debug's name for the key.
RANK = "/debug_server/rank{}"
#: A host's collector has an entry beside the ranks' entries. The value is the collector's address
#: and the ranks of the host: ``http://node7:25998#56-63``.
COLLECTOR = "/debug_server/collector{}"
#: Keys in one batch of requests, some 25 kB.
BATCH_KEYS = 512
#: If the number of ranks is unknown, the search ends after so many ranks without an entry.
MAX_GAP_RANKS = 4096
#: The value of a key: one URL.
MAX_VALUE_BYTES = 4096
#: All values of a store. A whole job of MAX_HOSTS ranks needs a quarter of that.
MAX_VALUES_BYTES = 64 << 20
#: Ranks that all collectors of a store claim together.
MAX_CLAIMED_RANKS = MAX_HOSTS


def workers_in_store(
    address: str, *, world_size: int | None = None, deadline: float = 10.0
) -> list[Worker]:
    """The entries in the TCPStore at *address* (``host:port``): the collectors, then the workers by
    rank.

    A rank without an entry gets a worker with an empty address, unless a collector answers for that
    rank. So every rank below *world_size* has a worker. Without *world_size*, every rank below the
    highest known rank has one. If any entry says https, workers whose entries say http are marked.
    *deadline* is for the whole call, in seconds. ClusterError if the store can't be read, has no
    worker at all, or has more in it than a job can have.
    """
    host, port = host_port(address)
    until = time.monotonic() + deadline
    try:
        with _connect(host, port, until) as sock:
            store = _Store(sock, until)
            found = store.values(RANK, store.registered(RANK, world_size))
            hosts = store.values(COLLECTOR, store.registered(COLLECTOR, world_size))
    except TimeoutError:
        raise Unanswered(f"store {address}: no answer in {deadline:g} s") from None
    except Failed as failed:
        raise Unanswered(f"store {address}: {failed.failure.text}") from None
    except (ConnectionResetError, BrokenPipeError):
        raise Unanswered(f"store {address}: connection closed; is it a TCPStore?") from None
    except OSError as error:
        kind = NoJob if isinstance(error, ConnectionRefusedError) else Unanswered
        raise kind(f"store {address}: {describe(error)}") from None
    if not found and not hosts:
        raise NoJob(f"store {address}: no worker has registered there (no key debug_server/rank0)")
    collectors: list[Worker] = []
    claimed = 0
    for _, value in sorted(hosts.items()):
        collectors.append(_collector(value))
        claimed += len(collectors[-1].ranks)
        if claimed > MAX_CLAIMED_RANKS:
            raise ClusterError(
                f"store {address}: its collectors claim more than {MAX_CLAIMED_RANKS} ranks, so "
                "somebody writes false entries there"
            )
    covered = {rank for collector in collectors for rank in collector.ranks}
    end = max({*found, *covered}, default=-1) + 1 if world_size is None else world_size
    ranks = [rank for rank in range(end) if rank in found or rank not in covered]
    return _none_downgraded(collectors + [_worker(rank, found.get(rank)) for rank in ranks])


def _none_downgraded(workers: list[Worker]) -> list[Worker]:
    """*workers*, those with http marked if others have https: their entries may be false."""
    if not any(worker.tls for worker in workers):
        return workers
    return [
        worker if worker.tls or not worker.address else replace(worker, downgraded=True)
        for worker in workers
    ]


def _collector(value: bytes) -> Worker:
    text, _, ranks = value.decode("utf-8", "backslashreplace").partition("#")
    try:
        worker = replace(tcp_worker(text, source="store"), collector=True)
        answers_for = tuple(unfold(ranks))
    except ClusterError:  # the question to this collector will fail, and say so
        return Worker(text, unix=False, source="store", collector=True)
    return replace(worker, ranks=answers_for) if len(answers_for) <= MAX_HOST_WORKERS else worker


def _worker(rank: int, value: bytes | None) -> Worker:
    if value is None:
        return Worker("", unix=False, rank=rank, source="store")
    text = value.decode("utf-8", "backslashreplace")
    try:
        return tcp_worker(text, rank=rank, source="store")
    except ClusterError:  # the question to this rank will fail, and say so
        return Worker(text, unix=False, rank=rank, source="store")


class _Store:
    """One connection. Every wait ends at the deadline."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until
        self._unread = bytearray()
        self._value_bytes = 0  # of all values so far
        self._send(struct.pack("<BI", VALIDATE, MAGIC))

    def registered(self, key: str, world_size: int | None) -> list[int]:
        """The numbers N for which the store has an entry *key* N."""
        ranks: list[int] = []
        end = MAX_HOSTS if world_size is None else min(world_size, MAX_HOSTS)
        for first in range(0, end, BATCH_KEYS):
            batch = range(first, min(first + BATCH_KEYS, end))
            self._send(b"".join(struct.pack("<BQ", CHECK, 1) + _key(key, rank) for rank in batch))
            answers = self._read(len(batch))
            ranks += (rank for rank, answer in zip(batch, answers, strict=True) if answer == READY)
            last = ranks[-1] if ranks else -1
            if world_size is None and batch[-1] - last >= MAX_GAP_RANKS:
                break
        return ranks

    def values(self, key: str, ranks: Sequence[int]) -> dict[int, bytes]:
        values: dict[int, bytes] = {}
        for first in range(0, len(ranks), BATCH_KEYS):
            batch = ranks[first : first + BATCH_KEYS]
            self._send(b"".join(bytes([GET]) + _key(key, rank) for rank in batch))
            for rank in batch:
                (size,) = struct.unpack("<Q", self._read(8))
                if size > MAX_VALUE_BYTES:
                    name = key.rpartition("/")[2].format(rank)
                    raise Failed("malformed", f"the entry of {name} has {size} bytes")
                self._value_bytes += size
                if self._value_bytes > MAX_VALUES_BYTES:
                    text = f"its entries have more than {MAX_VALUES_BYTES >> 20} MiB in all"
                    raise Failed("too large", f"{text}, so somebody writes false entries there")
                values[rank] = self._read(size)
        return values

    def _send(self, data: bytes) -> None:
        self._sock.settimeout(_left(self._until))
        self._sock.sendall(data)

    def _read(self, size: int) -> bytes:
        while len(self._unread) < size:
            self._sock.settimeout(_left(self._until))
            part = self._sock.recv(1 << 16)
            if not part:
                raise Failed("malformed", "connection closed; is it a TCPStore?")
            self._unread += part
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data


def _key(key: str, number: int) -> bytes:
    whole = key.format(number).encode("ascii")
    return struct.pack("<Q", len(whole)) + whole


def _connect(host: str, port: int, until: float) -> socket.socket:
    addresses = look_up(host, _left(until))
    failure: OSError = OSError(f"no address for {host}")
    for index, address in enumerate(addresses):
        share = _left(until) / (len(addresses) - index)
        try:
            return socket.create_connection((address, port), share)
        except OSError as error:
            failure = error
    raise failure


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
