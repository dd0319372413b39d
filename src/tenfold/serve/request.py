"""Requests to an engine, its outputs, and the sequences that it computes for them."""

import hashlib
from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tenfold.spec.errors import TenfoldError

FinishReason = Literal["stop", "length", "abort", "error"]
RequestTask = Literal["generate", "embed", "score"]
MAX_LOGPROBS = 1024  # per token; OpenAI's routes take at most 20
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
    """How tokens are drawn; the names are vLLM's. `top_k` 0 and `top_p` 1 leave no token out.

    `logprobs` k gives log-probabilities of each token and of the k most likely ones, None gives none. `stop_tokens` end the
    sequence, unless `ignore_stop`, and are not part of the text. The text matches `grammar` (`serve/engine/grammar.py`).
    Raises TenfoldError for a value outside its range.
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
            raise TenfoldError(f"logprobs must lie between 0 and {MAX_LOGPROBS}, not be {self.logprobs}.")

    @cached_property
    def is_plain(self) -> bool:
        """Whether a draw depends only on the logits, not on the text so far or a grammar."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return not (penalties or self.logit_bias or self.min_tokens or self.grammar is not None)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in a prompt: its tiles, uint8 [tiles, 3, S, S], and the positions of its patch tokens, in ascending order."""

    tiles: np.ndarray
    patches: list[int]

    @cached_property
    def digest(self) -> bytes:
        return _digest(self.tiles.tobytes())


@dataclass(frozen=True)
class Request:
    """A prompt and what to do with it.

    `generate` continues the prompt as `sampling` says. `embed` gives the mean of its last hidden states, and `score` the
    log-probability of each of its tokens after the first, with the `sampling.logprobs` most likely tokens.

    Owners with requests at the same time get equal shares of the engine. `adapter` names the LoRA adapter to use, if any;
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
        """Whether the request wants only tokens, and their draws depend only on the logits."""
        return self.generates and self.sampling.is_plain and self.sampling.logprobs is None

    @cached_property
    def salts(self) -> list[tuple[int, bytes]]:
        """What keys and values depend on besides the tokens: the adapter and the pictures.

        Each is a position from which on it matters, and a digest.
        """
        beside = [(0, _digest(self.adapter.encode()))] if self.adapter else []
        return beside + [(picture.patches[0], picture.digest) for picture in self.pictures]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability before temperature and filters, and the most likely tokens with theirs.

    `drawn` is the token's log-probability in the distribution that it was drawn from, after temperature, penalties and filters;
    None if that is not known.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]
    drawn: float | None = None


@dataclass
class Output:
    """New tokens of sequence `index` of a request; the last output of a sequence has a finish reason.

    If the request asks for log-probabilities, `logprobs` has one for each token, and a last one for the stop token, which is not
    among `tokens`. The output of an `embed` request has its `embedding`, that of a `score` request its `scores`: one for each
    token but the first. `cached_tokens` of the prompt were found in the prefix cache.
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
    """One continuation of a request: `tokens` are its prompt and what has been generated.

    Keys and values of the first `computed` tokens are in the cache's `blocks`; `hashes` are those of its full blocks, and `draft`
    are guesses of the tokens that follow.
    """

    request: Request
    index: int = 0
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: "array[int]" = field(default_factory=lambda: array("i"))
    hashes: list[bytes] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    preemptions: int = 0
    state: Any = None  # a SamplerState

    def __post_init__(self) -> None:
        if not self.tokens:
            self.tokens = list(self.request.tokens)

    @property
    def n_prompt(self) -> int:
        return len(self.request.tokens)

    @property
    def n_output(self) -> int:
        return len(self.tokens) - len(self.request.tokens)
