"""Read a model's spec and weights from a GGUF file, llama.cpp's format, with the package `gguf`."""

import math
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.model.family import families
from tenfold.model.io.format import GGUFNames
from tenfold.model.io.stored import Stored
from tenfold.model.llama import rope_factors
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling
from tenfold.spec.ranges import shown

# Known header fields of an architecture. A field in neither list is refused, because it might change the model.
_READ = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.attn_factor", "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)  # fmt: skip
_FIXED = {"attention.causal": True, "expert_count": 0, "expert_used_count": 0, "tensor_data_layout": "Meta AI original pth"}
_STRETCH = "rope_freqs.weight"  # what Llama 3.1's and 4's rope scaling divides each rotary frequency by
_LONGEST_ARRAY = 2**21  # most values in an array of the header; the largest vocabularies have about 2^18 tokens


def read_gguf(path: Path) -> tuple[ModelSpec, dict[str, Stored]]:
    """The spec, and the weights by their Hugging Face names; each weight is dequantised to float32 when it is read.

    Raises TenfoldError for a file that cannot be read, an architecture that no family has, and an unknown header field.
    """
    reader = open_gguf(path)
    try:
        spec, names = _spec(reader, path)
        return spec, _tensors(reader, spec, names)
    except KeyError as error:
        raise TenfoldError(f"{path} cannot be read as a model: it lacks {error}.") from None
    except (ValueError, TypeError, ArithmeticError) as error:
        raise TenfoldError(f"{path} cannot be read as a model: {error}.") from None


