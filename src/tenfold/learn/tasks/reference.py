"""Log-probabilities under the weights that a run begins with (the reference model), computed once and kept beside the data.

They are in `DATA.reference-KEY.parquet`, one column for each of the two answers of an example. The key is a hash of the weights,
the packed tokens and the number format, so that runs share a file only where all of these are equal.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from rich.progress import track
from torch import Tensor, nn

from tenfold.data.conversations.answers import PackedAnswers
from tenfold.learn.options import LoRAOptions
from tenfold.learn.tasks.start import freeze
from tenfold.model.attention import fastest_attention
from tenfold.model.io.huggingface import read_model, weights_hash
from tenfold.model.io.peft import read_adapter
from tenfold.spec.files import atomic_file
from tenfold.train.config import RunConfig
from tenfold.train.precision import autocast
from tenfold.train.resolve import Resolved, resolve
from tenfold.train.start import use_threads

ROWS = 4  # that go through the model together

# (model, packed answers, device) -> log-probabilities [rows, most, 2] of both answers of each example
LogProbs = Callable[[nn.Module, PackedAnswers, torch.device], Tensor]


class ReferenceModel:
    """The weights of `init_from` in the trainer's number format, with the quantisation and adapter that the run begins with.

    They are read only where columns have to be computed.
    """

    def __init__(self, config: RunConfig, vocab_size: int, given: LoRAOptions, quiet: bool):
        assert config.init_from is not None
        self._path, self._config, self._given, self._quiet = Path(config.init_from), config, given, quiet
        self._resolved: Resolved = resolve(config, vocab_size)
        self._model: nn.Module | None = None

    def columns(self, data: Path, packed: PackedAnswers, log_probs: LogProbs) -> np.ndarray:
        """The log-probabilities of both answers, float32 [examples, 2], from the file beside `data`, written where missing."""
        file = data.with_suffix(f".reference-{self._key(packed)}.parquet")
        if not file.exists():
            first, second = self._compute(packed, log_probs).T
            with atomic_file(file) as scratch:
                parquet.write_table(pyarrow.table({"first": first, "second": second}), scratch)
        table = parquet.read_table(file)
        return np.stack([table[name].to_numpy() for name in ("first", "second")], 1)

    def _key(self, packed: PackedAnswers) -> str:
        resolved = self._resolved
        said = [weights_hash(self._path), str(resolved.dtype), resolved.device.type, packed.fingerprint]
        if self._given.quantization is not None:
            said.append(self._given.quantization)
        if self._given.adapter is not None:
            said.append(weights_hash(Path(self._given.adapter)))
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]

    @torch.no_grad()
    def _compute(self, packed: PackedAnswers, log_probs: LogProbs) -> np.ndarray:
        device, dtype = self._resolved.device, self._resolved.dtype
        if self._model is None:
            use_threads(self._config, self._resolved.spec.dim)
            self._model = read_model(self._path)
            freeze(self._model, self._given)
            if self._given.adapter is not None:
                read_adapter(self._model, Path(self._given.adapter))
            self._model.to(device)
        found = np.zeros((packed.examples, 2), np.float32)
        starts = range(0, len(packed), ROWS)
        with autocast(device, dtype), fastest_attention(device):
            for start in track(starts, "Reference log-probabilities", disable=self._quiet, transient=True):
                some = packed.take(np.arange(start, min(start + ROWS, len(packed))))
                present = some.members >= 0
                found[some.members[present]] = log_probs(self._model, some, device).cpu().numpy()[present]
        return found
