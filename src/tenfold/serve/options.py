"""How models are served."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

Weights = Literal["exact", "float32", "bfloat16", "int8", "int4"]


@dataclass(frozen=True)
class EngineOptions:
    """How one model is served."""

    path: Path
    weights: Annotated[Weights, Meta(description="How weights are kept; exact takes the smallest that loses nothing.")] = "exact"
    context: Annotated[int, Meta(description="Longest prompt and answer together, in tokens; 0 is the model's own.")] = 0
    cache_gib: Annotated[float, Meta(description="Memory for keys and values.")] = 1.0
    token_budget: Annotated[int, Meta(description="Tokens computed in one step; 0 is what suits the device.")] = 0
    max_running: Annotated[int, Meta(description="Sequences that are answered at once.", ge=1)] = 64
    threads: Annotated[int, Meta(description="Threads; 0 is one per core.")] = 0
    speculate: Annotated[bool, Meta(description="Guess tokens from the text so far.")] = True
    draft: Annotated[Path | None, Meta(description="A smaller model of the same vocabulary that guesses instead.")] = None
    compiled: Annotated[bool, Meta(description="Compile the model on a GPU.")] = True
    device: Annotated[str, Meta(description="cpu or cuda.")] = "cpu"
    backend: Annotated[
        Literal["tenfold", "llamacpp", "vllm"], Meta(description="What computes: this engine, llama.cpp (GGUF), or a vLLM server.")
    ] = "tenfold"


@dataclass(frozen=True)
class Limits:
    """What a server takes on. Requests beyond `max_queue` unfinished ones of a model are refused with 429."""

    max_queue: Annotated[int, Meta(description="Unfinished requests before 429.")] = 256
    max_loaded: Annotated[int, Meta(description="Models kept in memory; the least recently used goes first.")] = 1
    request_seconds: Annotated[
        float, Meta(description="Longest that an answer may take; then 504.", extra={"flag": "--timeout-seconds"})
    ] = 600.0
    body_bytes: Annotated[int, Meta(description="Largest body of a request.")] = 32 * 2**20
