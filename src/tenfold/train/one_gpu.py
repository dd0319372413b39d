"""What makes a model train fast on one GPU, applied from outside: masks as blocks, compiled blocks, recompute, and steps
that never wait for the host. On a CPU none of it is used by a run; all of it works there, so that it is tested."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from tenfold.model.attention import BLOCK, document_blocks
from tenfold.model.llama import Llama
from tenfold.model.moe import Experts

Recompute = Literal["none", "feed-forward", "block"]


def use_document_blocks(model: Llama, seq_len: int) -> bool:
    """Let `model` skip what documents mask out, where rows divide into whole tiles; says whether they do."""
    fits = seq_len % BLOCK == 0
    if fits:
        model.document_mask = document_blocks
    return fits


def compile_blocks(model: Llama, **options: Any) -> None:
    """Compile each block, and the last norm, by itself: all of one kind share one graph, so that time does not grow with depth.

    What was compiled is kept between runs, in `~/.cache/tenfold/compiled` unless TORCHINDUCTOR_CACHE_DIR says where.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "tenfold" / "compiled"))
    for module in (*model.layers, model.norm):
        module.compile(**options)


def recompute(model: Llama, what: Recompute) -> None:
    """Work out again in the backward pass, instead of keeping, what is inside of every feed-forward or every block.

    Beside what attention keeps, "feed-forward" drops three quarters or so of the activations for a fifth more
    products; "block" keeps only what goes from block to block, for a third more. Where tokens are routed, that is never
    worked out again, for it counts: such a block keeps what its two parts are given.
    """
    if what == "none":
        return
    for block in model.layers:
        if isinstance(block.ffn, Experts):
            block.ffn.mixed = _again(block.ffn.mixed)  # type: ignore[method-assign]
            if what == "block":
                block.attended = _again(block.attended)  # type: ignore[method-assign]
        elif what == "block":
            block.forward = _again(block.forward)  # type: ignore[method-assign]
        else:
            block.fed = _again(block.fed)  # type: ignore[method-assign]


def _again(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs: Any) -> Tensor:
        result = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(result, Tensor)
        return result

    return run


class StepSkipper:
    """Decides on the device whether a step counts, by the rule of the loop, so that the host need not wait for it.

    A step is skipped where its loss or gradient norm is not finite, or, past the first 20, where the norm is `exploding`
    times the usual one. Only for optimizers that take `found_inf`, as PyTorch's fused ones do. `state` is the loop's: it has
    `step`, `usual_norm`, `skipped` and `skipped_in_a_row`.
    """

    def __init__(self, device: torch.device, exploding: float, state: Any):
        self.exploding = exploding
        values = (state.step, state.usual_norm, state.skipped, state.skipped_in_a_row)
        self._step, self._usual, self._skipped, self._in_a_row = (
            torch.tensor(float(v), dtype=torch.float64, device=device) for v in values
        )

    @torch.no_grad()
    def take(self, optimizers: list[Optimizer], loss: Tensor, norm: Tensor) -> None:
        """Step every optimizer, or none of them."""
        norm = norm.double()
        exploded = (self._step > 20) & (norm > self.exploding * self._usual)
        bad = ~(loss.isfinite() & norm.isfinite()) | exploded
        usual = torch.where(self._usual == 0, norm, 0.95 * self._usual + 0.05 * norm)
        self._usual = torch.where(bad, self._usual, usual)
        self._skipped += bad
        self._in_a_row = torch.where(bad, self._in_a_row + 1, torch.zeros_like(self._in_a_row))
        self._step += 1
        found_inf = bad.float()
        for optimizer in optimizers:
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            optimizer.step()

    def read_into(self, state: Any) -> None:
        """Set `usual_norm`, `skipped` and `skipped_in_a_row` of `state` to what they are now; waits for the device."""
        usual, skipped, in_a_row = torch.stack((self._usual, self._skipped, self._in_a_row)).tolist()
        state.usual_norm, state.skipped, state.skipped_in_a_row = usual, int(skipped), int(in_a_row)


def to_device(values: Any, device: torch.device) -> Tensor:
    """An array as a tensor there; to a GPU from pinned memory, behind what it has still to do, without waiting."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
