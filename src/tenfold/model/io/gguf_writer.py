"""Write GGUF files: spec, weights and tokenizer, in llama.cpp's formats.

Which tensor gets which format, and which fallback if its row length is not a multiple of the format's block size, follows
llama.cpp's `llama-quant.cpp`. The package `gguf` quantises to all formats but the K-quants, `libgguf` to these.
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
    """The format of most matrices, of the output head, and (`finer`) of value and down projections in the layers that `_finer`
    selects; `file_type` is llama.cpp's name for the mixture."""

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
PLAIN_KINDS = ("f32", "f16", "bf16")  # not quantised
_INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # fallbacks with smaller blocks


def write_gguf(source: Path, file: Path, kind: str) -> list[str]:
    """Write the model in `source`, a Hugging Face directory or GGUF file, one part at a time. Returns notes for the user.

    Raises TenfoldError for a family, a tokenizer or a format that GGUF files cannot hold.
    """
    if kind not in GGUF_KINDS:
        raise TenfoldError(f"There is no GGUF format {kind!r}{nearest(kind, GGUF_KINDS)}: give one of {', '.join(GGUF_KINDS)}.")
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise NotInstalled("Writing GGUF files needs packages: pip install 'tenfold[gguf]'.") from None
    spec = read_spec(source)
    names = family_of(spec).weights().gguf
    if names is None:
        raise TenfoldError(f"{source} is a model of the family {spec.family!r}, which GGUF files cannot hold: export it --to hf.")
    writer = GGUFWriter(file, names.architecture)
    _add_shape(writer, spec, kind)
    for key, value in names.header(spec).items():
        writer.add_uint32(f"{names.architecture}.{key}", value)
    notes = add_vocabulary(writer, source, spec.vocab_size) if has_tokenizer(source) else ["It has no tokenizer, like the model."]
    shapes = {name: tuple(tensor.shape) for name, tensor in _by_name(slots_of(make_shapes(spec)), names)}
    formats = {name: _format(name, shape, kind, spec) for name, shape in shapes.items()}
    instead = [found for found, wanted in formats.values() if found != wanted]
    if instead:
        counts = ", ".join(f"{instead.count(found)} are {found}" for found in dict.fromkeys(instead))
        notes.append(f"Rows of {len(instead)} tensors do not fill the blocks of {kind}: of these, {counts}.")
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
    """Add the rope scaling. Of Llama 3.1's, only the context length is in the header: its factors are a tensor that
    `_write_tensors` writes. Dynamic scaling has no effect within the context and is left out."""
    from gguf import RopeScalingType

    if s.rope_type == "yarn" and (s.beta_fast, s.beta_slow, s.truncate) != (32, 1, True):
        raise TenfoldError(
            "llama.cpp only computes YaRN with beta_fast = 32, beta_slow = 1 and truncate = true: export the model --to hf."
        )
    writer.add_rope_scaling_orig_ctx_len(s.original_context)
    if s.rope_type in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(s.rope_type))
        writer.add_rope_scaling_factor(s.factor)
    if s.rope_type == "yarn" and s.attention_factor is not None:  # llama.cpp multiplies this by the default factor
        writer.add_rope_scaling_attn_factors(s.attention_factor / (0.1 * log(s.factor) + 1))


def _by_name(slots: dict[str, Slot | Stack], names: GGUFNames) -> Iterator[tuple[str, Tensor]]:
    """Weights by their GGUF names, in the order in which `read_slots` reads a model: first those outside the layers."""
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
    """The format of a tensor, and the format that `kind` gives it, which differs if its rows do not fill that format's blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2 or ".ffn_gate_inp." in name:  # llama.cpp does not quantise vectors and routers
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
    """Whether llama.cpp gives the layer more bits in its K-quant mixtures (`use_more_bits`)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _tensors(source: Path, names: GGUFNames) -> Iterator[Tensor]:
    for part in read_slots(source):
        yield from (tensor for _, tensor in _by_name(part, names))


def _write_tensors(
    writer: Any, planned: list[tuple[str, tuple[int, ...], str]], tensors: Iterator[Tensor], spec: ModelSpec
) -> None:
    """Write the headers of all tensors (name, shape, format), then their data. `tensors` must have the order of `planned`."""
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
    """Quantise rows [..., columns] to one of llama.cpp's formats: [rows, bytes or floats].

    Raises NotInstalled if the package for K-quants is missing.
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
        raise NotInstalled("This format contains K-quants, which need a package: pip install 'tenfold[gguf]'.") from None
    return quantize_rows(rows, GGMLQuantizationType[kind])


def _kept_q4_0(rows: np.ndarray) -> np.ndarray | None:
    """Rows packed without loss if all of them already lie on a Q4_0 grid, else None.

    A model that was quantised to Q4_0 before has such rows. The package `gguf` would put the largest weight of a block at step
    -8; in a block whose largest weight is at another step, this would change every weight.
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
