"""A model's text side: its tokenizer, chat template and stop tokens, and incremental decoding."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tenfold.data.conversations.template import render
from tenfold.data.conversations.words import MARK, marked, special_words, without_marks
from tenfold.model.io.tokenizer import read_tokenizer, read_vocabulary
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vocabulary import byte_characters

# For models without a chat template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role']|capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# Special tokens before the prefix, the suffix and the middle that is to be filled in (StarCoder and others; Qwen).
_MIDDLE = (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))

_BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece vocabularies name a byte
_BYTES = byte_characters()

# Characters of a text whose tokens are counted beyond the context: a tokenizer needs some 200 bytes of memory for each.
COUNTED = 2**21


@dataclass(frozen=True)
class TextSide:
    """Turns text into a model's tokens and back."""

    tokenizer: Tokenizer
    template: str
    stop_tokens: frozenset[int]
    special: dict[str, str]  # special tokens by their names in templates, such as bos_token
    begin: list[int]  # tokens before every text that is not a chat
    longest: int  # characters in the longest token
    limit: int = 0  # a text that must have more tokens is refused before it is tokenized; 0 is no limit

    def encode(self, text: str) -> list[int]:
        """Tokens of a whole text, after the model's begin-of-sequence token if it uses one."""
        return self.begun(self.ids(text))

    def begun(self, ids: list[int]) -> list[int]:
        """The tokens of a text, after the model's begin-of-sequence token if it uses one and they do not begin with it."""
        return ids if ids[: len(self.begin)] == self.begin else self.begin + ids

    def between(self, tokens: list[int], suffix: str) -> list[int]:
        """The prompt for the text between `tokens` and `suffix`. Raises TenfoldError if the tokenizer has no tokens for it."""
        for marks in _MIDDLE:
            ids = [i for mark in marks if (i := self.tokenizer.token_to_id(mark)) is not None]
            if len(ids) == len(marks):
                begin = self.begin if tokens[: len(self.begin)] == self.begin else []
                return [*begin, ids[0], *tokens[len(begin) :], ids[1], *self.ids(suffix), ids[2]]
        raise TenfoldError("suffix needs a model trained to fill in the middle, and this one is not: leave suffix out.")

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **more: Any) -> str:
        """The prompt of a conversation; `more` are variables of the template.

        Raises TenfoldError if the template refuses the conversation or fails.
        """
        return render(self.template, self.said(messages), self.special, tools=tools, **{"add_generation_prompt": True, **more})

    def said(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages for a template, marked where they spell special tokens (`data/conversations/words.py`)."""
        return marked(messages, self._words)

    def encode_chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **more: Any) -> list[int]:
        """Tokens of a conversation."""
        return self.ids(self.render(messages, tools, **more))

    def ids(self, text: str) -> list[int]:
        """Tokens of a text without further special tokens, such as a conversation, whose template writes its own.

        Raises TenfoldError if the text must have more tokens than `limit`.
        """
        if self.limit and (least := len(text) // self.longest) > self.limit:
            raise TenfoldError(
                f"The prompt has at least {least} tokens: {least - self.limit} or more too many for the context of {self.limit}."
            )
        return self._tokenize(text)

    def counted_ids(self, text: str) -> list[int]:
        """The tokens that `ids` gives, of a text that may be too long for the context if it has at most `COUNTED` characters."""
        return self._tokenize(text) if len(text) <= COUNTED else self.ids(text)

    def _tokenize(self, text: str) -> list[int]:
        # The tokenizer releases the GIL only in its batch methods.
        tokenizer = self._for_marks if MARK in text else self.tokenizer
        return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; a special token stands for its name."""
        name = self.tokenizer.id_to_token(token) or ""
        if token in self._added:
            return name.encode()
        if self._is_byte_level:
            return bytes(_BYTES[c] for c in name)
        if found := _BYTE_NAME.fullmatch(name):
            return bytes.fromhex(found[1])
        return name.replace("\u2581", " ").encode()  # SentencePiece writes a space so

    @cached_property
    def _words(self) -> re.Pattern[str] | None:
        return special_words(self.tokenizer, self.stop_tokens)

    @cached_property
    def _for_marks(self) -> Tokenizer:
        return without_marks(self.tokenizer, self._words)

    @cached_property
    def _added(self) -> dict[int, Any]:
        return self.tokenizer.get_added_tokens_decoder()

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in repr(self.tokenizer.decoder)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, including special tokens."""
        return self.tokenizer.decode_batch([tokens], skip_special_tokens=False)[0]

    def check_fits(self, rows: int) -> None:
        """Raises TenfoldError if the tokenizer has a token without a row in a model's embedding of `rows`."""
        name, last = max(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        if last >= rows:
            raise TenfoldError(
                f"The tokenizer's token {last} ({name!r}) has no row in the model, which has {rows}: take the tokenizer that "
                "belongs to the model, or give the model a row for each token."
            )

    @property
    def knows_tools(self) -> bool:
        """Whether the template writes tools."""
        return "tools" in self.template

    @property
    def knows_calls(self) -> bool:
        """Whether the template writes the tool calls of earlier turns."""
        return "tool_calls" in self.template


def read_text_side(path: Path) -> TextSide:
    """The text side of a Hugging Face directory or a GGUF file."""
    tokenizer, vocabulary = read_tokenizer(path), read_vocabulary(path)
    plain = "{{ bos_token }}" * len(vocabulary.begin) + PLAIN_TEMPLATE  # templates write the begin-of-sequence token
    template, longest = vocabulary.chat_template or plain, max(map(len, tokenizer.get_vocab()))
    return TextSide(tokenizer, template, vocabulary.stop_tokens, vocabulary.names, list(vocabulary.begin), longest)


def _begins(text: str, stop: str) -> int:
    """The first index from which the rest of `text` is a beginning of `stop`; len(text) if there is none."""
    first = max(0, len(text) - len(stop) + 1)
    return next((i for i in range(first, len(text)) if stop.startswith(text[i:])), len(text))


class TextStream:
    """Decodes one sequence incrementally, up to the first stop string.

    Text that may be the beginning of a stop string is held back until more text decides it; the bytes of a character are held
    back until the character is complete.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str], keep_special: bool = False):
        self._tokenizer, self._stops = tokenizer, [s for s in stops if s]
        self._skip_special = not keep_special
        self._stream = DecodeStream(skip_special_tokens=self._skip_special)
        self._unfinished: list[int] = []  # tokens without text yet, since a character is incomplete
        self.length = 0  # characters of the text of all tokens
        self._held = ""
        self.stopped = ""  # the stop string that ended the text

    def push(self, tokens: list[int]) -> tuple[str, list[int]]:
        """The text that can be given out after these tokens, and each token's offset: the character at which its text begins.

        Tokens after a stop string have no offset: they do not count.
        """
        text, places = "", []
        for token in tokens:
            places.append(self.length)
            new = self._stream.step(self._tokenizer, token) or ""
            self._unfinished = [] if new else [*self._unfinished, token]
            self.length += len(new)
            text += self._certain(new)
            if self.stopped:
                break
        return text, places

    def _certain(self, new: str) -> str:
        """The part of the held back text and `new` that can be given out."""
        self._held += new
        found = {self._held.find(s): s for s in self._stops if s in self._held}
        if found:
            at = min(found)
            text, self._held, self.stopped = self._held[:at], "", found[at]
            return text
        cut = min((_begins(self._held, s) for s in self._stops), default=len(self._held))
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def rest(self) -> str:
        """What is still held back, including an incomplete character, at the end of the sequence."""
        end = self._tokenizer.decode(self._unfinished, skip_special_tokens=self._skip_special)
        text, self._held = self._held + end, ""
        return text
