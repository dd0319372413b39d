"""Grammars: JSON schemas, regular expressions and Lark grammars by llguidance, which masks the vocabulary before each draw."""

import json
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tenfold.spec.errors import TenfoldError


def grammar_from(schema: dict[str, Any] | bool | None = None, regex: str | None = None, lark: str | None = None) -> str:
    """The grammar of a JSON schema, a regular expression or a Lark grammar. Raises TenfoldError if it is invalid."""
    from llguidance import LLMatcher

    if regex is not None:
        grammar = LLMatcher.grammar_from_regex(regex)
    elif lark is not None:
        grammar = LLMatcher.grammar_from_lark(lark)
    else:
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_flexible": False})
        except ValueError as error:
            raise TenfoldError(f"The JSON schema cannot be used: {_first_line(error)}.") from None
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if failed:
        kind = "regular expression" if regex is not None else "grammar" if lark is not None else "JSON schema"
        raise TenfoldError(f"The {kind} cannot be used: {_first_line(messages[0])}.")
    return grammar


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["unknown"])[0][:300].rstrip(".")


class GrammarTokenizer:
    """The tokenizer in llguidance's form, made at its first use."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_tokens: list[int]):
        self._made_of = tokenizer, vocab_size, stop_tokens

    @cached_property
    def _tokenizer(self) -> Any:  # takes seconds, and most servers never need it
        from llguidance import LLTokenizer

        tokenizer, vocab_size, stop_tokens = self._made_of
        return LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=stop_tokens or None)

    def matcher(self, grammar: str) -> "Matcher":
        return Matcher(self._tokenizer, grammar)


class Matcher:
    """The place of a sequence in its grammar."""

    def __init__(self, tokenizer: Any, grammar: str):
        from llguidance import LLMatcher

        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)

    def mask(self, logits: Tensor) -> Tensor:
        """`logits` [vocab], minus infinity for tokens that the grammar does not allow."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: len(logits)]).bool()
        self._check()
        return logits.masked_fill(~allowed, -torch.inf)

    def accept(self, token: int) -> bool:
        """Take a token; True if the grammar is complete with it."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise TenfoldError(f"The text could not follow its grammar: {_first_line(self._matcher.get_error())}.")
