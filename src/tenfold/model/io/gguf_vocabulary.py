"""Write a tokenizer and its special tokens to the header of a GGUF file."""

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
    """Add the tokenizer of the model in `source`, whose vocabulary has `size` ids, to the header. Returns notes for the user.

    Raises TenfoldError for a tokenizer that llama.cpp would read differently.
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
    """Add the ids of special tokens, and the chat template. `before` are the tokens of an empty text."""
    begin = [*vocabulary.begin, *before]  # a tokenizer may begin every text with a token other than its bos
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
            f"The tokenizer of {source} has no name in GGUF files, because it is neither SentencePiece's BPE nor a byte-level BPE "
            f"that splits text as one of {', '.join(SPLITS)}: export the model --to hf, for llama.cpp's own converter."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]])
    whole = _whole_words(stored["model"]) if SPLITS[pre].whole_words and not stored["model"].get("ignore_merges") else 0
    odd = [f"{whole} tokens are words that llama.cpp keeps whole and this tokenizer splits."] if whole else []
    return [f"Its tokenizer splits text as {pre!r}.", *odd]


def pre_of(stored: dict[str, Any]) -> str | None:
    """llama.cpp's name for the way a tokenizer splits text, or None. `stored` is the tokenizer as in `tokenizer.json`."""
    if stored["model"]["type"] != "BPE" or stored["normalizer"]:
        return None
    ours = _steps(stored["pre_tokenizer"])
    named = ((name, _steps(json.loads(pre_tokenizers.Sequence(split.steps).__getstate__()))) for name, split in SPLITS.items())
    return next((name for name, steps in named if steps == ours), None)


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a stored pre-tokenizer, without the settings that only change offsets."""
    if pre_tokenizer is None:
        return []
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]


def _whole_words(stored: dict[str, Any]) -> int:
    """The number of tokens in the list of merges that the merges do not produce from the token's own text."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in stored["merges"])
    merges = [(first, second) for first, second in pairs]
    bare = Tokenizer(models.BPE(stored["vocab"], merges))
    made = ["".join(merge) for merge in merges]
    return sum(encoding.tokens != [token] for token, encoding in zip(made, bare.encode_batch(made), strict=True))
