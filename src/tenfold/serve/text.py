"""A model's text side: its tokenizer, chat template and stop tokens, and text from tokens as they come."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tenfold.data.conversations.template import render
from tenfold.model.io.tokenizer import read_tokenizer, read_vocabulary
from tenfold.spec.errors import TenfoldError

# For models without a chat template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role']|capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# Marks of the text before, the text after, and the middle to be filled in (StarCoder and others; Qwen).
_MIDDLE = (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))


@dataclass(frozen=True)
class TextSide:
    """Turns text into a model's tokens and back."""

    tokenizer: Tokenizer
    template: str
    stop_tokens: frozenset[int]
    special: dict[str, str]  # bos_token and the like, for the template
    begin: list[int]  # tokens before every text that is not a chat
    longest: int  # characters of the longest token
    limit: int = 0  # a text of more tokens is refused before it is read; 0 is no limit

    def encode(self, text: str) -> list[int]:
        """Tokens of a whole text, after the model's begin-of-sequence token if it uses one."""
        ids = self.ids(text)
        return ids if ids[: len(self.begin)] == self.begin else self.begin + ids

    def between(self, tokens: list[int], suffix: str) -> list[int]:
        """The prompt for the text between `tokens` and `suffix`. Raises TenfoldError if the model has no marks for it."""
        for marks in _MIDDLE:
            ids = [i for mark in marks if (i := self.tokenizer.token_to_id(mark)) is not None]
            if len(ids) == len(marks):
                begin = self.begin if tokens[: len(self.begin)] == self.begin else []
                return [*begin, ids[0], *tokens[len(begin) :], ids[1], *self.ids(suffix), ids[2]]
        raise TenfoldError("suffix needs a model trained to fill in the middle, and this one is not: leave suffix out.")

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **more: Any) -> str:
        """The prompt of a conversation. Raises TenfoldError if the template refuses it or fails."""
        return render(self.template, messages, self.special, tools=tools, **{"add_generation_prompt": True, **more})

    def encode_chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **more: Any) -> list[int]:
        """Tokens of a conversation."""
        return self.ids(self.render(messages, tools, **more))

    def ids(self, text: str) -> list[int]:
        """Tokens of a text as it stands, such as a rendered conversation, whose template writes every special token."""
        if self.limit and (least := len(text) // self.longest) > self.limit:
            raise TenfoldError(
                f"The prompt has at least {least} tokens: {least - self.limit} or more too many for the context of {self.limit}."
            )
        # By its batches alone does the tokenizer let other threads run meanwhile.
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, special ones too."""
        return self.tokenizer.decode_batch([tokens], skip_special_tokens=False)[0]

    def check_fits(self, rows: int) -> None:
        """Raises TenfoldError if the tokenizer has a token without a row in a model of `rows`."""
        name, last = max(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        if last >= rows:
            raise TenfoldError(
                f"The tokenizer's token {last} ({name!r}) has no row in the model, which has {rows}: take the tokenizer that "
                "belongs to the model, or give the model a row for each token."
            )

    @property
    def knows_tools(self) -> bool:
        """Whether the template has a place for tools."""
        return "tools" in self.template


def read_text_side(path: Path) -> TextSide:
    """The text side of a Hugging Face directory or a GGUF file."""
    tokenizer, vocabulary = read_tokenizer(path), read_vocabulary(path)
    template, longest = vocabulary.chat_template or PLAIN_TEMPLATE, max(map(len, tokenizer.get_vocab()))
    return TextSide(tokenizer, template, vocabulary.stop_tokens, vocabulary.names, list(vocabulary.begin), longest)


def _begins(text: str, stop: str) -> int:
    """Where the end of `text` may begin `stop`; its length if nowhere."""
    first = max(0, len(text) - len(stop) + 1)
    return next((i for i in range(first, len(text)) if stop.startswith(text[i:])), len(text))


class TextStream:
    """Text of one sequence as its tokens come, up to the first stop string.

    Text that may be the beginning of a stop string is held back until it turns out not to be.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str], keep_special: bool = False):
        self._tokenizer, self._stops = tokenizer, [s for s in stops if s]
        self._stream = DecodeStream(skip_special_tokens=not keep_special)
        self._held = ""
        self.stopped = False

    def push(self, tokens: list[int]) -> str:
        """The new text that is certain after these tokens."""
        for token in tokens:
            self._held += self._stream.step(self._tokenizer, token) or ""
        at = min((i for i in (self._held.find(s) for s in self._stops) if i >= 0), default=-1)
        if at >= 0:
            text, self._held, self.stopped = self._held[:at], "", True
            return text
        cut = min((_begins(self._held, s) for s in self._stops), default=len(self._held))
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def rest(self) -> str:
        """The text that was held back; for the end of the sequence."""
        text, self._held = self._held, ""
        return text
