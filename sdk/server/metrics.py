"""What the server counts, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stackloom.engine.engine import Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One server's counters.

    Args:
        engine: whose load is told.
    """

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "stackloom_requests", "Answers by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "stackloom_request_seconds",
            "Seconds until an answer is whole.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_seconds = Histogram(
            "stackloom_first_piece_seconds", "Seconds to a stream's first text.", buckets=SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("stackloom_prompt_tokens", "Tokens read.", registry=registry)
        self.generated_tokens = Counter("stackloom_generated_tokens", "Tokens generated.", registry=registry)
        self.cancelled = Counter("stackloom_cancelled_requests", "Requests that the client left.", registry=registry)
        for name, what, read in (
            ("stackloom_running_sequences", "Sequences being computed.", lambda: engine.running),
            ("stackloom_used_pages", "Pages of keys and values in use.", lambda: engine.pages[0]),
            ("stackloom_kept_pages", "Pages kept for prompts that begin alike.", lambda: engine.pages[1]),
            ("stackloom_pages", "Pages that there are.", lambda: engine.pages[2]),
            ("stackloom_preempted_sequences", "Sequences that gave their memory back.", lambda: engine.preempted),
            ("stackloom_weights_version", "How often weights were read anew.", lambda: engine.version),
            ("stackloom_waiting_sequences", "Sequences that wait for a row.", lambda: engine.waiting),
        ):
            Gauge(name, what, registry=registry).set_function(read)

    def text(self) -> bytes:
        """Return all of them, in the text format."""
        return generate_latest(self._registry)
