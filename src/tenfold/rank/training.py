"""Training of rankers from Python."""

from pathlib import Path
from typing import Any

from tenfold.data.interactions.interactions import open_interactions
from tenfold.rank.options import RankOptions
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.result import RunResult, read_result


def train_on(
    source: str | Path, directory: Path, *, home: Path, options: RankOptions, task: dict[str, Any], quiet: bool = False
) -> RunResult:
    """Train a ranker on the interactions `source` in `directory`, with the table `[task]`; see `finished`."""
    from tenfold.rank.task import RankConfig

    users = len(open_interactions(str(source), home, RankConfig(**task).held).users)
    return finished(options.run(str(source), users, task), directory, home, quiet)


def finished(config: RunConfig, directory: Path, home: Path, quiet: bool = True) -> RunResult:
    """The result of a run, which is trained or continued where it has not finished. Raises TenfoldError where it is stopped."""
    from tenfold.rank.task import Ranking
    from tenfold.train.trainer import fit, standard_hooks

    if (done := read_result(directory)) is None:
        done = fit(Ranking.open(config, home, quiet=quiet), config, directory, standard_hooks(config, quiet=quiet))
    if not done.finished:
        raise TenfoldError(f"The run in {directory} was stopped: repeat the command to continue it.")
    return done
