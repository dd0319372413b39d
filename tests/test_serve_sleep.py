"""A server that sleeps: what was accepted is answered, nothing is taken meanwhile, and awake it answers as before."""

import json
import threading
import urllib.error
import urllib.request
from dataclasses import replace

import psutil
import pytest
import torch
from chat_models import chat_model

from tenfold.model.llama import Llama
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.speculate import DraftSpeculator
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling
from tenfold.serve.runners import native
from tenfold.serve.runners.cuda import CudaRunner
from tenfold.serve.runners.runner import TorchRunner
from tenfold.serve.start import serving
from tenfold.spec.model import ModelSpec

SPEC = ModelSpec("small", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=300, head_dim=16, context=128)


def compiled(model):
    if native.library() is None:
        pytest.skip("there is no C++ compiler")
    return native.NativeRunner(model, 16, threads=1)


RUNNERS = {"compiled": compiled, "torch": lambda model: TorchRunner(model, 16), "gpu's": lambda model: CudaRunner(model, 16)}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return [Llama(replace(SPEC, n_layers=layers)) for layers in (2, 1)]


def greedy(engine, tokens):
    """The tokens of an answer, and how many of its prompt were found in the cache."""
    engine.add(Request("r", tokens, Sampling(temperature=0, max_tokens=12, ignore_stop=True)))
    found, cached = [], 0
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            found, cached = found + output.tokens, max(cached, output.cached_tokens)
    return found, cached


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("drafts", [False, True])
def test_an_engine_that_slept_answers_as_before_from_an_empty_cache(models, kind, drafts):
    runner, prompt = RUNNERS[kind](models[0]), list(range(40, 80))
    engine = Engine(runner, 16, speculator=DraftSpeculator(RUNNERS[kind](models[1]), 16) if drafts else None)
    before, _ = greedy(engine, prompt)
    assert greedy(engine, prompt) == (before, 32)
    for _ in range(2):
        engine.sleep()
        engine.wake_up()
        assert greedy(engine, prompt) == (before, 0)
        assert greedy(engine, prompt) == (before, 32)


def ask(url, path, body=None, method="POST"):
    request = urllib.request.Request(f"{url}{path}", json.dumps(body or {}).encode(), {"content-type": "application/json"})
    request.method = method
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_server_answers_what_it_took_sleeps_and_answers_the_same_when_it_is_woken(tmp_path):
    with serving({"tiny": EngineOptions(chat_model(tmp_path / "tiny"), threads=1, kv_cache_gib=0.02)}) as url:
        body = {"prompt": "What is 3 + 4?", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        before = ask(url, "/v1/completions", body)[1]["choices"]
        long = {**body, "max_tokens": 200, "stream": True}
        stream = urllib.request.urlopen(
            urllib.request.Request(f"{url}/v1/completions", json.dumps(long).encode(), {"content-type": "application/json"})
        )
        assert stream.readline().startswith(b"data: ")  # it was accepted
        slept = []
        sleeping = threading.Thread(target=lambda: slept.append(ask(url, "/sleep")))
        sleeping.start()
        assert stream.read().endswith(b"data: [DONE]\n\n")
        sleeping.join()
        assert slept == [(200, {"is_sleeping": True})] == [ask(url, "/sleep")]
        refused, error = ask(url, "/v1/completions", body)
        assert refused == 503 and "asleep" in error["error"]["message"]
        assert ask(url, "/v1/models/swap", {"path": str(tmp_path / "tiny")})[0] == 503
        assert ask(url, "/health", method="GET") == (503, {"status": "asleep"})
        for _ in range(2):
            assert ask(url, "/wake_up") == (200, {"is_sleeping": False}) == ask(url, "/is_sleeping", method="GET")
        assert ask(url, "/v1/completions", body)[1]["choices"] == before
        ask(url, "/sleep")
        engine = next(p for p in psutil.Process().children(recursive=True) if any("spawn_main" in word for word in p.cmdline()))
        engine.kill()
        assert ask(url, "/wake_up")[0] == 200  # it is loaded again
        assert ask(url, "/v1/completions", body)[1]["choices"] == before
