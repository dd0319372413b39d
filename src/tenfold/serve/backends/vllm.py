"""A vLLM server under the same front (`--backend vllm`): prompts go to it as tokens, and tokens come back.

`VllmServer` has the methods of `worker.EngineProcess`. Templates, text, limits, keys and feedback stay here; scheduling and
computing happen there. It asks for vLLM's `return_token_ids`.
"""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from importlib.util import find_spec
from typing import Any

import httpx2

from tenfold.serve.backends.worker import EngineGone
from tenfold.serve.engine.request import FinishReason, Output, Request, Sampling, TokenLogprob
from tenfold.serve.options import EngineOptions
from tenfold.spec.errors import TenfoldError

_START_SECONDS = 1800.0  # large models take long to read, and to compile
_SAME = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "max_tokens",
    "min_tokens", "logprobs", "n",
)  # fmt: skip


def vllm_command(options: EngineOptions, port: int) -> list[str]:
    """How vLLM is started. Raises TenfoldError where it is not installed."""
    if find_spec("vllm") is None:
        raise TenfoldError("vLLM is not installed in this environment: `pip install vllm`.")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.path)]
    command += ["--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port)]
    return command + (["--max-model-len", str(options.context)] if options.context else [])


class VllmServer:
    """Starts a server of vLLM's and asks it over HTTP."""

    def __init__(self, options: EngineOptions):
        self.options = options
        self.stats: dict[str, float] = {}
        self.context = self.in_flight = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Return when the model can answer. Raises TenfoldError where the server ends before that."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # A session of its own: a signal to this process's group must not end it before what is in flight is answered.
        self._process = subprocess.Popen(vllm_command(self.options, port), start_new_session=True)
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=httpx2.Timeout(None, connect=10), limits=limits
        )
        end = time.monotonic() + _START_SECONDS
        while True:
            if not self.is_alive or time.monotonic() > end:
                self.stop()
                raise TenfoldError(f"vLLM could not serve {self.options.path}: its own messages stand above.")
            try:
                if (await self._client.get("/health")).is_success:
                    break
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.2)
        served = (await self._client.get("/v1/models")).json()["data"][0]
        self.context = int(served["max_model_len"])

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """Outputs until every sequence is finished; leaving early closes the connection, which cancels there."""
        if not self.is_alive:
            raise EngineGone
        if request.embed:
            yield Output(request.id, 0, finish_reason="error", error="This server's engine, vLLM, makes no embeddings here.")
            return
        self.in_flight += 1
        try:
            async with self._client.stream("POST", "/v1/completions", json=completion_body(request)) as answer:
                if not answer.is_success:
                    said = json.loads(await answer.aread())
                    yield Output(request.id, 0, finish_reason="error", error=str(said.get("error", said).get("message", said)))
                    return
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        for choice in json.loads(line[6:]).get("choices", ()):
                            yield output_of(request, choice)
        except httpx2.TransportError:
            raise EngineGone from None
        finally:
            self.in_flight -= 1

    def stop(self) -> None:
        """End the server; what is in flight ends with EngineGone."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def completion_body(request: Request) -> dict[str, Any]:
    """The request as vLLM's /v1/completions takes it. Raises TenfoldError for a grammar that it cannot take."""
    s = request.sampling
    body: dict[str, Any] = {name: value for name in _SAME if (value := getattr(s, name)) is not None}
    if s.grammar is not None:
        body["structured_outputs"] = _structured(s.grammar)
    return {
        **body,
        "model": "model",
        "prompt": request.tokens,
        "top_k": s.top_k if s.top_k > 0 else -1,
        "logit_bias": {str(token): bias for token, bias in s.logit_bias.items()} or None,
        "ignore_eos": s.ignore_stop,
        "stop_token_ids": [] if s.ignore_stop else sorted(s.stop_tokens),
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "add_special_tokens": False,
    }


def _structured(grammar: str) -> dict[str, Any]:
    """The JSON schema that a compiled grammar was made of."""
    parts = json.loads(grammar)["grammars"] if grammar.startswith("{") else []
    if len(parts) == 1 and (schema := parts[0].get("json_schema")) is not None:
        return {"json": {key: value for key, value in schema.items() if key != "x-guidance"}}
    raise TenfoldError("Of grammars, only JSON schemas are passed on to vLLM.")


def output_of(request: Request, choice: dict[str, Any]) -> Output:
    """What a chunk of vLLM's stream says of one continuation."""
    s: Sampling = request.sampling
    tokens = list(choice.get("token_ids") or ())
    finish: FinishReason | None = choice.get("finish_reason")
    logprobs = _logprobs(choice.get("logprobs"))
    if finish == "stop" and tokens and tokens[-1] in s.stop_tokens:  # it ends the text and is no part of it
        tokens, logprobs = tokens[:-1], logprobs[: len(tokens) - 1]
    return Output(request.id, choice["index"], tokens, logprobs, finish)


def _logprobs(given: dict[str, Any] | None) -> list[TokenLogprob]:
    """Log-probabilities whose tokens are written `token_id:NUMBER`."""
    if not given:
        return []

    def number(token: str) -> int:
        return int(token.removeprefix("token_id:"))

    tops = given.get("top_logprobs") or [{}] * len(given["tokens"])
    return [
        TokenLogprob(number(token), value, sorted(((number(t), v) for t, v in (top or {}).items()), key=lambda x: -x[1]))
        for token, value, top in zip(given["tokens"], given["token_logprobs"], tops, strict=True)
    ]
