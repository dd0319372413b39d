"""A ranker trained on a table, for whoever needs one trained without the command line."""

from pathlib import Path
from typing import Any

from tenfold.data.interactions.interactions import open_interactions
from tenfold.rank.options import RankOptions
from tenfold.spec.errors import TenfoldError


def train_on(source: Path, directory: Path, *, home: Path, options: RankOptions, task: dict[str, Any], quiet: bool = False) -> Path:
    """A finished run in `directory`, with the table `[task]`; one that was stopped is gone on with.

    Raises TenfoldError where it is stopped again.
    """
    from tenfold.rank.task import RankConfig, Ranking
    from tenfold.train.result import read_result
    from tenfold.train.trainer import fit, standard_hooks

    if (done := read_result(directory)) is None:
        users = len(open_interactions(str(source), home, RankConfig(**task).held).users)
        config = options.run(str(source), users, task)
        done = fit(Ranking.open(config, home, quiet=quiet), config, directory, standard_hooks(config, quiet=quiet))
    if not done.finished:
        raise TenfoldError(f"The run in {directory} was stopped: the same command goes on with it.")
    return directory
