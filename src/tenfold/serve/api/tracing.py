"""An OpenTelemetry span for each request, sent to a collector by OTLP; spans contain no text of prompts or answers."""

from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from tenfold.spec.errors import TenfoldError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def trace_provider(endpoint: str) -> "TracerProvider":
    """A provider that sends spans to the collector at `endpoint`, in a thread. Raises TenfoldError without OpenTelemetry."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TenfoldError("--otlp-traces-endpoint needs OpenTelemetry: pip install 'tenfold[tracing]'.") from None
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "tenfold"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


def traced(app: ASGIApp, provider: "TracerProvider") -> ASGIApp:
    """ASGI middleware: a span from the request to the end of its answer, in the client's trace (the header `traceparent`)."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(
        app,
        tracer_provider=provider,
        exclude_spans=["receive", "send"],
        http_capture_headers_server_response=["x-request-id"],
    )
