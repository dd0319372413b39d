"""Export to ExecuTorch, for phones: the program `model.pte` for XNNPACK with a key-value cache, and the tokenizer's files."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch
from torch import Tensor

from tenfold.model.io.compare import answers, divergence
from tenfold.model.io.huggingface import read_model, read_spec
from tenfold.model.io.meta import write_meta
from tenfold.model.io.to_executorch import Job
from tenfold.model.io.tokenizer import copy_tokenizer, has_tokenizer, read_tokenizer, read_vocabulary
from tenfold.model.quantised import GROUP
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.model import ModelSpec

KINDS = ("f32", "8da4w")
LONGEST = 2048  # most tokens in the cache, a usual size on phones; its memory is allocated when the program is loaded
SLACK = 0.05  # largest allowed difference of the log-probabilities of a float program from the model's, in nats


def write_executorch(source: Path, folder: Path, kind: str) -> list[str]:
    """Write the model in `source`, a Hugging Face directory or GGUF file, run the program, and compare it with the model.

    Returns notes for the user. Raises TenfoldError for a model that the format cannot hold, and for a float program whose
    log-probabilities differ from the model's.
    """
    spec = read_spec(source)
    _check(spec, kind)
    if find_spec("executorch") is None:
        raise NotInstalled("Programs for phones need ExecuTorch: pip install 'tenfold[executorch]'.")
    known = has_tokenizer(source)
    ours = answers(read_model(source).eval(), read_tokenizer(source) if known else None)
    if known:
        copy_tokenizer(source, folder)
    context = min(spec.context, LONGEST)
    with TemporaryDirectory() as scratch:
        meta, said = Path(scratch) / "meta", Path(scratch) / "said.pt"
        meta.mkdir()
        write_meta(source, meta, torch.float32)
        texts = [answer.tokens for answer in ours]
        _run(
            Job(
                str(meta), str(folder.absolute() / "model.pte"), kind, context, _metadata(source) if known else {}, texts, str(said)
            ),
            source,
        )
        theirs: list[Tensor] = torch.load(said, weights_only=True)
    off = max(float((a.log_probs - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    if not off < (SLACK if kind == "f32" else float("inf")):
        raise TenfoldError(f"ExecuTorch's log-probabilities differ from the model's by up to {off:.2g} nats: nothing is exported.")
    equal = sum(b[a.begin - 1 : -1].argmax(-1).tolist() == a.said for a, b in zip(ours, theirs, strict=True))
    kl = divergence([answer.log_probs for answer in ours], theirs)
    notes = [f"ExecuTorch runs it: divergence from the model {kl} nats a token; {equal} of {len(ours)} greedy answers are equal."]
    if context < spec.context:
        notes.append(f"Its cache has room for {context} tokens; the model's own limit is {spec.context}.")
    return notes


def _check(spec: ModelSpec, kind: str) -> None:
    rows = {"dim": spec.dim, "ffn_dim": spec.ffn_dim, "n_heads * head_dim": spec.n_heads * spec.head_dim}
    for name, size in rows.items():
        if kind == "8da4w" and size % GROUP:
            raise TenfoldError(
                f"{spec.name} has {name} = {size}, which is not a multiple of the group size {GROUP}: give --to executorch:f32."
            )


def _metadata(source: Path) -> dict[str, int | list[int]]:
    """Metadata that ExecuTorch's runners read from a program: the ids of the tokens that begin and end a text."""
    vocabulary = read_vocabulary(source)
    begins: dict[str, int | list[int]] = {} if vocabulary.bos is None else {"get_bos_id": vocabulary.bos}
    return begins | {"get_eos_ids": sorted(vocabulary.stop_tokens)}


def _run(job: Job, source: Path) -> None:
    command = [sys.executable, "-m", "tenfold.model.io.to_executorch"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, input=msgspec.json.encode(job).decode(), capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TenfoldError(f"ExecuTorch cannot export {source}: {last.rstrip('.')}.")
