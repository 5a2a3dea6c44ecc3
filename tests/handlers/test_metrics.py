"""GET /metrics: every family, read at scrape time, in a registry of our own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from support.served import Connect, Serve
from support.wire import message

from workerserver import Limits
from workerserver.handlers.metrics import metrics_response
from workerserver.http.limits import Budget
from workerserver.http.registry import Registry
from workerserver.process import _pulse
from workerserver.process.sockets import Figures

prometheus_client = pytest.importorskip("prometheus_client")
parser = pytest.importorskip("prometheus_client.parser")


@dataclass
class State:
    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    connections: int = 0
    uptime_s: float = 0.0
    registry: Registry = field(default_factory=Registry)
    standby_threads: int | None = None
    budgets: list[Budget] = field(default_factory=list)
    places: Figures = field(default_factory=lambda: Figures(0, 0, 0, 0))


@pytest.fixture
def state() -> Iterator[State]:
    _pulse.reset()
    yield State()
    _pulse.reset()


def scrape(state: State) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """``{(sample name, labels): value}`` as prometheus_client's own parser reads it."""
    response = metrics_response(state)
    assert response.status == 200
    assert response.content_type.startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(response.body.decode())
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_counts_and_gauges(state: State) -> None:
    state.requests = {("ping", 200): 3, ("ping", 503): 1, ('a"\\\n', 404): 2}
    state.connections = 5
    state.uptime_s = 1.5
    samples = scrape(state)
    assert samples[key("workerserver_requests_total", handler="ping", status="200")] == 3
    assert samples[key("workerserver_requests_total", handler="ping", status="503")] == 1
    assert samples[key("workerserver_requests_total", handler='a"\\\n', status="404")] == 2
    assert samples[key("workerserver_connections")] == 5
    assert samples[key("workerserver_uptime_seconds")] == 1.5


def test_values_are_read_at_scrape_time(state: State) -> None:
    assert scrape(state)[key("workerserver_connections")] == 0
    state.connections = 7
    assert scrape(state)[key("workerserver_connections")] == 7


def test_running_handlers(state: State) -> None:
    state.registry.register("slow", lambda: None)
    assert state.registry.find("slow").acquire()
    assert scrape(state)[key("workerserver_handler_running", handler="slow")] == 1
    state.registry.find("slow").release()
    assert scrape(state)[key("workerserver_handler_running", handler="slow")] == 0


def test_heartbeat_only_once_there_was_one(state: State) -> None:
    assert not [name for name, _ in scrape(state) if "heartbeat" in name]
    _pulse.heartbeat(42)
    samples = scrape(state)
    assert samples[key("workerserver_heartbeat_step")] == 42
    assert samples[key("workerserver_heartbeat_age_seconds")] >= 0


def test_gil_watch_only_while_it_runs(state: State) -> None:
    assert not [name for name, _ in scrape(state) if "gil" in name]
    _pulse.watch_switch(True)
    assert scrape(state)[key("workerserver_gil_unavailable_seconds")] == 0
    for waited in (250_000_000, 125_000_000):
        _pulse.watch_asked(1_000_000_000)
        _pulse.watch_answered(1_000_000_000 + waited)
    _pulse.watch_asked(1)  # since the boot
    samples = scrape(state)
    assert samples[key("workerserver_gil_wait_seconds")] == 0.125
    assert samples[key("workerserver_gil_wait_max_seconds")] == 0.25
    assert samples[key("workerserver_gil_unavailable_seconds")] > 1
    _pulse.watch_switch(False)
    samples = scrape(state)
    assert key("workerserver_gil_unavailable_seconds") not in samples
    assert samples[key("workerserver_gil_wait_seconds")] == 0.125


def test_global_registry_is_left_alone(state: State) -> None:
    scrape(state)
    assert b"workerserver" not in prometheus_client.generate_latest(prometheus_client.REGISTRY)


def test_without_prometheus_client_501_names_the_extra() -> None:
    code = (
        "import sys\n"
        "sys.modules['prometheus_client'] = None\n"  # its import fails, as if not installed
        "from workerserver.handlers.metrics import metrics_response\n"
        "from workerserver.types import NotImplementedHere\n"
        "try:\n"
        "    metrics_response(None)\n"
        "except NotImplementedHere as error:\n"
        "    print(error.status, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("501 ")
    assert "workerserver[metrics]" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="torch's server is kept on Linux only")
def test_threads_of_torchs_server_are_counted_apart(state: State) -> None:
    from workerserver.native import publication, torch_standby

    assert key("workerserver_torch_fallback_threads") not in scrape(state)
    assert not torch_standby.fallback.running
    state.standby_threads = publication.standby_threads()
    assert scrape(state)[key("workerserver_torch_fallback_threads")] == 0


def test_every_budget_is_a_figure(serve: Serve, connect: Connect) -> None:
    """What is used now, and what may be, for each resource that is bounded."""
    served = serve("tcp", limits=Limits(max_unproven=7, max_peer=9), token="secret")
    silent = [connect(served.address) for _ in range(3)]
    reply = silent[0].ask(message("GET", "/metrics", headers=[("Authorization", "Bearer secret")]))
    samples = {
        (sample.name, sample.labels.get("budget")): sample.value
        for family in parser.text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    limits = Limits()
    for name, limit in {
        "connections_without_token": 7,
        "connections_of_one_address": 9,
        "request_bytes": limits.max_bodies,
        "unsent_bytes": 128 << 20,
        "handler_threads": 64,
        "gil_share": 0.1,
        "snapshots": 100,
    }.items():
        assert samples[("workerserver_budget_limit", name)] == limit, name
        assert ("workerserver_budget_used", name) in samples
    assert samples[("workerserver_budget_limit", "descriptors")] > 0
    assert samples[("workerserver_budget_used", "connections")] == 3
    assert samples[("workerserver_budget_used", "connections_without_token")] == 2
    assert samples[("workerserver_budget_used", "connections_of_one_address")] == 3
    assert samples[("workerserver_budget_used", "handler_threads")] == 1
