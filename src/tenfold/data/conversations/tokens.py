"""Encode chats in a model's tokens, and mark those that are learned: each answer with the token that ends it, and nothing else.

The tokens before an answer are exactly those that a server would send to the model as a prompt, so training matches serving.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tenfold.data.conversations.chats import Chat, prompt_of
from tenfold.data.conversations.template import render
from tenfold.data.conversations.words import MARK, marked, special_words, without_marks
from tenfold.model.io.tokenizer import read_tokenizer, read_vocabulary
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vocabulary import Vocabulary


@dataclass(frozen=True)
class EncodedChat:
    """`tokens` int64 [n] and `learned` bool [n], up to the last learned token; the learned answers have `answer_bytes` of text."""

    tokens: np.ndarray
    learned: np.ndarray
    answer_bytes: int

    def answers(self, length: int) -> int:
        """The number of answers that end within the first `length` tokens."""
        return int((self.learned[:length] & ~np.append(self.learned[1:], False)[:length]).sum())


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes chats with a model's tokenizer and chat template."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary

    @classmethod
    def of(cls, model: Path) -> "ChatEncoder":
        """The encoder of the model in a folder. Raises TenfoldError if it has no chat template."""
        vocabulary = read_vocabulary(model)
        if vocabulary.chat_template is None:
            raise TenfoldError(f"The model {model} has no chat template: put a chat_template.jinja beside its tokenizer.json.")
        return cls(read_tokenizer(model), vocabulary)

    def encode(self, chat: Chat, last_alone: bool = False) -> EncodedChat:
        """The tokens of a chat. With `last_alone` only the last answer is learned; earlier ones are part of its prompt.

        Raises TenfoldError if the template rewrites earlier turns, or ends an answer without a stop token.
        """
        tokens: list[int] = []
        learned: list[bool] = []
        size = 0
        for text, is_answer in self._segments(chat, last_alone):
            ids = self._ids(text)
            end = 0
            if is_answer:
                # The first stop token ends the answer; after it, the template may write more, such as a line break.
                end = 1 + next((i for i, token in enumerate(ids) if token in self.vocabulary.stop_tokens), -1)
                if not end:
                    raise TenfoldError("The chat template ends an answer without a stop token, so no model would learn to stop.")
                size += len(self.tokenizer.decode(ids[:end]).encode())
            tokens += ids
            learned += [i < end for i in range(len(ids))]
        used = len(learned) - learned[::-1].index(True)
        return EncodedChat(np.array(tokens[:used], np.int64), np.array(learned[:used]), size)

    def prompt(self, messages: Chat) -> list[int]:
        """The tokens of the prompt that a server would send to the model for these messages."""
        return self._ids(self._render(messages, add_generation_prompt=True))

    def _ids(self, text: str) -> list[int]:
        return (self._for_marks if MARK in text else self.tokenizer).encode(text, add_special_tokens=False).ids

    @cached_property
    def _words(self) -> re.Pattern[str] | None:
        return special_words(self.tokenizer, self.vocabulary.stop_tokens)

    @cached_property
    def _for_marks(self) -> Tokenizer:
        return without_marks(self.tokenizer, self._words)

    def _segments(self, chat: Chat, last_alone: bool) -> Iterator[tuple[str, bool]]:
        """The rendered text up to the last answer, in parts, and whether each part is an answer."""
        done, last = "", len(prompt_of(chat))
        for i, message in enumerate(chat):
            if message["role"] == "assistant" and (i == last if last_alone else i):
                asked = self._render(chat[:i], add_generation_prompt=True)
                answered = self._render(chat[: i + 1], add_generation_prompt=False)
                if not (asked.startswith(done) and answered.startswith(asked)):
                    raise TenfoldError("The chat template rewrites earlier turns of a chat: give each answer in a chat of its own.")
                yield asked[len(done) :], False
                yield answered[len(asked) :], True
                done = answered

    def _render(self, messages: Chat, add_generation_prompt: bool) -> str:
        assert self.vocabulary.chat_template is not None
        special = self.vocabulary.names
        said = marked(messages, self._words)
        return render(self.vocabulary.chat_template, said, special, add_generation_prompt=add_generation_prompt)
