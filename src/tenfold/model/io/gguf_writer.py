"""Write GGUF files: shape, weights and tokenizer, in llama.cpp's formats.

Which tensor gets which format, and which fallback where its rows do not fill the format's blocks, follows llama.cpp's
`llama-quant.cpp`. The package `gguf` writes the plain formats, `libgguf` the K-quants.
"""

from collections.abc import Iterator
from math import log, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tenfold.model.build import make_shapes
from tenfold.model.family import family_of
from tenfold.model.io.format import GGUFNames, Slot, Stack
from tenfold.model.io.gguf_vocabulary import add_vocabulary
from tenfold.model.io.huggingface import read_slots, read_spec, slots_of
from tenfold.model.io.tokenizer import has_tokenizer
from tenfold.model.llama import rope_factors
from tenfold.spec.errors import NotInstalled, TenfoldError, nearest
from tenfold.spec.model import ModelSpec, RopeScaling


class _Kind(NamedTuple):
    """The format of matrices, that of the output head, and of values and down projections of every second layer or so."""

    matrix: str
    head: str
    finer: str
    file_type: str


GGUF_KINDS = {
    "f32": _Kind("F32", "F32", "F32", "ALL_F32"),
    "f16": _Kind("F16", "F16", "F16", "MOSTLY_F16"),
    "bf16": _Kind("BF16", "BF16", "BF16", "MOSTLY_BF16"),
    "q8_0": _Kind("Q8_0", "Q8_0", "Q8_0", "MOSTLY_Q8_0"),
    "q5_0": _Kind("Q5_0", "Q6_K", "Q5_0", "MOSTLY_Q5_0"),
    "q4_0": _Kind("Q4_0", "Q6_K", "Q4_0", "MOSTLY_Q4_0"),
    "q6_k": _Kind("Q6_K", "Q6_K", "Q6_K", "MOSTLY_Q6_K"),
    "q5_k": _Kind("Q5_K", "Q6_K", "Q6_K", "MOSTLY_Q5_K_M"),
    "q4_k": _Kind("Q4_K", "Q6_K", "Q6_K", "MOSTLY_Q4_K_M"),
}
PLAIN_KINDS = ("f32", "f16", "bf16")  # floats, not blocks with scales
_INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def write_gguf(source: Path, file: Path, kind: str) -> list[str]:
    """Write the model in a Hugging Face directory or GGUF file, one part at a time. Returns what a user should know of the file.

    Raises TenfoldError for a family, a tokenizer or a format that GGUF files do not hold.
    """
    if kind not in GGUF_KINDS:
        raise TenfoldError(f"There is no GGUF format {kind!r}{nearest(kind, GGUF_KINDS)}: name one of {', '.join(GGUF_KINDS)}.")
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise NotInstalled("Writing GGUF files needs packages: pip install 'tenfold[gguf]'.") from None
    spec = read_spec(source)
    names = family_of(spec).weights().gguf
    if names is None:
        raise TenfoldError(f"{source} is a model of the family {spec.family!r}, which has no GGUF names: export it --to hf.")
    writer = GGUFWriter(file, names.architecture)
    _add_shape(writer, spec, kind)
    for key, value in names.header(spec).items():
        writer.add_uint32(f"{names.architecture}.{key}", value)
    notes = add_vocabulary(writer, source, spec.vocab_size) if has_tokenizer(source) else ["It has no tokenizer, as the model."]
    shapes = {name: tuple(tensor.shape) for name, tensor in _by_name(slots_of(make_shapes(spec)), names)}
    formats = {name: _format(name, shape, kind, spec) for name, shape in shapes.items()}
    instead = [found for found, wanted in formats.values() if found != wanted]
    if instead:
        counts = ", ".join(f"{instead.count(found)} are {found}" for found in dict.fromkeys(instead))
        notes.append(f"Rows of {len(instead)} tensors do not fill the blocks of {kind}, so {counts}.")
    planned = [(name, shape, formats[name][0]) for name, shape in shapes.items()]
    _write_tensors(writer, planned, _tensors(source, names), spec)
    return notes


def _add_shape(writer: Any, spec: ModelSpec, kind: str) -> None:
    from gguf import LlamaFileType

    writer.add_name(spec.name)
    writer.add_file_type(LlamaFileType[GGUF_KINDS[kind].file_type])
    writer.add_quantization_version(2)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.dim)
    writer.add_block_count(spec.n_layers)
    writer.add_feed_forward_length(spec.ffn_dim)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    if spec.rope_scaling:
        _add_stretch(writer, spec.rope_scaling)


def _add_stretch(writer: Any, s: RopeScaling) -> None:
    """Llama 3.1's is a tensor beside the length; a dynamic one is none within the context."""
    from gguf import RopeScalingType

    if s.rope_type == "yarn" and (s.beta_fast, s.beta_slow, s.truncate) != (32, 1, True):
        raise TenfoldError("llama.cpp computes YaRN with beta_fast 32 and beta_slow 1, and truncated: export the model --to hf.")
    writer.add_rope_scaling_orig_ctx_len(s.original_context)
    if s.rope_type in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(s.rope_type))
        writer.add_rope_scaling_factor(s.factor)
    if s.rope_type == "yarn" and s.attention_factor is not None:  # llama.cpp multiplies by its own one too
        writer.add_rope_scaling_attn_factors(s.attention_factor / (0.1 * log(s.factor) + 1))


