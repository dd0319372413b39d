"""Cross-entropy from the last hidden state that never holds all logits: they are made, used and dropped by chunks.

The forward pass computes each chunk's gradient at once, since the logits are at hand (as in the chunked losses
of Liger Kernel and torchtune); the backward pass only scales it. Peak memory is one chunk of logits instead of
three copies of all of them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 32 * 2**20


def _rows(weight: Tensor) -> int:
    """Tokens whose float32 logits fill one chunk."""
    return max(128, CHUNK_BYTES // (4 * weight.shape[0]))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        rows = _rows(weight)
        nats = torch.zeros((), device=hidden.device)
        z_term = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, hidden.shape[0], rows):
            h, t = hidden[start : start + rows], targets[start : start + rows]
            counted = (t >= 0)[:, None]
            index = t.clamp(min=0)[:, None]
            logits = F.linear(h, weight).float()
            log_z = logits.logsumexp(-1, keepdim=True)
            nats += ((log_z - logits.gather(1, index)) * counted).sum()
            grad = logits.sub_(log_z).exp_()  # softmax, in the memory of the logits
            if z_loss:
                z_term += z_loss * (log_z.square() * counted).sum()
                grad *= 1 + 2 * z_loss * log_z
            grad.scatter_add_(1, index, torch.full_like(log_z, -1.0))
            grad = (grad * counted).to(h.dtype)
            grad_hidden[start : start + rows] = grad @ weight.to(h.dtype)
            grad_weight += grad.T @ h
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return nats, z_term

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_weight * grad_outputs[0], None, None


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sums over the targets that are not -100: negative log-likelihood in nats, and the z-loss.

    hidden [tokens, dim], weight [vocab, dim], targets [tokens]. The gradient is that of the sum of both, whichever
    of the two `backward` is called on; both must be scaled alike, as a loss that adds them does. z-loss: `z_loss`
    times the squared log-partition (PaLM, arXiv 2204.02311, section 5), zero where no gradient is asked for.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():
        nats = torch.zeros((), device=hidden.device)
        for h, t in zip(hidden.split(_rows(weight)), targets.split(_rows(weight)), strict=True):
            nats += F.cross_entropy(F.linear(h, weight).float(), t, ignore_index=-100, reduction="sum")
        return nats, torch.zeros_like(nats)
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, z_loss)
