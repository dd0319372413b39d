"""Where the weights of a model lie, for commands and options that are read without PyTorch."""

from pathlib import Path

from tenfold.spec.errors import TenfoldError


def model_path(path: Path) -> Path:
    """The weights of a generation, a Hugging Face directory or a GGUF file. Raises TenfoldError where there are none."""
    path = path / "model" if (path / "model").is_dir() else path
    if not path.exists():
        raise TenfoldError(f"There is no model at {path}: give a generation, a Hugging Face directory or a GGUF file.")
    return path
