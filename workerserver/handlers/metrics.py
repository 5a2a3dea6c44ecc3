"""``GET /metrics``: what the server counts, as Prometheus text. Needs ``prometheus_client``.

Every value is read at the scrape, so a request pays nothing for being counted. Each scrape makes a
registry of its own, because the process's global registry belongs to the training script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from workerserver.http.limits import Budget
from workerserver.http.registry import Registry
from workerserver.process._pulse import gil_watch, last_heartbeat, step_median
from workerserver.process.sockets import Figures
from workerserver.types import HandlerNotFound, NotImplementedHere, Response

__all__ = ["MetricsState", "metrics_response"]


class MetricsState(Protocol):
    """What the metrics read of a server, from any thread."""

    @property
    def requests(self) -> Mapping[tuple[str, int], int]:
        """Requests answered, by handler name and status."""

    @property
    def connections(self) -> int:
        """Connections open now."""

    @property
    def uptime_s(self) -> float:
        """Seconds since the server started."""

    @property
    def budgets(self) -> Sequence[Budget]:
        """What is used of each resource that is bounded."""

    @property
    def places(self) -> Figures:
        """How many connections had to go, or got no place."""

    @property
    def registry(self) -> Registry:
        """The handlers that it serves."""

    @property
    def standby_threads(self) -> int | None:
        """Threads of torch's own server, which stands by; None where there can be none."""


def metrics_response(state: MetricsState) -> Response:
    """The metrics of *state*; NotImplementedHere without ``prometheus_client``."""
    try:
        import prometheus_client
    except ImportError:
        raise NotImplementedHere(
            "metrics need prometheus_client: pip install 'workerserver[metrics]'"
        ) from None
    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(_Collector(state))
    return Response(
        prometheus_client.generate_latest(registry),
        content_type=prometheus_client.CONTENT_TYPE_LATEST,
    )


class _Collector:
    def __init__(self, state: MetricsState) -> None:
        self._state = state

    def describe(self) -> Iterable[Any]:
        """Nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        state = self._state
        requests = CounterMetricFamily(
            "workerserver_requests", "Requests answered.", labels=("handler", "status")
        )
        # dict() of a dict is one step under the GIL, so the loop may go on counting.
        for (handler, status), count in sorted(dict(state.requests).items()):
            requests.add_metric((handler, str(status)), count)
        yield requests

        yield GaugeMetricFamily(
            "workerserver_connections", "Connections open now.", value=state.connections
        )
        yield GaugeMetricFamily(
            "workerserver_uptime_seconds", "Seconds since the start.", value=state.uptime_s
        )

        used = GaugeMetricFamily(
            "workerserver_budget_used", "Used of a bounded resource now.", labels=("budget",)
        )
        limit = GaugeMetricFamily(
            "workerserver_budget_limit", "How much of it may be used.", labels=("budget",)
        )
        for budget in state.budgets:
            used.add_metric((budget.name,), budget.used)
            limit.add_metric((budget.name,), budget.limit)
        yield used
        yield limit
        gone = CounterMetricFamily(
            "workerserver_places", "Connections that had to go, or got no place.", labels=("what",)
        )
        gone.add_metric(("closed_for_another",), state.places.evicted)
        gone.add_metric(("refused",), state.places.refused)
        yield gone

        step, age = last_heartbeat()
        if step is not None and age is not None:
            yield GaugeMetricFamily(
                "workerserver_heartbeat_step", "Last step of the training loop.", value=step
            )
            yield GaugeMetricFamily(
                "workerserver_heartbeat_age_seconds", "Seconds since that step.", value=age
            )

        usual = step_median()
        if usual is not None:
            yield GaugeMetricFamily(
                "workerserver_step_median_seconds", "Median time of the last steps.", value=usual
            )

        last, longest, unavailable = gil_watch()
        for name, text, value in (
            ("wait", "How long the server last waited for the GIL.", last),
            ("wait_max", "The server's longest wait for the GIL.", longest),
            (
                "unavailable",
                "How long the server has been waiting for the GIL; 0 when it isn't.",
                unavailable,
            ),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"workerserver_gil_{name}_seconds", text, value=value)

        if state.standby_threads is not None:
            yield GaugeMetricFamily(
                "workerserver_torch_fallback_threads",
                "Threads of torch's own server, which answers while the GIL is held.",
                value=state.standby_threads,
            )

        running = GaugeMetricFamily(
            "workerserver_handler_running", "Requests inside a handler now.", labels=("handler",)
        )
        for name in state.registry.names():
            try:
                running.add_metric((name,), state.registry.find(name).running)
            except HandlerNotFound:
                continue  # unregistered since
        yield running
