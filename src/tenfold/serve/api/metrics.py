"""Prometheus metrics under vLLM's names, so that dashboards for vLLM work."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = tuple(2**i for i in range(18))
# Counters by their names in `Engine.stats`.
_COUNTED = {
    "preemptions": ("num_preemptions", "Sequences that lost their blocks and started again."),
    "prefix_queries": ("prefix_cache_queries", "Prompt tokens looked for in the prefix cache."),
    "prefix_hits": ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    "drafted": ("spec_decode_num_draft_tokens", "Tokens guessed."),
    "accepted": ("spec_decode_num_accepted_tokens", "Guesses that were right."),
}


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seen: dict[tuple[str, str], float] = {}
        self.running = self._gauge("num_requests_running", "Sequences being computed.")
        self.waiting = self._gauge("num_requests_waiting", "Sequences that wait.")
        self.usage = self._gauge("kv_cache_usage_perc", "Share of the cache's blocks in use, 0 to 1.")
        self.counters = {key: self._counter(name, text) for key, (name, text) in _COUNTED.items()}
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of finished requests.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens written.")
        self.success = self._counter("request_success", "Finished requests.", "finished_reason")
        self.rejections = self._counter("admission_rejections", "Requests refused because the queue was full.")
        self.first = self._histogram("time_to_first_token_seconds", "From request to first token.", _SECONDS)
        self.between = self._histogram("inter_token_latency_seconds", "From token to token.", _SECONDS)
        self.whole = self._histogram("e2e_request_latency_seconds", "From request to last token.", _SECONDS)
        self.prompt_length = self._histogram("request_prompt_tokens", "Prompt tokens a request.", _TOKENS)
        self.output_length = self._histogram("request_generation_tokens", "Tokens written a request.", _TOKENS)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"vllm:{name}", text, ["model_name"], registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vllm:{name}", text, ["model_name", *labels], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", text, ["model_name"], buckets=buckets, registry=self.registry)

    def token(self, model: str, began: float, last: float, now: float) -> None:
        """Observe that tokens of a request came at `now` (seconds of time.monotonic).

        They are its first if `last` is 0; otherwise `last` is when the tokens before them came. The request began at `began`.
        """
        (self.between if last else self.first).labels(model).observe(now - (last or began))

    def end(self, model: str, seconds: float, prompt_tokens: int, written: int) -> None:
        """Observe that a request has ended: answered, failed or cancelled."""
        self.whole.labels(model).observe(seconds)
        self.prompt_tokens.labels(model).inc(prompt_tokens)
        self.generation_tokens.labels(model).inc(written)
        self.prompt_length.labels(model).observe(prompt_tokens)
        self.output_length.labels(model).observe(written)

    def update(self, model: str, stats: dict[str, float]) -> None:
        """Take over the latest `Engine.stats` of a model."""
        if not stats:
            return
        self.running.labels(model).set(stats["running"])
        self.waiting.labels(model).set(stats["waiting"])
        self.usage.labels(model).set(1 - stats["free_blocks"] / stats["blocks"])
        for key, counter in self.counters.items():
            before = self._seen.get((model, key), 0)
            now = stats[key]
            counter.labels(model).inc(now - before if now >= before else now)  # a new engine counts from 0
            self._seen[model, key] = now

    def gone(self, model: str) -> None:
        """Set the gauges of a model that has been unloaded to 0."""
        for gauge in (self.running, self.waiting, self.usage):
            gauge.labels(model).set(0)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
