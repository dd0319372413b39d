"""Logs of shown items and policies to judge on them, as rows for the estimators; and both read from tables."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tenfold.data.interactions.read import read_table
from tenfold.rank.offpolicy.estimators import Rows, groups
from tenfold.rank.offpolicy.rewards import Choice, RewardModel, folds_of
from tenfold.spec.errors import TenfoldError

NAMES = {
    "item": ("item", "item_id"), "place": ("place", "position"), "reward": ("reward", "click"),
    "propensity": ("propensity", "propensity_score"),
}  # fmt: skip
GROUPS = ("user", "user_id", "list", "round")  # the first of these columns says which rows depend on each other


@dataclass(frozen=True)
class Log:
    """The places that were shown, arrays [n]: item number, place from 0, reward, propensity (probability of being shown), group.

    `items` has the names of the items by number.
    """

    items: list[str]
    item: np.ndarray
    place: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    group: np.ndarray

    @property
    def places(self) -> int:
        """The number of places of the longest list."""
        return int(self.place.max()) + 1


@dataclass(frozen=True)
class Policy:
    """What another policy would show in each row of a log: the `choice` [n, m] of items, and the `chances` [n, m] of each.

    `shown_score` [n] is the policy's score of the item that was shown.
    """

    choice: Choice
    chances: np.ndarray
    shown_score: np.ndarray


def rows_of(log: Log, policy: Policy) -> Rows:
    """The rows for `estimates`, with rewards from a `RewardModel` that is fitted on the other folds of groups."""
    chance = (policy.chances * (policy.choice.item == log.item[:, None])).sum(1)
    modelled, expected, folds = np.zeros(len(chance)), np.zeros(len(chance)), folds_of(groups(log.group))
    shown = Choice(log.item, log.place, policy.shown_score)
    for fold in range(folds.max() + 1):
        there = folds == fold
        other = Choice(*(column[~there] for column in shown))
        model = RewardModel.fit(other, log.reward[~there], (len(log.items), log.places))
        modelled[there] = model.predict(Choice(*(column[there] for column in shown)))
        expected[there] = (policy.chances[there] * model.predict(Choice(*(column[there] for column in policy.choice)))).sum(1)
    return Rows(log.reward, chance / log.propensity, log.group, modelled, expected)


def read_log(file: Path) -> Log:
    """A Parquet or CSV table in the form of the Open Bandit Dataset: item, position, click, propensity_score.

    Raises TenfoldError for a table without these columns, with empty fields, or with propensities that are no probabilities.
    """
    table = read_table(file)
    found = {name: next((known for known in of if known in table.column_names), "") for name, of in NAMES.items()}
    if missing := [name for name, known in found.items() if not known]:
        raise TenfoldError(f"{file} has no column {missing[0]!r}: it has {', '.join(table.column_names)}.")
    columns = {name: table[known] for name, known in found.items()}
    if not len(table) or any(column.null_count for column in columns.values()):
        raise TenfoldError(f"{file} has no rows, or rows with an empty field.")
    items = columns["item"].cast(pa.string()).combine_chunks().dictionary_encode()
    place, reward, propensity = (_numbers(columns[name], name, file) for name in ("place", "reward", "propensity"))
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise TenfoldError(f"{file} has propensities that are no probabilities: give values above 0 and up to 1.")
    whose = next((table[name] for name in GROUPS if name in table.column_names), None)
    group = (
        np.arange(len(table)) if whose is None else whose.cast(pa.string()).combine_chunks().dictionary_encode().indices.to_numpy()
    )
    places = np.unique(place, return_inverse=True)[1]
    return Log(items.dictionary.to_pylist(), items.indices.to_numpy(), places, reward, propensity, group)


def uniform(log: Log) -> Policy:
    """The policy that shows every item of the log with the same probability at each place."""
    n = len(log.items)
    return _everywhere(log, np.full((log.places, n), 1 / n))


def table_policy(log: Log, file: Path) -> Policy:
    """A policy that depends on the place alone: a table of item, position and probability.

    Positions are numbered from the smallest, in both tables. Raises TenfoldError for items and places that are not in the log, and
    where the probabilities at a place do not add up to 1.
    """
    table = read_table(file)
    if missing := {"item", "position", "probability"} - set(table.column_names):
        raise TenfoldError(f"{file} has no column {min(missing)!r}: a policy is a table of item, position and probability.")
    number = {name: i for i, name in enumerate(log.items)}
    chances = np.zeros((log.places, len(log.items)))
    positions = np.unique(_numbers(table["position"], "position", file), return_inverse=True)[1]
    for name, place, p in zip(
        table["item"].cast(pa.string()).to_pylist(), positions, table["probability"].to_pylist(), strict=True
    ):
        if p and (name not in number or place >= log.places):
            raise TenfoldError(
                f"{file} shows {name!r} at place {place + 1}, which the log never did: take items and places of the log."
            )
        if p:
            chances[place, number[name]] = p
    sums = chances.sum(1)
    if not np.allclose(sums, 1, atol=1e-3):
        worst = sums[np.abs(sums - 1).argmax()]
        raise TenfoldError(f"{file}: the probabilities of the items at a place must add up to 1, not {worst:.4g}.")
    return _everywhere(log, chances)


def _everywhere(log: Log, chances: np.ndarray) -> Policy:
    shape = (len(log.item), len(log.items))
    items, places = np.broadcast_to(np.arange(shape[1]), shape), np.broadcast_to(log.place[:, None], shape)
    return Policy(Choice(items, places, np.zeros(shape)), chances[log.place], np.zeros(shape[0]))


def _numbers(column: pa.ChunkedArray, name: str, file: Path) -> np.ndarray:
    try:
        found = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        found = np.array([np.nan])
    if not np.isfinite(found).all():
        raise TenfoldError(f"The column {name} of {file} has values that are no numbers.")
    return found
