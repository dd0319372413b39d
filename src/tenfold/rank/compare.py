"""Comparisons of rankers with baselines, with one another, and over several moments, always on the same users."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from tenfold.data.interactions.events import Interactions
from tenfold.data.interactions.interactions import open_interactions
from tenfold.data.interactions.splits import Held, rolling
from tenfold.data.interactions.synthetic import SYNTHETIC, made
from tenfold.rank.baselines import baselines
from tenfold.rank.extras import objective_scores, read_extras
from tenfold.rank.metrics import Evaluation, difference, evaluate, pooled, summary
from tenfold.rank.model import ItemModel
from tenfold.rank.ranker import Scorer, read_ranker, scorer_of
from tenfold.rank.task import RankConfig
from tenfold.rank.training import finished
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.run_file import read_config, task_settings

ABOVE = ("hit_rate_10", "ndcg_10")  # measures whose differences are reported


@dataclass(frozen=True)
class Trained:
    """A finished run: its settings, its interactions, its model."""

    config: RunConfig
    task: RankConfig
    interactions: Interactions
    model: ItemModel
    directory: Path

    @property
    def scorer(self) -> Scorer:
        return scorer_of(self.model, self.task.times)

    def objectives(self) -> dict[str, float]:
        """The calibration error of the predictions on the test, by objective."""
        extras = read_extras(self.directory, self.model.spec.dim)
        found = objective_scores(extras, self.model, self.interactions, self.config.data.seq_len)
        return {f"error_of_{name}": value for name, value in found.items()}


def open_trained(generation: Path, home: Path) -> Trained:
    """Load a finished run; `home` has its interactions. Raises TenfoldError for another task or a different set of items."""
    config, model = read_config(generation / "run.toml"), read_ranker(generation / "model")
    task = task_settings(config, RankConfig)
    interactions = open_interactions(config.data.corpus, home, task.held)
    if model.spec.vocab_size != interactions.vocab_size:
        raise TenfoldError(f"{config.data.corpus} has other items than {generation} was trained on: train again.")
    return Trained(config, task, interactions, model, generation)


def evaluated(generation: Path, home: Path, held: Held) -> dict[str, Any]:
    """The measures of a finished run's model and of the baselines on the events `held`, and their differences."""
    one = open_trained(generation, home)
    found = evaluated_parts(one, held)
    found["model"].whole.update(one.objectives())
    return _document(found, one, held)


def compared(generation: Path, home: Path, beside: Path | None) -> dict[str, Any]:
    """As `evaluated` on the test, also with the model of the run `beside`.

    Raises TenfoldError where that run has other interactions or another split.
    """
    found = evaluated_parts(one := open_trained(generation, home))
    if beside is not None:
        other = open_trained(beside, home)
        if other.interactions.directory != one.interactions.directory:
            raise TenfoldError(f"{beside} has other interactions, or another split, than {generation}: train it on the same.")
        found[beside.name] = evaluate(other.scorer, one.interactions, one.interactions.held_out("test"))
    return _document(found, one, "test")


def evaluated_parts(one: Trained, held: Held = "test") -> dict[str, Evaluation]:
    """The evaluations by name: `model`, the baselines, and for the source `synthetic` also `best_possible`."""
    interactions, source = one.interactions, one.config.data.corpus
    queries, scorers = interactions.held_out(held), baselines(interactions)
    if source.partition(":")[0] == SYNTHETIC:
        scorers["best_possible"] = best_possible(source, interactions)
    model = evaluate(one.scorer, interactions, queries)
    return {"model": model} | {name: evaluate(each, interactions, queries, logits=False) for name, each in scorers.items()}


def best_possible(source: str, interactions: Interactions) -> Scorer:
    """The probabilities by which synthetic interactions were drawn: no scorer has a higher expected hit rate."""
    generator = made(source)
    assert generator is not None
    number = np.array([int(name.removeprefix("item-")) for name in interactions.names[1:]])

    def scores(queries: Any) -> np.ndarray:
        rows = [generator.weights(number[h - 1][None])[0][number] for h in queries.histories]
        return np.pad(np.log(np.maximum(rows, 1e-300)), ((0, 0), (1, 0)))

    return scores


def rolled(generation: Path, home: Path, cuts: int) -> dict[str, Any]:
    """Train the run of `generation` again before each of `cuts` moments, and pool the tests after each of them.

    The runs are in `cuts/N` of the generation; finished ones are not trained again.
    """
    asked, parts, one = read_config(generation / "run.toml"), [], None
    for number, split in enumerate(rolling(cuts)):
        task = {**asked.task, "split": "temporal", "test_begin": split.begin, "test_end": split.end, "validation": split.validation}
        config, directory = replace(asked, task=task), generation / "cuts" / str(number)
        finished(config, directory, home)
        one = open_trained(directory, home)
        parts.append(evaluated_parts(one))
    assert one is not None
    together = {name: pooled([part[name] for part in parts]) for name in parts[0] if all(name in part for part in parts)}
    return _document(together, one, "test") | {"split": f"{cuts} cuts"}


def _document(found: dict[str, Evaluation], one: Trained, held: Held) -> dict[str, Any]:
    model = found["model"]
    above = {
        name: {measure: difference(model, other, measure) for measure in ABOVE}
        for name, other in found.items()
        if name not in ("model", "best_possible")
    }
    return {
        "split": one.interactions.split.name,
        "held": held,
        "users": len(model.users),
        "queries": model.queries,
        "items": one.interactions.vocab_size - 1,
        "scores": {name: summary(each) for name, each in found.items()},
        "model_above": above,
    }
