"""Read a tokenizer and its special tokens from a directory, a GGUF file or a tokenizer file, and write them to a model's directory.

A directory has `tokenizer.json` (Hugging Face) or, in its place, `tekken.json` (Mistral), `tokenizer.model` (SentencePiece, or
Meta's file of `tiktoken` ranks), or `vocab.json` and `merges.txt` (GPT-2).
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tenfold.model.io.from_sentencepiece import read_sentencepiece
from tenfold.model.io.from_tiktoken import is_tiktoken, read_tekken, read_tiktoken
from tenfold.model.io.gguf_tokenizer import read_gguf_text_fields, read_gguf_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json, write_text
from tenfold.spec.template_ends import ends_of_answers
from tenfold.spec.vocabulary import Vocabulary

_HUGGING_FACE = "tokenizer.json"
_FILES = (_HUGGING_FACE, "tekken.json", "tokenizer.model", "vocab.json")
_COPIED = (_HUGGING_FACE, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# Files that name special tokens; a later one overrides an earlier one.
_FACTS = ("generation_config.json", "special_tokens_map.json", "tokenizer_config.json")


def has_tokenizer(path: Path) -> bool:
    return path.suffix == ".gguf" or _file(path) is not None


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a directory (a model, a corpus, a generation), a GGUF file or a tokenizer file.

    Raises TenfoldError if there is none or it cannot be read.
    """
    return _tokenizer(path)[0]


def read_vocabulary(path: Path) -> Vocabulary:
    """The size, special tokens and chat template of the tokenizer that `read_tokenizer` reads."""
    return _read(path)[1]


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether both tokenizers turn a text into the same tokens, including those that begin and end a document."""
    (tokenizer, ours), (another, theirs) = _read(one), _read(other)
    marks = [(v.begin, v.document_end) for v in (ours, theirs)]
    return tokenizer.to_str() == another.to_str() and marks[0] == marks[1]


def tokenizer_hash(path: Path) -> str:
    """SHA-256 of a tokenizer and its special tokens. It does not depend on the kind of file they are stored in."""
    tokenizer, vocabulary = _read(path)
    return hashlib.sha256(tokenizer.to_str().encode() + msgspec.json.encode(vocabulary)).hexdigest()


def copy_tokenizer(source: Path, directory: Path) -> Vocabulary:
    """Write the tokenizer of `source` and its special tokens to a directory, in the files that `transformers` reads."""
    tokenizer, vocabulary = _read(source)
    folder, file = _folder(source), _file(source)
    if file is None or file.name != _HUGGING_FACE:
        save_tokenizer(tokenizer, vocabulary, directory)
        return vocabulary
    for name in _COPIED:
        if (folder / name).exists():
            shutil.copyfile(folder / name, directory / name)
    write_json(directory / "generation_config.json", _read_json(folder / "generation_config.json") | vocabulary.ids)
    return vocabulary


def save_tokenizer(tokenizer: Tokenizer, vocabulary: Vocabulary, directory: Path) -> None:
    """Write a tokenizer that is not stored in Hugging Face's files yet."""
    write_text(directory / "tokenizer.json", tokenizer.to_str(pretty=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **vocabulary.names, "clean_up_tokenization_spaces": False}
    write_json(directory / "tokenizer_config.json", config | {"model_max_length": 1_000_000})
    write_json(directory / "generation_config.json", vocabulary.ids)
    if vocabulary.chat_template is not None:
        write_text(directory / "chat_template.jinja", vocabulary.chat_template)


def _read(path: Path) -> tuple[Tokenizer, Vocabulary]:
    tokenizer, facts = _tokenizer(path)
    return tokenizer, _vocabulary(tokenizer, facts)


def _tokenizer(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and its special tokens and chat template by their keys in a `tokenizer_config.json`.

    The latter come from the tokenizer's file, and from the model's configuration files in the same folder, which take precedence.
    """
    if path.suffix == ".gguf":
        return read_gguf_tokenizer(path), _gguf_facts(path)
    file = _file(path)
    if file is None:
        raise TenfoldError(f"{path} has no tokenizer.json: copy the model's tokenizer.json there.")
    beside = _directory_facts(file.parent)
    if file.name == _HUGGING_FACE:
        return _from_hugging_face(file), beside
    tokenizer, own = _reader(file)(file)
    facts = own | beside
    if facts.get("add_bos_token"):
        begin = own["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return tokenizer, facts


def _reader(file: Path) -> Callable[[Path], tuple[Tokenizer, dict[str, Any]]]:
    if file.suffix == ".json":
        return _from_gpt2 if file.name == "vocab.json" else read_tekken
    return read_tiktoken if is_tiktoken(file) else read_sentencepiece


def _from_hugging_face(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise TenfoldError(f"{file} cannot be read as a tokenizer: {error}.") from None


def _from_gpt2(file: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level BPE in the two files of GPT-2, with GPT-2's split. Raises TenfoldError for a tokenizer of another class."""
    merges, config = file.with_name("merges.txt"), _read_json(file.with_name("tokenizer_config.json"))
    kind = config.get("tokenizer_class", "GPT2Tokenizer")
    if kind not in ("GPT2Tokenizer", "GPT2TokenizerFast") or not merges.exists():
        raise TenfoldError(f"{file} belongs to a {kind}, or has no merges.txt beside it: copy the model's tokenizer.json there.")
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(file), str(merges)))
    except Exception as error:  # the package raises nothing narrower
        raise TenfoldError(f"{file} and {merges.name} cannot be read as a tokenizer: {error}.") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    if tokenizer.token_to_id(end) is None:
        return tokenizer, {}
    tokenizer.add_special_tokens([end])
    return tokenizer, {"bos_token": end, "eos_token": end}


