"""The weights that a run begins with. On several processes none ever holds more than its share of them and one part whole."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tenfold.data.text.corpus import Corpus
from tenfold.data.text.mixture import Mixture
from tenfold.model.build import make_model, make_shapes
from tenfold.model.initialize import begin_as_identity, begins_at_zero, draw
from tenfold.model.io.huggingface import read_model, read_parts
from tenfold.model.llama import Llama
from tenfold.model.moe import use_aux_loss
from tenfold.model.mtp import add_mtp
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.train.config import RunConfig
from tenfold.train.parallel.parallelize import local


def build(spec: ModelSpec, config: RunConfig, corpus: Corpus | Mixture, device: torch.device) -> Llama:
    """The model that a run trains: stored weights where it says so, else drawn from the generator; none on the meta device."""
    if config.init_from is not None:
        _check_tokenizer(Path(config.init_from), corpus)
    if config.init_from is not None and device.type != "meta":
        model = read_model(Path(config.init_from)).to(device)
    else:
        with device:
            model = make_model(spec)
            begin_as_identity(model, spec)
    if config.balance == "loss":
        use_aux_loss(model, config.balance_rate)
    if config.ahead:
        add_mtp(model, config.ahead, config.ahead_weight)
    return model


def _check_tokenizer(directory: Path, corpus: Corpus | Mixture) -> None:
    own, theirs = (d / "tokenizer.json" for d in (corpus.directory, directory))
    if theirs.exists() and own.read_bytes() != theirs.read_bytes():
        raise TenfoldError(
            f"The model in {directory} has another tokenizer than the corpus {corpus.directory}: train it on the corpus that its "
            "tokenizer was made with."
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


def _keep_share(p: Tensor, whole: Tensor) -> None:
    whole = whole.to(p.device)
    share = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None) if isinstance(p, DTensor) else whole
    local(p).copy_(local(share))
