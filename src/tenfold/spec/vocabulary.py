"""A model's special tokens, such as those that begin, end and pad a sequence, and its chat template."""

import msgspec

from tenfold.spec.errors import TenfoldError

# How Llama 3 splits text before it is tokenized (llama-models `models/llama3/tokenizer.py`).
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How Llama 4 and GPT-4o split it (llama-models `models/llama4/tokenizer.py`).
LLAMA4_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The end-of-text token in published tokenizers whose eos token may be another one, which ends a turn of a chat.
_TEXT_ENDS = ("<|end_of_text|>", "<|endoftext|>", "</s>")


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """The special tokens and the chat template of a tokenizer with `size` ids. Corpora, models and exports store it.

    `eos` are the ids that end generation: the tokenizer's eos token first, then others, such as the one that ends a turn of a chat.
    With `add_bos`, every text begins with `bos`. `special` maps names of special tokens to ids. A model's embedding may have more
    rows than the tokenizer has ids (padding), never fewer.
    """

    size: int
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    add_bos: bool = False
    special: dict[str, int] = {}
    chat_template: str | None = None

    @property
    def begin(self) -> tuple[int, ...]:
        """The tokens that begin every text: `bos` if `add_bos` is set, else none."""
        return (self.bos,) if self.add_bos and self.bos is not None else ()

    @property
    def document_end(self) -> int:
        """The token that ends a document in training text: an end-of-text token, else the tokenizer's eos token.

        Raises TenfoldError if there is none.
        """
        found = self._ends
        if not found:
            raise TenfoldError(
                "The tokenizer names no token that ends a text, so documents cannot be told apart: set eos_token in its "
                "tokenizer_config.json."
            )
        return found[0]

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end an answer: `eos`, and the end of a document."""
        return frozenset(self.eos) | frozenset(self._ends[:1])

    @property
    def _ends(self) -> list[int]:
        return [self.special[name] for name in _TEXT_ENDS if name in self.special] + list(self.eos)

    def name(self, token: int | None) -> str | None:
        """The name of a special token, such as `<|end_of_text|>`; None if it has none."""
        return next((name for name, number in self.special.items() if number == token), None)

    @property
    def names(self) -> dict[str, str]:
        """`bos_token`, `eos_token` and `pad_token` as texts, as in `tokenizer_config.json` and in chat templates."""
        ids = {"bos_token": self.bos, "eos_token": self.eos[0] if self.eos else None, "pad_token": self.pad}
        return {key: name for key, token in ids.items() if (name := self.name(token)) is not None}

    @property
    def ids(self) -> dict[str, int | list[int] | None]:
        """`bos_token_id`, `eos_token_id` and `pad_token_id`, as in `config.json` and `generation_config.json`."""
        eos = self.eos[0] if len(self.eos) == 1 else list(self.eos) or None
        return {"bos_token_id": self.bos, "eos_token_id": eos, "pad_token_id": self.pad}


def byte_characters() -> dict[str, int]:
    """The byte that each character stands for in a byte-level BPE vocabulary (GPT-2, `encoder.py`, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
