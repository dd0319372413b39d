"""The tokenizer that stands beside a model's weights."""

from pathlib import Path

from tokenizers import Tokenizer

from tenfold.model.io.gguf import read_gguf_tokenizer
from tenfold.spec.errors import TenfoldError


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory or a GGUF file."""
    if path.suffix == ".gguf":
        return read_gguf_tokenizer(path)
    file = path / "tokenizer.json"
    if not file.exists():
        raise TenfoldError(f"{path} has no tokenizer.json: copy the model's tokenizer there.")
    return Tokenizer.from_file(str(file))
