"""What a model has learnt: the loss on the validation text, and on the words of validation images."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tenfold.data.images.corpus import ImageCorpus, image_batches
from tenfold.data.images.tiles import normalised
from tenfold.data.text.batches import Batch, validation_batches, validation_bytes
from tenfold.data.text.corpus import Corpus
from tenfold.data.text.mixture import Mixture, parts
from tenfold.model.llama import Llama
from tenfold.train.config import RunConfig
from tenfold.train.one_gpu import to_device
from tenfold.train.parallel.parallelize import ParallelDims


def tensors(
    batch: Batch, start: int, stop: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
    """Tokens, targets, documents (None where each row is one) and pixels of the rows `start` to `stop`.

    Where the batch has images but these rows have none, the pixels are those of no tile: an encoder that lies on several
    processes has to run on each.
    """
    rows = slice(start, stop)
    tokens, targets = to_device(batch.tokens[rows], device), to_device(batch.targets[rows], device)
    several = bool((batch.document[rows] != batch.document[rows][:, :1]).any())
    document = to_device(batch.document[rows], device) if several else None
    seen = {}
    if batch.tiles is not None and batch.tile_ends is not None:
        tiles = batch.tiles[int(batch.tile_ends[start - 1]) if start else 0 : int(batch.tile_ends[rows][-1])]
        seen = {"pixels": torch.from_numpy(normalised(tiles)).to(device)}
    return tokens, targets, document, seen


@torch.no_grad()
def evaluate_images(
    model: Llama, images: ImageCorpus, config: RunConfig, device: torch.device, place: ParallelDims
) -> dict[str, float]:
    """Bits per byte of the words of the validation images: beside their own, and beside one another's, images."""
    size = int(images.documents["bytes"][images.documents["validation"]].sum())
    nats = {"bits_per_byte": 0.0, "bits_per_byte_shuffled": 0.0}
    for batch in image_batches(images, batch_size=16, seq_len=config.seq_len):
        tokens, targets, document, seen = tensors(batch, 0, len(batch.tokens), device)
        targets = place.positions(targets)
        nats["bits_per_byte"] += model.loss(tokens, targets, document, 0.0, **seen)[0].item()
        others = {"pixels": seen["pixels"].roll(1, 0)}
        nats["bits_per_byte_shuffled"] += model.loss(tokens, targets, document, 0.0, **others)[0].item()
    return {name: place.total(total)[0] / place.data / math.log(2) / size for name, total in nats.items()}


def evaluate(
    model: Llama,
    corpus: Corpus | Mixture,
    config: RunConfig,
    device: torch.device,
    place: ParallelDims = ParallelDims(),
    beat: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Validation loss in nats per token, and in bits per byte of the same text; every data rank reads all of it.

    `beat` is called after every batch.

    Of a mixture, the mean over its corpora, weighted with their shares at the end of the run.
    """
    results = [(share, _evaluate(model, part, config, device, place, beat)) for _, part, share in parts(corpus)]
    total = sum(share for share, _ in results)
    nats, bits = (sum(share * result[i] for share, result in results) / total for i in (0, 1))
    return nats, bits


@torch.no_grad()
def _evaluate(
    model: Llama, corpus: Corpus, config: RunConfig, device: torch.device, place: ParallelDims, beat: Callable[[], None]
) -> tuple[float, float]:
    nats, count = 0.0, 0
    for batch in validation_batches(
        corpus, batch_size=16, seq_len=config.seq_len, limit_tokens=config.evaluate_tokens
    ):
        tokens, targets, document, _ = tensors(batch, 0, len(batch.tokens), device)
        targets = place.positions(targets)
        if place.pipeline is None:
            nats += model.loss(tokens, targets, document)[0].item()
        else:
            nats += place.pipeline.loss(tokens, targets, document)
        count += int((batch.targets >= 0).sum())
        beat()
    nats = place.total(nats)[0] / place.data
    size = validation_bytes(corpus, seq_len=config.seq_len, limit_tokens=config.evaluate_tokens)
    return nats / max(1, count), nats / math.log(2) / max(1, size)
