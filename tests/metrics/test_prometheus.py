"""Debian's Prometheus reads the metrics of a real job. Its rules, and the dashboard, hold."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS, ROOT, environment
from support.torchrun import training
from support.waiting import wait_until

CONTRIB = ROOT / "contrib" / "prometheus"
HERE = Path(__file__).parent
OF_A_HISTOGRAM = re.compile(r"_(?:bucket|count|sum)\Z")

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian's package prometheus)"
)
prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs prometheus (Debian's package prometheus)"
)


def check(*words: str, cwd: Path = CONTRIB) -> str:
    done = subprocess.run(
        ["promtool", *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@promtool
def test_rules_and_config_are_right(tmp_path: Path) -> None:
    assert "SUCCESS: 9 rules found" in check("check", "rules", "alerts.yml")
    check("check", "config", "--syntax-only", "prometheus.yml")


@promtool
def test_each_alert_fires_for_its_fault_alone(tmp_path: Path) -> None:
    for source in (CONTRIB / "alerts.yml", HERE / "alerts_test.yml"):
        shutil.copy(source, tmp_path)
    check("test", "rules", "alerts_test.yml", cwd=tmp_path)
    alerts = re.findall(r"- alert: (\w+)", (CONTRIB / "alerts.yml").read_text())
    tested = (HERE / "alerts_test.yml").read_text()
    assert all(f"alertname: {alert}\n" in tested for alert in alerts)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **parameters: str) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", f"{path}?{urllib.parse.urlencode(parameters)}")
            return json.loads(connection.getresponse().read())["data"]

    def ask(self, query: str) -> dict[str, float]:
        """``{label "rank", or else the instance: value}``."""
        return {
            each["metric"].get("rank", each["metric"].get("instance", "")): float(each["value"][1])
            for each in self.get("/api/v1/query", query=query)["result"]
        }

    def health_of_rules(self) -> list[str]:
        groups = self.get("/api/v1/rules")["groups"]
        return [str(rule["health"]) for group in groups for rule in group["rules"]]

    def names(self) -> set[str]:
        return set(self.get("/api/v1/label/__name__/values"))


def listening(pid: int) -> int | None:
    """The TCP port on which process *pid* listens; None if there is none yet."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and words[9] in inodes:
            return int(words[1].rpartition(":")[2], 16)
    return None


@contextlib.contextmanager
def scraping(folder: Path, ports: list[int]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes *ports* each second, with the rules of contrib/."""
    shutil.copy(CONTRIB / "alerts.yml", folder)
    targets = ", ".join(f"'127.0.0.1:{port}'" for port in ports)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        "rule_files: [alerts.yml]\n"
        "scrape_configs:\n"
        f"  - {{job_name: workerserver, static_configs: [{{targets: [{targets}]}}]}}\n"
    )
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        found: list[int] = []

        def ready() -> bool:
            assert process.poll() is None, "prometheus has ended"
            port = listening(process.pid)
            if port is None:
                return False
            found.append(port)
            with contextlib.suppress(OSError, HTTPException, ValueError, KeyError):
                return bool(Prometheus(port).get("/api/v1/status/runtimeinfo"))
            return False

        wait_until(ready, 120)
        yield Prometheus(found[-1])
    except BaseException:
        print(log.read_text(errors="replace"))
        raise
    finally:
        process.kill()
        process.wait()


def mentioned(text: str) -> set[str]:
    """Of metrics that a worker has. A collector has the watchdogs'
    (tests/blackbox/watchdog/test_beside_collector.py)."""
    names = set(re.findall(r"\b(?:workerserver|process)_[a-z_]+\b", text)) - {"workerserver_"}
    return {name for name in names if not name.startswith("workerserver_watchdog_")}


@prometheus
@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_real_job_is_scraped(tmp_path: Path) -> None:
    """Two ranks under torchrun. Then one holds the GIL, and is scraped all the same."""
    pytest.importorskip("torch")
    words = [str(PROGRAMS / "metrics/trains.py"), str(tmp_path)]
    settings = environment(WORKERSERVER_JOB="digits", OMP_NUM_THREADS="1")
    with training(words, settings, tmp_path, 2) as _:
        ports = [int((tmp_path / f"begun{rank}").read_text()) for rank in range(2)]
        with scraping(tmp_path, ports) as server:
            info = 'workerserver_info{exported_job="digits", world_size="2"}'
            by_rank = f"* on (instance) group_left (rank) {info}"
            wait_until(lambda: server.ask(info) == {"0": 1.0, "1": 1.0}, 120)
            wait_until(
                lambda: len(server.ask(f"workerserver_collectives_issued_total {by_rank}")) == 2, 60
            )
            assert server.ask("up") == {f"127.0.0.1:{port}": 1.0 for port in ports}
            wait_until(
                lambda: (
                    min(
                        server.ask("rate(workerserver_step_duration_seconds_count[10s])").values(),
                        default=0,
                    )
                    > 0
                ),
                120,
            )

            wait_until(
                lambda: "workerserver_gil_wait_duration_seconds_bucket" in server.names(), 60
            )
            known = server.names()
            asked = mentioned((CONTRIB / "alerts.yml").read_text())
            asked |= mentioned((CONTRIB / "grafana-dashboard.json").read_text())
            assert asked
            assert not asked - known
            wait_until(lambda: server.health_of_rules() == ["ok"] * 9, 120)
            for panel in json.loads((CONTRIB / "grafana-dashboard.json").read_text())["panels"]:
                for target in panel["targets"]:
                    query = target["expr"].replace("$training", ".+")
                    server.get("/api/v1/query", query=query)  # KeyError if it is no query

            (tmp_path / "hold").touch()
            held = f"workerserver_gil_unavailable_seconds {by_rank}"
            wait_until(lambda: server.ask(held).get("1", 0) > 3, 120)
            assert server.ask("up") == {f"127.0.0.1:{port}": 1.0 for port in ports}
            steps = server.ask(f"workerserver_heartbeat_step {by_rank}")
            assert abs(steps["0"] - steps["1"]) <= 1
            under_way = (
                "(workerserver_collectives_issued_total - workerserver_collectives_retired_total) "
                + by_rank
            )
            wait_until(lambda: server.ask(under_way).get("0") == 1.0, 120)
