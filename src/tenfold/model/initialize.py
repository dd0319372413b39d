"""Weight initialization, by the role of each weight."""

import torch
from torch import Tensor, nn

from tenfold.model.family import Role, family_of
from tenfold.spec.model import ModelSpec

EMBEDDING_STD = 0.1


def initialize(module: nn.Module, spec: ModelSpec, prefix: str = "") -> None:
    """Initialize all weights of `module` from PyTorch's global generator, in the order of `named_parameters`.

    `prefix` is the name of `module` within the model, with a dot at its end.
    """
    for name, p in module.named_parameters():
        draw(prefix + name, p, spec)


def draw(name: str, p: Tensor, spec: ModelSpec) -> None:
    """Initialize the weight `p`, whose name in the model is `name`.

    Matrices have variance 1 / fan-in. Those that write to the residual stream are divided by sqrt(2 * layers), so that the
    residual stream does not grow with depth. The head has standard deviation 1 / dim (maximal-update parametrisation: Yang
    et al., arXiv 2203.03466, table 8), so that the initial logits are small at every width.
    """
    role = family_of(spec).role(name)
    if role is Role.VECTOR:
        nn.init.ones_(p)
    elif role is Role.BIAS:
        nn.init.zeros_(p)
    elif role is Role.EMBEDDING:
        nn.init.normal_(p, std=EMBEDDING_STD if not spec.tied else spec.dim**-0.5)
    elif role is Role.HEAD:
        nn.init.normal_(p, std=1.0 / spec.dim)
    else:
        nn.init.normal_(p, std=p.shape[-1] ** -0.5 / ((2 * spec.n_layers) ** 0.5 if role is Role.RESIDUAL else 1.0))


@torch.no_grad()
def begin_as_identity(model: nn.Module, spec: ModelSpec) -> None:
    """Set the head, and every matrix that writes to the residual stream, to zero.

    Every block is then the identity, and the initial loss is log(vocab_size) whatever the seed (as in Fixup, arXiv
    1901.09321; `docs/LOG.md` has the measured effect). A head that is tied to the embedding keeps its weights, and so does
    the image encoder.
    """
    for name, p in model.named_parameters():
        if begins_at_zero(name, spec):
            p.zero_()


def begins_at_zero(name: str, spec: ModelSpec) -> bool:
    """Whether `begin_as_identity` sets the weight `name` to zero."""
    return family_of(spec).role(name) in (Role.RESIDUAL, Role.HEAD)
