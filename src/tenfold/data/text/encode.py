"""Text to tokens with all cores, for any tokenizer that `tokenizers` reads, and the bytes that each token stands for.

Byte-level BPE of a known split is encoded by `tiktoken`, which is four times faster and gives the same tokens; everything
else by `tokenizers`. Special tokens are never read out of the text: there they are ordinary characters.
"""

import json
import os
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import tiktoken
from tokenizers import Tokenizer, models

from tenfold.spec.errors import TenfoldError
from tenfold.spec.vocabulary import LLAMA3_SPLIT, LLAMA4_SPLIT, byte_characters

# The split inside `ByteLevel` (GPT-2, `encoder.py`), and the same where every digit stands alone (SmolLM).
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


class TextEncoder:
    """Turns texts into their tokens, without special ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._plain.no_padding()
        self._fast = fast_encoder(tokenizer)
        # Bytes that the vocabulary has no token for: `tokenizers` leaves them out, `tiktoken` would fail.
        known = tokenizer.get_vocab()
        self._missing = bytes(byte for character, byte in byte_characters().items() if character not in known)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        if self._fast is None:
            return self._slowly(texts)
        slow = {i for i, text in enumerate(texts) if self._lacks(text)} if self._missing else set()
        left = iter(self._slowly([texts[i] for i in sorted(slow)]))
        threads = len(os.sched_getaffinity(0))
        found = iter(self._fast.encode_ordinary_batch([t for i, t in enumerate(texts) if i not in slow], num_threads=threads))
        return [next(left) if i in slow else next(found) for i in range(len(texts))]

    def _slowly(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def _lacks(self, text: str) -> bool:
        data = text.encode()
        return len(data.translate(None, self._missing)) < len(data)


def fast_encoder(tokenizer: Tokenizer) -> tiktoken.Encoding | None:
    """The same tokenizer for `tiktoken`, for text whose bytes it knows; None where it could give other tokens.

    `tiktoken` merges the pair with the lowest token number first, whichever pair that is. This is the tokenizer's own
    rule where its merges stand in the order of their tokens, and every token can only be made in one way or in all.
    """
    stored = json.loads(tokenizer.to_str())
    model, split = stored["model"], _known_split(stored["pre_tokenizer"])
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
    if model["type"] != "BPE" or split is None or stored["normalizer"] or any(model[key] for key in odd):
        return None
    if any(not token["special"] for token in stored["added_tokens"]):
        return None
    special = {token["content"] for token in stored["added_tokens"]}
    vocabulary = {token: index for token, index in model["vocab"].items() if token not in special}
    byte = byte_characters()
    if any(character not in byte for token in vocabulary for character in token):
        return None
    if not _merges_by_number(vocabulary, [tuple(pair) for pair in model["merges"]], bool(model["ignore_merges"])):
        return None
    ranks = {bytes(byte[character] for character in token): index for token, index in vocabulary.items()}
    return tiktoken.Encoding("tenfold", pat_str=split, mergeable_ranks=ranks, special_tokens={})


def _known_split(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The regular expression by which a stored pre-tokenizer parts text into what becomes bytes, if it is a known one."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    kinds = [step and step["type"] for step in steps]
    if kinds[-1] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    regex = steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"]:
        return _GPT2_SPLIT if regex else None
    if kinds == ["Digits", "ByteLevel"]:
        return _DIGITS_SPLIT if regex and steps[0]["individual_digits"] else None
    if kinds == ["Split", "ByteLevel"] and not regex and not steps[0]["invert"] and steps[0]["behavior"] == "Isolated":
        pattern = steps[0]["pattern"].get("Regex")
        return pattern if pattern in (LLAMA3_SPLIT, LLAMA4_SPLIT) else None
    return None


def _merges_by_number(vocabulary: dict[str, int], merges: list[tuple[str, str]], whole_first: bool) -> bool:
    """Whether merging by listed pairs and by token numbers gives the same tokens. With `whole_first`, a word that is a token as a
    whole is looked up before any merge."""
    made = [vocabulary.get(left + right, -1) for left, right in merges]
    if any(later < earlier for earlier, later in pairwise(made)):
        return False
    listed, plain = set(merges), models.BPE(vocabulary, merges)
    for token in vocabulary:
        if [part.value for part in plain.tokenize(token)] == [token]:
            continue
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        if not whole_first or any(a in vocabulary and b in vocabulary and (a, b) not in listed for a, b in pairs):
            return False
    return True


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that each token stands for, int32 [size of the vocabulary]; special tokens stand for none.

    Known of byte-level BPE, and of SentencePiece's kind (a space is written as U+2581, a single byte as `<0x0A>`). Raises
    TenfoldError for another kind.
    """
    decoder = json.dumps(json.loads(tokenizer.to_str())["decoder"], ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        count: Callable[[str], int] = len  # one printable character for each byte
    elif "\u2581" in decoder:
        count = _sentencepiece_bytes
    else:
        raise TenfoldError(
            "The tokenizer is neither byte-level BPE nor of SentencePiece's kind, so how many bytes its tokens stand for is not "
            "known and bits per byte cannot be told: take a model with one of these."
        )
    written, added = tokenizer.get_vocab(), tokenizer.get_added_tokens_decoder()
    lengths = np.zeros(max(written.values()) + 1, dtype=np.int32)
    for token, index in written.items():
        if index not in added:
            lengths[index] = count(token)
        elif not added[index].special:
            lengths[index] = len(token.encode())
    return lengths


def _sentencepiece_bytes(token: str) -> int:
    return 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token.replace("\u2581", " ").encode())
