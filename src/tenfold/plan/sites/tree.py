"""Scenario trees of demand, made from sampled futures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from tenfold.plan.sites.demand import DemandFile, Paths, State, sample
from tenfold.spec.errors import TenfoldError

SAMPLES = 4096
LEAST_PATHS = 8  # of a node


@dataclass(frozen=True)
class Node:
    """A state of demand from `quarter` on. `parent` is an index (None for the root), `probability` that of the node given its
    parent, and `hours` the demand of each kind in million hours per year of the reference accelerator."""

    name: str
    parent: int | None
    probability: float
    quarter: float
    hours: tuple[float, ...]


@dataclass(frozen=True)
class Tree:
    """A scenario tree up to the quarter `end`. The root, the present, is first, and each parent stands before its children.

    Raises TenfoldError for nodes that do not form such a tree.
    """

    nodes: tuple[Node, ...]
    kinds: tuple[str, ...]
    end: float

    def __post_init__(self) -> None:
        for index, node in enumerate(self.nodes):
            if (node.parent is None) != (index == 0) or not -1 < (node.parent or 0) < max(index, 1):
                raise TenfoldError(f"Node {node.name!r} needs a parent that stands before it, as only the first node has none.")
            if len(node.hours) != len(self.kinds) or not all(math.isfinite(h) and h >= 0 for h in node.hours):
                raise TenfoldError(f"Node {node.name!r} has a demand of {node.hours}: give each kind's hours, 0 or more.")
            if not 0 <= node.probability <= 1:
                raise TenfoldError(f"Node {node.name!r} has the probability {node.probability}: give 0 to 1.")
            if not (self.nodes[node.parent].quarter if node.parent is not None else -math.inf) < node.quarter < self.end:
                raise TenfoldError(f"Node {node.name!r} must come after its parent and before the end, quarter {self.end:g}.")
            children = [other.probability for other in self.nodes if other.parent == index]
            if children and not math.isclose(sum(children), 1, abs_tol=1e-9):
                raise TenfoldError(f"The probabilities after node {node.name!r} sum to {sum(children):g}: they must sum to 1.")
        if not self.nodes or self.nodes[0].probability != 1:
            raise TenfoldError("A tree must begin with a root of probability 1.")

    def path(self, node: int) -> list[int]:
        """The node and its ancestors, the root last."""
        found = [node]
        while (parent := self.nodes[found[-1]].parent) is not None:
            found.append(parent)
        return found

    def stage(self, node: int) -> int:
        """The number of nodes before this one on its path."""
        return len(self.path(node)) - 1

    def probability(self, node: int) -> float:
        """The probability of a node, seen from the root."""
        return math.prod(self.nodes[n].probability for n in self.path(node))

    def years(self, node: int) -> float:
        """The years from the node's quarter to the next stage."""
        quarter = self.nodes[node].quarter
        return (self._ends[quarter] - quarter) / 4

    @cached_property
    def _ends(self) -> dict[float, float]:
        """For the first quarter of each stage, the quarter at which it ends."""
        return dict(pairwise(sorted({n.quarter for n in self.nodes} | {self.end})))

    @property
    def leaves(self) -> list[int]:
        parents = {node.parent for node in self.nodes}
        return [index for index in range(len(self.nodes)) if index not in parents]

    def only(self, leaf: int) -> "Tree":
        """The path to a leaf as a tree of its own, on which all demand is known beforehand."""
        return single(self, [self.nodes[n].hours for n in reversed(self.path(leaf))])

    def mean(self) -> "Tree":
        """A tree of one path, with each stage's expected demand."""
        stages = range(self.stage(len(self.nodes) - 1) + 1)
        weights = np.array([self.probability(n) for n in range(len(self.nodes))])
        at = np.array([self.stage(n) for n in range(len(self.nodes))])
        hours = np.array([node.hours for node in self.nodes])
        return single(self, [tuple(weights[at == s] @ hours[at == s]) for s in stages])


def single(tree: Tree, hours: Sequence[tuple[float, ...]]) -> Tree:
    """A tree of one path through the stages of another, with the given demand of each stage."""
    quarters = sorted({node.quarter for node in tree.nodes})
    nodes = [
        Node(str(i), i - 1 if i else None, 1.0, q, tuple(map(float, h)))
        for i, (q, h) in enumerate(zip(quarters, hours, strict=True))
    ]
    return Tree(tuple(nodes), tree.kinds, tree.end)


@dataclass(frozen=True)
class Grown:
    """A tree made from sampled futures (`paths`). `through` has, for each stage, the node that each future passes [paths]."""

    tree: Tree
    paths: Paths
    through: tuple[np.ndarray, ...]

    def given(self, weights: np.ndarray) -> Tree:
        """The same tree with its probabilities if its futures have these weights [paths] instead of equal ones."""
        nodes = []
        for n, node in enumerate(self.tree.nodes):
            stage = self.tree.stage(n)
            mass = weights[self.through[stage] == n].sum()
            above = weights[self.through[stage - 1] == node.parent].sum() if stage else mass
            siblings = sum(other.parent == node.parent for other in self.tree.nodes)
            nodes.append(replace(node, probability=float(mass / above) if above else 1 / siblings))
        return replace(self.tree, nodes=tuple(nodes))


