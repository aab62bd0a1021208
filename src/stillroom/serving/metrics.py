"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stillroom.serving.answers import Answerer
from stillroom.serving.pool import Pool, ServedModel
from stillroom.switch.state import Switch

_OF_MODELS: dict[str, tuple[str, Callable[[ServedModel], float]]] = {
    "busy": ("Requests being answered", lambda model: model.busy),
    "waiting": ("Requests in the queue", lambda model: model.waiting),
    "restarts": ("Times that a dead engine was started again", lambda model: model.restarts),
    "engine_bytes": ("Resident memory of the engine", lambda model: model.bytes if model.engine else 0),
}

_OF_TOKENS = {"drafted": "Tokens that a drafter drafted", "accepted": "Drafted tokens that the model accepted"}


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self, pool: Pool, answerer: Answerer, switch: Switch) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("stillroom_requests", "Requests", ["path", "status"], registry=self.registry)
        self.first_event = Histogram(
            "stillroom_first_event_seconds", "Time to a stream's first event", registry=self.registry
        )
        for kind in answerer.tokens:
            about = _OF_TOKENS.get(kind, f"Tokens of {kind}s")
            self._gauge(f"{kind}_tokens_total", about).set_function(_counted(answerer, kind))
        self._gauge("switch_on", "1 while the switch is on").set_function(lambda: float(switch.is_on()))
        for name, (about, figure) in _OF_MODELS.items():
            gauge = self._gauge(name, about, ["model"])
            for model in pool.models.values():
                gauge.labels(model.name).set_function(_of_model(figure, model))

    def text(self) -> str:
        """All figures, in Prometheus' own form."""
        return generate_latest(self.registry).decode()

    def _gauge(self, name: str, about: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(f"stillroom_{name}", about, labels or [], registry=self.registry)


def _counted(answerer: Answerer, kind: str) -> Callable[[], float]:
    return lambda: float(answerer.tokens[kind])


def _of_model(figure: Callable[[ServedModel], float], model: ServedModel) -> Callable[[], float]:
    return lambda: float(figure(model))
