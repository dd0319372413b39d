"""The initial weights of a run. With several processes, each holds at most its share of the weights and one whole part."""

from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tenfold.model.build import make_model, make_shapes
from tenfold.model.initialize import begin_as_identity, begins_at_zero, draw
from tenfold.model.io.huggingface import read_model, read_parts
from tenfold.model.io.tokenizer import has_tokenizer, same_tokenizer
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.spec.units import si
from tenfold.train.parallel.gradients import local


def build(spec: ModelSpec, init_from: str | None, device: torch.device) -> Llama:
    """The model that a run starts from, on `device`: with the stored weights of `init_from`, or else randomly initialized.

    On the meta device, its weights have shapes only. Raises TenfoldError if a model is too large for this machine's memory.
    """
    if device.type == "cpu":
        _require_memory(spec)
    if init_from is not None and device.type != "meta":
        return read_model(Path(init_from)).to(device)
    with device:
        model = make_model(spec)
        begin_as_identity(model, spec)
    return model


def _require_memory(spec: ModelSpec) -> None:
    """Raises TenfoldError if weights and gradients alone do not fit this machine's memory."""
    total, there = spec.parameters().total, psutil.virtual_memory().total
    if 8 * total > there:
        raise TenfoldError(
            f"{spec.name} has {si(total, 'parameters')}, which need {8 * total / 2**30:.3g} GiB with their gradients, and this "
            f"machine has {there / 2**30:.3g} GiB: train a smaller model, or use more machines."
        )


def check_tokenizer(init_from: Path, tokenizer_directory: Path) -> None:
    """Raises TenfoldError if the model in `init_from` has another tokenizer than the corpus."""
    if has_tokenizer(init_from) and not same_tokenizer(init_from, tokenizer_directory):
        raise TenfoldError(
            f"The model in {init_from} has another tokenizer than the corpus {tokenizer_directory}: build the corpus with "
            f"`tenfold data build --tokenizer-from {init_from}`."
        )


@torch.no_grad()
def give_shares(model: Llama, init_from: str | None, device: torch.device) -> None:
    """Fill a model on the meta device that is already distributed with the same weights, bit for bit, that `build` gives it.

    Every process draws or reads all weights one at a time, and keeps its own share of each.
    """
    model.to_empty(device=device)
    for buffer in model.buffers():
        buffer.zero_()
    ours = dict(model.named_parameters())
    if init_from is None:
        _draw(model, ours, device)
        return
    for part, weights in read_parts(Path(init_from)):
        for name, whole in weights.named_parameters():
            if f"{part}.{name}" in ours:  # else it belongs to another pipeline stage
                _keep_share(ours[f"{part}.{name}"], whole)


def _draw(model: Llama, ours: dict[str, nn.Parameter], device: torch.device) -> None:
    spec = model.spec
    with device:  # bring the generator to the state that `build` leaves it in: making modules draws weights before `initialize`
        nn.Embedding(spec.vocab_size, spec.dim)
        for layer in range(spec.n_layers):
            model.block(layer)
        nn.Linear(spec.dim, spec.vocab_size, bias=False)
    shapes = {name: p.shape for name, p in make_shapes(spec).named_parameters()}
    for name, shape in shapes.items():
        whole = torch.empty(shape, device=device)
        draw(name, whole, spec)
        if name in ours:  # else it belongs to another pipeline stage
            _keep_share(ours[name], whole.zero_() if begins_at_zero(name, spec) else whole)


def all_finite(model: nn.Module) -> bool:
    """Whether this process's share of the weights contains neither NaN nor infinity."""
    return all(bool(local(p).isfinite().all()) for p in model.parameters())


def _keep_share(p: Tensor, whole: Tensor) -> None:
    whole = whole.to(p.device)
    share = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None) if isinstance(p, DTensor) else whole
    local(p).copy_(local(share))
