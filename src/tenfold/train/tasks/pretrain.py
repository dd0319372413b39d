"""Pretraining: next-token prediction on one corpus, a mixture of corpora, or a corpus with images."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.data.images.corpus import ImageCorpus, ImagesAmongText, image_batches, images_in
from tenfold.data.images.tiles import normalised
from tenfold.data.text.batches import Batch as TokenRows
from tenfold.data.text.batches import row_count, train_batch, validation_batches, validation_bytes
from tenfold.data.text.corpus import Corpus, require_tokens
from tenfold.data.text.mixture import Mixture, parts
from tenfold.model.moe import use_aux_loss
from tenfold.model.mtp import add_mtp, mtp_weights
from tenfold.spec.files import file_sha256
from tenfold.spec.model import ModelSpec
from tenfold.train.config import PretrainingConfig, RunConfig
from tenfold.train.contradictions import refuse
from tenfold.train.identity import as_begun
from tenfold.train.parallel.processes import on_first_process_then_all, start_processes
from tenfold.train.resolve import resolve_hyperparameters, resolve_model
from tenfold.train.result import RunResult
from tenfold.train.run import Run
from tenfold.train.run_file import task_settings
from tenfold.train.task import Batch, LossSums, Rows, TaskBase
from tenfold.train.text import open_text
from tenfold.train.trainer import fit, standard_hooks


@dataclass(frozen=True)
class HostRows:
    """Rows of tokens in host memory; implements `train.task.Rows`."""

    batch: TokenRows

    def __len__(self) -> int:
        return len(self.batch.tokens)

    def weight(self) -> float:
        return float(self.batch.target_count)

    def on(self, device: torch.device, rows: slice) -> Batch:
        """Some of the rows, on the device. If the batch has images but these rows have none, `pixels` has zero tiles: an image
        encoder that is distributed over several processes must run on each of them."""
        part = self.batch[rows]
        several = bool((part.document != part.document[:, :1]).any())
        inputs = {} if part.tiles is None else {"pixels": to_device(normalised(part.tiles), device)}
        document = to_device(part.document, device) if several else None
        return Batch(to_device(part.tokens, device), to_device(part.targets, device), document, inputs)


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on `device`; it is copied to a GPU from pinned memory, asynchronously."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Pretraining(TaskBase):
    """The pretraining task. `corpus` is a corpus or a mixture; `images`, if any, appear in a share of the rows."""

    settings_type: type[PretrainingConfig] = PretrainingConfig
    settings: PretrainingConfig

    def __init__(self, config: RunConfig, corpus: Corpus | Mixture, home: Path):
        """Prepares images in `home`. Raises TenfoldError if the corpus is too small, or `[task]` has an unknown setting."""
        self.settings = task_settings(config, self.settings_type)
        self.config, self.corpus = config, corpus
        self.vocab_size = corpus.vocab_size
        self.spec, tokens = resolve_model(config, corpus.vocab_size)
        _refuse_idle(self.settings, self.spec)
        h = resolve_hyperparameters(config, tokens)
        self.is_remote, self.adds_modules = corpus.is_remote, bool(self.settings.mtp)
        self.images = _images(config, corpus, self.spec, home)
        self.directory = self.images.directory if self.images else corpus.directory
        data = config.data
        self.draw: dict[str, Any] = {"batch_size": h.batch_size, "seq_len": data.seq_len, "seed": config.seed}
        self._require(h.steps)
        if isinstance(corpus, Mixture):
            self._batch: Callable[..., TokenRows] = corpus.batch
        elif self.images is not None:
            self._batch = ImagesAmongText(corpus, self.images, data.image_share).batch
        else:
            self._batch = partial(train_batch, corpus)
        self._flops_per_token = self.spec.train_flops_per_token(data.seq_len) + 6.0 * mtp_weights(self.spec, self.settings.mtp)

    @classmethod
    def open(cls, config: RunConfig, home: Path, *, quiet: bool = False) -> "Pretraining":
        """The task of a run file. Its text is built in `home` by one process if it is not there yet."""
        task_settings(config, cls.settings_type)
        return cls(config, on_first_process_then_all(lambda: open_text(config, home, quiet=quiet)), home)

    def _require(self, steps: int) -> None:
        """Raises TenfoldError if the text would be read more often than `max_epochs`, or is shorter than a row."""
        data = self.config.data
        for _, corpus, _ in parts(self.corpus):
            row_count(corpus, "validation", data.seq_len)
        if self.images is not None:
            self.images.packed("validation", data.seq_len)
        if isinstance(self.corpus, Mixture):
            self.corpus.require_rows(steps, max_epochs=data.max_epochs, **self.draw)
        else:
            text_share = 1 - data.image_share if self.images else 1.0
            require_tokens(self.corpus, text_share * steps * self.draw["batch_size"] * data.seq_len, data.max_epochs)

    def prepare(self, model: nn.Module) -> None:
        """Add to a model what this task trains with it: multi-token prediction, and a balance loss for experts."""
        if self.settings.load_balancing == "aux_loss":
            use_aux_loss(model, self.settings.load_balancing_rate)
        if self.settings.mtp:
            add_mtp(cast(Any, model), self.settings.mtp, self.settings.mtp_weight)

    def fingerprint(self) -> dict[str, str]:
        corpora = self.corpus.corpora if isinstance(self.corpus, Mixture) else {"text": self.corpus}
        checksums = {name: json.dumps(corpus.manifest["files"], sort_keys=True) for name, corpus in corpora.items()}
        if self.images is not None:
            files = sorted([*self.directory.glob("*.bin"), *self.directory.glob("*.npy")])
            checksums["images"] = " ".join(file_sha256(file) for file in files)
        return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in checksums.items()}

    def rows(self, step: int, rows: slice) -> HostRows:
        return HostRows(self._batch(step, rows, **self.draw))

    def loss(self, model: Any, batch: Batch) -> LossSums:
        return LossSums(*model.loss(batch.tokens, batch.targets, batch.document, self.settings.z_loss, **batch.inputs))

    def flops(self, rows: Rows) -> float:
        batch = cast(HostRows, rows).batch
        flops = batch.tokens.size * self._flops_per_token
        if batch.tiles is not None and self.spec.vision is not None:
            flops += 3.0 * len(batch.tiles) * self.spec.vision.forward_flops_per_tile(self.spec.dim)
        return flops

    def progress(self, step: int) -> dict[str, Any]:
        """The number of tokens that each source of a mixture has provided before `step`; nothing for a single corpus."""
        if isinstance(self.corpus, Corpus):
            return {}
        drawn = self.corpus.drawn(step, self.draw["batch_size"], self.config.seed)
        return {"sources": {name: count * self.config.data.seq_len for name, count in drawn.items()}}

    def evaluate(self, run: Run) -> dict[str, float]:
        """`loss` in nats per validation token, and `bits_per_byte` of the same text.

        For a mixture, these are means over its corpora, weighted by their shares at the end of the run. With images, there are also
        the bits per byte of the images' texts, with their own images (`image_bits_per_byte`) and with those of others
        (`image_bits_per_byte_shuffled`).
        """
        results = [(share, self._validate(run, corpus)) for _, corpus, share in parts(self.corpus)]
        total = sum(share for share, _ in results)
        nats, bits = (sum(share * result[i] for share, result in results) / total for i in (0, 1))
        seen = {} if self.images is None else self._validate_images(run, self.images)
        return {"loss": nats, "bits_per_byte": bits, **seen}

    @torch.no_grad()
    def _validate(self, run: Run, corpus: Corpus) -> tuple[float, float]:
        part = run.dims.data_rank, run.dims.data
        limit: dict[str, Any] = {"seq_len": self.config.data.seq_len, "limit_tokens": self.settings.evaluate_tokens}
        nats, count = 0.0, 0.0
        for batch in validation_batches(corpus, batch_size=run.evaluation_rows(), part=part, **limit):
            nats += run.loss_of(HostRows(batch).on(run.device, slice(None)))
            count += batch.target_count
            run.watchdog.beat()
        nats = run.dims.total(nats)[0]
        count, size = run.dims.total_of_rows(count, validation_bytes(corpus, part=part, **limit))
        return nats / max(1, count), nats / math.log(2) / max(1, size)

    @torch.no_grad()
    def _validate_images(self, run: Run, images: ImageCorpus) -> dict[str, float]:
        size = int(images.documents["bytes"][images.documents["validation"]].sum())
        options: dict[str, Any] = {
            "batch_size": run.evaluation_rows(), "seq_len": self.config.data.seq_len, "part": (run.dims.data_rank, run.dims.data)
        }  # fmt: skip
        bits_per_byte = {}
        for name, shuffled in (("image_bits_per_byte", False), ("image_bits_per_byte_shuffled", True)):
            nats = 0.0
            for batch in image_batches(images, shuffled=shuffled, **options):
                nats += run.loss_of(HostRows(batch).on(run.device, slice(None)))
                run.watchdog.beat()
            bits_per_byte[name] = run.dims.total(nats)[0] / math.log(2) / size
        return bits_per_byte


def _refuse_idle(settings: PretrainingConfig, spec: ModelSpec) -> None:
    """Raises TenfoldError for settings without effect."""
    dense, alone = not spec.n_experts, settings.load_balancing == "none"
    for key, why, holds in (
        ("mtp_weight", "mtp is 0", not settings.mtp),
        ("load_balancing", "the model has no experts", dense),
        ("load_balancing_rate", "the model has no experts", dense),
        ("load_balancing_rate", 'load_balancing is "none"', alone),
    ):
        if holds:
            refuse(settings, key, why, "The table [task]")


def _images(config: RunConfig, corpus: Corpus | Mixture, spec: ModelSpec, home: Path) -> ImageCorpus | None:
    if config.data.images is None:
        return None
    assert spec.vision is not None and isinstance(corpus, Corpus)
    return on_first_process_then_all(partial(images_in, home, Path(config.data.images), corpus, spec.vision))


def pretrain(
    config: RunConfig, corpus: Corpus | Mixture, directory: Path, *, quiet: bool = False, keep_model: bool = True,
    notes: dict[str, Any] | None = None,
) -> RunResult:  # fmt: skip
    """Pretrain in `directory` on a corpus that is already open; the other arguments are those of `fit` and `standard_hooks`."""
    start_processes(config.health.hang_after_s)
    config = as_begun(config, directory)
    hooks = standard_hooks(config, quiet=quiet, keep_model=keep_model, notes=notes)
    return fit(Pretraining(config, corpus, directory.parent), config, directory, hooks)
