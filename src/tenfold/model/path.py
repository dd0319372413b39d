"""The path of a model's weights, for commands and options that must not import PyTorch."""

from pathlib import Path

from tenfold.spec.errors import TenfoldError


def model_path(path: Path) -> Path:
    """The Hugging Face directory or GGUF file that `path` names: itself, or the folder `model` in a generation or run.

    Raises TenfoldError where there is none.
    """
    path = path / "model" if (path / "model").is_dir() else path
    if not path.exists():
        raise TenfoldError(f"There is no model at {path}: give a generation, a Hugging Face directory or a GGUF file.")
    return path
