"""Prometheus metrics of a front. Counters cover the whole front; gauges have a label for each present replica."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tenfold.fleet.front.replicas import Replica

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class FrontMetrics:
    """The metrics of one front, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter("tenfold_front_answers", "Answers that began, by status.", ["status"], registry=self.registry)
        self.resent = Counter(
            "tenfold_front_resent", "Times that a request was sent again, to another replica.", registry=self.registry
        )
        self.cut = Counter("tenfold_front_cut", "Answers that broke off after they began.", registry=self.registry)
        self.gone = Counter("tenfold_front_gone", "Requests whose clients disconnected before the end.", registry=self.registry)
        self.first = Histogram(
            "tenfold_front_time_to_first_byte_seconds",
            "Seconds from a request to the first byte of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.running = Gauge("tenfold_front_running", "Requests under way at a replica.", ["replica"], registry=self.registry)
        self.up = Gauge("tenfold_front_replica_up", "Whether requests may go to a replica.", ["replica"], registry=self.registry)

    def answered(self, status: int, seconds: float, tries: int) -> None:
        """Count an answer that began after `seconds` and `tries`."""
        self.answers.labels(str(status)).inc()
        self.first.observe(seconds)
        self.resent.inc(tries - 1)

    def text(self, replicas: list[Replica]) -> bytes:
        self.running.clear()
        self.up.clear()
        for replica in replicas:
            self.running.labels(replica.url).set(replica.running)
            self.up.labels(replica.url).set(replica.is_well)
        return generate_latest(self.registry)
