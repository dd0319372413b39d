"""Types of answers, for the OpenAPI document, for which OpenAI's package has no type or a different one."""

from typing import Any, Literal

from openai.types import Completion, CompletionChoice, CreateEmbeddingResponse, Embedding, Model
from openai.types.completion_choice import Logprobs
from openai.types.create_embedding_response import Usage
from openai.types.responses import CompactedResponse
from pydantic import BaseModel


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class EchoedLogprobs(Logprobs):
    """Log-probabilities with an echoed prompt, whose first token has none."""

    token_logprobs: list[float | None] | None = None  # type: ignore[assignment]
    top_logprobs: list[dict[str, float] | None] | None = None  # type: ignore[assignment]


class EchoedChoice(CompletionChoice):
    logprobs: EchoedLogprobs | None = None
    prompt_logprobs: list[dict[str, dict[str, Any]] | None] | None = None


class CompletionAnswer(Completion):
    choices: list[EchoedChoice]  # type: ignore[assignment]


class WrittenEmbedding(Embedding):
    embedding: list[float] | str  # type: ignore[assignment]  # base64 if the request asks for it


class Embeddings(CreateEmbeddingResponse):
    data: list[WrittenEmbedding]  # type: ignore[assignment]


class Score(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class Scores(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


class RankedDocument(BaseModel):
    text: str


class Ranked(BaseModel):
    index: int
    document: RankedDocument
    relevance_score: float


class Reranked(BaseModel):
    id: str
    model: str
    results: list[Ranked]
    usage: Usage


class Swapped(Model):
    path: str


class SplitModel(Model):
    candidate: str
    share: float


class Sleeping(BaseModel):
    is_sleeping: bool


class Tokenized(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None


class Detokenized(BaseModel):
    prompt: str


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool


class Compacted(CompactedResponse):
    output: list[dict[str, Any]]  # type: ignore[assignment]  # with messages of the user, which OpenAI's type does not allow


class Listed(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Kept(BaseModel):
    kept: bool


class DeletedRows(BaseModel):
    deleted_rows: int


class Health(BaseModel):
    status: str
    feedback: bool | None = None


class AnthropicMessage(BaseModel):
    """A message of Anthropic's Messages API."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: dict[str, int]


class AnthropicCount(BaseModel):
    input_tokens: int