def _by_name(slots: dict[str, Slot | Stack], names: GGUFNames) -> Iterator[tuple[str, Tensor]]:
    """Weights by their GGUF names, in the order in which a model is read in parts: what lies beside the layers first."""
    ours = {theirs: name for name, theirs in names.top.items()}
    parts = {theirs: name for name, theirs in names.part.items()}
    for key, slot in sorted(slots.items(), key=lambda item: ".layers." in item[0]):
        if key in ours:
            assert isinstance(slot, Slot)
            yield ours[key], slot.pairs()
            continue
        _, _, layer, part = key.split(".", 3)
        if isinstance(slot, Stack):
            yield from ((f"blk.{layer}.{one}.weight", view) for one, view in zip(names.stacks[part], slot.views, strict=True))
        else:
            part, _, kind = part.rpartition(".")
            yield f"blk.{layer}.{parts[part]}.{kind}", slot.pairs()


def _format(name: str, shape: tuple[int, ...], kind: str, spec: ModelSpec) -> tuple[str, str]:
    """The format of a tensor, and the one that it stands in for where rows do not fill that one's blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2 or ".ffn_gate_inp." in name:  # llama.cpp keeps what chooses experts as it is
        return "F32", "F32"
    chosen = GGUF_KINDS[kind]
    wanted = chosen.matrix
    if name == "output.weight" or (name == "token_embd.weight" and spec.tied):
        wanted = chosen.head
    elif ("attn_v" in name or "ffn_down" in name) and _finer(int(name.split(".")[1]), spec.n_layers):
        wanted = chosen.finer
    found: str = wanted
    while shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[found]][0]:
        found = _INSTEAD.get(found, "F16")
    return found, wanted


def _finer(layer: int, layers: int) -> bool:
    """Whether llama.cpp gives a layer more bits in its K-quant mixes (`use_more_bits`)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _tensors(source: Path, names: GGUFNames) -> Iterator[Tensor]:
    for part in read_slots(source):
        yield from (tensor for _, tensor in _by_name(part, names))


def _write_tensors(
    writer: Any, planned: list[tuple[str, tuple[int, ...], str]], tensors: Iterator[Tensor], spec: ModelSpec
) -> None:
    """Headers of all tensors first, by name, shape and format, then the tensors, which come in the same order."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    stretch = None
    if spec.rope_scaling and spec.rope_scaling.rope_type == "llama3":
        stretch = rope_factors(spec).numpy()
        writer.add_tensor_info("rope_freqs.weight", stretch.shape, stretch.dtype, stretch.nbytes)
    for name, shape, kind in planned:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), prod(shape) // block * size, GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if stretch is not None:
        writer.write_tensor_data(stretch)
    for (_, _, kind), tensor in zip(planned, tensors, strict=True):
        writer.write_tensor_data(quantised(tensor.detach().numpy(), kind))
    writer.close()


def quantised(rows: np.ndarray, kind: str) -> np.ndarray:
    """Rows, or experts' stacks of rows, in a format of llama.cpp: [rows, bytes or floats].

    Raises NotInstalled where a K-quant's package is missing.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rows = np.ascontiguousarray(rows, dtype=np.float32).reshape(-1, rows.shape[-1])
    if kind == "Q4_0" and (kept := _kept_q4_0(rows)) is not None:
        return kept
    if not kind.endswith("_K"):
        return quantize(rows, GGMLQuantizationType[kind])
    try:
        from libgguf import quantize_rows
    except ImportError:
        raise NotInstalled("K-quants, which this format has too, need a package: pip install 'tenfold[gguf]'.") from None
    return quantize_rows(rows, GGMLQuantizationType[kind])


def _kept_q4_0(rows: np.ndarray) -> np.ndarray | None:
    """Rows packed without loss where they lie on a grid of Q4_0 already; None where they do not.

    The package `gguf` would place a block's largest weight at step -8. In a block whose largest weight is at another step of
    its grid, that would change every weight.
    """
    blocks = rows.reshape(-1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1, keepdims=True), 1)
    scale, steps = np.zeros_like(largest), np.zeros(blocks.shape, np.float32)
    missing = largest[:, 0] != 0
    for step in (-8, *(sign * size for size in range(7, 0, -1) for sign in (1, -1))):
        tried = (largest[missing] / step).astype(np.float16).astype(np.float32)
        found = np.rint(blocks[missing] / tried).clip(-8, 7)
        fits = (np.abs(found * tried - blocks[missing]) <= 1e-3 * np.abs(tried)).all(1)
        place = np.flatnonzero(missing)[fits]
        scale[place], steps[place] = tried[fits], found[fits]
        missing[place] = False
    if missing.any():
        return None
    numbers = (steps + 8).astype(np.uint8)
    packed = np.concatenate((scale.astype(np.float16).view(np.uint8), numbers[:, :16] | numbers[:, 16:] << 4), 1)
    return packed.reshape(len(rows), -1)
