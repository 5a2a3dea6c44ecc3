"""Read from torch's TCPStore where the workers are, without torch."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

from workerserver.cluster.addresses import host_port, tcp_worker
from workerserver.cluster.errors import ClusterError, NoJob, Unanswered
from workerserver.cluster.failures import Failed, describe
from workerserver.cluster.find.host_lists import MAX_HOSTS, unfold
from workerserver.cluster.model import MAX_HOST_WORKERS, Worker
from workerserver.cluster.resolve import look_up
from workerserver.job.store import BATCH_KEYS, Store, StoreError, left_until

__all__ = ["workers_in_store"]

#: TCPStore puts "/" before every key. The rest is torch.distributed.debug's name for the key.
RANK = "/debug_server/rank{}"
#: A host's collector has an entry beside the ranks' entries. The value is the collector's address
#: and the ranks of the host: ``http://node7:25998#56-63``.
COLLECTOR = "/debug_server/collector{}"
#: If the number of ranks is unknown, the search ends after so many ranks without an entry.
MAX_GAP_RANKS = 4096
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
            store = Store(sock, until)
            found = _entries(store, RANK, world_size)
            hosts = _entries(store, COLLECTOR, world_size)
    except TimeoutError:
        raise Unanswered(f"store {address}: no answer in {deadline:g} s") from None
    except StoreError as error:
        raise Unanswered(f"store {address}: {error}") from None
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


def _entries(store: Store, key: str, world_size: int | None) -> dict[int, bytes]:
    """The values of *key* N that the store has, by N."""
    numbers: list[int] = []
    end = MAX_HOSTS if world_size is None else min(world_size, MAX_HOSTS)
    for first in range(0, end, BATCH_KEYS):
        batch = range(first, min(first + BATCH_KEYS, end))
        there = store.has([key.format(number) for number in batch])
        numbers += (number for number, known in zip(batch, there, strict=True) if known)
        last = numbers[-1] if numbers else -1
        if world_size is None and batch[-1] - last >= MAX_GAP_RANKS:
            break
    values = store.get([key.format(number) for number in numbers])
    return dict(zip(numbers, values, strict=True))


def _connect(host: str, port: int, until: float) -> socket.socket:
    addresses = look_up(host, left_until(until))
    failure: OSError = OSError(f"no address for {host}")
    for index, address in enumerate(addresses):
        share = left_until(until) / (len(addresses) - index)
        try:
            return socket.create_connection((address, port), share)
        except OSError as error:
            failure = error
    raise failure