def grow(paths: Paths, demand: DemandFile, branches: Sequence[int]) -> Grown:
    """A tree from sampled futures: the paths of a node are divided by their demand at the next stage into up to `branches` groups.

    Each division is by the kind of demand, and at the threshold, that explains most of the variance. A node's demand is the mean
    of its paths, so that each stage keeps their expected demand (optimal quantisation: Pflug and Pichler 2014, Multistage
    Stochastic Optimization). `branches` is by stage; the last value is that of all later stages.
    """
    nodes = [Node("now", None, 1.0, paths.quarters[0], tuple(map(float, paths.hours[0, 0])))]
    groups = {0: np.arange(len(paths.hours))}
    through = [np.zeros(len(paths.hours), int)]
    for stage in range(1, len(paths.quarters)):
        ahead: dict[int, np.ndarray] = {}
        for parent, group in groups.items():
            for part in _cut(group, paths.hours[:, stage], branches[min(stage, len(branches)) - 1]):
                name = f"{paths.quarters[stage]:g}.{len(ahead) + 1}"
                hours = tuple(map(float, paths.hours[part, stage].mean(0)))
                ahead[len(nodes)] = part
                nodes.append(Node(name, parent, len(part) / len(group), paths.quarters[stage], hours))
        groups = ahead
        through.append(np.empty(len(paths.hours), int))
        for node, part in groups.items():
            through[-1][part] = node
    return Grown(Tree(tuple(nodes), demand.kinds, demand.end_quarter), paths, tuple(through))


def forecast_tree(
    demand: DemandFile, state: State, branches: Sequence[int] | None = None, *, samples: int = SAMPLES, seed: int = 0
) -> Grown:
    """The tree of a demand from a state on, over the remaining stages."""
    return grow(ahead(demand, state, samples, seed), demand, branches or demand.branches)


def ahead(demand: DemandFile, state: State, samples: int = SAMPLES, seed: int = 0) -> Paths:
    """Sampled futures from a state on, over the remaining stages."""
    return sample(demand, state, tuple(q for q in demand.quarters if q >= state.quarter), samples, seed)


def placed(paths: Paths, end: float, leaves: int) -> tuple[int, ...]:
    """The branches of each stage for a tree of at most `leaves` leaves, placed where most is learnt.

    The news of a stage is the variance of its demand that the demand of the stage before does not explain, times the square of the
    remaining time. A division in two leaves a quarter of the variance, as for a uniform distribution.
    """
    hours, number = paths.hours.sum(2), len(paths.quarters) - 1
    news = [_unexplained(paths.hours[:, s], hours[:, s + 1]) * (end - paths.quarters[s + 1]) ** 2 for s in range(number)]
    branches = [1] * number
    while 2 * math.prod(branches) <= leaves and max(news, default=0.0) > 0:
        most = int(np.argmax(news))
        branches[most] *= 2
        news[most] /= 4
    return tuple(branches)


def _unexplained(before: np.ndarray, after: np.ndarray) -> float:
    """The residual variance of total demand after a linear regression on the kinds of demand one stage before."""
    known = np.column_stack([np.ones(len(before)), before])
    return float((after - known @ np.linalg.lstsq(known, after)[0]).var())


def _cut(group: np.ndarray, hours: np.ndarray, number: int) -> list[np.ndarray]:
    """Divide a group of paths into at most `number` parts, in the order of their total demand."""
    parts = [group]
    while len(parts) < number:
        cuts = [_best_cut(part, hours) for part in parts]
        best = max(range(len(parts)), key=lambda i: cuts[i][0])
        if not cuts[best][0]:
            break
        parts[best : best + 1] = cuts[best][1:]
    return sorted(parts, key=lambda part: hours[part].sum(1).mean())


def _best_cut(part: np.ndarray, hours: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The largest variance between two parts, and the parts; (0, part, part) where the paths cannot be divided."""
    best = (0.0, part, part)
    for kind in range(hours.shape[1] if len(part) >= 2 * LEAST_PATHS else 0):
        rising = part[np.argsort(hours[part, kind], kind="stable")]
        values = hours[rising]
        count, total = np.arange(1, len(rising))[:, None], len(rising)
        away = np.cumsum(values, 0)[:-1] - count * values.mean(0)
        between = (away**2 * total / (count * (total - count))).sum(1)
        between[: LEAST_PATHS - 1] = between[len(between) - LEAST_PATHS + 1 :] = 0.0
        at = int(np.argmax(between))
        if between[at] > best[0] * (1 + 1e-9) + 1e-12:
            best = (float(between[at]), rising[: at + 1], rising[at + 1 :])
    return best
