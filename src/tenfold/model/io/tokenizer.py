"""A model's tokenizer and vocabulary, read from a Hugging Face directory or a GGUF file, and written beside a model."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from tenfold.model.io.gguf_tokenizer import read_gguf_text_fields, read_gguf_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json, write_text
from tenfold.spec.template_ends import ends_of_answers
from tenfold.spec.vocabulary import Vocabulary

_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_FACTS = ("generation_config.json", "special_tokens_map.json", "tokenizer_config.json")  # the last one's word counts


def has_tokenizer(path: Path) -> bool:
    return path.suffix == ".gguf" or (_folder(path) / "tokenizer.json").exists()


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, a corpus, a generation, or a GGUF file."""
    if path.suffix == ".gguf":
        return read_gguf_tokenizer(path)
    file = _folder(path) / "tokenizer.json"
    if not file.exists():
        raise TenfoldError(f"{path} has no tokenizer.json: copy the model's tokenizer there.")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise TenfoldError(f"{file} cannot be read as a tokenizer: {error}.") from None


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a Hugging Face directory, a corpus, a generation, or a GGUF file."""
    return _read(path)[1]


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether texts become the same documents of tokens with both."""
    (tokenizer, ours), (another, theirs) = _read(one), _read(other)
    marks = [(v.begin, v.document_end) for v in (ours, theirs)]
    return tokenizer.to_str() == another.to_str() and marks[0] == marks[1]


def tokenizer_hash(path: Path) -> str:
    """A name for a tokenizer and its special tokens: equal ones have equal names, in whatever files they are stored."""
    tokenizer, vocabulary = _read(path)
    return hashlib.sha256(tokenizer.to_str().encode() + msgspec.json.encode(vocabulary)).hexdigest()


def copy_tokenizer(source: Path, directory: Path) -> Vocabulary:
    """Write the tokenizer of `source` and its special tokens to a directory, as `transformers` reads them."""
    tokenizer, vocabulary = _read(source)
    if source.suffix == ".gguf":
        save_tokenizer(tokenizer, vocabulary, directory)
        return vocabulary
    folder = _folder(source)
    for name in _COPIED:
        if (folder / name).exists():
            shutil.copyfile(folder / name, directory / name)
    write_json(directory / "generation_config.json", _read_json(folder / "generation_config.json") | vocabulary.ids)
    return vocabulary


def save_tokenizer(tokenizer: Tokenizer, vocabulary: Vocabulary, directory: Path) -> None:
    """Write a tokenizer that has no files yet."""
    write_text(directory / "tokenizer.json", tokenizer.to_str(pretty=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **vocabulary.names, "clean_up_tokenization_spaces": False}
    write_json(directory / "tokenizer_config.json", config | {"model_max_length": 1_000_000})
    write_json(directory / "generation_config.json", vocabulary.ids)
    if vocabulary.chat_template is not None:
        write_text(directory / "chat_template.jinja", vocabulary.chat_template)


def _read(path: Path) -> tuple[Tokenizer, Vocabulary]:
    tokenizer = read_tokenizer(path)
    return tokenizer, _vocabulary(tokenizer, _gguf_facts(path) if path.suffix == ".gguf" else _directory_facts(_folder(path)))


def _folder(path: Path) -> Path:
    """Where the files are: a generation has its model in a folder of its own."""
    inner = path / "model"
    return inner if not (path / "tokenizer.json").exists() and (inner / "tokenizer.json").exists() else path


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
    if isinstance(stored, list):  # several, by name
        return next((t["template"] for t in stored if t["name"] == "default"), stored[0]["template"]) if stored else None
    return stored


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except ValueError:
        raise TenfoldError(f"{file} is not valid JSON.") from None