def _file(path: Path) -> Path | None:
    """The tokenizer file in a directory, or `path` itself if it is a file; None if there is none."""
    if path.is_file():
        return path
    found = (_folder(path) / name for name in _FILES)
    return next((file for file in found if file.exists()), None)


def _folder(path: Path) -> Path:
    """The folder with the tokenizer's files: that of `path`, or the folder `model` in a generation."""
    if path.is_file():
        return path.parent
    inner = path / "model"
    return inner if not (path / _HUGGING_FACE).exists() and (inner / _HUGGING_FACE).exists() else path


def _directory_facts(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    sources = [config.get("text_config") or {}, config, *map(_read_json, map(folder.joinpath, _FACTS))]
    facts = {key: value for source in sources for key, value in source.items() if value is not None}
    if (folder / "chat_template.jinja").exists():
        facts["chat_template"] = (folder / "chat_template.jinja").read_text()
    return facts


def _gguf_facts(path: Path) -> dict[str, Any]:
    fields = read_gguf_text_fields(path)
    facts = {key.replace("padding_token", "pad_token"): value for key, value in fields.items()}
    ends = [facts[key] for key in ("eos_token_id", "eot_token_id", "eom_token_id") if key in facts]
    return facts | {"eos_token_id": ends}


def _vocabulary(tokenizer: Tokenizer, facts: dict[str, Any]) -> Vocabulary:
    size = max(tokenizer.get_vocab().values()) + 1
    added = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items()}
    special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    template = _chat_template(facts.get("chat_template"))

    def found(kind: str) -> list[int]:
        named, numbers = facts.get(f"{kind}_token"), facts.get(f"{kind}_token_id")
        ids = [] if named is None else [tokenizer.token_to_id(named["content"] if isinstance(named, dict) else str(named))]
        ids += numbers if isinstance(numbers, list) else [numbers]
        return [i for i in dict.fromkeys(ids) if i is not None and 0 <= i < size]

    bos, eos, pad = map(found, ("bos", "eos", "pad"))
    eos += [added[end] for end in ends_of_answers(template or "") if end in added and added[end] not in eos]
    special |= {name: i for i in (*bos[:1], *eos, *pad[:1]) if (name := tokenizer.id_to_token(i)) is not None}
    return Vocabulary(
        size=size,
        bos=bos[0] if bos else None,
        eos=tuple(eos),
        pad=pad[0] if pad else None,
        add_bos=bool(bos) and (tokenizer.encode("").ids[:1] == bos[:1] or bool(facts.get("add_bos_token"))),
        special=dict(sorted(special.items(), key=lambda item: item[1])),
        chat_template=template,
    )


def _chat_template(stored: Any) -> str | None:
    if isinstance(stored, list):  # several templates, each with a name
        return next((t["template"] for t in stored if t["name"] == "default"), stored[0]["template"]) if stored else None
    return stored


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text()) if file.exists() else {}
    except (ValueError, RecursionError):
        raise TenfoldError(f"{file} is not valid JSON.") from None
    if not isinstance(found, dict):
        raise TenfoldError(f"{file} is not a JSON object: copy the model's own file there.")
    return found
