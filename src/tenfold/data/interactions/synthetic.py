"""Made interactions whose every probability is known, and with it the best hit rate that a model can reach.

Items stand in clusters. With probability `FOLLOW` the next item is of the cluster that follows the last item's, else of any; within
a cluster the first are likelier. Nobody takes an item twice.
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

    def probabilities(self, histories: list[list[int]]) -> np.ndarray:
        """The probability of every next item after each history, [histories, items]."""
        n = self.clusters
        chance = np.full((n, n), (1 - FOLLOW) / n)
        chance[np.arange(n), np.random.default_rng(self.seed).permutation(n)] += FOLLOW
        weight = np.tile(1 / np.sqrt(np.arange(1, self.per_cluster + 1)), n)
        p = np.tile(weight, (len(histories), 1))
        for row, history in zip(p, histories, strict=True):
            if history:
                row *= np.repeat(chance[history[-1] // self.per_cluster], self.per_cluster)
            row[history] = 0
        return p / p.sum(1, keepdims=True)

    def histories(self) -> list[list[int]]:
        """What each user took, in order."""
        rng = np.random.default_rng((self.seed, 1))
        made: list[list[int]] = [[] for _ in range(self.users)]
        for _ in range(self.length):
            reached = self.probabilities(made).cumsum(1)
            drawn = (reached < rng.random((self.users, 1)) * reached[:, -1:]).sum(1)
            for history, item in zip(made, drawn.tolist(), strict=True):
                history.append(item)
        return made
