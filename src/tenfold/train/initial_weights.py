"""The weights that a run begins with. On several processes none ever holds more than its share of them and one part whole."""

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
    """The model that a run begins with: stored weights where it says so, else drawn from the generator; none on the meta device."""
    if device.type == "cpu":
        _require_memory(spec)
    if init_from is not None and device.type != "meta":
        return read_model(Path(init_from)).to(device)
    with device:
        model = make_model(spec)
        begin_as_identity(model, spec)
    return model


def _require_memory(spec: ModelSpec) -> None:
    """Raises TenfoldError where weights and gradients alone are more than this machine's memory."""
    total, there = spec.parameters().total, psutil.virtual_memory().total
    if 8 * total > there:
        raise TenfoldError(
            f"{spec.name} has {si(total, 'parameters')}, with gradients {8 * total / 2**30:.3g} GiB, and this machine has "
            f"{there / 2**30:.3g}: take a smaller model or more machines."
        )


def check_tokenizer(init_from: Path, tokenizer_directory: Path) -> None:
    """Raises TenfoldError where the weights in `init_from` were trained with another tokenizer than the corpus has."""
    if has_tokenizer(init_from) and not same_tokenizer(init_from, tokenizer_directory):
        raise TenfoldError(
            f"The model in {init_from} has another tokenizer than the corpus {tokenizer_directory}: build the corpus with "
            f"`tenfold data build --tokenizer-from {init_from}`."
        )


@torch.no_grad()
def give_shares(model: Llama, init_from: str | None, device: torch.device) -> None:
    """Give a model of the meta device, once it is spread over processes, the weights that `build` would, to the bit."""
    model.to_empty(device=device)
    for buffer in model.buffers():
        buffer.zero_()
    ours = dict(model.named_parameters())
    if init_from is None:
        _draw(model, ours, device)
        return
    for part, weights in read_parts(Path(init_from)):
        for name, whole in weights.named_parameters():
            if f"{part}.{name}" in ours:  # else another stage has it
                _keep_share(ours[f"{part}.{name}"], whole)


def _draw(model: Llama, ours: dict[str, nn.Parameter], device: torch.device) -> None:
    spec = model.spec
    with device:  # building a model draws too, before `initialize` does
        nn.Embedding(spec.vocab_size, spec.dim)
        for layer in range(spec.n_layers):
            model.block(layer)
        nn.Linear(spec.dim, spec.vocab_size, bias=False)
    shapes = {name: p.shape for name, p in make_shapes(spec).named_parameters()}
    for name, shape in shapes.items():
        whole = torch.empty(shape, device=device)
        draw(name, whole, spec)
        if name in ours:  # else another stage has it
            _keep_share(ours[name], whole.zero_() if begins_at_zero(name, spec) else whole)


def all_finite(model: nn.Module) -> bool:
    """Whether this process's share of the weights has neither NaN nor infinities."""
    return all(bool(local(p).isfinite().all()) for p in model.parameters())


def _keep_share(p: Tensor, whole: Tensor) -> None:
    whole = whole.to(p.device)
    share = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None) if isinstance(p, DTensor) else whole
    local(p).copy_(local(share))
