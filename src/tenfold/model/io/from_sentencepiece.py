"""Convert SentencePiece's `tokenizer.model`, BPE or unigram, to a tokenizer of the package `tokenizers`."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from tenfold.spec.errors import NotInstalled, TenfoldError

SPACE = "\u2581"  # SentencePiece's mark for a space
NEVER = -1e6  # score of a piece that is chosen only if the text cannot be written with other pieces
_UNIGRAM, _BPE = 1, 2  # `TrainerSpec.ModelType`
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # `ModelProto.SentencePiece.Type`


def read_sentencepiece(file: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer in a SentencePiece file, and its special tokens by their keys in a `tokenizer_config.json`.

    If the tokenizer puts a space before every text, user-defined symbols become special tokens, because `tokenizers` would add
    another space after them otherwise. Raises TenfoldError for a damaged file, and for a tokenizer that `tokenizers` cannot
    represent.
    """
    model = _parsed(file)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    pieces = [piece.piece for piece in model.pieces]
    for refused, what in (
        (trainer.model_type not in (_UNIGRAM, _BPE), "is a model of words or characters"),
        (trainer.treat_whitespace_as_suffix, "writes spaces at the end of words"),
        (not normalizer.escape_whitespaces, "does not write spaces as U+2581"),
        (any(piece.type == _UNUSED for piece in model.pieces), "has pieces that are not used"),
    ):
        if refused:
            raise TenfoldError(f"The SentencePiece model {file} {what}, which cannot be read: use the model's tokenizer.json.")
    if not 0 <= trainer.unk_id < len(pieces):
        raise TenfoldError(f"{file} cannot be read as a SentencePiece model: its unk_id is {trainer.unk_id}, not that of a piece.")
    tokenizer = Tokenizer(_bpe(model) if trainer.model_type == _BPE else _unigram(model))
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(normalizer)))
    ends = [decoders.Strip(" ", left=1)] if normalizer.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    for piece in model.pieces:
        special = piece.type == _CONTROL or normalizer.add_dummy_prefix
        if piece.type in (_CONTROL, _USER_DEFINED):
            token = AddedToken(piece.piece.replace(SPACE, " "), special=special, normalized=False)
            tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
    ids = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "pad_token": trainer.pad_id}
    facts: dict[str, Any] = {key: pieces[i] for key, i in ids.items() if 0 <= i < len(pieces)}
    return tokenizer, facts | {"add_bos_token": "bos_token" in facts}


def _parsed(file: Path) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise NotInstalled("A tokenizer.model of SentencePiece needs a package: pip install 'tenfold[sentencepiece]'.") from None
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise TenfoldError(f"{file} cannot be read as a SentencePiece model: it is damaged, or another kind of file.") from None
    if not model.pieces:
        raise TenfoldError(f"{file} cannot be read as a SentencePiece model: it has no pieces.")
    return model


def _bpe(model: Any) -> models.BPE:
    """BPE that first merges the pair whose merged piece has the highest score."""
    vocabulary = {piece.piece: i for i, piece in enumerate(model.pieces)}
    joined = {piece.piece: vocabulary[piece.piece] for piece in model.pieces if piece.type in (_NORMAL, _USER_DEFINED)}
    merges = merges_by_score(((piece.piece, piece.score) for piece in model.pieces if piece.type == _NORMAL), joined)
    unknown = model.pieces[model.trainer_spec.unk_id].piece
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.trainer_spec.byte_fallback)


def merges_by_score(made: Iterable[tuple[str, float]], joined: Mapping[str, int]) -> list[tuple[str, str]]:
    """The list of merges of a BPE that is stored as scores of pieces.

    `made` are the merged pieces with their scores, `joined` the ids of the pieces that may be merged. For each merged piece, the
    highest score first, the merges are all its divisions into two pieces of `joined`, ordered by their ids.
    """
    merges: list[tuple[str, str]] = []
    for text, _ in sorted(made, key=lambda piece: -piece[1]):
        halves = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in joined and text[i:] in joined]
        merges += sorted(halves, key=lambda pair: (joined[pair[0]], joined[pair[1]]))
    return merges


def _unigram(model: Any) -> models.Unigram:
    best = max(piece.score for piece in model.pieces if piece.type == _NORMAL)
    vocabulary = []
    for piece in model.pieces:
        # As SentencePiece's `GetScoreInlined`: a user-defined piece is preferred to the pieces that it consists of.
        defined = len(piece.piece.encode()) * best - 0.1 if piece.type == _USER_DEFINED else NEVER
        vocabulary.append((piece.piece, piece.score if piece.type == _NORMAL else defined))
    return models.Unigram(vocabulary, model.trainer_spec.unk_id, model.trainer_spec.byte_fallback)


def _normalizers(spec: Any) -> Iterator[Any]:
    if spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        yield from (normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)
