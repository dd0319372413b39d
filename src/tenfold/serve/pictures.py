"""Pictures in prompts: cut in tiles, and between the texts as the tokens that stand for them."""

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
    """A picture as a model is shown it: tiles uint8 [tiles, 3, S, S], and the tokens that stand for them and their order."""

    tiles: np.ndarray
    tokens: list[int]


class Prompt(NamedTuple):
    """The tokens of a prompt, with the pictures whose tokens are among them."""

    tokens: list[int]
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Sight:
    """What a model with an image encoder is shown of a picture: at most `max_tiles` tiles, and the whole beside several."""

    vision: VisionSpec
    max_tiles: int = 1

    def view(self, image: Image.Image, text: TextSide, max_tiles: int | None = None) -> View:
        """A picture for the prompt. Raises TenfoldError where the tokenizer has no words for one."""
        tiles, rows, columns = cut(image, self.vision.image_size, min(self.max_tiles, max_tiles or self.max_tiles))
        tokens = text.ids(image_text(rows, columns, self.vision.tokens_per_tile))
        if tokens.count(self.vision.patch_token) != len(tiles) * self.vision.tokens_per_tile:
            raise TenfoldError(f"The model's tokenizer has no {PATCH} for its image encoder: take the one that belongs to it.")
        return View(tiles, tokens)

    def prompt(self, texts: list[list[int]], views: list[View]) -> Prompt:
        """The tokens of `texts` with a view between each two of them.

        Only a view's own tokens stand for its patches; a text that has the same token says nothing but its name.
        """
        tokens, pictures = [*texts[0]], []
        for view, text in zip(views, texts[1:], strict=True):
            patches = [i for i, token in enumerate(view.tokens, len(tokens)) if token == self.vision.patch_token]
            pictures.append(Picture(view.tiles, patches))
            tokens += view.tokens + text
        return Prompt(tokens, tuple(pictures))


def read_sight(path: Path) -> Sight | None:
    """How the model in a Hugging Face directory sees; None for one without an image encoder, or of a GGUF file.

    Tiles are as many as its `preprocessor_config.json` says (`max_patches`), or one, which models that were trained here know.
    """
    vision = None if path.suffix == ".gguf" else read_spec(path).vision
    if vision is None:
        return None
    try:
        most = json.loads((path / "preprocessor_config.json").read_bytes()).get("max_patches", 1)
    except FileNotFoundError:
        most = 1
    except (OSError, ValueError, AttributeError):
        raise TenfoldError(f"{path / 'preprocessor_config.json'} is no JSON object: write it anew, or remove it.") from None
    if not isinstance(most, int) or not 1 <= most <= 64:
        raise TenfoldError(f"max_patches in {path / 'preprocessor_config.json'} must be from 1 to 64, not {most!r}.")
    return Sight(vision, most)
