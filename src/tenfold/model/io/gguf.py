"""GGUF files in: shape, weights and tokenizer (llama.cpp's format; read with the package `gguf`)."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from tenfold.model.family import families
from tenfold.model.io.format import GGUFNames
from tenfold.model.llama import rope_factors
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling
from tenfold.spec.vocabulary import LLAMA3_SPLIT

# How text is split before it is tokenized, by `tokenizer.ggml.pre` (llama.cpp, `llama-vocab.cpp`).
SPLITS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
_STRETCH = "rope_freqs.weight"
_CONTROL = 3  # token type of special tokens in `tokenizer.ggml.token_type`
_LONGEST_ARRAY = 2**21  # of a header; the largest vocabularies have some 2^18 tokens


def read_gguf(path: Path) -> tuple[ModelSpec, dict[str, Callable[[], Tensor]]]:
    """The shape, and for the Hugging Face name of each weight a function that reads it, dequantised to float32.

    Raises TenfoldError where the file cannot be read or is of an architecture of no family.
    """
    reader = _open(path)
    try:
        spec, names = _spec(reader, path)
        return spec, _tensors(reader, spec, names)
    except (KeyError, StopIteration) as error:
        raise TenfoldError(f"{path} is no model that can be read: it lacks {error}.") from None
    except (ValueError, TypeError, ArithmeticError) as error:
        raise TenfoldError(f"{path} is no model that can be read: {error}.") from None


def gguf_sizes(path: Path) -> list[int]:
    """How many weights each tensor of a GGUF file has."""
    return [int(t.n_elements) for t in _open(path).tensors]


def _spec(reader: Any, path: Path) -> tuple[ModelSpec, GGUFNames]:
    architecture = reader.fields["general.architecture"].contents()
    family, names = _family(path, architecture)
    own = f"{architecture}."
    fields = {name.removeprefix(own): f.contents() for name, f in reader.fields.items() if name.startswith(own)}
    heads = int(fields["attention.head_count"])
    dim = int(fields["embedding_length"])
    embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
    spec = ModelSpec(
        name=path.stem,
        family=family,
        dim=dim,
        n_layers=int(fields["block_count"]),
        n_heads=heads,
        n_kv_heads=int(fields.get("attention.head_count_kv", heads)),
        head_dim=int(fields.get("rope.dimension_count", dim // heads)),
        ffn_dim=int(fields["feed_forward_length"]),
        vocab_size=int(embedding.shape[1]),
        tied="output.weight" not in {t.name for t in reader.tensors},
        context=int(fields["context_length"]),
        rope_theta=float(fields.get("rope.freq_base", 10000.0)),
        norm_eps=float(f"{fields['attention.layer_norm_rms_epsilon']:.6g}"),
    )
    factors = next((t.data for t in reader.tensors if t.name == _STRETCH), None)
    return (spec if factors is None else _stretched(spec, np.asarray(factors), fields, path)), names


def _stretched(spec: ModelSpec, factors: np.ndarray, fields: dict[str, Any], path: Path) -> ModelSpec:
    """The spec with Llama 3.1's stretch, of which a file has the factors alone. Raises TenfoldError for another one."""
    original = int(fields.get("rope.scaling.original_context_length", 8192))
    spec = replace(spec, rope_scaling=RopeScaling(float(factors.max()), 1.0, 4.0, original))
    if not np.allclose(rope_factors(spec).numpy(), factors, rtol=1e-4):
        raise TenfoldError(f"{path} stretches its rotary positions otherwise than Llama 3.1: read its Hugging Face directory.")
    return spec


def _family(path: Path, architecture: str) -> tuple[str, GGUFNames]:
    """The family of a GGUF file's architecture, and its names there."""
    known: list[str] = []
    for family_name, family in families():
        names = family.weights().gguf
        if names is not None and names.architecture == architecture:
            return family_name, names
        known += [names.architecture] if names else []
    raise TenfoldError(f"{path} is a {architecture!r} model: only {', '.join(map(repr, sorted(known)))} can be read.")


def _tensors(reader: Any, spec: ModelSpec, names: GGUFNames) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {}
    for stored in reader.tensors:
        if stored.name == _STRETCH:
            continue
        if stored.name in names.top:
            found[names.top[stored.name]] = partial(_tensor, stored)
            continue
        _, layer, part, _ = stored.name.split(".")
        turned = spec.head_dim if part in names.turned else 0
        found[f"model.layers.{layer}.{names.part[part]}.weight"] = partial(_tensor, stored, turned)
    return found


def _tensor(stored: Any, turned_head: int = 0) -> Tensor:
    """A stored weight; `turned_head` is the size of heads whose rows llama.cpp keeps in pairs."""
    from gguf.quants import dequantize

    tensor = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy()).float()
    return tensor.unflatten(0, (-1, turned_head // 2, 2)).transpose(1, 2).flatten(0, 2) if turned_head else tensor


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """The byte-level BPE inside a GGUF file. Raises TenfoldError for another kind."""
    fields = read_gguf_text_fields(path)
    if fields["model"] != "gpt2":
        raise TenfoldError(f"{path} has a {fields['model']!r} tokenizer: only byte-level BPE ('gpt2') can be read.")
    if fields["pre"] not in SPLITS:
        raise TenfoldError(
            f"{path} splits text by {fields['pre']!r} before it is tokenized, and {', '.join(SPLITS)} are known: read the "
            "model's Hugging Face directory."
        )
    tokens = fields["tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=fields["pre"] == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[fields["pre"]])
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, fields["token_type"], strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    if fields["add_bos_token"]:
        bos = tokens[fields["bos_token_id"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, fields["bos_token_id"])]
        )
    return tokenizer


def read_gguf_text_fields(path: Path) -> dict[str, Any]:
    """What a GGUF file says of text: tokens and merges, chat template, and the ids of special tokens."""
    fields = {key.split(".")[-1]: field.contents() for key, field in _open(path).fields.items() if key.startswith("tokenizer.")}
    # Llama 3's files need not say what llama.cpp does with them.
    return {"pre": "default", "add_bos_token": fields.get("pre") == "llama-bpe"} | fields


def _open(path: Path) -> Any:
    try:
        facts = path.stat()
    except OSError as error:
        raise TenfoldError(f"{path} cannot be read as GGUF: {str(error).rstrip('.')}.") from None
    return _opened(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=2)  # parsing a vocabulary of 50,000 takes seconds
def _opened(path: Path, changed_ns: int, size: int) -> Any:
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError:
        raise NotInstalled("Reading GGUF files needs a package: pip install 'tenfold[gguf]'.") from None

    class Reader(GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            # Its hundred thousand slices of a vocabulary are twice as fast of a plain array as of a memory map.
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == GGUFValueType.ARRAY:
                kind, length = int(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0])
                if kind == GGUFValueType.ARRAY or length > min(_LONGEST_ARRAY, len(self.data) - orig_offs):
                    raise ValueError(f"its header has an array of {length} values at byte {orig_offs}")
            return super()._get_field_parts(orig_offs, raw_type)

    try:
        return Reader(path)
    except (OSError, ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
        raise TenfoldError(f"{path} cannot be read as GGUF: {str(error).rstrip('.')}.") from None
