"""Made interactions whose every probability is known, so that the best hit rate that any model can reach is known too.

Items stand in clusters. The next item comes from the cluster that follows the last item's with probability `FOLLOW`, else from
any, by the item's weight in its cluster, and is never one that the user has had.
"""

from dataclasses import dataclass

import numpy as np

FOLLOW = 0.75
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class ClusterChain:
    """A Markov chain over clusters of items; item i is in cluster i // `per_cluster`."""

    clusters: int = 24
    per_cluster: int = 10
    users: int = 2000
    length: int = 20
    seed: int = 0

    @property
    def items(self) -> int:
        return self.clusters * self.per_cluster

    def probabilities(self, histories: list[list[int]]) -> np.ndarray:
        """The true probability of every next item after each history, [histories, items]."""
        follows = np.random.default_rng(self.seed).permutation(self.clusters)
        chance = np.full((self.clusters, self.clusters), (1 - FOLLOW) / self.clusters)
        chance[np.arange(self.clusters), follows] += FOLLOW
        weight = 1 / np.sqrt(np.arange(1, self.per_cluster + 1))
        weight = np.tile(weight / weight.sum(), self.clusters)
        p = np.empty((len(histories), self.items))
        for row, history in zip(p, histories, strict=True):
            row[:] = np.repeat(chance[history[-1] // self.per_cluster], self.per_cluster) * weight if history else weight
            row[history] = 0
        return p / p.sum(1, keepdims=True)

    def histories(self) -> list[list[int]]:
        """What each user chose, in order."""
        rng = np.random.default_rng((self.seed, 1))
        made: list[list[int]] = [[] for _ in range(self.users)]
        for _ in range(self.length):
            reached = self.probabilities(made).cumsum(1)
            drawn = (reached < rng.random((self.users, 1)) * reached[:, -1:]).sum(1)
            for history, item in zip(made, drawn.tolist(), strict=True):
                history.append(item)
        return made
