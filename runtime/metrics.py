"""What the server and its engine count, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .settings import Statistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Bounds in seconds, as other servers have them, so that their dashboards fit.
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_WHOLE = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)


class Metrics:
    """Counters of one server. `engine` tells the engine's own, and whether it is well."""

    def __init__(self, engine: Callable[[], tuple[Statistics, bool, int]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        registry = self._registry
        self.http_requests = Counter(
            "mlc_http_requests", "Responses begun.", ("method", "route", "status"), registry=registry
        )
        self.errors = Counter("mlc_errors", "Requests that failed.", ("code",), registry=registry)
        self.disconnects = Counter("mlc_disconnects", "Clients that left before the end.", registry=registry)
        self.active = Gauge("mlc_requests_active", "Requests that generate.", registry=registry)
        self.first_token = Histogram(
            "mlc_time_to_first_token_seconds",
            "From the request to its first token.",
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "mlc_inter_token_latency_seconds", "Between two tokens of a choice.", buckets=_BETWEEN, registry=registry
        )
        self.whole = Histogram(
            "mlc_e2e_request_latency_seconds", "From the request to its end.", buckets=_WHOLE, registry=registry
        )

    def render(self) -> bytes:
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, engine: Callable[[], tuple[Statistics, bool, int]]) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        told, well, flaws = self._engine()
        yield GaugeMetricFamily("mlc_engine_up", "1 if the engine runs, 0 if it is stuck or dead.", float(well))
        for name, what, gauge in (
            ("mlc_choices_running", "Choices in the current step.", told.running),
            ("mlc_choices_waiting", "Choices in the queue.", told.waiting),
            ("mlc_kv_pages", "Pages of the KV cache.", told.pages),
            ("mlc_kv_pages_used", "Pages that running choices hold.", told.pages - told.pages_free),
            ("mlc_kv_pages_cached", "Pages that only the prefix cache holds.", told.pages_cached),
            ("mlc_last_step_tokens", "Tokens of the latest step.", told.last_step_tokens),
            ("mlc_last_step_seconds", "Duration of the latest step.", told.last_step_seconds),
        ):
            yield GaugeMetricFamily(name, what, gauge)
        for name, what, total in (
            ("mlc_steps", "Steps.", told.steps),
            ("mlc_requests_accepted", "Requests that the engine took.", told.requests),
            ("mlc_requests_rejected", "Requests refused because the queue was full.", told.rejected),
            ("mlc_prompt_tokens", "Tokens of prompts, once for each choice.", told.prompt_tokens),
            ("mlc_prompt_tokens_cached", "Of those, taken from the prefix cache.", told.cached_tokens),
            ("mlc_generation_tokens", "Tokens of answers.", told.completion_tokens),
            ("mlc_computed_tokens", "Rows that the model ran.", told.computed_tokens),
            ("mlc_preemptions", "Choices that gave their pages back, to be recomputed.", told.preemptions),
            ("mlc_evictions", "Pages given up by the prefix cache.", told.evictions),
            ("mlc_step_seconds", "Time in steps.", told.step_seconds),
            ("mlc_model_seconds", "Of that, in the model.", told.model_seconds),
            ("mlc_engine_flaws", "Checks of the engine's own laws that failed.", flaws),
        ):
            yield CounterMetricFamily(name, what, total)
        finished = CounterMetricFamily("mlc_choices_finished", "Choices, by why they ended.", labels=("reason",))
        for reason, total in told.finished.items():
            finished.add_metric((reason,), total)
        yield finished
