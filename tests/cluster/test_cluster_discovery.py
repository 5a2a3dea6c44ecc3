"""Finding workers: sockets, hosts files, Slurm, DNS, and the TCPStore, a real one and bad ones."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.jobs.store import fake_store, read, serve_one

from workerserver.cluster import ClusterError, Options, Worker, discover
from workerserver.cluster.addresses import parse_address
from workerserver.cluster.find.here import look_here
from workerserver.cluster.find.hosts import from_slurm
from workerserver.cluster.find.store import MAX_GAP_RANKS, workers_in_store


def find(*targets: str, environment: dict[str, str] | None = None, **more: object) -> list[Worker]:
    options = Options(targets=targets, environment=environment or {}, **more)  # type: ignore[arg-type]
    return discover(options)


def make_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return str(path)


# --- what is named ------------------------------------------------------------------------------


def test_addresses() -> None:
    assert find("node7:8000", "http://[::1]:80/", "https://node8:443") == [
        Worker("node7:8000", False, host="node7"),
        Worker("[::1]:80", False, host="::1"),
        Worker("node8:443", False, host="node8", tls=True),
    ]


def test_sockets_and_patterns(short_path: Path) -> None:
    names = [make_socket(short_path / f"rank{n}.sock") for n in (10, 2)]
    (short_path / "notes").touch()
    assert [w.address for w in find(str(short_path))] == [names[1], names[0]]
    assert [w.address for w in find(f"{short_path}/rank?.sock")] == [names[1]]
    assert find(names[0], f"unix:{names[0]}") == [Worker(names[0], True)]
    gone = str(short_path / "gone.sock")
    assert find(gone) == [Worker(gone, True)]


def test_a_template_tells_the_ranks(short_path: Path) -> None:
    for name in ("j[1]-0-a.sock", "j[1]-11-a.sock", "j[1]-x-a.sock", "j[1]-2-a.sock.old"):
        make_socket(short_path / name)
    found = find(f"{short_path}/j[1]-{{rank}}-a.sock")
    assert [(w.rank, Path(w.address).name) for w in found] == [
        (0, "j[1]-0-a.sock"),
        (11, "j[1]-11-a.sock"),
    ]
    make_socket(short_path / "3-3-77.s")
    make_socket(short_path / "4-5-78.s")
    assert [w.rank for w in find(f"{short_path}/{{rank}}-{{rank}}-{{pid}}.s")] == [3, 4]
    assert [w.rank for w in find(f"{short_path}/{{local_rank}}-5-{{pid}}.s")] == [None]
    with pytest.raises(ClusterError, match="no socket there"):
        find(f"{short_path}/no-{{rank}}.s")


@pytest.mark.parametrize("text", ["", "nonsense", "h:0", "h:65536", "http://h", "unix:", "*.none"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ClusterError) as caught:
        parse_address(text)
    assert text in str(caught.value)


def test_each_address_once() -> None:
    assert len(find("h:1", "h:2", "http://h:1")) == 2


# --- hosts files --------------------------------------------------------------------------------


def write(folder: Path, text: str) -> str:
    path = folder / "hosts"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_hosts_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "# the job\n\nnode[01-02]:25[000-001]  # two each\n"
        "[::1]:7, /run/a[3-4].sock\thttps://n9:443\nplain[1-2]\n",
    )
    found = find(hosts_file=path, port="89[00-01]")
    assert [w.address for w in found] == [
        "node01:25000",
        "node01:25001",
        "node02:25000",
        "node02:25001",
        "[::1]:7",
        "/run/a3.sock",
        "/run/a4.sock",
        "n9:443",
        "plain1:8900",
        "plain1:8901",
        "plain2:8900",
        "plain2:8901",
    ]
    assert [w.rank for w in found] == list(range(12))
    assert all(w.assumed and w.source == "hosts file" for w in found)
    assert [w.unix for w in found] == [False] * 5 + [True] * 2 + [False] * 5


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a:1\nb\n", "line 2: 'b'"),
        ("a:[1-", "line 1: "),
        ("a:[70000-70001]", "'a:70000'"),
        ("n[0-9999999]:1", "too many"),
        ("n[0-9999]:[1-9999]", "too many"),
        ("# nothing\n", "no host"),
        ("", "no host"),
    ],
)
def test_hosts_file_with_a_mistake(tmp_path: Path, text: str, word: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ClusterError) as caught:
        find(hosts_file=path)
    assert word in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="No such file"):
        find(hosts_file=str(tmp_path / "none"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ClusterError, match="not UTF-8"):
        find(hosts_file=str(tmp_path / "binary"))


# --- Slurm --------------------------------------------------------------------------------------

SLURM = {"SLURM_JOB_NODELIST": "gpu[08-10],big1", "SLURM_TASKS_PER_NODE": "2(x3),1"}
EACH = ":890{local_rank}"


@pytest.mark.parametrize(
    ("port", "addresses"),
    [
        ("8900", ["gpu08:8900", "gpu09:8900", "gpu10:8900", "big1:8900"]),
        ("89{local_rank}0", [f"gpu{n}:89{r}0" for n in ("08", "09", "10") for r in (0, 1)]),
        ("890{rank}", ["gpu08:8900", "gpu08:8901", "gpu09:8902", "gpu09:8903", "gpu10:8904"]),
        ("890[0-1]", ["gpu08:8900", "gpu08:8901", "gpu09:8900", "gpu09:8901", "gpu10:8900"]),
    ],
)
def test_slurm(port: str, addresses: list[str]) -> None:
    found = find(slurm=True, port=port, environment=SLURM)
    assert [w.address for w in found][: len(addresses)] == addresses
    assert [w.rank for w in found] == list(range(len(found)))
    assert all(w.assumed and w.source == "slurm" for w in found)
    environment = {**SLURM, "WORKERSERVER_TCP": f"0.0.0.0:{port}"}
    assert find(environment=environment) == found


def test_slurm_counts_only_what_depends_on_it() -> None:
    """The counts are those of whoever asks: a step of one task, say."""
    mine = {**SLURM, "SLURM_TASKS_PER_NODE": "1"}
    assert len(find(slurm=True, port="8900", environment=mine)) == 4
    assert len(find(slurm=True, port="890[0-1]", environment=mine)) == 8
    found = from_slurm(SLURM, "890{local_rank}", tasks=3)
    assert [w.address for w in found[:4]] == [
        "gpu08:8900",
        "gpu08:8901",
        "gpu08:8902",
        "gpu09:8900",
    ]
    assert [w.rank for w in found] == list(range(12))


def test_slurm_with_collectors() -> None:
    environment = {**SLURM, "WORKERSERVER_COLLECTOR": "0.0.0.0:25998"}
    for port in (None, "25998"):
        found = find(slurm=True, port=port, environment=environment)
        assert [w.address for w in found][::3] == ["gpu08:25998", "big1:25998"]
        assert all(w.collector for w in found)
    assert find(environment=environment) == found
    assert not any(w.collector for w in find(slurm=True, port="80", environment=environment))


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({}, "SLURM_JOB_NODELIST"),
        ({"SLURM_JOB_NODELIST": "n[1-2]", "WORKERSERVER_TCP": ""}, "which port"),
        ({"SLURM_JOB_NODELIST": "n[1-2", "WORKERSERVER_TCP": ":1"}, "brackets"),
        ({**SLURM, "WORKERSERVER_TCP": EACH, "SLURM_TASKS_PER_NODE": "2(x"}, "number of tasks"),
        ({**SLURM, "WORKERSERVER_TCP": EACH, "SLURM_TASKS_PER_NODE": "2"}, "for 1 nodes, not 4"),
        ({**SLURM, "WORKERSERVER_TCP": ":0"}, "--store HOST:PORT"),
        ({**SLURM, "WORKERSERVER_TCP": ":99999"}, "port"),
    ],
)
def test_slurm_with_a_mistake(environment: dict[str, str], word: str) -> None:
    with pytest.raises(ClusterError) as caught:
        find(slurm=True, environment=environment)
    assert word in str(caught.value)


# --- DNS ----------------------------------------------------------------------------------------


def test_a_name_with_ports() -> None:
    found = find(dns=["127.0.0.1:8900-8902"])
    assert found == [Worker(f"127.0.0.1:{p}", False, source="dns") for p in (8900, 8901, 8902)]
    assert find(dns=["[::1]:80"]) == [Worker("[::1]:80", False, source="dns")]


def test_every_address_of_a_name() -> None:
    addresses = {a[4][0] for a in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
    found = find(dns=["localhost:80"])
    assert {w.address.rpartition(":")[0].strip("[]") for w in found} == addresses


@pytest.mark.parametrize(
    "text", ["name", "name:", ":80", "name:0", "name:5-4", "name:1-70000", "name:x", "a.invalid:80"]
)
def test_what_is_no_service(text: str) -> None:
    with pytest.raises(ClusterError) as caught:
        find(dns=[text])
    assert text.partition(":")[0] in str(caught.value)


# --- the store ----------------------------------------------------------------------------------


def entry(rank: int, value: bytes) -> tuple[bytes, bytes]:
    return b"/debug_server/rank%d" % rank, value


def test_store() -> None:
    entries = dict(
        [entry(0, b"http://a:1"), entry(2, b"http://[::1]:2"), entry(MAX_GAP_RANKS, b"http://z:3")]
    )
    with serve_one(fake_store(entries)) as address:
        found = find(store=address)
    assert len(found) == MAX_GAP_RANKS + 1
    assert found[0] == Worker("a:1", False, 0, "a", "store")
    assert found[1] == Worker("", False, 1, source="store")
    assert found[2] == Worker("[::1]:2", False, 2, "::1", "store")
    assert found[MAX_GAP_RANKS].address == "z:3"


def test_a_store_that_says_too_much() -> None:
    """A store that lies costs an operator a bounded amount of memory: each entry may be as long as
    an entry may be, and there may be one for each rank of the largest job."""
    entries = dict(entry(rank, b"http://a:1/" + b"x" * 4000) for rank in range(1 << 15))
    with (
        serve_one(fake_store(entries)) as address,
        pytest.raises(ClusterError, match="64 MiB in all"),
    ):
        find(store=address, deadline=60)


def test_collectors_that_claim_too_much() -> None:
    entries = dict(collector(rank, b"http://a:1#0-4095") for rank in range(70))
    with (
        serve_one(fake_store(entries)) as address,
        pytest.raises(ClusterError, match="claim more than 262144 ranks"),
    ):
        find(store=address)


def test_store_with_a_known_number_of_ranks() -> None:
    with serve_one(fake_store(dict([entry(0, b"http://a:1"), entry(4, b"http://b:1")]))) as address:
        found = find(store=address, world_size=3)
    assert [w.address for w in found] == ["a:1", "", ""]


def collector(number: int, value: bytes) -> tuple[bytes, bytes]:
    return b"/debug_server/collector%d" % number, value


def test_collectors_in_the_store() -> None:
    """Before the ranks; those that they answer for needn't be registered by themselves."""
    entries = dict(
        [
            collector(0, b"http://a:9#0-1"),
            collector(1, b"http://b:9#2-3"),
            entry(1, b"http://a:1"),
            entry(5, b"http://c:1"),
        ]
    )
    with serve_one(fake_store(entries)) as address:
        found = find(store=address)
    assert found[0] == Worker("a:9", False, None, "a", "store", collector=True, ranks=(0, 1))
    assert found[1] == Worker("b:9", False, None, "b", "store", collector=True, ranks=(2, 3))
    assert [(w.address, w.rank) for w in found[2:]] == [("a:1", 1), ("", 4), ("c:1", 5)]


