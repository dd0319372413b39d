"""`Family`: everything the rest of Tenfold knows about a family of models. A new family is one file and an entry point in
`tenfold.families`.

`shape` and `role` are also used where PyTorch is not imported, so the built-in families import their PyTorch modules only when
`build` or `weights` is called.
"""

from collections.abc import Callable, Iterator
from enum import Enum, auto
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from tenfold.spec.model import ModelSpec
from tenfold.spec.plugins import load, plugins
from tenfold.spec.shapes import llama4_shape, llama_shape

if TYPE_CHECKING:
    from tenfold.model.io.format import CheckpointFormat


class Role(Enum):
    """What a weight is for. The role decides its initialization, its learning rate, and whether it has weight decay.

    A weight that stacks the matrices of all experts has the role of a single such matrix.
    """

    EMBEDDING = auto()  # a look-up table
    HEAD = auto()  # hidden states to logits
    VECTOR = auto()  # weights of norms, and in an image encoder the biases and the class token
    BIAS = auto()  # a vector that is added; initialized to zero
    MATRIX = auto()  # a hidden matrix
    RESIDUAL = auto()  # a hidden matrix that writes to the residual stream
    ROUTER = auto()  # hidden states to scores of experts
    ENCODER_MATRIX = auto()  # as MATRIX and RESIDUAL, in an image encoder
    ENCODER_RESIDUAL = auto()
    ENCODER_POSITIONS = auto()  # learned positions of an image encoder

    @property
    def is_matrix(self) -> bool:
        """Whether hidden states are multiplied with the weight."""
        return self not in (Role.EMBEDDING, Role.VECTOR, Role.BIAS, Role.ENCODER_POSITIONS)

    @property
    def is_hidden(self) -> bool:
        """Whether the weight is a matrix between hidden states of the model or of its image encoder."""
        return self.is_matrix and self not in (Role.HEAD, Role.ROUTER)


class Family(NamedTuple):
    """A family of models: the class of its specs, and the functions that depend on the family.

    `build` makes a model with randomly initialized weights. `shape` gives the spec for a width and a vocabulary size. `role`
    gives the role of a weight by its name in `named_parameters`. `weights` describes how other tools name and store the weights.
    """

    spec: type[ModelSpec]
    build: Callable[[ModelSpec], Any]
    shape: Callable[[int, int], ModelSpec]
    role: Callable[[str], Role]
    weights: Callable[[], "CheckpointFormat"]


def family_of(spec: ModelSpec) -> Family:
    """The family of a spec."""
    return load("families", spec.family)


def families() -> Iterator[tuple[str, Family]]:
    """All families by name, the built-in ones first."""
    return ((name, load("families", name)) for name in plugins("families"))


def llama_role(name: str) -> Role:
    """The role of a weight of Llama 3."""
    if name.startswith("embedding."):
        return Role.EMBEDDING
    if name.startswith("head."):
        return Role.HEAD
    if "norm." in name:
        return Role.VECTOR
    if name.endswith(".bias"):
        return Role.BIAS
    return Role.RESIDUAL if ".wo." in name or ".w2." in name else Role.MATRIX


def llama4_role(name: str) -> Role:
    """The role of a weight of Llama 4."""
    if ".router." in name:
        return Role.ROUTER
    if not name.startswith("vision."):
        return llama_role(name)
    if name == "vision.positions":
        return Role.ENCODER_POSITIONS
    if name == "vision.last" or "norm" in name or name.endswith(".bias"):
        return Role.VECTOR
    return Role.ENCODER_RESIDUAL if ".wo." in name or ".w2." in name else Role.ENCODER_MATRIX


def _later(module: str, name: str) -> Callable[..., Any]:
    """A function that, when called, imports `tenfold.model.<module>` and calls its function `name`."""
    return lambda *arguments: getattr(import_module(f"tenfold.model.{module}"), name)(*arguments)


LLAMA3 = Family(ModelSpec, _later("llama", "Llama"), llama_shape, llama_role, _later("io.llama", "llama_format"))
LLAMA4 = Family(ModelSpec, _later("llama4", "Llama4"), llama4_shape, llama4_role, _later("io.llama4", "llama4_format"))
