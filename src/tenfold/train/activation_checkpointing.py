"""Activation checkpointing: what the backward pass works out again instead of keeping it."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tenfold.model.llama import Llama
from tenfold.model.moe import Experts

ActivationCheckpointing = Literal["none", "selective", "full"]


def checkpoint_activations(model: Llama, what: ActivationCheckpointing) -> None:
    """Work out again in the backward pass what is inside of every feed-forward ("selective") or every block ("full").

    Beside what attention keeps, "selective" drops three quarters or so of the activations for a fifth more products; "full"
    keeps only what goes from block to block, for a third more. Routing is never worked out again, for it counts tokens: a block
    with experts keeps what its two parts are given.
    """
    if what == "none":
        return
    for block in model.layers:
        if isinstance(block.ffn, Experts):
            block.ffn.mixed = _again(block.ffn.mixed)  # type: ignore[method-assign]
            if what == "full":
                block.attended = _again(block.attended)  # type: ignore[method-assign]
        elif what == "full":
            block.forward = _again(block.forward)  # type: ignore[method-assign]
        else:
            block.fed = _again(block.fed)  # type: ignore[method-assign]


def _again(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs: Any) -> Tensor:
        result = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(result, Tensor)
        return result

    return run
