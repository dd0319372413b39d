"""Cross-entropy from the last hidden state, computed in chunks so that the logits are never all in memory.

The forward pass also computes the gradient of each chunk while its logits are in memory (as Liger Kernel and torchtune do); the
backward pass only scales it. Peak memory is one chunk of logits instead of three copies of all logits.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = {"cpu": 2**20, "cuda": 2**30}  # logits per chunk: what fits a CPU's L2 cache; a small share of a GPU's memory
FEWEST = 128  # rows per chunk; with fewer, reading the weights would take longer than the matrix product
BEYOND_CACHE = 2**28  # bytes per chunk where CHUNK_BYTES would hold fewer than FEWEST rows


def chunk_rows(weight: Tensor) -> int:
    """The number of tokens per chunk, for a head `weight` [vocab, dim].

    Logits are kept in float32, except on a GPU, where they have the dtype of `weight`.
    """
    row = (weight.element_size() if weight.is_cuda else 4) * weight.shape[0]
    rows = CHUNK_BYTES.get(weight.device.type, 2**25) // row
    return rows if rows >= FEWEST else max(FEWEST, BEYOND_CACHE // row)


def fused_gradient(logits: Tensor, index: Tensor, ignored: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """The summed negative log-likelihood, the summed z-loss, and the gradient of both with respect to `logits` [rows, vocab].

    `index` int64 [rows, 1] are the targets; `ignored` bool [rows] marks targets that do not count. torch.compile fuses this
    into two passes that read `logits` and one that writes the gradient; float32 intermediates are not stored.
    """
    x, counted = logits.float(), (~ignored).float()[:, None]
    log_z = x.logsumexp(-1, keepdim=True)
    nats = ((log_z - x.gather(1, index)) * counted).sum()
    z_term = z_loss * (log_z.square() * counted).sum()
    target = torch.arange(logits.shape[1], device=logits.device) == index
    grad = ((x - log_z).exp() * (1 + 2 * z_loss * log_z) - target.float()) * counted
    return nats, z_term, grad.to(logits.dtype)


@cache
def _compiled_gradient() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(fused_gradient, dynamic=False)


class _FusedCrossEntropy(torch.autograd.Function):
    """As `_ChunkedCrossEntropy`, for GPUs: fewer passes over the logits, because memory traffic is what limits them there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        gradient = _compiled_gradient() if hidden.is_cuda else fused_gradient
        chunks = -(-hidden.shape[0] // chunk_rows(weight))
        nats, z_term = (torch.zeros((), device=hidden.device) for _ in range(2))
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        ignored, index = targets < 0, targets.clamp(min=0)[:, None]
        # Chunks of nearly equal size: the kernel is compiled for few shapes, and no chunk is small.
        for h, i, skip, out in zip(*(t.chunk(chunks) for t in (hidden, index, ignored, grad_hidden)), strict=True):
            part, z_part, grad = gradient(h @ weight.T, i, skip, z_loss)
            nats += part
            z_term += z_part
            torch.mm(grad, weight, out=out)
            grad_weight += grad.T @ h
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return nats, z_term

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_weight * grad_outputs[0], None, None


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        rows = min(chunk_rows(weight), hidden.shape[0])
        nats = torch.zeros((), device=hidden.device)
        z_term = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight: Tensor | None = None
        ignored = targets < 0
        index = targets.clamp(min=0)[:, None]
        minus_one = torch.full((1, 1), -1.0, device=hidden.device)
        buffer = torch.empty(rows, weight.shape[0], dtype=hidden.dtype, device=hidden.device)
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, start + rows)
            h, skip = hidden[chunk], ignored[chunk]
            logits = torch.mm(h, weight.T, out=buffer[: len(h)]).float()
            target, largest = logits.gather(1, index[chunk]), logits.amax(-1, keepdim=True)
            p = torch.softmax(logits, -1, out=logits)
            # From the largest probability, which is at least 1 / vocab: that of the target may underflow.
            log_z = largest - p.amax(-1, keepdim=True).log()
            nats += (log_z - target).masked_fill_(skip[:, None], 0.0).sum()
            if z_loss:
                log_z = log_z.masked_fill(skip[:, None], 0.0)
                z_term += z_loss * log_z.square().sum()
                p *= 1 + 2 * z_loss * log_z
            p.scatter_add_(1, index[chunk], minus_one.expand(len(h), 1))
            grad = p.to(h.dtype)
            # Rows with an ignored target are masked here and in `h`: these are narrower than the logits.
            torch.mm(grad, weight, out=grad_hidden[chunk]).masked_fill_(skip[:, None], 0.0)
            h = h.masked_fill(skip[:, None], 0.0)
            if grad_weight is None:
                grad_weight = grad.T @ h
                grad_weight = grad_weight if rows == len(hidden) else grad_weight.float()  # chunks are summed in float32
            elif grad_weight.dtype == grad.dtype:
                grad_weight.addmm_(grad.T, h)
            else:
                grad_weight += grad.T @ h
        ctx.save_for_backward(grad_hidden, torch.zeros_like(weight) if grad_weight is None else grad_weight.to(weight.dtype))
        return nats, z_term

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_weight * grad_outputs[0], None, None


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two sums over the targets that are not -100: the negative log-likelihood in nats, and the z-loss.

    hidden [tokens, dim], weight [vocab, dim], targets int64 [tokens]. The z-loss is `z_loss` times the squared log-partition
    (PaLM, arXiv 2204.02311, section 5), and zero where gradients are off. `backward` on either result gives the gradient of
    their sum, so a loss must add both results with the same factor.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():
        nats = torch.zeros((), device=hidden.device)
        for h, t in zip(hidden.split(chunk_rows(weight)), targets.split(chunk_rows(weight)), strict=True):
            nats += F.cross_entropy(F.linear(h, weight).float(), t, ignore_index=-100, reduction="sum")
        return nats, torch.zeros_like(nats)
    method = _FusedCrossEntropy if hidden.is_cuda else _ChunkedCrossEntropy
    return method.apply(hidden, weight, targets, z_loss)
