"""A scenario tree of demand."""

import math
from dataclasses import dataclass, replace

from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class Node:
    """A state of the world at one stage. `probability` is that of this node, given its parent (an index; None for the root)."""

    name: str
    parent: int | None
    probability: float
    demand_mw: float


@dataclass(frozen=True)
class Tree:
    """A scenario tree: the root first, which is the present, and every parent before its children."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        for index, node in enumerate(self.nodes):
            if (node.parent is None) != (index == 0) or not -1 < (node.parent or 0) < max(index, 1):
                raise TenfoldError(f"Node {node.name!r} needs a parent that stands before it: only the first node has none.")
            if not (math.isfinite(node.demand_mw) and node.demand_mw >= 0):
                raise TenfoldError(f"Node {node.name!r} has a demand of {node.demand_mw} MW: give 0 or more.")
            if not 0 <= node.probability <= 1:
                raise TenfoldError(f"Node {node.name!r} has the probability {node.probability}: give 0 to 1.")
            children = [other.probability for other in self.nodes if other.parent == index]
            if children and not math.isclose(sum(children), 1, abs_tol=1e-9):
                raise TenfoldError(f"The probabilities after node {node.name!r} sum to {sum(children):g}: they must sum to 1.")
        if not self.nodes or self.nodes[0].probability != 1:
            raise TenfoldError("A tree begins with a root of probability 1.")

    def path(self, node: int) -> list[int]:
        """The node and its ancestors, the root last."""
        parent = self.nodes[node].parent
        return [node] if parent is None else [node, *self.path(parent)]

    def stage(self, node: int) -> int:
        return len(self.path(node)) - 1

    def probability(self, node: int) -> float:
        """That of the node, seen from the root."""
        return math.prod(self.nodes[n].probability for n in self.path(node))

    def mean_demand(self) -> "Tree":
        """The same tree with every node's demand replaced by its stage's expected demand."""
        means: dict[int, float] = {}
        for index, node in enumerate(self.nodes):
            stage = self.stage(index)
            means[stage] = means.get(stage, 0.0) + self.probability(index) * node.demand_mw
        return Tree(tuple(replace(node, demand_mw=means[self.stage(index)]) for index, node in enumerate(self.nodes)))
