"""The interface of inference backends: Tenfold's engine, llama.cpp, vLLM, or the backend of a plugin.

A backend is found by its name among the entry points `tenfold.backends`. The entry point refers to a class or a function that
takes `EngineOptions` and returns a `Backend`. A model whose config.json has a backend's name as its `model_type` is served by that
backend. The server itself does templates, tokenization, limits, keys and feedback; a backend takes tokens and generates tokens.
"""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Output, Request, TokenLogprob
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load, plugins

if TYPE_CHECKING:  # so that the API's errors and keys can be imported without PyTorch
    from tenfold.serve.pictures import Sight

OWN = "tenfold"


class Backend(Protocol):
    """One loaded model. Methods may be called only from the event loop that called `start`, except `stop`."""

    max_model_len: int  # most tokens of a prompt and its answer together; known after `start`

    @property
    def is_alive(self) -> bool:
        """Whether it can take requests."""
        ...

    @property
    def in_flight(self) -> int:
        """The number of requests that have not got their last output."""
        ...

    @property
    def stats(self) -> dict[str, float]:
        """The numbers of `Engine.stats`, or an empty dictionary."""
        ...

    async def start(self) -> None:
        """Load the model, and return when it can answer. Raises TenfoldError if it cannot be loaded."""
        ...

    def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """Yield outputs until every sequence is finished; closing the generator early cancels the request.

        A request that the backend cannot compute gets one output with an error. Raises BackendStopped if the backend ends.
        """
        ...

    async def score(self, request: Request) -> list[TokenLogprob]:
        """The log-probability of each token of a `score` request after the first. Raises TenfoldError if it cannot."""
        ...

    def stop(self) -> None:
        """Stop the backend, also during `start`; requests in flight raise BackendStopped.

        It may block for some seconds, so the server calls it in a thread.
        """
        ...


@runtime_checkable
class SleepingBackend(Protocol):
    """Further methods of a `Backend` that can sleep: keep its weights, and free the memory that it computes with."""

    async def sleep(self) -> None:
        """Free the KV cache; no request may be in flight. Raises BackendStopped if the backend ends."""
        ...

    async def wake_up(self) -> None:
        """Return when requests can be computed again. Raises BackendStopped if the backend ends."""
        ...


@runtime_checkable
class SeeingBackend(Protocol):
    """A further attribute of a `Backend` that takes requests with pictures."""

    sight: "Sight | None"  # None for a model without an image encoder; known after `start`


class BackendStopped(Exception):
    """The backend ended, or was stopped, before it had answered the request."""


def make_backend(options: EngineOptions) -> Backend:
    """The backend for `options`, not started. Raises TenfoldError for an unknown name, or for adapters that it cannot serve."""
    name = options.backend if options.backend != OWN else backend_of(options.path)
    if (options.adapter is not None or options.lora_modules) and name != OWN:
        raise TenfoldError(f"Adapters are served by the backend {OWN}, not by {name}: merge them, or leave --backend out.")
    return load("backends", name)(options)


def backend_of(path: Path) -> str:
    """The backend that a model's `model_type` names; Tenfold's engine if it names none."""
    try:
        named = json.loads((path / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):  # the loader of the model reports what is wrong with it
        return OWN
    return named if named in plugins("backends") else OWN
