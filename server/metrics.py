"""Prometheus metrics, named as in vLLM, so that its dashboards and gateways read them. Labels are bounded."""

import asyncio
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headway.engine.client import EngineClient
from headway.engine.messages import PrefillUsage, SelectionUsage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TOKEN_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
# A long prompt on a small machine takes an hour.
_PROMPT_BUCKETS = (*_TOKEN_BUCKETS, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0, 5120.0, 10240.0)


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self, engine: EngineClient, model: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineMetrics(engine, model))
        self.first_token = self._histogram("vllm:time_to_first_token_seconds", _PROMPT_BUCKETS, model)
        self.next_token = self._histogram("vllm:inter_token_latency_seconds", _TOKEN_BUCKETS, model)
        self.whole = self._histogram("vllm:e2e_request_latency_seconds", _PROMPT_BUCKETS, model)
        self._finished = Counter(
            "vllm:request_success",
            "Ended requests by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._http = Counter(
            "headway:http_requests", "HTTP answers.", ["route", "status"], registry=self.registry
        )
        self._selection = {
            name: Counter(f"headway:{name}", text, ["model_name", "method"], registry=self.registry)
            for name, text in (
                ("selection_steps", "Tokens decoded by a method that selects, of ended requests."),
                ("attended_tokens", "KV tokens that they read, averaged over layers."),
                ("context_tokens", "KV tokens that dense attention would have read for them."),
                ("selection_refreshes", "Lists renewed, summed over layers."),
                ("sparse_prefill_tokens", "Prompt tokens read by a method that selects, of ended requests."),
                ("sparse_prefill_density_tokens", "The same, each by the share of the keys that it read."),
            )
        }
        self._model = model

    def _histogram(self, name: str, buckets: tuple[float, ...], model: str) -> Histogram:
        family = Histogram(
            name, name.partition(":")[2], ["model_name"], registry=self.registry, buckets=buckets
        )
        return family.labels(model)

    def finished(self, reason: str) -> None:
        """Count an ended request; `reason` is stop, length, abort or error."""
        self._finished.labels(self._model, reason).inc()

    def selected(self, usage: SelectionUsage) -> None:
        """Count what decode selection did for an ended request."""
        self._count(
            usage.method,
            selection_steps=usage.steps,
            attended_tokens=usage.attended,
            context_tokens=usage.context,
            selection_refreshes=usage.refreshes,
        )

    def prefilled(self, usage: PrefillUsage) -> None:
        """Count what prefill selection did for an ended request."""
        self._count(
            usage.method,
            sparse_prefill_tokens=usage.tokens,
            sparse_prefill_density_tokens=usage.tokens * usage.density,
        )

    def _count(self, method: str, **values: float) -> None:
        for name, value in values.items():
            self._selection[name].labels(self._model, method).inc(value)

    def answered(self, route: str, status: int) -> None:
        """Count an HTTP answer; `route` is a route's template, never a client's path."""
        self._http.labels(route, str(status)).inc()

    def expose(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class RequestTimer:
    """Times one sequence: a context around it, `token()` for each token, `reason` set before its end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = self._last = time.monotonic()
        self._tokens = 0
        self.reason: str | None = None

    def token(self) -> None:
        """A token has come."""
        now = time.monotonic()
        histogram = self._metrics.next_token if self._tokens else self._metrics.first_token
        histogram.observe(now - self._last)
        self._last = now
        self._tokens += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = kind is not None and issubclass(kind, GeneratorExit | asyncio.CancelledError)
        reason = self.reason or ("abort" if left else "error")
        self._metrics.finished(reason)
        if self.reason:
            self._metrics.whole.observe(time.monotonic() - self._start)


class CountAnswers:
    """ASGI middleware that counts answers by route and status; unknown paths share one label."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.answered(route, message["status"])
            await send(message)

        await self.app(scope, receive, counting if scope["type"] == "http" else send)


class _EngineMetrics(Collector):
    """The engine's own counters and gauges, read when Prometheus asks."""

    def __init__(self, engine: EngineClient, model: str) -> None:
        self._engine = engine
        self._model = model

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        info = self._engine.info
        for name, text, value in (
            ("vllm:num_requests_running", "Requests that hold pages.", stats.running),
            ("vllm:num_requests_waiting", "Requests in the queue.", stats.waiting),
            (
                "vllm:kv_cache_usage_perc",
                "Share of pages in use, 0…1.",
                stats.pages_used / max(1, stats.pages_total),
            ),
            ("headway:waiting_prompt_tokens", "Prompt tokens in the queue.", stats.waiting_tokens),
            ("headway:cached_pages", "Pages kept for reuse.", stats.pages_cached),
            ("headway:last_step_seconds", "Duration of the newest step.", stats.last_step_seconds),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        streaming = GaugeMetricFamily(
            "headway:streaming_pages",
            "Pages of heads that stream, where these have their own.",
            labels=["model_name", "state"],
        )
        for state, pages in (
            ("free", stats.streaming_pages_free),
            ("cached", stats.streaming_pages_cached),
            ("used", stats.streaming_pages_used),
        ):
            streaming.add_metric([self._model, state], pages)
        yield streaming
        for name, text, value in (
            ("vllm:prompt_tokens", "Prompt tokens.", stats.prompt_tokens_total),
            ("vllm:generation_tokens", "Generated tokens.", stats.generated_tokens_total),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prompt_tokens_total),
            ("vllm:prefix_cache_hits", "Prompt tokens found.", stats.cached_tokens_total),
            ("vllm:num_preemptions", "Requests put back for want of pages.", stats.preemptions_total),
            ("headway:engine_steps", "Steps of the engine.", stats.steps_total),
            ("headway:request_failures", "Requests that failed in the engine.", stats.failures_total),
        ):
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "Sizes of the cache.", labels=["block_size", "num_gpu_blocks"]
        )
        cache.add_metric([str(info.page_size), str(info.num_pages)], 1)
        yield cache
