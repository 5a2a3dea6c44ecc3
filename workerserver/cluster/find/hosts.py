"""Workers from lists of hosts: a hosts file, Slurm's environment, a name with many addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from workerserver.cluster.addresses import tcp_worker
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.failures import Failed
from workerserver.cluster.find.host_lists import MAX_HOSTS, expand, expand_hosts, split_hosts
from workerserver.cluster.model import Source, Worker
from workerserver.cluster.resolve import look_up

__all__ = [
    "from_collectors",
    "from_dns",
    "from_hosts_file",
    "from_slurm",
    "has_port",
    "slurm_port",
]

MAX_FILE_CHARACTERS = 16 << 20
_TASKS = re.compile(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?\Z")
_PORTS = re.compile(r"(?P<host>.+):(?P<low>[0-9]{1,5})(?:-(?P<high>[0-9]{1,5}))?\Z")
_PLACEHOLDER = re.compile(r"\{(rank|local_rank)\}")


def from_hosts_file(path: str, port: str | None = None) -> list[Worker]:
    """One or more hosts on each line (``node[001-128]:25[000-007]``); ``#`` begins a comment.

    A host is ``host:port``, a URL, a socket's path, or, if *port* is given, a name without a port.
    *port* may be a range too. Ranks are counted in the order of the file. If a worker reports
    another rank, the reported rank wins.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_FILE_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ClusterError(f"{path}: {reason}") from None
    if len(text) > MAX_FILE_CHARACTERS:
        raise ClusterError(f"{path}: longer than {MAX_FILE_CHARACTERS} characters")
    workers: list[Worker] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            for name in split_hosts(line.partition("#")[0]):
                whole = name if port is None or "/" in name or has_port(name) else f"{name}:{port}"
                for address in expand(whole, MAX_HOSTS - len(workers)):
                    workers.append(_counted(address, len(workers), "hosts file"))
        except ClusterError as error:
            raise ClusterError(f"{path}, line {number}: {error}") from None
    if not workers:
        raise ClusterError(f"{path}: no host in it")
    return workers


def from_collectors(text: str, port: str | None = None) -> list[Worker]:
    """Collectors, separated by commas: ``node[001-128]:25998``. Names without a port get *port*."""
    collectors: list[Worker] = []
    for name in split_hosts(text):
        if port is None and not has_port(name):
            raise ClusterError(
                f"{name}: on which port is the collector? Give {name}:PORT or --port"
            )
        whole = name if has_port(name) else f"{name}:{port}"
        for address in expand(whole, MAX_HOSTS - len(collectors)):
            collectors.append(replace(tcp_worker(address), collector=True))
    if not collectors:
        raise ClusterError("no host of a collector was named")
    return collectors


def has_port(name: str) -> bool:
    """Whether *name* ends in a port, or in a range of ports."""
    return re.search(r":[0-9\[\],\-]+\Z", name) is not None


def _counted(address: str, rank: int, source: Source) -> Worker:
    if "/" in address and not address.startswith(("http://", "https://")):
        worker = Worker(address.removeprefix("unix:"), unix=True, source=source)
    else:
        worker = tcp_worker(address, source=source)
    return replace(worker, rank=rank, assumed=True)


