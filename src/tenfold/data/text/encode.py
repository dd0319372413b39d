"""Encode text on all cores, for any tokenizer that `tokenizers` reads, and count the bytes that each token stands for.

Byte-level BPE with a known split is encoded by `tiktoken`, which is four times faster and gives the same tokens; everything else by
`tokenizers`. The names of special tokens in a text are encoded as ordinary characters.
"""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import tiktoken
from tokenizers import Tokenizer, models

from tenfold.spec.errors import TenfoldError
from tenfold.spec.threads import available_cores
from tenfold.spec.vocabulary import LLAMA3_SPLIT, LLAMA4_SPLIT, byte_characters

# The split inside `ByteLevel` (GPT-2, `encoder.py`), and the same with every digit by itself (SmolLM).
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


class TextEncoder:
    """Turns a list of texts into lists of token ids, without special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._plain.no_padding()
        self._fast = fast_encoder(tokenizer)
        # Bytes for which the vocabulary has no token: `tokenizers` leaves them out, `tiktoken` would fail on them.
        known = tokenizer.get_vocab()
        self._missing = bytes(byte for character, byte in byte_characters().items() if character not in known)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        if self._fast is None:
            return self._slowly(texts)
        slow = {i for i, text in enumerate(texts) if self._lacks(text)} if self._missing else set()
        left = iter(self._slowly([texts[i] for i in sorted(slow)]))
        quick = [text for i, text in enumerate(texts) if i not in slow]
        found = iter(self._fast.encode_ordinary_batch(quick, num_threads=available_cores()))
        return [next(left) if i in slow else next(found) for i in range(len(texts))]

    def _slowly(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def _lacks(self, text: str) -> bool:
        data = text.encode()
        return len(data.translate(None, self._missing)) < len(data)


def fast_encoder(tokenizer: Tokenizer) -> tiktoken.Encoding | None:
    """The same tokenizer for `tiktoken`, for text whose bytes are all in the vocabulary; None if its tokens could differ.

    `tiktoken` always merges the pair whose result has the lowest id, whether or not that pair is in the list of merges. The
    tokenizer gives the same tokens if its merges are in the order of their results' ids, and if they build every token from its
    bytes. A token that they do not build must be one that is looked up as a whole word (`ignore_merges`) and that no unlisted pair
    of tokens gives.
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
    """The regular expression by which a stored byte-level pre-tokenizer splits text, if it is a known one; else None."""
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
    """Whether merging by the list of merges and by token ids gives the same tokens. With `whole_first`, a word that is itself a
    token is looked up before any merge."""
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
    """The bytes of text that each token stands for, int32 [size of the vocabulary]; 0 for special tokens.

    Known for byte-level BPE and for SentencePiece tokenizers (a space is written as U+2581, a single byte as `<0x0A>`). Raises
    TenfoldError for any other kind.
    """
    decoder = json.dumps(json.loads(tokenizer.to_str())["decoder"], ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        count: Callable[[str], int] = len  # one printable character for each byte
    elif "\u2581" in decoder:
        count = _sentencepiece_bytes
    else:
        raise TenfoldError(
            "The tokenizer is neither byte-level BPE nor of SentencePiece's kind, so the bytes of its tokens are unknown and bits "
            "per byte cannot be computed: take a model with one of these."
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
