"""Weights of 4 or 8 bits: rounded, or trained for the grid first (QAT), and what that costs on held-out text."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.learn.data import write_versioned
from tenfold.learn.distil import teach, text_of, validation_rows
from tenfold.learn.grid import round_to_grid
from tenfold.learn.shrink_options import DistilSettings
from tenfold.model.io.compare import interval, log_probs
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError

_TOKENS = 8192  # of held-out text that both models are judged on


def quantise(
    source: Path, grid: str, data: str, generation: Path, qat: DistilSettings | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Write the model with its weights on a grid to `generation`; `qat` says how long it is trained for it first, by itself.

    They are stored as floats: `tenfold export --to gguf:q4_0` or `gguf:q8_0` packs them. Returns what is in `quantise.json`:
    perplexity before and after, and the divergence in nats a token, with 95 % intervals over rows of text.
    """
    corpus = text_of(source, data, generation.parent, quiet=quiet)
    begun = source
    if qat is not None:
        if not teach(source, source, data, generation, qat, grid=grid, quiet=quiet).finished:
            raise TenfoldError(f"Stopped and saved in {generation}: the same command goes on from there.")
        begun = generation / "model"
    model = round_to_grid(read_model(begun), grid)
    rows = validation_rows(corpus, qat.seq_len if qat else 128, _TOKENS)
    found: dict[str, Any] = {"grid": grid, "qat": qat is not None, **cost(read_model(source), model, rows)}
    write_model(model, generation / "model", tokenizer_directory=begun)
    write_versioned(generation / "quantise.json", found)
    return found


def cost(original: Llama, model: Llama, rows: Tensor) -> dict[str, Any]:
    """Perplexities on rows of tokens, their ratio, and the divergence of `model` from `original`."""
    nats: list[list[float]] = [[], []]
    kl = []
    for row in rows:
        p, q = log_probs(original, row.tolist()), log_probs(model, row.tolist())
        kl.append(float((p.exp() * (p - q)).sum(-1).mean()))
        for found, x in zip(nats, (p, q), strict=True):
            found.append(-float(x[:-1].gather(1, row[1:, None]).mean()))
    change = interval([after - before for before, after in zip(*nats, strict=True)])
    return {
        "perplexity": [math.exp(sum(found) / len(found)) for found in nats],
        "perplexity_change_pct": [100 * math.expm1(x) for x in change],
        "kl_nats": list(interval(kl)),
    }