@pytest.mark.parametrize("value", [b"", b"\x1b[2J", b"http://a:9#x", b"http://a:9#0-99999999999"])
def test_a_collectors_entry_that_is_none(value: bytes) -> None:
    entries = dict([collector(0, value), entry(0, b"http://a:1")])
    with serve_one(fake_store(entries)) as address:
        broken, rank = find(store=address)
    assert (broken.collector, broken.ranks) == (True, ())
    assert (rank.address, rank.rank) == ("a:1", 0)


def test_collectors_by_name() -> None:
    found = find(collectors=["node[08-10]:25998,other:1", "[::1]:2"])
    assert [w.address for w in found] == [
        "node08:25998",
        "node09:25998",
        "node10:25998",
        "other:1",
        "[::1]:2",
    ]
    assert all(w.collector and w.rank is None for w in found)
    (one,) = find(collectors=["node1"], port="7")
    assert one.address == "node1:7"
    for text, word in (("node1", "on which port"), (",", "no host"), ("a:1,b[:2", "brackets")):
        with pytest.raises(ClusterError, match=word):
            find(collectors=[text])


def test_an_entry_that_is_no_address_is_that_ranks_problem() -> None:
    entries = dict([entry(0, b"http://a:1"), entry(1, b"\x1b[2J\xff"), entry(2, b"")])
    with serve_one(fake_store(entries)) as address:
        found = find(store=address)
    assert [w.address for w in found] == ["a:1", "\x1b[2J\\xff", ""]


