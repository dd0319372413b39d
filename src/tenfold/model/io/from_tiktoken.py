"""Tokenizers in `tiktoken`'s form, byte strings with their ranks: Meta's `tokenizer.model` and Mistral's `tekken.json`."""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tenfold.spec.errors import TenfoldError
from tenfold.spec.vocabulary import LLAMA3_SPLIT, LLAMA4_SPLIT, byte_characters

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
# Special tokens have the ids after all others (llama-models, `models/llama3/tokenizer.py` and `models/llama4/tokenizer.py`).
# `KIND:FIRST-LAST` stands for the reserved tokens of a kind; see `_names`.
_LLAMA3 = """<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> <|reserved_special_token_1|>
<|finetune_right_pad_id|> <|step_id|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|eot_id|> <|python_tag|> <|image|>"""
_LLAMA4 = """<|begin_of_text|> <|end_of_text|> <|fim_prefix|> <|fim_middle|> <|fim_suffix|>
<|header_start|> <|header_end|> <|eom|> <|eot|> <|step|> text_post_train:0-5 <|python_start|> <|python_end|>
<|finetune_right_pad|> text_post_train:8-68
<|image_start|> <|image_end|> vision:0-1 <|tile_x_separator|> <|tile_y_separator|> vision:2-5 <|image|> vision:6-6 <|patch|>
vision:7-1047 reasoning:0-7 <|reasoning_thinking_start|> <|reasoning_thinking_end|>"""
_KNOWN = {  # by the number of ordinary tokens: split, special tokens, number of special tokens, number of the first reserved one
    128_000: (LLAMA3_SPLIT, _LLAMA3, 256, 2),
    200_000: (LLAMA4_SPLIT, _LLAMA4, 2048, 0),
}
# The special tokens of files that list none (mistral-common, `Tekkenizer.DEPRECATED_SPECIAL_TOKENS`).
_TEKKEN = """<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] [IMG]
<pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"""


def is_tiktoken(file: Path) -> bool:
    """Whether the first line of a file is a token in base64 and its rank."""
    with file.open("rb") as stream:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", stream.read(4096)) is not None


def read_tiktoken(file: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Llama 3's or Llama 4's tokenizer in Meta's form, and its special tokens by their keys in a `tokenizer_config.json`.

    The file does not say how text is split before tokenization; the number of its tokens tells which of the two tokenizers it
    is. Raises TenfoldError for another number of tokens, and for a damaged file.
    """
    try:
        rows = [line.split() for line in file.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except (ValueError, binascii.Error):
        raise TenfoldError(f"{file} is damaged: it must have a token in base64 and its rank in every line.") from None
    if len(ranks) not in _KNOWN:
        raise TenfoldError(
            f"{file} has {len(ranks)} tokens, and does not say how text is split: only the tokenizers of Llama 3 and 4 are known, "
            "for others use the model's tokenizer.json."
        )
    split, names, count, first = _KNOWN[len(ranks)]
    special = [name for part in names.split() for name in _names(part)]
    special += [f"<|reserved_special_token_{first + i}|>" for i in range(count - len(special))]
    tokenizer = _byte_level(ranks, split, {name: len(ranks) + i for i, name in enumerate(special)})
    return tokenizer, {"bos_token": BEGIN, "eos_token": END, "add_bos_token": True}


def read_tekken(file: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Mistral's `tekken.json`, whose special tokens have the first ids, and its special tokens by their keys in a
    `tokenizer_config.json`. Raises TenfoldError for a damaged file."""
    try:
        stored = json.loads(file.read_bytes())
        config = stored["config"]
        count = config["default_num_special_tokens"]
        ordinary = stored["vocab"][: config["default_vocab_size"] - count]
        ranks = {base64.b64decode(token["token_bytes"]): count + token["rank"] for token in ordinary}
        listed = stored.get("special_tokens") or [{"rank": i, "token_str": name} for i, name in enumerate(_TEKKEN.split())]
        named = {token["rank"]: token["token_str"] for token in listed}
        special = {named.get(i, f"<SPECIAL_{i}>"): i for i in range(count)}
        tokenizer = _byte_level(ranks, config["pattern"], special)
    except Exception as error:  # the package `tokenizers` raises nothing narrower for a wrong pattern
        raise TenfoldError(f"{file} cannot be read as a Mistral tokenizer (tekken.json): {error!r}.") from None
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return tokenizer, {key: name for key, name in ends.items() if name in special} | {"add_bos_token": True}


def _names(part: str) -> Iterable[str]:
    """The special tokens that a word of `_LLAMA3` or `_LLAMA4` stands for: itself, or the reserved ones of `KIND:FIRST-LAST`."""
    kind, _, numbers = part.partition(":")
    first, _, last = numbers.partition("-")
    return (f"<|{kind}_reserved_special_token_{i}|>" for i in range(int(first), int(last) + 1)) if numbers else (part,)


def _byte_level(ranks: dict[bytes, int], split: str, special: dict[str, int]) -> Tokenizer:
    """The tokenizer as byte-level BPE of the package `tokenizers`.

    Merges are ordered by the rank of the merged token; a word that is a token itself is not split (`ignore_merges`).
    """
    character = {byte: text for text, byte in byte_characters().items()}
    written = {token: "".join(character[byte] for byte in token) for token in ranks}
    merges = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = sorted((ranks[a], ranks[b], written[a], written[b]) for a, b in cuts if a in ranks and b in ranks)
        merges += [(left, right) for _, _, left, right in pairs]
    vocabulary = special | {written[token]: rank for token, rank in ranks.items()}
    if len(vocabulary) < len(special) + len(ranks):
        raise ValueError("a special token has the text of another token")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    steps = [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer
