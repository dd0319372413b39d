"""The shape of Llama 4's image encoder."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import Positive, require_fields

PATCH = "<|patch|>"
Size = Annotated[int, Meta(ge=1, le=2**20)]
IMAGE_TOKENS = ("<|image_start|>", "<|image_end|>", "<|image|>", PATCH, "<|tile_x_separator|>", "<|tile_y_separator|>")


@dataclass(frozen=True)
class VisionSpec:
    """The shape of a transformer over the patches of one square tile, whose outputs are merged into tokens of the text model.

    The defaults are those of Llama 4 Scout and Maverick (llama-models `models/llama4/vision`). Each square of `shuffle` x `shuffle`
    patches becomes one token of the text model (pixel shuffle), through an adapter MLP of width `adapter_dim`. `patch_token` is
    the id of `<|patch|>`, the placeholder of such a token in the text. Raises TenfoldError for an impossible shape.
    """

    image_size: Size = 336
    patch_size: Size = 14
    dim: Size = 1408
    n_layers: Size = 34
    n_heads: Size = 16
    shuffle: Size = 2
    adapter_dim: Size = 4096
    rope_theta: Positive = 10_000.0
    patch_token: Annotated[int, Meta(ge=0)] = 200092

    def __post_init__(self) -> None:
        require_fields(self, "The image encoder")
        if self.image_size % (self.patch_size * self.shuffle):
            raise TenfoldError(
                f"The image encoder's image_size {self.image_size} must be a multiple of patch_size x shuffle = "
                f"{self.patch_size * self.shuffle}."
            )
        if self.dim % (4 * self.n_heads):
            raise TenfoldError(f"The image encoder's width {self.dim} must be a multiple of 4 x n_heads = {4 * self.n_heads}.")

    @property
    def grid(self) -> int:
        """The number of patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def mlp_dim(self) -> int:
        """The hidden width of the MLPs. It equals the width of merged patches, as Hugging Face's configuration assumes."""
        return self.dim * self.shuffle**2

    @property
    def tokens_per_tile(self) -> int:
        return (self.grid // self.shuffle) ** 2

    def parameters(self, text_dim: int) -> int:
        """The number of weights of encoder, adapter and projection to a text model of width `text_dim`."""
        patch = 3 * self.patch_size**2 * self.dim
        places = (self.grid**2 + 2) * self.dim
        block = 4 * self.dim * (self.dim + 1) + 2 * self.dim * self.mlp_dim + self.mlp_dim + self.dim + 4 * self.dim
        adapter = self.mlp_dim * self.adapter_dim + self.adapter_dim**2 + self.adapter_dim * text_dim
        return patch + places + self.n_layers * block + 4 * self.dim + adapter

    def forward_flops_per_tile(self, text_dim: int) -> float:
        """FLOPs of the matrix products that turn one tile into tokens of a text model of width `text_dim`."""
        places, joined = self.grid**2 + 1, self.tokens_per_tile
        block = 4 * self.dim**2 + 2 * self.dim * self.mlp_dim + 2 * places * self.dim
        adapter = self.mlp_dim * self.adapter_dim + self.adapter_dim**2 + self.adapter_dim * text_dim
        return 2.0 * (self.grid**2 * 3 * self.patch_size**2 * self.dim + places * self.n_layers * block + joined * adapter)


def small_vision(text_dim: int, n_layers: int) -> VisionSpec:
    """An encoder for a small text model: as wide and as deep as that, with 16 tokens for a tile of 64 x 64 pixels."""
    heads = max(1, text_dim // 32)
    dim = round(text_dim / (4 * heads)) * 4 * heads
    return VisionSpec(image_size=64, patch_size=8, dim=dim, n_layers=n_layers, n_heads=heads, adapter_dim=2 * dim)