def hang(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def drip(connection: socket.socket) -> None:
    for _ in range(200):
        connection.sendall(b"\1")
        connection.settimeout(0.02)
        with contextlib.suppress(TimeoutError):
            if not connection.recv(65536):
                return


def huge(connection: socket.socket) -> None:
    """Every key is there, and the first value is endless."""
    read(connection, 5)
    connection.sendall(b"\0" * 512 + struct.pack("<Q", 1 << 40))
    while True:
        connection.sendall(b"x" * 65536)


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (hang, "no answer in 1 s"),
        (lambda connection: None, "is it a TCPStore"),
        (huge, "bytes"),
        (fake_store({}), "no worker has registered"),
    ],
)
def test_a_store_that_is_none(act: Callable[[socket.socket], None], word: str) -> None:
    deadline = 1.0 if act is hang else 60.0
    with serve_one(act) as address, pytest.raises(ClusterError) as caught:
        workers_in_store(address, world_size=512, deadline=deadline)
    assert word in str(caught.value)
    assert address in str(caught.value)


def test_a_store_that_answers_byte_by_byte() -> None:
    with serve_one(drip) as address, pytest.raises(ClusterError, match="no answer in"):
        workers_in_store(address, deadline=0.5)


def test_no_store_there() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(ClusterError, match="nobody listens"):
            find(store=address)
    with pytest.raises(ClusterError, match="'nonsense' is not a target"):
        find(store="nonsense")


