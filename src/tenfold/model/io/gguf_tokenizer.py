"""Read a tokenizer from the header of a GGUF file: byte-level BPE or SentencePiece's BPE."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tenfold.model.io.from_sentencepiece import merges_by_score
from tenfold.model.io.gguf import open_gguf
from tenfold.model.io.gguf_splits import SPLITS
from tenfold.spec.errors import TenfoldError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # `tokenizer.ggml.token_type`
_SPACE = "\u2581"  # SentencePiece's mark for a space
# Known header fields: those that are read, those without effect on the tokens of a text, and those with only one supported
# value. A field in none of the lists is refused.
_READ = (
    "model", "pre", "tokens", "scores", "token_type", "merges", "add_bos_token", "add_eos_token", "add_space_prefix",
    "bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id", "padding_token_id",
)  # fmt: skip
_HARMLESS = (
    "token_type_count", "seperator_token_id", "cls_token_id", "mask_token_id", "prefix_token_id", "suffix_token_id",
    "middle_token_id", "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "fim_pad_token_id", "fim_rep_token_id",
    "fim_sep_token_id",
)  # fmt: skip
_FIXED = {"add_sep_token": False, "remove_extra_whitespaces": False, "normalizer.lowercase": False}


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a GGUF file. Raises TenfoldError if it is not a BPE, or splits text in an unknown way."""
    fields = read_gguf_text_fields(path)
    _require_known(path)
    kinds = {"gpt2": _byte_level, "llama": _sentencepiece}
    if fields.get("model") not in kinds:
        known = "only byte-level BPE ('gpt2') and SentencePiece's BPE ('llama') can be read"
        raise TenfoldError(f"{path} has a {fields.get('model')!r} tokenizer: {known}.")
    try:
        tokenizer = kinds[fields["model"]](fields, path)
        _add_tokens(tokenizer, fields)
        _add_marks(tokenizer, fields)
    except TenfoldError:
        raise
    except KeyError as error:
        raise TenfoldError(f"The tokenizer of {path} cannot be read: it lacks {error}.") from None
    except Exception as error:  # the package `tokenizers` raises nothing narrower
        raise TenfoldError(f"The tokenizer of {path} cannot be read: {str(error).rstrip('.') or type(error).__name__}.") from None
    return tokenizer


def read_gguf_text_fields(path: Path) -> dict[str, Any]:
    """The header fields about text, without their prefix: tokens and merges, chat template, and the ids of special tokens."""
    fields = {key.split(".")[-1]: field.contents() for key, field in open_gguf(path).fields.items() if key.startswith("tokenizer.")}
    split = SPLITS.get(fields.get("pre", ""))
    # Fields that the file lacks have llama.cpp's defaults.
    begins = fields.get("model") == "llama" or (split is not None and split.add_bos)
    return {"pre": "default", "add_bos_token": begins, "add_eos_token": False} | fields


def _require_known(path: Path) -> None:
    own = "tokenizer.ggml."
    for key, field in open_gguf(path).fields.items():
        name = key.removeprefix(own)
        if not key.startswith(own) or name in _READ or name in _HARMLESS:
            continue
        if name not in _FIXED or bool(field.contents()) != _FIXED[name]:
            raise TenfoldError(f"{path} has a field {key}, which may change how text is tokenized and is not supported.")


def _byte_level(fields: dict[str, Any], path: Path) -> Tokenizer:
    if fields["pre"] not in SPLITS:
        raise TenfoldError(
            f"{path} splits text by {fields['pre']!r} before it is tokenized, and only {', '.join(SPLITS)} are known: use the "
            "model's Hugging Face directory."
        )
    split = SPLITS[fields["pre"]]
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    if odd := next((merge for merge in merges if len(merge) != 2), None):
        raise ValueError(f"its merge {' '.join(odd)!r} does not consist of two tokens")
    tokenizer = Tokenizer(models.BPE(_ids(fields), merges, ignore_merges=split.whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split.steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: dict[str, Any], path: Path) -> Tokenizer:
    """BPE that first merges the pair whose merged piece has the highest score."""
    ids, unknown = _ids(fields), fields["tokens"][fields.get("unknown_token_id", 0)]
    pieces = zip(fields["tokens"], fields["scores"], fields["token_type"], strict=True)
    merges = merges_by_score(((piece, score) for piece, score, kind in pieces if kind in (NORMAL, USER_DEFINED)), ids)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = fields.get("add_space_prefix", True)
    replaced = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replaced]) if prefix else replaced
    stripped = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *stripped])
    return tokenizer


def _ids(fields: dict[str, Any]) -> dict[str, int]:
    ids = {token: i for i, token in enumerate(fields["tokens"])}
    if len(ids) < len(fields["tokens"]):
        twice = next(token for i, token in enumerate(fields["tokens"]) if ids[token] != i)
        raise ValueError(f"its token {twice!r} has two ids")
    return ids


def _add_tokens(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """Tell the tokenizer which of its tokens are recognized in text before the text is split."""
    kinds = list(zip(fields["tokens"], fields["token_type"], strict=True))
    unknown = UNKNOWN if fields["model"] == "llama" else CONTROL
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in kinds if kind in (CONTROL, unknown)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in kinds if kind == USER_DEFINED])


def _add_marks(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """Tell the tokenizer which tokens it puts before and after every text."""
    marks = [(fields["tokens"][i], i) if add else None for add, i in (
        (fields["add_bos_token"], fields.get("bos_token_id")), (fields["add_eos_token"], fields.get("eos_token_id")))]  # fmt: skip
    if any(marks):
        begin, end = ([f"{mark[0]}"] if mark else [] for mark in marks)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *(f"{mark}:1" for mark in begin), "$B:1", *(f"{mark}:1" for mark in end)],
            special_tokens=[mark for mark in marks if mark],
        )
