"""A tokenizer and its special tokens as the header of a GGUF file has them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from tenfold.model.io.gguf_sentencepiece import add_sentencepiece, sentencepiece_kinds
from tenfold.model.io.gguf_splits import SPLITS
from tenfold.model.io.gguf_tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED
from tenfold.model.io.tokenizer import read_tokenizer, read_vocabulary
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vocabulary import Vocabulary


def add_vocabulary(writer: Any, source: Path, size: int) -> list[str]:
    """Add the tokenizer of a model of `size` ids to the header. Returns what a user should know of it.

    Raises TenfoldError for a tokenizer that llama.cpp would read another way.
    """
    tokenizer, vocabulary = read_tokenizer(source), read_vocabulary(source)
    stored = json.loads(tokenizer.to_str())
    kinds = {i: CONTROL if token.special else USER_DEFINED for i, token in tokenizer.get_added_tokens_decoder().items()}
    names = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    if stored["model"]["type"] == "BPE" and stored["model"].get("byte_fallback"):
        kinds |= sentencepiece_kinds(stored["model"])
        notes = add_sentencepiece(writer, stored, [names.get(i) for i in range(size)], source)
    else:
        notes = _add_byte_level(writer, stored, source)
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([kinds.get(i, NORMAL if i in names else UNUSED) for i in range(size)])
    _add_special(writer, vocabulary, tokenizer.encode("").ids)
    return notes


def _add_special(writer: Any, vocabulary: Vocabulary, before: list[int]) -> None:
    """Add the ids of special tokens, and the chat template."""
    begin = [*vocabulary.begin, *before]  # a tokenizer may begin every text with a token that is not named bos
    writer.add_add_bos_token(bool(begin))
    for add, token in (
        (writer.add_bos_token_id, next(iter(begin), vocabulary.bos)),
        (writer.add_eos_token_id, next(iter(vocabulary.eos), None)),
        (writer.add_eot_token_id, next(iter(vocabulary.eos[1:]), None)),
        (writer.add_eom_token_id, next(iter(vocabulary.eos[2:]), None)),
        (writer.add_pad_token_id, vocabulary.pad),
    ):
        if token is not None:
            add(token)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _add_byte_level(writer: Any, stored: dict[str, Any], source: Path) -> list[str]:
    pre = pre_of(stored)
    if pre is None:
        raise TenfoldError(
            f"The tokenizer of {source} is no byte-level BPE that splits text as {', '.join(SPLITS)} do, nor SentencePiece's BPE, "
            "and so has no name in GGUF files: export the model --to hf, for llama.cpp's own converter."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]])
    whole = _whole_words(stored["model"]) if SPLITS[pre].whole_words and not stored["model"].get("ignore_merges") else 0
    odd = [f"{whole} tokens are words that llama.cpp keeps whole, and this tokenizer spells in parts."] if whole else []
    return [f"Its tokenizer splits text as {pre!r}.", *odd]


def pre_of(stored: dict[str, Any]) -> str | None:
    """The name that llama.cpp has for the way in which a tokenizer, as it is stored, splits text; None where it has none."""
    if stored["model"]["type"] != "BPE" or stored["normalizer"]:
        return None
    ours = _steps(stored["pre_tokenizer"])
    named = ((name, _steps(json.loads(pre_tokenizers.Sequence(split.steps).__getstate__()))) for name, split in SPLITS.items())
    return next((name for name, steps in named if steps == ours), None)


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a split, without what changes offsets alone."""
    if pre_tokenizer is None:
        return []
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]


def _whole_words(stored: dict[str, Any]) -> int:
    """How many tokens stand in the list of merges, but are not what its merges make of their text."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in stored["merges"])
    merges = [(first, second) for first, second in pairs]
    bare = Tokenizer(models.BPE(stored["vocab"], merges))
    made = ["".join(merge) for merge in merges]
    return sum(encoding.tokens != [token] for token, encoding in zip(made, bare.encode_batch(made), strict=True))