STORE = """
import sys
from datetime import timedelta
import torch.distributed as dist

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False,
                      use_libuv=sys.argv[1] == "libuv")
debug = dist.PrefixStore("debug_server", store)
for rank in range(1500):
    if rank != 3:
        debug.set(f"rank{rank}", f"http://node{rank // 8}:{25000 + rank % 8}")
print(store.port, store.num_keys(), flush=True)
sys.stdin.readline()
store.set("alive", "yes")
print(store.num_keys(), store.get("alive").decode(), flush=True)
"""


@pytest.mark.torch
@pytest.mark.parametrize("backend", ["libuv", "plain"])
def test_torchs_own_store(backend: str) -> None:
    """Both of its servers, and nothing in it has changed afterwards."""
    command = [sys.executable, "-c", STORE, backend]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port, keys = process.stdout.readline().split()
        found = find(store=f"127.0.0.1:{port}", deadline=60)
        some = find(store=f"127.0.0.1:{port}", world_size=5, deadline=60)
        out, err = process.communicate("\n", timeout=60)
    assert len(found) == 1500
    assert found[9] == Worker("node1:25001", False, 9, "node1", "store")
    assert found[3].address == ""
    assert [w.rank for w in some] == list(range(5))
    assert out.split() == [str(int(keys) + 1), "yes"]
    assert err == ""  # a bad request shows in the job's log


# --- nothing named ------------------------------------------------------------------------------


def test_torchrun_environment() -> None:
    entries = dict([entry(0, b"http://a:1"), entry(1, b"http://b:1")])
    with serve_one(fake_store(entries)) as address:
        host, _, port = address.rpartition(":")
        environment = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": "3"}
        found = find(environment=environment)
    assert [(w.address, w.rank, w.source) for w in found] == [
        ("a:1", 0, "torchrun"),
        ("b:1", 1, "torchrun"),
        ("", 2, "torchrun"),
    ]


def test_sockets_of_the_environment_where_the_store_knows_nobody(short_path: Path) -> None:
    make_socket(short_path / "7.s")
    with serve_one(fake_store({})) as address:
        host, _, port = address.rpartition(":")
        environment = {
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "TORCH_WORKER_SERVER_SOCKET": f"{short_path}/{{rank}}.s",
        }
        (found,) = find(environment=environment)
    assert (found.rank, found.source) == (7, "torchrun")


@contextlib.contextmanager
def older_worker(folder: Path) -> Iterator[str]:
    """A process that serves in *folder*, and removes its record."""
    code = (
        "import os, sys\n"
        "from workerserver.job import presence\n"
        "presence.keep_no_record()\n"
        "from workerserver import WorkerServer\n"
        "path = f'{sys.argv[1]}/rank1-{os.getpid()}.sock'\n"
        "with WorkerServer(path):\n"
        "    print(path, flush=True)\n"
        "    input()\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
            process.communicate("\n", timeout=60)
        finally:
            process.kill()


def test_the_folder_of_workerserver_run(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket there is a worker's if the process in its name listens on it with our threads.
    Older versions of ``workerserver run`` left no record."""
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    folder = short_path / f"workerserver-{os.geteuid()}"
    folder.mkdir(0o700)

    def there() -> list[str]:
        found = [each.worker.address for each in look_here().living]
        return [address for address in found if short_path in Path(address).parents]

    assert there() == []
    make_socket(folder / "rank1-5.sock")
    assert there() == []
    with older_worker(folder) as path:
        assert there() == [path]


def test_names_are_imported_when_asked_for() -> None:
    code = (
        "import sys, workerserver.cluster as c; c.fold; c.discover; c.Worker\n"
        "print([m for m in ('aiohttp', 'torch', 'workerserver.server') if m in sys.modules])\n"
        "c.collect; print('torch' in sys.modules or 'workerserver.server' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
