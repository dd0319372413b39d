"""A vLLM server as a backend (`--backend vllm`), used through OpenAI's client with vLLM's extensions.

Prompts are sent as tokens, and `return_token_ids` has the answers sent as tokens too. vLLM schedules and computes.
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

import openai

from tenfold.launch.child import following
from tenfold.serve.backends.backend import BackendStopped
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Output, Request, Sampling, TokenLogprob, failed
from tenfold.spec.errors import NotInstalled, TenfoldError

_START_SECONDS = 1800.0  # large models take long to load and to compile
_SAME = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "max_tokens",
    "min_tokens", "logprobs", "n",
)  # fmt: skip


def vllm_command(options: EngineOptions, port: int) -> list[str]:
    """The command that starts vLLM. Raises TenfoldError if it is not installed."""
    if find_spec("vllm") is None:
        raise NotInstalled("vLLM is not installed in this environment: `pip install vllm`.")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.path)]
    command += ["--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port)]
    for name in ("max_model_len", "max_num_batched_tokens"):
        if value := getattr(options, name):
            command += [f"--{name.replace('_', '-')}", str(value)]
    return command


class VllmServer:
    """A `Backend` that starts a vLLM server and sends it requests over HTTP."""

    def __init__(self, options: EngineOptions):
        self.options = options
        self.stats: dict[str, float] = {}
        self.max_model_len = self.in_flight = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # In a session of its own, so that a signal to this process's group does not end it before requests in flight are answered.
        self._process = subprocess.Popen(following(vllm_command(self.options, port)), start_new_session=True)
        self._client = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key="none",
            max_retries=0,
            timeout=openai.Timeout(None, connect=10),
        )
        end = time.monotonic() + _START_SECONDS
        while not self.max_model_len:
            if not self.is_alive or time.monotonic() > end:
                self.stop()
                raise TenfoldError(f"vLLM could not serve {self.options.path}: see its messages above.")
            try:
                (served,) = (await self._client.models.list()).data
                self.max_model_len = int(served.to_dict()["max_model_len"])  # type: ignore[call-overload]
            except (openai.APIConnectionError, openai.InternalServerError):
                await asyncio.sleep(0.2)

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        if not self.is_alive:
            raise BackendStopped
        if not request.generates:
            yield failed(request, f"The backend vllm cannot {request.task} here: serve the model with --backend tenfold.")
            return
        self.in_flight += 1
        try:
            body = completion_body(request)
            stream = await self._client.completions.create(model="model", prompt=request.tokens, stream=True, extra_body=body)
            async with stream:
                async for chunk in stream:
                    for choice in chunk.choices:
                        yield output_of(request, choice.to_dict())
        except openai.APIConnectionError:
            raise BackendStopped from None
        except openai.APIError as error:
            yield failed(request, _message(error))
        finally:
            self.in_flight -= 1

    async def score(self, request: Request) -> list[TokenLogprob]:
        if not self.is_alive:
            raise BackendStopped
        tokens, count = request.tokens, request.sampling.logprobs or 0
        extra = {"prompt_logprobs": count, "add_special_tokens": False}
        try:
            done = await self._client.completions.create(model="model", prompt=tokens, max_tokens=1, extra_body=extra)
        except openai.APIConnectionError:
            raise BackendStopped from None
        except openai.APIError as error:
            raise TenfoldError(f"vLLM gave no scores: {_message(error)}") from None
        found: Any = done.choices[0].to_dict()["prompt_logprobs"]  # a dictionary by token id for each token; None for the first
        return [_scored(token, entry, count) for token, entry in zip(tokens[1:], found[1:], strict=True)]

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _scored(token: int, entry: dict[str, Any], count: int) -> TokenLogprob:
    """The log-probability of a prompt's token from vLLM's `entry`, which has it and the most likely tokens, by token id."""
    ranked = sorted(((int(number), info["logprob"]) for number, info in entry.items()), key=lambda one: -one[1])
    return TokenLogprob(token, entry[str(token)]["logprob"], ranked[:count])


def _message(error: openai.APIError) -> str:
    """vLLM's own error message, without what OpenAI's client adds."""
    return str(error.body.get("message", error.message)) if isinstance(error.body, dict) else error.message


def completion_body(request: Request) -> dict[str, Any]:
    """The sampling fields of a request to vLLM's /v1/completions. Raises TenfoldError for a grammar that vLLM is not given."""
    s = request.sampling
    body: dict[str, Any] = {name: value for name in _SAME if (value := getattr(s, name)) is not None}
    if s.grammar is not None:
        body["structured_outputs"] = _structured(s.grammar)
    return {
        **body,
        "top_k": s.top_k if s.top_k > 0 else -1,
        "logit_bias": {str(token): bias for token, bias in s.logit_bias.items()} or None,
        "ignore_eos": s.ignore_stop,
        "stop_token_ids": [] if s.ignore_stop else sorted(s.stop_tokens),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "add_special_tokens": False,
    }


def _structured(grammar: str) -> dict[str, Any]:
    """The JSON schema from which a compiled grammar was made, as vLLM takes it."""
    parts = json.loads(grammar)["grammars"] if grammar.startswith("{") else []
    if len(parts) == 1 and (schema := parts[0].get("json_schema")) is not None:
        return {"json": {key: value for key, value in schema.items() if key != "x-guidance"}}
    raise TenfoldError("The backend vllm takes JSON schemas only, no other grammars.")


def output_of(request: Request, choice: dict[str, Any]) -> Output:
    """The output for a choice in a chunk of vLLM's stream."""
    s: Sampling = request.sampling
    tokens = list(choice.get("token_ids") or ())
    logprobs = _logprobs(choice.get("logprobs"))
    finish = choice.get("finish_reason")
    if finish == "stop" and tokens and tokens[-1] in s.stop_tokens:  # a stop token is not part of the text
        tokens = tokens[:-1]
    return Output(request.id, choice["index"], tokens, logprobs, finish)


def _logprobs(given: dict[str, Any] | None) -> list[TokenLogprob]:
    """Log-probabilities from vLLM, which names tokens `token_id:NUMBER`."""
    if not given:
        return []

    def number(token: str) -> int:
        return int(token.removeprefix("token_id:"))

    tops = given.get("top_logprobs") or [{}] * len(given["tokens"])
    return [
        TokenLogprob(number(token), value, sorted(((number(t), v) for t, v in (top or {}).items()), key=lambda x: -x[1]))
        for token, value, top in zip(given["tokens"], given["token_logprobs"], tops, strict=True)
    ]
