"""Figures for Prometheus. Knows nothing of HTTP."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stillroom.serve.answers import Answerer
from stillroom.serve.pool import Pool
from stillroom.switch.state import Switch


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self, pool: Pool, answerer: Answerer, switch: Switch) -> None:
        self.registry = CollectorRegistry()
        where = {"registry": self.registry}
        self.requests = Counter("stillroom_requests", "Requests", ["path", "status"], **where)
        self.first_event = Histogram("stillroom_first_event_seconds", "Time to a stream's first event", **where)
        tokens = {
            kind: Gauge(f"stillroom_{kind}_tokens_total", f"Tokens of {kind}s", **where)
            for kind in ("prompt", "completion")
        }
        for kind, gauge in tokens.items():
            gauge.set_function(lambda kind=kind: answerer.tokens[kind])
        Gauge("stillroom_switch_on", "1 while the switch is on", **where).set_function(lambda: float(switch.is_on()))
        gauges = {
            "busy": "Requests being answered",
            "waiting": "Requests in the queue",
            "restarts": "Times that a dead engine was started again",
        }
        for name, about in gauges.items():
            gauge = Gauge(f"stillroom_{name}", about, ["model"], **where)
            for model in pool.models.values():
                gauge.labels(model.name).set_function(lambda model=model, name=name: float(getattr(model, name)))
        resident = Gauge("stillroom_engine_bytes", "Resident memory of the engine", ["model"], **where)
        for model in pool.models.values():
            resident.labels(model.name).set_function(lambda model=model: float(model.bytes if model.engine else 0))

    def text(self) -> str:
        """All figures, in Prometheus' own form."""
        return generate_latest(self.registry).decode()
