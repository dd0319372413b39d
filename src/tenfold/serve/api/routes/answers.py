"""Parts of an answer that chat, completions and responses share."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from tenfold.serve.api.served_model import OutputDelta, ServedModel
from tenfold.serve.request import Request, TokenLogprob


def new_id(kind: str) -> str:
    """A name that no other answer has."""
    return f"{kind}-{uuid.uuid4().hex}"


def head(name: str, kind: str, created: int, model: ServedModel) -> dict[str, Any]:
    """Fields with which every answer and chunk of OpenAI's completions begins."""
    return {"id": name, "object": kind, "created": created, "model": model.name, "system_fingerprint": None}


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, -9999.0)


@dataclass
class Gathered:
    """One continuation so far."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    first_token: float = 0.0
    cached_tokens: int = 0
    stop: str = ""

    def add(self, delta: OutputDelta) -> None:
        self.first_token = self.first_token or time.time()
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.places += delta.places
        self.finish_reason, self.stop = delta.finish_reason, delta.stop
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)


def usage(requests: list[Request], gathered: list[Gathered]) -> dict[str, Any]:
    """Tokens read and written."""
    read, written = sum(len(r.tokens) for r in requests), sum(len(g.tokens) for g in gathered)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
