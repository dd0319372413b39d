"""What every task of this room asks of a run file."""

from pathlib import Path

from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig


def model_of(config: RunConfig) -> Path:
    """The model to begin from. Raises TenfoldError where the run file names none."""
    if config.init_from is None:
        raise TenfoldError("Fine-tuning needs a model to begin from: give init_from.")
    return Path(config.init_from)


def check_rows(there: int, asked: int, max_epochs: float) -> None:
    """Raises TenfoldError where a run would read its rows more often than `max_epochs`."""
    if asked / there > max_epochs:
        raise TenfoldError(
            f"The run would read its {there} rows of chats {asked / there:.1f} times: give more chats, ask for fewer tokens, or "
            f"raise max_epochs in [data] ({max_epochs:g})."
        )
