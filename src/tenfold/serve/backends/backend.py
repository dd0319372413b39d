"""The door for whatever computes: the own engine, llama.cpp, vLLM, or the backend of a plugin.

A backend is found by its name among the entry points `tenfold.backends`. The entry point refers to a class, or a function,
that takes `EngineOptions` and returns a `Backend`. A model whose `model_type` names a backend is computed by that one.
Templates, text, limits, keys and feedback are the server's own; a backend reads tokens and writes tokens.
"""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Output, Request, TokenLogprob
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load, plugins

if TYPE_CHECKING:  # so that the API's errors and keys are known without PyTorch
    from tenfold.serve.pictures import Sight

OWN = "tenfold"


class Backend(Protocol):
    """One model that computes. All methods are for the event loop that called `start`."""

    max_model_len: int  # longest prompt and answer together; known after `start`

    @property
    def is_alive(self) -> bool:
        """Whether it can take requests."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests without their last output."""
        ...

    @property
    def stats(self) -> dict[str, float]:
        """The numbers of `Engine.stats`, or nothing."""
        ...

    async def start(self) -> None:
        """Return when the model can answer. Raises TenfoldError if it cannot be loaded."""
        ...

    def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """Outputs until every sequence is finished; closing the generator early cancels the request.

        A request that the backend cannot compute gets one output with an error. Raises BackendStopped if the backend ends.
        """
        ...

    async def score(self, request: Request) -> list[TokenLogprob]:
        """The log-probability of each token of a `score` request after the first. Raises TenfoldError if it cannot."""
        ...

    def stop(self) -> None:
        """End it, also in the middle of `start`; requests in flight raise BackendStopped. May block for some seconds."""
        ...


@runtime_checkable
class SleepingBackend(Protocol):
    """What a `Backend` has beside, where it can sleep: it keeps its weights, and frees what it computes with."""

    async def sleep(self) -> None:
        """Free the cache; nothing may be in flight. Raises BackendStopped if the backend ends."""
        ...

    async def wake_up(self) -> None:
        """Return when requests can be computed again. Raises BackendStopped if the backend ends."""
        ...


@runtime_checkable
class SeeingBackend(Protocol):
    """What a `Backend` has beside, where it takes requests with pictures."""

    sight: "Sight | None"  # None for a model without an image encoder; known after `start`


class BackendStopped(Exception):
    """The backend ended, or was stopped, before the request was answered."""


def make_backend(options: EngineOptions) -> Backend:
    """The backend that `options` name, not started yet. Raises TenfoldError if there is none, or it serves no adapters."""
    name = options.backend if options.backend != OWN else backend_of(options.path)
    if (options.adapter is not None or options.lora_modules) and name != OWN:
        raise TenfoldError(f"Adapters are served by the backend {OWN}, not by {name}: merge them, or leave --backend out.")
    return load("backends", name)(options)


def backend_of(path: Path) -> str:
    """The backend that a model's `model_type` names; the own engine where it names none."""
    try:
        named = json.loads((path / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):  # whoever reads the model says what is wrong with it
        return OWN
    return named if named in plugins("backends") else OWN