def _spec(reader: Any, path: Path) -> tuple[ModelSpec, GGUFNames]:
    _require_whole_model(reader, path)
    architecture = reader.fields["general.architecture"].contents()
    family, names = _family(path, architecture)
    fields = _fields(reader, names, path)
    heads, dim = fields["attention.head_count"], fields["embedding_length"]
    tensors = {t.name: t for t in reader.tensors}
    head_dim = fields.get("attention.key_length", dim // heads)
    context = fields["context_length"]
    spec = ModelSpec(
        name=path.stem,
        family=family,
        dim=dim,
        n_layers=fields["block_count"],
        n_heads=heads,
        n_kv_heads=fields.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_dim=fields["feed_forward_length"],
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        tied="output.weight" not in tensors,
        context=context,
        rope_theta=float(fields.get("rope.freq_base", 10000.0)),
        rope_scaling=_rope_scaling(fields, context, path),
        norm_eps=float(f"{fields['attention.layer_norm_rms_epsilon']:.6g}"),
        attention_bias="blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        **names.spec_fields(fields),
    )
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.get(key, head_dim) != head_dim:
            raise TenfoldError(
                f"{path} has heads of {head_dim} dimensions and {key} = {fields[key]}: only equal values are supported."
            )
    factors = np.asarray(tensors[_STRETCH].data) if _STRETCH in tensors else None
    return (spec if factors is None else _stretched(spec, factors, fields, path)), names


def _require_whole_model(reader: Any, path: Path) -> None:
    general = {key: f.contents() for key, f in reader.fields.items() if key in ("general.type", "split.count")}
    if (kind := general.get("general.type", "model")) != "model":
        raise TenfoldError(f"{path} does not hold a model but {shown(kind)}: give the file of the model itself.")
    if (parts := general.get("split.count", 1)) > 1:
        raise TenfoldError(f"{path} is one of {parts} parts of a model: merge them with llama-gguf-split --merge.")


def _fields(reader: Any, names: GGUFNames, path: Path) -> dict[str, Any]:
    """The header fields of an architecture. Raises TenfoldError for an unknown field, and for one that differs between layers."""
    own, known, found = f"{names.architecture}.", {*_READ, *names.read}, {}
    for key, field in reader.fields.items():
        if not key.startswith(own):
            continue
        name, value = key.removeprefix(own), field.contents()
        if isinstance(value, list) and len(set(value)) == 1:  # one value per layer, all equal
            (value,) = set(value)
        if name in _FIXED and value == _FIXED[name]:
            continue
        if name not in known:
            raise TenfoldError(f"{path} has a header field that is not supported: {key} = {shown(value)}.")
        if isinstance(value, list):
            raise TenfoldError(f"{path} has layers of several kinds, {key} = {shown(value)}: only equal layers are supported.")
        found[name] = value
    return found


def _rope_scaling(fields: dict[str, Any], context: int, path: Path) -> RopeScaling | None:
    """The rope scaling that the header describes. That of Llama 3.1 and 4 is not in the header but in the tensor `_STRETCH`."""
    factor = float(fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 0.0)))
    kind = fields.get("rope.scaling.type", "linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind not in ("linear", "yarn"):
        raise TenfoldError(f"{path} has rope.scaling.type = {shown(kind)}: only linear and yarn are supported.")
    magnitude = float(fields.get("rope.scaling.attn_factor", 1.0))
    if kind == "linear" and magnitude != 1.0:
        raise TenfoldError(f"{path} has rope.scaling.attn_factor = {magnitude:g} with linear scaling, which is not supported.")
    return RopeScaling(
        factor=factor,
        original_context=int(fields.get("rope.scaling.original_context_length", context)),
        rope_type=kind,
        attention_factor=magnitude * (0.1 * math.log(factor) + 1) if kind == "yarn" and magnitude != 1.0 else None,
        beta_fast=float(fields.get("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=float(fields.get("rope.scaling.yarn_beta_slow", 1.0)),
    )


def _stretched(spec: ModelSpec, factors: np.ndarray, fields: dict[str, Any], path: Path) -> ModelSpec:
    """The spec with the rope scaling of Llama 3.1 or 4 that gives `factors`, which is all that the file has of it.

    Raises TenfoldError for factors of another scaling.
    """
    original = int(fields.get("rope.scaling.original_context_length", 8192))
    for high in (4.0, 1.0):
        stretched = replace(spec, rope_scaling=RopeScaling(float(factors.max()), 1.0, high, original))
        if spec.rope_scaling is None and np.allclose(rope_factors(stretched).numpy(), factors, rtol=1e-4):
            return stretched
    raise TenfoldError(f"{path} has a rope scaling that is not Llama 3.1's or 4's: use the model's Hugging Face directory.")


def _family(path: Path, architecture: str) -> tuple[str, GGUFNames]:
    """The name of the family with a GGUF file's architecture, and how GGUF files store that family."""
    known: list[str] = []
    for family_name, family in families():
        names = family.weights().gguf
        if names is not None and names.architecture == architecture:
            return family_name, names
        known += [names.architecture] if names else []
    raise TenfoldError(f"{path} is a {architecture!r} model: only {', '.join(map(repr, sorted(known)))} can be read.")


def _tensors(reader: Any, spec: ModelSpec, names: GGUFNames) -> dict[str, Stored]:
    """The tensors by their Hugging Face names. A tensor that the family does not know keeps its GGUF name."""
    found: dict[str, Stored] = {}
    for stored in reader.tensors:
        if stored.name == _STRETCH:
            continue
        name, turned = names.top.get(stored.name, stored.name), 0
        if stored.name.count(".") == 3:
            _, layer, part, kind = stored.name.split(".")
            turned = spec.head_dim if part in names.turned else 0
            if part in names.part:
                name = f"model.layers.{layer}.{names.part[part]}.{kind}"
        found[name] = Stored(tuple(map(int, reversed(stored.shape))), partial(_tensor, stored, turned))
    for layer in range(spec.n_layers):
        for name, parts in names.stacks.items():
            keys = [f"blk.{layer}.{part}.weight" for part in parts]
            if all(key in found for key in keys):
                found[f"model.layers.{layer}.{name}"] = _side_by_side([found.pop(key) for key in keys])
    return found


def _side_by_side(matrices: list[Stored]) -> Stored:
    """Experts' matrices, each [experts, out, in], as one stack [experts, in, sum of out]."""
    experts, _, fan_in = matrices[0].shape
    outs = sum(matrix.shape[1] for matrix in matrices)
    return Stored((experts, fan_in, outs), lambda: torch.cat([matrix.read().mT for matrix in matrices], -1))


def _tensor(stored: Any, turned_head: int = 0) -> Tensor:
    """A stored weight as float32. Where `turned_head` is not 0, it is the head size of a tensor whose rows are permuted from the
    order of adjacent rotary pairs to that of halves."""
    from gguf.quants import dequantize

    try:
        tensor = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy()).float()
    except NotImplementedError:
        raise TenfoldError(f"{stored.name} is stored as {stored.tensor_type.name}, which cannot be read.") from None
    return tensor.unflatten(0, (-1, turned_head // 2, 2)).transpose(1, 2).flatten(0, 2) if turned_head else tensor


def open_gguf(path: Path) -> Any:
    """The package `gguf`'s reader of a file: its fields and tensors. Raises TenfoldError if the file cannot be read."""
    try:
        facts = path.stat()
    except OSError as error:
        raise TenfoldError(f"{path} cannot be read as GGUF: {str(error).rstrip('.')}.") from None
    return _opened(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=2)  # parsing a vocabulary of 50,000 tokens takes seconds
def _opened(path: Path, changed_ns: int, size: int) -> Any:
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError:
        raise NotInstalled("Reading GGUF files needs a package: pip install 'tenfold[gguf]'.") from None

    class Reader(GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            # GGUFReader slices its data once per token, which is twice as fast on a plain array as on a memory map.
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