def from_slurm(
    environment: Mapping[str, str], port: str | None = None, tasks: int | None = None
) -> list[Worker]:
    """The tasks of a Slurm job, on the nodes that its environment names.

    *port* is by default the port in WORKERSERVER_TCP. A plain number means one worker on each node.
    A range means one worker for each port on each node. A port with ``{local_rank}`` or ``{rank}``
    means one worker for each task of a node: *tasks* of them, or as many as the environment says.
    That is about the step of whoever asks, and the job may be another step with more tasks. Ranks
    are counted node by node, as in Slurm's block distribution. The port in WORKERSERVER_COLLECTOR
    means the collector of each node.
    """
    nodes = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST") or ""
    names = expand_hosts(nodes)
    if not names:
        raise ClusterError("SLURM_JOB_NODELIST is not set: this is no Slurm job")
    collector = environment.get("WORKERSERVER_COLLECTOR", "").rpartition(":")[2]
    if port is None:
        port = environment.get("WORKERSERVER_TCP", "").rpartition(":")[2] or collector
        if not port:
            raise ClusterError("which port? Give --port, or set WORKERSERVER_TCP as in the job")
    if port == "0":
        raise ClusterError(
            "port 0 is any free port, so only the job's store knows it: --store HOST:PORT, with "
            "the workers' MASTER_ADDR and MASTER_PORT"
        )
    if port == collector:
        return [replace(tcp_worker(f"{name}:{port}"), collector=True) for name in names]
    workers: list[Worker] = []
    if not _PLACEHOLDER.search(port):
        for name in names:
            for one in expand(port, MAX_HOSTS - len(workers)):
                workers.append(_counted(f"{name}:{one}", len(workers), "slurm"))
        return workers
    counts = iter([tasks] * len(names)) if tasks is not None else _tasks(environment, len(names))
    for name, count in zip(names, counts, strict=True):
        first = len(workers)
        for local_rank in range(count):
            if len(workers) >= MAX_HOSTS:
                raise ClusterError(f"{nodes}: more than {MAX_HOSTS} workers")
            one = _fill(port, first + local_rank, local_rank)
            workers.append(_counted(f"{name}:{one}", len(workers), "slurm"))
    return workers


def slurm_port(environment: Mapping[str, str], port: str | None) -> str:
    """The port that from_slurm() uses, as a template; "" if it is none."""
    whole = port or environment.get("WORKERSERVER_TCP", "").rpartition(":")[2]
    return whole if _PLACEHOLDER.search(whole) else ""


def _fill(port: str, rank: int, local_rank: int) -> str:
    numbers = {"rank": rank, "local_rank": local_rank}
    return _PLACEHOLDER.sub(lambda match: str(numbers[match[1]]), port)


def _tasks(environment: Mapping[str, str], nodes: int) -> Iterator[int]:
    """The number of tasks on each node (``2(x3),1``); 1 if Slurm doesn't say."""
    name = "SLURM_TASKS_PER_NODE"
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get(name) or f"1(x{nodes})"
    counts: list[int] = []
    for part in text.split(","):
        match = _TASKS.match(part.strip())
        if match is None:
            raise ClusterError(f"{name}: {part.strip()[:40]!r} is no number of tasks")
        counts += [int(match[1])] * min(int(match[2] or 1), nodes - len(counts))
    if len(counts) != nodes:
        raise ClusterError(f"{name} {text[:40]!r} is for {len(counts)} nodes, not {nodes}")
    return iter(counts)


def from_dns(text: str, deadline: float) -> list[Worker]:
    """``NAME:PORT`` or ``NAME:PORT-PORT``: a worker for each address of NAME and each port.

    The name of a headless Kubernetes service has the address of each pod. The workers report their
    own ranks.
    """
    match = _PORTS.match(text)
    if match is None:
        raise ClusterError(f"{text!r}: give NAME:PORT or NAME:PORT-PORT")
    low, high = int(match["low"]), int(match["high"] or match["low"])
    if not 1 <= low <= high <= 65535:
        raise ClusterError(f"{text!r}: ports go from 1 to 65535, upwards")
    try:
        found = look_up(match["host"].strip("[]"), deadline)
    except Failed as failed:
        raise ClusterError(failed.failure.text) from None
    if len(found) * (high - low + 1) > MAX_HOSTS:
        raise ClusterError(f"{text!r}: more than {MAX_HOSTS} workers")
    return [
        Worker(
            f"[{address}]:{port}" if ":" in address else f"{address}:{port}", False, source="dns"
        )
        for address in sorted(found, key=_numerically)
        for port in range(low, high + 1)
    ]


def _numerically(address: str) -> tuple[int, int]:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return parsed.version, int(parsed)
