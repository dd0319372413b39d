"""One text from a model, by the engine in this process."""

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
    """A prompt with what follows it. `cut_at` is the context of the model, in tokens, where that alone ended the text."""

    text: str
    cut_at: int | None


def complete(
    path: Path, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int, image: Path | None = None
) -> Completion:
    """`prompt` and what the model in `path` writes after it, up to the end of the text; an `image` stands before it.

    Tokens that stand for images are not in the text.
    """
    text = read_text_side(path)
    asked = Prompt(text.tokenizer.encode(prompt).ids) if image is None else _shown(path, text, image, prompt)
    # One text is not worth the time and memory that compiled kernels need to pack the weights.
    engine = make_engine(EngineOptions(path, enforce_eager=True, speculate=False))
    sampling = Sampling(temperature, top_p, seed=seed, max_tokens=max_new_tokens, stop_tokens=text.stop_tokens)
    written = generate(engine, asked.tokens, sampling, asked.pictures)
    cut = len(written) < max_new_tokens and len(asked.tokens) + len(written) >= engine.max_model_len
    return Completion(text.tokenizer.decode(asked.tokens + written), engine.max_model_len if cut else None)


def generate(engine: Engine, tokens: list[int], sampling: Sampling, pictures: tuple[Picture, ...] = ()) -> list[int]:
    """The tokens that follow `tokens`. Raises TenfoldError where the engine refuses them."""
    engine.add(Request("text", tokens, sampling, pictures=pictures))
    found: list[int] = []
    while engine.has_work:
        for output in engine.step():
            if output.error:
                raise TenfoldError(output.error)
            found += output.tokens
    return found


def _shown(path: Path, text: TextSide, image: Path, prompt: str) -> Prompt:
    """The prompt behind an image."""
    sight = read_sight(path)
    if sight is None:
        raise TenfoldError(f"The model in {path} has no image encoder: leave --image out, or train one with images.")
    begin = text.tokenizer.encode("").ids  # as before a prompt without an image
    return sight.prompt([begin, text.ids(prompt)], [sight.view(open_image(image), text)])
