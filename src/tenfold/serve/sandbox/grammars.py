"""Compiles JSON schemas, regular expressions and Lark grammars with llguidance, within limits.

The sandbox's worker, which tries a grammar first, and the engine use the same code, so a grammar that passes there compiles here.
"""

import json
from functools import cached_property
from typing import Any, Literal, NamedTuple

from tenfold.spec.errors import TenfoldError

Kind = Literal["JSON schema", "regular expression", "grammar"]
# llguidance's limits. With its defaults, a grammar may take half a gigabyte, and 100 ms in each step.
_LIMITS: dict[str, Any] = {
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}


class GrammarSource(NamedTuple):
    """A grammar as a request gives it; a schema is given as JSON text."""

    kind: Kind
    text: str

    @classmethod
    def of_schema(cls, schema: Any) -> "GrammarSource":
        """The source for a JSON schema. Raises TenfoldError for one that is nested too deeply to be written as JSON."""
        try:
            return cls("JSON schema", json.dumps(schema))
        except RecursionError:
            raise TenfoldError("The JSON schema cannot be used: it is nested too deeply.") from None

    def grammar(self) -> str:
        """The grammar in llguidance's form. Raises TenfoldError for a schema that is not a JSON object."""
        from llguidance import LLMatcher

        if self.kind == "regular expression":
            return LLMatcher.grammar_from_regex(self.text)
        if self.kind == "grammar":
            return LLMatcher.grammar_from_lark(self.text)
        try:
            return LLMatcher.grammar_from_json_schema(self.text, defaults={"whitespace_flexible": False})
        except ValueError as error:
            raise TenfoldError(f"The JSON schema cannot be used: {first_line(error)}.") from None


class GrammarTokenizer:
    """A tokenizer for llguidance, made at its first use from the text of its tokenizer.json."""

    def __init__(self, tokenizer: str, vocab_size: int, stop_tokens: list[int]):
        self._made_of = tokenizer, vocab_size, stop_tokens

    @cached_property
    def _tokenizer(self) -> Any:
        from llguidance import LLTokenizer

        tokenizer, vocab_size, stop_tokens = self._made_of
        try:
            return LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=stop_tokens or None)
        except ValueError as error:
            raise TenfoldError(f"This model's tokenizer cannot follow grammars: {first_line(error)}.") from None

    def warm(self) -> None:
        """Make llguidance's tokenizer, which takes seconds. Raises TenfoldError if llguidance cannot read the tokenizer."""
        _ = self._tokenizer

    def compile(self, grammar: str, kind: str = "grammar") -> Any:
        """A matcher at the start of a text. Raises TenfoldError, which names the `kind`, if the grammar is invalid or too large."""
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
        if matcher.is_error():
            raise TenfoldError(f"The {kind} cannot be used: {first_line(matcher.get_error())}.")
        return matcher


def first_line(error: object) -> str:
    """The first line of an error message, without its period and at most 300 characters."""
    return (str(error).strip().splitlines() or ["unknown"])[0][:300].rstrip(".")
