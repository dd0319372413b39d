"""Generates one text with a model, by the engine in this process."""

from pathlib import Path
from typing import NamedTuple

from tenfold.data.images.tiles import open_image
from tenfold.serve.engine.build import make_engine
from tenfold.serve.engine.engine import Engine
from tenfold.serve.options import EngineOptions
from tenfold.serve.pictures import Prompt, read_sight
from tenfold.serve.request import Picture, Request, Sampling
from tenfold.serve.text import TextSide, read_text_side
from tenfold.spec.errors import TenfoldError


class Completion(NamedTuple):
    """A prompt and its continuation. `cut_at` is the model's context in tokens if that ended the text, else None."""

    text: str
    cut_at: int | None


def complete(
    path: Path, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int, image: Path | None = None
) -> Completion:
    """Continue `prompt`, with `image` before it, with the model at `path`, up to a stop token or `max_new_tokens`.

    The text has no tokens of the image. Raises TenfoldError if the prompt is too long, or the model cannot read the image.
    """
    text = read_text_side(path)
    asked = Prompt(text.tokenizer.encode(prompt).ids) if image is None else _with_image(path, text, image, prompt)
    # Compiled kernels pack the weights first, which costs more time and memory than one text saves.
    engine = make_engine(EngineOptions(path, enforce_eager=True, speculate=False))
    sampling = Sampling(temperature, top_p, seed=seed, max_tokens=max_new_tokens, stop_tokens=text.stop_tokens)
    written = generate(engine, asked.tokens, sampling, asked.pictures)
    cut = len(written) < max_new_tokens and len(asked.tokens) + len(written) >= engine.max_model_len
    return Completion(text.tokenizer.decode(asked.tokens + written), engine.max_model_len if cut else None)


def generate(engine: Engine, tokens: list[int], sampling: Sampling, pictures: tuple[Picture, ...] = ()) -> list[int]:
    """The tokens that the engine generates after `tokens`. Raises TenfoldError if it refuses them."""
    engine.add(Request("text", tokens, sampling, pictures=pictures))
    found: list[int] = []
    while engine.has_work:
        for output in engine.step():
            if output.error:
                raise TenfoldError(output.error)
            found += output.tokens
    return found


def _with_image(path: Path, text: TextSide, image: Path, prompt: str) -> Prompt:
    """The prompt with an image before it."""
    sight = read_sight(path)
    if sight is None:
        raise TenfoldError(f"The model in {path} has no image encoder: leave --image out, or train one with images.")
    begin = text.tokenizer.encode("").ids  # the special tokens with which a prompt without an image begins, too
    return sight.prompt([begin, text.ids(prompt)], [sight.view(open_image(image), text)])
