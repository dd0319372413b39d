"""Quantisation to 4 or 8 bits: round to nearest, tuned rounding (AutoRound), or quantisation-aware training (QAT) first; and the
loss of quality on held-out text."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.data.text.batches import train_batch
from tenfold.learn.data import write_versioned
from tenfold.learn.distil import teach, text_of, validation_rows
from tenfold.learn.grid import left_as_they_are, round_to_grid
from tenfold.learn.rotate import rotated
from tenfold.learn.shrink_options import DistilSettings, QuantiseOptions
from tenfold.learn.tuned_rounding import round_by_blocks
from tenfold.model.io.compare import interval, log_probs
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.llama import Llama
from tenfold.model.quantised import GROUP
from tenfold.spec.errors import TenfoldError

_TOKENS = 8192  # of held-out text on which both models are compared


def quantise(
    source: Path, data: str, generation: Path, options: QuantiseOptions, settings: DistilSettings, *, quiet: bool = False
) -> dict[str, Any]:
    """Round the weights of the model at `source` to a grid and write it to `generation`.

    With `options.qat` it is first trained for the grid, with itself as the teacher, as `settings` say. The weights are stored as
    floats; `tenfold export --to gguf:q4_0` or `gguf:q8_0` packs them. Returns the content of `quantise.json`: perplexity before
    and after, its change in percent and the KL divergence in nats per token with 95 % intervals over rows of text, and how many
    matrices could not be rounded (`left`). Raises TenfoldError for options that contradict one another, and where no matrix can be
    rounded.
    """
    _check(options)
    original = read_model(source)
    left, matrices = left_as_they_are(original)
    if left == matrices:
        raise TenfoldError(f"No matrix of a layer of {source} has rows that are a multiple of {GROUP}: nothing would be rounded.")
    corpus = text_of(source, data, generation.parent, quiet=quiet)
    begun = source
    if options.rotate:
        begun = generation / "rotated"
        write_model(rotated(original, settings.seed), begun, tokenizer_directory=source)
    if options.qat:
        if not teach(begun, begun, data, generation, settings, grid=options.to, quiet=quiet).finished:
            raise TenfoldError(f"Stopped and saved in {generation}: the same command goes on from there.")
        begun = generation / "model"
    model = read_model(begun)
    if options.rounding == "tuned":
        read = train_batch(corpus, 0, batch_size=options.samples, seq_len=settings.seq_len, seed=settings.seed)
        round_by_blocks(model, torch.from_numpy(read.tokens).long(), options.rounding_steps, begun)
    round_to_grid(model, options.to, layers=options.rounding == "nearest")
    rows = validation_rows(corpus, settings.seq_len, _TOKENS)
    said = {"grid": options.to, "qat": options.qat, "rounding": options.rounding, "rotated": options.rotate, "left": left}
    found: dict[str, Any] = {**said, **cost(original, model, rows)}
    write_model(model, generation / "model", tokenizer_directory=begun)
    write_versioned(generation / "quantise.json", found)
    return found


def _check(options: QuantiseOptions) -> None:
    if options.rounding == "tuned" and options.to != "int4":
        raise TenfoldError(
            "Tuned rounding is for 4 bits only: leave --rounding tuned out with --to int8, where rounding to nearest costs little."
        )
    if options.rounding == "tuned" and options.qat:
        raise TenfoldError("A model that was trained for the grid lies near it already: give --qat or --rounding tuned.")


def cost(original: Llama, model: Llama, rows: Tensor) -> dict[str, Any]:
    """Perplexities of both models on rows of tokens [rows, T], their change, and the KL divergence of `model` from `original`.

    Changes and divergences are triples: the value, and the low and high end of its 95 % interval.
    """
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
