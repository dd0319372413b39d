"""Write SentencePiece's BPE to the header of a GGUF file, which stores a score for each piece instead of merges."""

from pathlib import Path
from typing import Any

from tenfold.model.io.from_sentencepiece import SPACE, merges_by_score
from tenfold.model.io.gguf_tokenizer import BYTE, UNKNOWN
from tenfold.spec.errors import TenfoldError

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def add_sentencepiece(writer: Any, stored: dict[str, Any], pieces: list[str | None], source: Path) -> list[str]:
    """Add the scores of `pieces`, one per id (None for an id without a piece), and how spaces are handled. Returns notes for the
    user.

    `stored` is the tokenizer as in `tokenizer.json`. Raises TenfoldError for a tokenizer that llama.cpp would read differently.
    """
    prefix, notes = _prefix(stored, source)
    model = stored["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = ["".join(merge) for merge in merges]
    rank = {piece: i for i, piece in enumerate(dict.fromkeys(made))}
    scores = {piece: -float(rank.get(piece, len(rank))) for piece in model["vocab"]}
    others = {*_BYTES, model["unk_token"], *(token["content"] for token in stored["added_tokens"])}
    # Scores can replace the merges only if the merges that make one piece are adjacent and complete: check by rebuilding them.
    again = merges_by_score(((piece, score) for piece, score in scores.items() if piece not in others), model["vocab"])
    if ["".join(merge) for merge in again] != made or set(again) != set(merges):
        raise _refusal(source, "merges that cannot be expressed as scores of pieces")
    if any(byte not in model["vocab"] for byte in _BYTES):
        raise _refusal(source, "no tokens for some bytes")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores.get(piece or "", -float(len(rank))) for piece in pieces])
    writer.add_add_space_prefix(prefix)
    if model["unk_token"] is not None:
        writer.add_unk_token_id(model["vocab"][model["unk_token"]])
    return ["Its tokenizer is SentencePiece's BPE.", *notes]


def sentencepiece_kinds(model: dict[str, Any]) -> dict[int, int]:
    """The token types, by id, of byte tokens and of the unknown token."""
    kinds = {model["vocab"][byte]: BYTE for byte in _BYTES if byte in model["vocab"]}
    return kinds if model["unk_token"] is None else kinds | {model["vocab"][model["unk_token"]]: UNKNOWN}


def _prefix(stored: dict[str, Any], source: Path) -> tuple[bool, list[str]]:
    """Whether a space is put before a text, and a note if llama.cpp does so differently.

    Raises TenfoldError for normalization or pre-tokenization that llama.cpp does not have.
    """
    normalizer, split = stored["normalizer"], stored["pre_tokenizer"]
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer] if normalizer else []
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if split is None and steps in ([replaced], [{"type": "Prepend", "prepend": SPACE}, replaced]):
        return len(steps) == 2, []
    if not steps and split and split["type"] == "Metaspace" and split["replacement"] == SPACE and not split.get("split", True):
        scheme = split["prepend_scheme"]
        odd = ["llama.cpp also puts a space after special tokens, this tokenizer only before a text."] * (scheme == "first")
        return scheme != "never", odd
    raise _refusal(source, "a normalizer or pre-tokenizer that is not SentencePiece's")


def _refusal(source: Path, what: str) -> TenfoldError:
    return TenfoldError(
        f"The tokenizer of {source} is a BPE with byte fallback and has {what}, which llama.cpp cannot read: export it --to hf."
    )
