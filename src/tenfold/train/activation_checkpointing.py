"""Activation checkpointing: recompute activations in the backward pass instead of keeping them in memory."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tenfold.model.llama import Llama
from tenfold.model.moe import Experts

ActivationCheckpointing = Literal["none", "selective", "full"]


def checkpoint_activations(model: Llama, what: ActivationCheckpointing) -> None:
    """Recompute the activations inside every feed-forward ("selective") or every block ("full") in the backward pass, in place.

    "selective" saves about three quarters of the activations other than those of attention, for about a fifth more FLOPs. "full"
    keeps only the hidden states between blocks, for a third more FLOPs. Routing is never recomputed, because it counts tokens: a
    block with experts keeps the inputs of its attention and of its feed-forward.
    """
    if what == "none":
        return
    for block in model.layers:
        if isinstance(block.ffn, Experts):
            block.ffn.mixed = _recomputed(block.ffn.mixed)  # type: ignore[method-assign]
            if what == "full":
                block.attended = _recomputed(block.attended)  # type: ignore[method-assign]
        elif what == "full":
            block.forward = _recomputed(block.forward)  # type: ignore[method-assign]
        else:
            block.fed = _recomputed(block.fed)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs: Any) -> Tensor:
        result = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(result, Tensor)
        return result

    return run
