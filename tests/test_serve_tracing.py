"""Spans of requests as a collector of OTLP receives them."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from scripted import Scripted, scripted_site

from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.serve.api.keys import make_key


@pytest.fixture
def collector():
    """The URL of a collector, and the bodies that it was sent."""
    bodies = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collect) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
        server.shutdown()


def test_each_request_is_a_span_of_its_clients_trace_without_what_is_said(collector, tmp_path):
    endpoint, bodies = collector
    key = make_key(tmp_path / "keys.json", "ann")
    backend = Scripted(train_tokenizer(["hello there, my secret is out " * 20], 300))
    backend.says = "out there"
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "my secret"}]}
    with scripted_site(backend, keys=tmp_path / "keys.json", otlp_traces_endpoint=endpoint) as url:
        for i, sent in enumerate((key, key, "wrong")):
            headers = {"X-Request-ID": f"r{i}", "traceparent": f"00-{i + 1:032x}-{7:016x}-01"}
            client = openai.OpenAI(base_url=f"{url}/v1", api_key=sent, default_headers=headers, max_retries=0)
            if sent == "wrong":
                with pytest.raises(openai.AuthenticationError):
                    client.chat.completions.create(**ask)
            else:
                list(client.chat.completions.create(**ask, stream=bool(i)))
    spans = [
        span
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    told = {}
    for span in spans:
        found = {a.key: a.value for a in span.attributes}
        name = found["http.response.header.x_request_id"].array_value.values[0].string_value
        assert span.parent_span_id == bytes(7) + b"\7" and span.end_time_unix_nano > span.start_time_unix_nano
        told[name] = int.from_bytes(span.trace_id), found["http.status_code"].int_value
    assert told == {"r0": (1, 200), "r1": (2, 200), "r2": (3, 401)} and len(spans) == 3
    assert not any(word in body for body in bodies for word in (b"secret", b"out there", key.encode()))
