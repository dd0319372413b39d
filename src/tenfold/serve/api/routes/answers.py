"""Parts of answers that the routes of chat, completions and responses share."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Query

from tenfold.serve.api.served_model import OutputDelta, ServedModel
from tenfold.serve.api.tool_parser import Call, Piece, ToolParser
from tenfold.serve.request import Request, TokenLogprob

Limit = Annotated[int, Query(ge=0, le=100)]  # most items on a page of a list


def new_id(kind: str) -> str:
    """A unique id such as `cmpl-...`."""
    return f"{kind}-{uuid.uuid4().hex}"


def head(name: str, kind: str, created: int, model: ServedModel) -> dict[str, Any]:
    """The common first fields of answers and chunks of OpenAI's completions."""
    return {"id": name, "object": kind, "created": created, "model": model.name, "system_fingerprint": None}


def finite(logprob: float) -> float:
    """A log-probability without minus infinity, which JSON cannot represent (-9999, as OpenAI and vLLM do)."""
    return max(logprob, -9999.0)


@dataclass
class Gathered:
    """One continuation, accumulated from its deltas."""

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


@dataclass
class Spoken(Gathered):
    """One continuation of a chat, with its tool calls parsed from the text."""

    parser: ToolParser = field(kw_only=True)

    def read(self, delta: OutputDelta) -> list[Piece]:
        """Add a delta, and return the new pieces of text and calls."""
        self.add(delta)
        pieces = list(self.parser.push(delta.text))
        return [*pieces, *self.parser.end()] if delta.finish_reason else pieces

    @property
    def calls(self) -> list[Call]:
        return self.parser.calls

    @property
    def ends_in_calls(self) -> bool:
        """Whether it has calls, and all of them are complete."""
        return bool(self.calls) and all(call.whole for call in self.calls)


def usage(requests: list[Request], gathered: Sequence[Gathered]) -> dict[str, Any]:
    """OpenAI's usage: the numbers of prompt and completion tokens."""
    read, written = sum(len(r.tokens) for r in requests), sum(len(g.tokens) for g in gathered)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def page(found: list[dict[str, Any]], after: str, limit: int) -> dict[str, Any]:
    """OpenAI's list page: at most `limit` of the objects after the one with the id `after`; none if there is no such id."""
    ids = [one["id"] for one in found]
    rest = found[ids.index(after) + 1 if after in ids else len(found) * bool(after) :]
    shown = rest[:limit]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, **ends, "has_more": len(rest) > limit}
