"""One text from a model, by the engine in this process."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tenfold.data.images.tiles import image_text, open_image, tiles_of
from tenfold.model.io.huggingface import read_spec
from tenfold.serve.engine.build import make_engine
from tenfold.serve.engine.engine import Engine
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling
from tenfold.serve.runners.runner import TorchRunner
from tenfold.serve.text import read_text_side
from tenfold.spec.errors import TenfoldError


class Completion(NamedTuple):
    """A prompt with what follows it. `cut_at` is the context of the model, in tokens, where that alone ended the text."""

    text: str
    cut_at: int | None


def complete(
    path: Path, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int, image: Path | None = None
) -> Completion:
    """`prompt` and what the model in `path` writes after it, up to the end of the text; an `image` stands before it.

    Tokens that stand for images are not in the text.
    """
    before, pixels = _shown(path, image) if image else ("", None)
    text = read_text_side(path)
    tokens = text.tokenizer.encode(before + prompt).ids
    # One text is not worth the time and memory that compiled kernels need to pack the weights.
    engine = make_engine(EngineOptions(path, enforce_eager=True, speculate=False))
    if pixels is not None:
        assert isinstance(engine.runner, TorchRunner)
        engine.runner.show(tokens, pixels)
    sampling = Sampling(temperature, top_p, seed=seed, max_tokens=max_new_tokens, stop_tokens=text.stop_tokens)
    written = generate(engine, tokens, sampling)
    cut = len(written) < max_new_tokens and len(tokens) + len(written) >= engine.max_model_len
    return Completion(text.tokenizer.decode(tokens + written), engine.max_model_len if cut else None)


def generate(engine: Engine, tokens: list[int], sampling: Sampling) -> list[int]:
    """The tokens that follow `tokens`. Raises TenfoldError where the engine refuses them."""
    engine.add(Request("text", tokens, sampling))
    found: list[int] = []
    while engine.has_work:
        for output in engine.step():
            if output.error:
                raise TenfoldError(output.error)
            found += output.tokens
    return found


def _shown(path: Path, image: Path) -> tuple[str, Tensor]:
    """What stands for an image in the text, and its tiles."""
    vision = None if path.suffix == ".gguf" else read_spec(path).vision
    if vision is None:
        raise TenfoldError(f"The model in {path} has no image encoder: leave --image out, or train one with images.")
    tiles, rows, columns = tiles_of(open_image(image), vision.image_size, max_tiles=1)
    return image_text(rows, columns, vision.tokens_per_tile), torch.from_numpy(tiles)
