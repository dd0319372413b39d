"""Images in prompts: cut into tiles, with tokens that stand for them between those of the texts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tenfold.data.images.tiles import cut, image_text
from tenfold.model.io.huggingface import read_spec
from tenfold.serve.request import Picture
from tenfold.serve.text import TextSide
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vision import PATCH, VisionSpec


class View(NamedTuple):
    """An image as a model reads it: tiles uint8 [tiles, 3, S, S], and the tokens that stand for them and their layout."""

    tiles: np.ndarray
    tokens: list[int]


class Prompt(NamedTuple):
    """The tokens of a prompt, and the images whose tokens are among them."""

    tokens: list[int]
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Sight:
    """How a model reads images: in at most `max_tiles` tiles each; several tiles are followed by one of the whole image."""

    vision: VisionSpec
    max_tiles: int = 1

    def view(self, image: Image.Image, text: TextSide, max_tiles: int | None = None) -> View:
        """An image for the prompt. Raises TenfoldError if the tokenizer has no token for patches."""
        tiles, rows, columns = cut(image, self.vision.image_size, min(self.max_tiles, max_tiles or self.max_tiles))
        tokens = text.ids(image_text(rows, columns, self.vision.tokens_per_tile))
        if tokens.count(self.vision.patch_token) != len(tiles) * self.vision.tokens_per_tile:
            raise TenfoldError(f"The model's tokenizer has no {PATCH} for its image encoder: take the one that belongs to it.")
        return View(tiles, tokens)

    def prompt(self, texts: list[list[int]], views: list[View]) -> Prompt:
        """The tokens of `texts`, with one of `views` between each two of them; there is one text more than views.

        Only a view's own patch tokens stand for patches. The same token in a text is just a token.
        """
        tokens, pictures = [*texts[0]], []
        for view, text in zip(views, texts[1:], strict=True):
            patches = [i for i, token in enumerate(view.tokens, len(tokens)) if token == self.vision.patch_token]
            pictures.append(Picture(view.tiles, patches))
            tokens += view.tokens + text
        return Prompt(tokens, tuple(pictures))


def read_sight(path: Path) -> Sight | None:
    """How the model in a Hugging Face directory reads images; None for a GGUF file or a model without an image encoder.

    `max_patches` in its `preprocessor_config.json` is the limit of tiles; without that file it is 1, as Tenfold trains. Raises
    TenfoldError if the file is damaged, or the limit is not from 1 to 64.
    """
    vision = None if path.suffix == ".gguf" else read_spec(path).vision
    if vision is None:
        return None
    try:
        most = json.loads((path / "preprocessor_config.json").read_bytes()).get("max_patches", 1)
    except FileNotFoundError:
        most = 1
    except (OSError, ValueError, AttributeError):
        raise TenfoldError(f"{path / 'preprocessor_config.json'} is not a JSON object: write it again, or remove it.") from None
    if not isinstance(most, int) or not 1 <= most <= 64:
        raise TenfoldError(f"max_patches in {path / 'preprocessor_config.json'} must be from 1 to 64, not {most!r}.")
    return Sight(vision, most)
