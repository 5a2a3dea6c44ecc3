"""Names in front: nginx with TLS before workers, by the recipes of docs/howto/tls.md, apart from
ports and files. The client finds the names in a hosts file of its own."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority
from support.jobs.machine import Said, until
from support.jobs.scenes import needs_machine
from support.lifecycle import PROGRAMS, ROOT, environment, free_port
from support.requests.nginx import missing, serving
from support.served import Serve
from support.torchrun import end
from support.waiting import wait_until

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

NAME, OTHER = "train.example.com", "other.example.com"
PROGRAM = PROGRAMS / "http/named_rank.py"
LINE = PROGRAM.read_text().splitlines().index("    with LOCK:") + 1
TOKEN = "of-this-job"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the recipes call the authority's certificate, and a key with its certificate."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    key, certificate = authority.issue("worker", f"DNS:{NAME}", f"DNS:{OTHER}")
    return {
        "/etc/job/ca.pem": authority.certificate,
        "/etc/job/cert.pem": certificate,
        "/etc/job/key.pem": key,
    }


def recipe(title: str) -> str:
    """The server of nginx below a heading of the page."""
    page = (ROOT / "docs/howto/tls.md").read_text()
    match = re.search(rf"^## {title}\n.*?^```nginx\n(.*?)^```$", page, re.M | re.S)
    assert match is not None
    return match[1]


def with_changes(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.mark.curl
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_rank_below_a_path(tmp_path: Path, serve: Serve, files: dict[str, str]) -> None:
    """TLS ends at nginx, which passes the token on."""
    worker = serve("tcp", token=TOKEN)
    port = free_port()
    changes = {"8443": str(port), "2500$local": "$upstream", **files}
    del changes["/etc/job/ca.pem"]
    server = with_changes(recipe("nginx in front"), changes)
    ranks = f"map $local $upstream {{ 2 {worker.address[1]}; }}\n"
    curl = ["curl", "--silent", "--cacert", files["/etc/job/ca.pem"]]
    curl += ["--resolve", f"{NAME}:{port}:127.0.0.1", "--write-out", "\n%{http_code}"]
    where = f"https://{NAME}:{port}/rank2"
    with serving(tmp_path, ranks + server, port):
        for words, status, body in (
            (["-H", f"Authorization: Bearer {TOKEN}", f"{where}/healthz"], "200", '"status":"ok"'),
            (["-H", f"Authorization: Bearer {TOKEN}", "-X", "POST", f"{where}/handler/ping"],
             "200", "pong"),
            ([f"{where}/healthz"], "401", "bearer token"),
        ):  # fmt: skip
            done = subprocess.run([*curl, *words], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            said, _, found = done.stdout.rpartition("\n")
            assert found == status, done.stdout
            assert body in said


@contextlib.contextmanager
def ranks(folder: Path, files: dict[str, str]) -> Iterator[list[str]]:
    """Two ranks that speak TLS, and answer to one name; gives their ports."""
    logs = [folder / f"rank{rank}" for rank in range(2)]
    with contextlib.ExitStack() as stack:
        for rank, log in enumerate(logs):
            settings = environment(
                WORKERSERVER_TCP="127.0.0.1:0",
                WORKERSERVER_TOKEN=TOKEN,
                WORKERSERVER_TLS_CERT=files["/etc/job/cert.pem"],
                WORKERSERVER_TLS_KEY=files["/etc/job/key.pem"],
                WORKERSERVER_HOSTS=NAME,
                WORKERSERVER_JOB="named",
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                HANG="1",
            )
            output = stack.enter_context(log.open("wb"))
            process = subprocess.Popen([sys.executable, PROGRAM], env=settings, stdout=output)
            stack.callback(end, process)
        wait_until(lambda: all(log.read_bytes().endswith(b"\n") for log in logs), 60)
        yield [log.read_text().strip() for log in logs]


def asker(folder: Path, files: dict[str, str]) -> Any:
    """Runs a command where both names are this machine's, in a mount namespace of its own."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {NAME} {OTHER}\n")
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    shell = ["unshare", "--mount", "sh", "-c", script, str(hosts)]
    if subprocess.run([*shell, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespaces here")

    def run(*words: str) -> Said:
        command = [sys.executable, "-m", "workerserver", *words]
        command += ["--cacert", files["/etc/job/ca.pem"]]
        settings = environment(WORKERSERVER_TOKEN=TOKEN, NO_PROXY="*")
        done = subprocess.run(
            [*shell, *command], env=settings, capture_output=True, text=True, check=False
        )
        said: object = done.stdout
        if "--json" in words and done.stdout:
            said = json.loads(done.stdout)
        return {"status": done.returncode, "said": said, "error": done.stderr}

    return run


@needs_machine
@pytest.mark.skipif(sys.version_info < (3, 11), reason="CPython 3.10 tells no holder of a lock")
@pytest.mark.timeout(400)
def test_a_job_by_name(tmp_path: Path, files: dict[str, str]) -> None:
    """TLS to nginx and from nginx: the verdict is the one that a worker's own port gives."""
    ask = asker(tmp_path, files)
    with ranks(tmp_path, files) as upstream:
        ports = [str(free_port()) for _ in upstream]
        title = "A name for each worker, and TLS on both sides"
        servers = [
            with_changes(recipe(title), {"25443": port, "25000": own, **files}).replace(
                f"server_name {NAME};", f"server_name {NAME} {OTHER};"
            )
            for port, own in zip(ports, upstream, strict=True)
        ]
        with serving(tmp_path, "\n".join(servers), int(ports[0])):
            for name in (ports, upstream):
                urls = [f"https://{NAME}:{port}" for port in name]
                said = until(1, "diagnose", "--json", *urls, run=ask)
                assert said["status"] == 1, said
                fields = said["said"]
                assert (fields["ranks"], fields["responded"]) == (2, 2), said
                (suspect,) = fields["suspects"]
                assert (suspect["rank"], suspect["address"]) == (
                    1,
                    urls[1].removeprefix("https://"),
                ), said
                assert suspect["location"].endswith(f"named_rank.py:{LINE} load_shard"), said
            # A name that nginx and the certificate know, and the worker does not.
            refused = ask("diagnose", f"https://{OTHER}:{ports[0]}")
            assert refused["status"] == 2, refused
            assert "WORKERSERVER_HOSTS" in refused["said"] + refused["error"], refused
            # The worker knows the name, and the certificate does not.
            unknown = ask("ls", f"https://localhost:{ports[0]}")
            assert unknown["status"] == 2, unknown
            assert "certificate not accepted" in unknown["said"] + unknown["error"], unknown
