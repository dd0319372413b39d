"""Export a model to another tool's layout.

An export is written to a temporary path and compared with the model, in the other tool too where that is installed. It gets its
final name only if it computes the same model.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tenfold.model.io import executorch
from tenfold.model.io.compare import Answer, answers, divergence, log_probs
from tenfold.model.io.gguf_writer import GGUF_KINDS, PLAIN_KINDS, write_gguf
from tenfold.model.io.huggingface import read_model, read_slots, write_model
from tenfold.model.io.llamacpp_hash import converter_note
from tenfold.model.io.meta import meta_name, write_meta
from tenfold.model.io.runtimes import open_in_llamacpp, open_in_transformers
from tenfold.model.io.tokenizer import has_tokenizer, read_tokenizer
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import atomic_file, atomic_folder

LAYOUTS = {
    "gguf": (*GGUF_KINDS,), "hf": ("f32", "bf16", "f16"), "meta": ("bf16", "f16", "f32"), "executorch": executorch.KINDS,
}  # fmt: skip
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Exported(NamedTuple):
    """The path of an export, its layout and format, and notes for the user about how it compares with the model."""

    path: Path
    to: str
    notes: list[str]


def export(source: Path, to: str, out: Path | None = None) -> Exported:
    """Write the model in `source`, a Hugging Face directory or GGUF file, in the layout and format `to`: `LAYOUT[:FORMAT]`.

    Raises TenfoldError for a layout or format that is unknown or cannot hold the model, and for an export that does not compute
    the same model; nothing is then written to `out`.
    """
    layout, kind = _asked(to)
    name = source.stem if source.suffix == ".gguf" else source.absolute().name
    if name == "model":  # the folder `model` of a generation: take the generation's name
        name = source.absolute().parent.name
    out = out or Path(f"{name}-{kind}.gguf" if layout == "gguf" else f"{name}-{layout}-{kind}")
    return Exported(out, f"{layout}:{kind}", _WRITERS[layout](source, out, kind))


def _asked(to: str) -> tuple[str, str]:
    layout, _, kind = to.partition(":")
    if layout not in LAYOUTS:
        raise TenfoldError(f"There is no layout {layout!r}{nearest(layout, LAYOUTS)}: give one of {', '.join(LAYOUTS)}.")
    kinds = LAYOUTS[layout]
    kind = kind or ("f16" if layout == "gguf" else kinds[0])
    if kind not in kinds:
        raise TenfoldError(f"There is no format {kind!r} of {layout}{nearest(kind, kinds)}: give one of {', '.join(kinds)}.")
    return layout, kind


def _to_gguf(source: Path, out: Path, kind: str) -> list[str]:
    if out.suffix != ".gguf":
        raise TenfoldError(f"{out} is not a name for a GGUF file: give --out a name that ends in .gguf.")
    with atomic_file(out) as scratch:
        notes = write_gguf(source, scratch, kind)
        found, said = _beside(source, scratch)
        return [*notes, found, open_in_llamacpp(scratch, said, plain=kind in PLAIN_KINDS)]


def _to_hf(source: Path, out: Path, kind: str) -> list[str]:
    with atomic_folder(out) as scratch:
        write_model(read_model(source), scratch, source, _DTYPES[kind])
        found, said = _beside(source, scratch)
        return [found, open_in_transformers(scratch, said), *(converter_note(scratch) if has_tokenizer(scratch) else [])]


def _to_meta(source: Path, out: Path, kind: str) -> list[str]:
    with atomic_folder(out) as scratch:
        write_meta(source, scratch, _DTYPES[kind])
        stored: dict[str, Any] = torch.load(scratch / "consolidated.00.pth", weights_only=True, mmap=True)
        for part in read_slots(source):
            for name, slot in part.items():
                if not torch.equal(stored[meta_name(name)], slot.pairs().to(_DTYPES[kind])):
                    raise TenfoldError(f"{out}: {meta_name(name)} differs from {name} when read back: nothing is exported.")
    return ["All weights are equal to the model's when PyTorch reads them back."]


def _to_executorch(source: Path, out: Path, kind: str) -> list[str]:
    with atomic_folder(out) as scratch:
        return executorch.write_executorch(source, scratch, kind)


_WRITERS = {"gguf": _to_gguf, "hf": _to_hf, "meta": _to_meta, "executorch": _to_executorch}


def _beside(source: Path, written: Path) -> tuple[str, list[Answer]]:
    """Compare the model and its export, both read by this package: the result in words, and the greedy answers of the export."""
    tokenizer = read_tokenizer(source) if has_tokenizer(source) else None
    said = answers(read_model(source).eval(), tokenizer)
    model = read_model(written).eval()
    kl = divergence([answer.log_probs for answer in said], [log_probs(model, answer.tokens) for answer in said])
    if not math.isfinite(kl.mean):
        raise TenfoldError(f"{written} gives probabilities that are not finite numbers when read back: nothing is exported.")
    again = answers(model, read_tokenizer(written) if tokenizer else None)
    equal = sum(answer.tokens == other.tokens for answer, other in zip(said, again, strict=True))
    return f"Divergence from the model: {kl} nats a token; {equal} of {len(said)} greedy answers are equal.", again
