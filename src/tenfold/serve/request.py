"""Requests to an engine, its outputs, and the sequences that it computes between the two."""

import hashlib
from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tenfold.spec.errors import TenfoldError

FinishReason = Literal["stop", "length", "abort", "error"]
RequestTask = Literal["generate", "embed", "score"]
MAX_LOGPROBS = 1024  # of a token; OpenAI's routes take 20 at most
_RANGES = (
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("repetition_penalty", 0.01, 10),
    ("max_tokens", 0, float("inf")),
    ("top_k", -1, float("inf")),
    ("n", 1, 128),
)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `top_k` 0 and `top_p` 1 leave nothing out; `logprobs` None gives none, k the k likeliest.

    `stop_tokens` end the sequence and are not part of the text. The text matches `grammar` (`serve/engine/grammar.py`).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop_tokens: frozenset[int] = frozenset()
    ignore_stop: bool = False
    logprobs: int | None = None
    n: int = 1
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise TenfoldError(f"{name} must lie between {low} and {high}, not be {value}.")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise TenfoldError(f"At most {MAX_LOGPROBS} logprobs can be had for a token, not {self.logprobs}.")

    @cached_property
    def is_plain(self) -> bool:
        """Whether a draw depends on the logits alone, not on the text so far or a grammar."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return not (penalties or self.logit_bias or self.min_tokens or self.grammar is not None)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a prompt: its tiles, uint8 [tiles, 3, S, S], and the positions of the tokens that they become, in order."""

    tiles: np.ndarray
    patches: list[int]

    @cached_property
    def digest(self) -> bytes:
        return _digest(self.tiles.tobytes())


@dataclass(frozen=True)
class Request:
    """A prompt and what is asked about it.

    `generate` continues the prompt as `sampling` says. `embed` gives the mean of its last hidden states, and `score` the
    log-probability of each of its tokens after the first, with as many likeliest tokens as `sampling.logprobs` says.

    Owners who ask at the same time get equal shares of the engine. The `adapter` of that name is beside the weights, if any, and
    `pictures` are for models with an image encoder.
    """

    id: str
    tokens: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    task: RequestTask = "generate"
    owner: str = ""
    adapter: str = ""
    pictures: tuple[Picture, ...] = ()

    @property
    def generates(self) -> bool:
        return self.task == "generate"

    @cached_property
    def is_plain(self) -> bool:
        """Whether only tokens are asked for, and their draws depend on the logits alone."""
        return self.generates and self.sampling.is_plain and self.sampling.logprobs is None

    @cached_property
    def salts(self) -> list[tuple[int, bytes]]:
        """What keys and values depend on besides the tokens: each a position, and a digest of what counts from there on."""
        beside = [(0, _digest(self.adapter.encode()))] if self.adapter else []
        return beside + [(picture.patches[0], picture.digest) for picture in self.pictures]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability before any filter, and the likeliest tokens with theirs.

    `drawn` is its log-probability in the distribution that it was drawn from, after temperature, penalties and filters, where
    that is known.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]
    drawn: float | None = None


@dataclass
class Output:
    """New tokens of sequence `index` of a request; the last output of a sequence has a finish reason.

    Where log-probabilities are asked for, `logprobs` has one for each token, and a last one for a stop token, which is no text.
    The output of an `embed` request has its `embedding`, that of a `score` request its `scores`: one for each token but the first.
    """

    request_id: str
    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    embedding: list[float] | None = None
    scores: list[TokenLogprob] | None = None
    error: str | None = None


def failed(request: Request, reason: str) -> Output:
    """The output of a request that cannot be computed."""
    return Output(request.id, 0, finish_reason="error", error=reason)


@dataclass(eq=False)
class Sequence:
    """One continuation of a request. Keys and values of the first `computed` of `tokens` are in `blocks`."""

    request: Request
    index: int = 0
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: "array[int]" = field(default_factory=lambda: array("i"))
    hashes: list[bytes] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    preemptions: int = 0
    state: Any = None  # the sampler's

    def __post_init__(self) -> None:
        if not self.tokens:
            self.tokens = list(self.request.tokens)

    @property
    def n_prompt(self) -> int:
        return len(self.request.tokens)

    @property
    def n_output(self) -> int:
        return len(self.tokens) - len(self.request.tokens)
