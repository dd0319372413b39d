"""The bodies of requests, mostly as OpenAI's API defines them.

OpenAI's fields that this server does not support are ignored if that is harmless, and refused if they would change the answer.
"""

import json
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tenfold.serve.api.errors import ApiError
from tenfold.serve.request import Sampling
from tenfold.serve.sandbox.grammars import GrammarSource

Text = Annotated[str, Field(max_length=10_000_000)]
Stop = Annotated[str, Field(max_length=1000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

Metadata = Annotated[  # within OpenAI's limits
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
_MAX_MESSAGES = 16_384


def _without_zeros(bias: Any) -> Any:
    """Remove biases of 0, which change nothing, so that their tokens need not exist."""
    return {token: value for token, value in bias.items() if value != 0} if isinstance(bias, dict) else bias


Bias = dict[Annotated[int, Field(ge=0, lt=2**31)], Annotated[Finite, Field(ge=-100, le=100)]]


class Body(BaseModel):
    """A body whose unknown fields are ignored, so that clients of newer APIs work."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class RequestBody(Body):
    """The body of a whole request. Its texts must be valid Unicode: tokenizers and databases take no lone surrogates.

    `refused` are fields of OpenAI, vLLM or llama.cpp that would change an answer and are not supported.
    """

    refused: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, sent: Any) -> Any:
        for name in cls.refused if isinstance(sent, dict) else ():
            if sent.get(name):
                raise ApiError(400, f"This server does not support {name}: leave it out.", param=name)
        return sent

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, sent: Any) -> Any:
        try:
            json.dumps(sent, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise ValueError("a text has half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return sent


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(RequestBody):
    """Fields that chat and plain completions share; None is the default. The fields from `top_k` on are vLLM's extensions."""

    refused: ClassVar[tuple[str, ...]] = (
        "stop_token_ids", "bad_words", "allowed_token_ids", "use_beam_search", "length_penalty", "truncate_prompt_tokens",
        "guided_choice", "structured_outputs", "grammar", "json_schema", "mirostat", "typical_p", "prompt_embeds",
        "include_stop_str_in_output", "logits_processors", "n_predict", "lora", "samplers", "dry_multiplier", "xtc_probability",
        "dynatemp_range", "top_n_sigma",
    )  # fmt: skip
    model: str = ""
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[Bias | None, BeforeValidator(_without_zeros)] = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(ge=0.01, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    guided_regex: str | None = None
    guided_json: dict[str, Any] | None = None
    guided_grammar: str | None = None

    def check_stream_options(self) -> None:
        """Raises ApiError for stream_options in a request without `stream`; with `stream: false` they are allowed."""
        if self.stream_options is not None and self.stream is None:
            raise ApiError(400, "stream_options needs stream: true.", param="stream_options")

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def guided(self) -> GrammarSource | None:
        """The grammar of the `guided_` fields, which the text must follow; None if there are none."""
        if self.guided_regex is not None:
            return GrammarSource("regular expression", self.guided_regex)
        if self.guided_json is not None:
            return GrammarSource.of_schema(self.guided_json)
        if self.guided_grammar is not None:
            return GrammarSource("grammar", self.guided_grammar)
        return None

    def sampling(self, *, max_tokens: int, stop_tokens: frozenset[int], logprobs: int | None, grammar: str | None) -> Sampling:
        """The engine's sampling parameters from these fields and from those that the caller has worked out."""
        same = {f.name: value for f in fields(Sampling) if (value := getattr(self, f.name, None)) is not None}
        own = {"max_tokens": max_tokens, "stop_tokens": stop_tokens, "logprobs": logprobs, "grammar": grammar}
        return Sampling(**{**same, **own, "ignore_stop": bool(self.ignore_eos)})


Detail = Literal["auto", "low", "high"]


class ImageUrl(Body):
    url: Text
    detail: Detail | None = None


class Part(Body):
    """A part of a message: text, or an image as in chat completions (`image_url`) or responses (`input_image`)."""

    type: str
    text: Text | None = None
    refusal: Text | None = None
    image_url: ImageUrl | Text | None = None
    detail: Detail | None = None

    @property
    def is_coarse(self) -> bool:
        """Whether the model gets an image as one tile only (`detail: "low"`)."""
        return "low" in (self.detail, self.image_url.detail if isinstance(self.image_url, ImageUrl) else None)


class FunctionName(Body):
    name: Annotated[str, Field(min_length=1, max_length=128)]


class FunctionCall(FunctionName):
    arguments: Text = ""


class ToolCall(Body):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(BaseModel):
    """One message of a conversation; further fields are passed to the chat template."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None


class FunctionSpec(FunctionName):
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    type: Literal["function"] = "function"
    function: FunctionSpec


class ToolChoice(Body):
    """The one tool that must be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class JsonSchemaFormat(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    name: str = "answer"
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")  # llama.cpp's extension for json_object


class TemplateFields(RequestBody):
    """How a chat template turns a conversation into a prompt; the fields are vLLM's."""

    chat_template_kwargs: dict[str, Any] | None = None  # further variables of the template
    add_generation_prompt: bool | None = None  # whether the prompt ends with the beginning of an answer, the default
    continue_final_message: bool | None = None  # the answer continues the last message, which is the assistant's


class ChatRequest(SamplingFields, TemplateFields):
    refused: ClassVar[tuple[str, ...]] = (
        *SamplingFields.refused,
        "chat_template",
        "documents",
        "echo",
        "prompt_logprobs",
        "web_search_options",
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionSpec] | None = None
    function_call: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    store: bool | None = None
    metadata: Metadata | None = None


class CompletionRequest(SamplingFields):
    prompt: Text | list[int] | list[str] | list[list[int]] = ""
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None  # vLLM's extension
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class EmbeddingRequest(RequestBody):
    refused: ClassVar[tuple[str, ...]] = ("truncate_prompt_tokens",)

    model: str = ""
    input: Text | list[int] | list[str] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**20)] | None = None
    user: str | None = None


class ResponseTextFormat(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseText(BaseModel):
    model_config = ConfigDict(extra="allow")

    format: ResponseTextFormat | None = None


class ConversationName(Body):
    id: str


class ResponsesRequest(RequestBody):
    refused: ClassVar[tuple[str, ...]] = ("prompt", "top_logprobs")

    model: str = ""
    input: Text | list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationName | None = None
    background: bool | None = None
    text: ResponseText | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None
    user: str | None = None

    @property
    def conversation_id(self) -> str:
        """The id of the conversation that the response continues; '' for none."""
        return self.conversation.id if isinstance(self.conversation, ConversationName) else self.conversation or ""


class MetadataUpdate(RequestBody):
    """The change of a stored chat completion or a conversation."""

    metadata: Metadata


class FeedbackRequest(RequestBody):
    """A user's judgement of a stored answer, or comparison of two."""

    consent: bool = False
    user: str | None = Field(default=None, max_length=200)
    response_id: str = Field(max_length=80)
    rating: Literal[1, -1] | None = None
    reasons: list[Annotated[str, Field(max_length=200)]] = Field(default_factory=list, max_length=20)
    comment: str | None = Field(default=None, max_length=20_000)
    correction: str | None = Field(default=None, max_length=200_000, pattern=r"\S")
    other_response_id: str | None = Field(default=None, max_length=80)
    winner: Literal["a", "b", "tie", "both_bad"] | None = None
    blind: bool = False
    position_swapped: bool = False


class SwapRequest(RequestBody):
    """The path from which a model is to be served."""

    model: str = ""
    path: str


class SplitRequest(SwapRequest):
    """The path of a candidate, and the share of the users, between 0 and 1, that it is to answer."""

    share: Annotated[Finite, Field(gt=0, lt=1)]


class TokenizeRequest(TemplateFields):
    """A text or a conversation to tokenize, with vLLM's fields."""

    refused: ClassVar[tuple[str, ...]] = ("chat_template", "mm_processor_kwargs")

    model: str = ""
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None  # for a text only; a template writes its own
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestBody):
    model: str = ""
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=1_000_000)]
